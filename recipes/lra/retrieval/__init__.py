"""ACL Anthology pairs: read the release, prepare them."""
