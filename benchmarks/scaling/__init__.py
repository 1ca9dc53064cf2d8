"""Memory and time of a training step on many devices: simulated, and checked against runs on gloo."""
