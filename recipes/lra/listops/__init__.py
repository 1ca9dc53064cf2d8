"""ListOps: generate it, read the release, prepare it."""
