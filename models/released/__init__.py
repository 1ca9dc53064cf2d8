"""To and from the authors' checkpoints of language models."""
