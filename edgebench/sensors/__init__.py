"""What can be read while a model runs; each file but ``base`` is one, found by its name."""
