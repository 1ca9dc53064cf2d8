"""The Megalodon architecture: plain PyTorch, and two thin fairseq models on top of it."""
