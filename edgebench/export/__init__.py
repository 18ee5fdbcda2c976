"""Artifacts out: a checkpoint at another precision."""
