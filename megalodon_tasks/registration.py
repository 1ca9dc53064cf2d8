"""Imports everything that registers itself with fairseq."""
