"""Training criteria in addition to fairseq's."""
