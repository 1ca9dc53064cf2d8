"""The Megalodon architecture in plain PyTorch, and two thin fairseq models on top of it."""
