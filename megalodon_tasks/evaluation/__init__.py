"""Evaluate checkpoints, draw samples, and show what a model does."""
