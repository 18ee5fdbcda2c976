"""Engines that execute an artifact; each file but ``base`` is one, found by its name."""
