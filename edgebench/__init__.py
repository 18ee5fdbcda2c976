"""Measure small language models on small machines, and say how far to trust the numbers."""

__version__ = "0.1.0"
