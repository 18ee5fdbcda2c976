"""Measuring: the child that runs a model, the sampler beside it, and the protocol between them and the parent."""
