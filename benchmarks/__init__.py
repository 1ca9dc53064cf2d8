"""Speed and memory against peers, each comparison in one run of one process."""
