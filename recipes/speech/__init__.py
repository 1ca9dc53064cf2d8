"""Spoken words from raw audio samples: Speech Commands."""
