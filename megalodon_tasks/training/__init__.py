"""Train with fairseq: the classification task, the optimizer, and what all tasks share."""
