"""CIFAR-10 as grey pixels: read the release, prepare it."""
