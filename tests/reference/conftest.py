"""Reference checks need torch and transformers, so the fast suite does not even look at them."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix == ".py" and config.getoption("markexpr") == "not slow":
        return True
    return None
