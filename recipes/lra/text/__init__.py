"""Byte-level IMDb: read the release, prepare it."""
