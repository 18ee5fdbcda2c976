"""Temporary files and folders inside the cache, on its own disk, so that a finished file is only renamed.

Each process has folders of its own, and holds a lock (``flock(2)``) on a file in each. The kernel drops the lock
when the process ends, however it ends; so a folder whose lock is free was left behind, and is removed by the next
process that needs one. A folder gets its lasting name only once it is locked: what has a lasting name and no owner is
garbage.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgebench.artifacts.cache import cache_dir, cache_errors, folder

_LOCK = "owner.lock"
_BEING_MADE = ".new-"
_BEING_MADE_S = 3600.0  # making one takes milliseconds; an hour later its maker was killed in between


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of our own inside the cache, removed at the end whatever happens.

    Raises:
        CacheError: when it cannot be made.
    """
    place, lock = _open_scratch()
    try:
        yield place
    finally:
        _close_scratch(place, lock)


def work_file(suffix: str) -> Path:
    """A fresh path for a temporary file on the cache's own disk, so that a later rename is atomic.

    The file does not exist yet. Whatever lies there is removed when this process ends, or after it was killed by the
    next process that makes one.

    Raises:
        CacheError: when the cache cannot be written.
    """
    place = _work_folder(os.getpid(), cache_dir())
    with cache_errors(place):
        return Path(tempfile.mkdtemp(dir=place)) / f"work{suffix}"


@functools.lru_cache(maxsize=4)
def _work_folder(pid: int, root: Path) -> Path:  # noqa: ARG001 - both are the cache's key: a fork or another root needs its own
    place, lock = _open_scratch()
    owner = os.getpid()

    def clean() -> None:
        if os.getpid() == owner:
            _close_scratch(place, lock)

    atexit.register(clean)
    return place


def _open_scratch() -> tuple[Path, int]:
    parent = folder("temporary")
    with cache_errors(parent):
        _remove_abandoned(parent)
        new = Path(tempfile.mkdtemp(dir=parent, prefix=_BEING_MADE))
        lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place = parent / new.name.removeprefix(_BEING_MADE)
            new.rename(place)
        except BaseException:
            _close_scratch(new, lock)
            raise
    return place, lock


def _close_scratch(place: Path, lock: int) -> None:
    # The lock goes last: until then no other process takes the folder for an abandoned one.
    shutil.rmtree(place, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for place in parent.iterdir():
        if place.name.startswith(_BEING_MADE):
            if _age_s(place) > _BEING_MADE_S:
                shutil.rmtree(place, ignore_errors=True)
        elif not _is_owned(place):
            shutil.rmtree(place, ignore_errors=True)


def _is_owned(place: Path) -> bool:
    """Whether the process that made this folder lives."""
    try:
        lock = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _age_s(place: Path) -> float:
    try:
        return time.time() - place.stat().st_mtime
    except FileNotFoundError:
        return 0.0
