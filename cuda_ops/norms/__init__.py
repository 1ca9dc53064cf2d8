"""Moments of blocks of time by Triton, which both norms start from."""
