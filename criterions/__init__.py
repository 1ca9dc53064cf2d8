"""Training criteria beside fairseq's own."""
