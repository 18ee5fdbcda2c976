"""Weights in: what a published file says about itself, read without trusting it."""
