"""A made artifact to where its user wants it: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgebench.artifacts.cache import cache_errors
from edgebench.errors import UsageError
from edgebench.specs import Artifact


def deliver(artifact: Artifact, target: Path, *, force: bool) -> Path:
    """Copy a file or folder to ``target``, under a temporary name until it is complete.

    Raises:
        UsageError: when something lies there already and ``force`` is not set.
        CacheError: when it cannot be written.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} exists already.", "give another place, or add --force to replace it.")
    source = Path(artifact.path)
    with cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            copy = workplace / target.name
            shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
            if target.exists():
                target.rename(workplace / "replaced")
            copy.rename(target)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    return target
