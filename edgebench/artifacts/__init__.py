"""Model files: find them, pull them, prove by hash that they are what was asked for, and keep them.

``obtain`` turns a reference into an `Artifact`: the id of a model card, a path, or ``hf:owner/repo/file.gguf``. A file
that is once in the cache never asks the network again. Nothing appears under its final name before its hash is right.

    obtain.py         from a reference to an artifact
    cache.py          where finished files lie, their hashes and markers, atomic placement
    temporary.py      unfinished files, and what killed processes left behind
    local.py          a file that already lies on this machine
    package_index.py  model bytes inside wheels, through the machine's own pip
    hub.py            files on a model hub
    derived.py        files that were made from others at another precision
"""

from edgebench.artifacts.cache import Progress, cache_dir
from edgebench.artifacts.derived import adopt_derived, derived_path, find_derived
from edgebench.artifacts.obtain import CachedFile, cached, obtain, obtain_card
from edgebench.artifacts.temporary import work_file

__all__ = [
    "CachedFile",
    "Progress",
    "adopt_derived",
    "cache_dir",
    "cached",
    "derived_path",
    "find_derived",
    "obtain",
    "obtain_card",
    "work_file",
]
