"""Tasks and groups for lm-evaluation-harness that the paper's tables need."""
