"""Pathfinder and Path-X: generate them, read the release, prepare them."""
