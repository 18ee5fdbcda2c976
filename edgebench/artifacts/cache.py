"""The artifact cache: a folder in which every finished file has been verified.

    models/<sha256>/<name>.gguf   files as published, each beside its marker
    derived/<parent sha256>/...   files made from them, and folders of files that belong together (an ONNX export)
    licences/<card>.json          terms that were accepted
    hashes/<key>.json             known hashes of large files that lie elsewhere
    temporary/<random>/           work in progress of one process, locked while that process lives

A file is written below ``temporary``, flushed to disk and renamed: a reader sees nothing or all of it. Two processes
that pull the same file work in different folders, and the last rename wins. What a killed process left behind is
removed by the next one that needs a temporary folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar

import msgspec
import platformdirs

from edgebench.errors import ArtifactError, CacheError
from edgebench.specs import Artifact

CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 16 << 20  # left free for everybody else
_MIN_REPORT_S = 0.1
_T = TypeVar("_T", bound=msgspec.Struct)
_WAYS_OUT = "set EDGEBENCH_CACHE to a folder that you may write and that has room."


class Progress(Protocol):
    """Told how far a long step is, at most ten times a second, and once at its end."""

    def __call__(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """``what``: a short phrase; ``total_bytes`` is None when nobody knows."""
        ...


class Steady:
    """Passes progress on, at most ten times a second and always at the end of a step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._next_s = progress, 0.0

    def __call__(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if self._progress is not None and (now >= self._next_s or done_bytes == total_bytes):
            self._next_s = now + _MIN_REPORT_S
            self._progress(what, done_bytes, total_bytes)


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Written beside a finished file: what it is, and its modification time when its hash was last right."""

    artifact: Artifact
    mtime_ns: int


# --- places -----------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """The cache folder: ``EDGEBENCH_CACHE``, else the user's cache folder. It may not exist yet."""
    chosen = os.environ.get("EDGEBENCH_CACHE", "").strip()
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("edgebench")


def folder(*parts: str) -> Path:
    """A folder inside the cache, made if needed.

    Raises:
        CacheError: when it cannot be made.
    """
    path = cache_dir().joinpath(*parts)
    with cache_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about the cache into a `CacheError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"The disk that holds the cache {cache_dir()} is full.", f"free space, or {_WAYS_OUT}"
            ) from error
        raise CacheError(f"The cache cannot use {path}: {error.strerror or error}.", _WAYS_OUT) from error


def require_space(needed_bytes: int) -> None:
    """Refuse early when the disk cannot hold what is about to be written.

    Raises:
        CacheError: with the bytes needed and the bytes free.
    """
    root = folder()
    with cache_errors(root):
        free = shutil.disk_usage(root).free
    if free < needed_bytes + _SPARE_BYTES:
        raise CacheError(
            f"The cache {root} needs {needed_bytes / 1e6:.0f} MB, and its disk has {free / 1e6:.0f} MB free.",
            f"free space, or {_WAYS_OUT}",
        )


# --- hashes -----------------------------------------------------------------------------------------------------------


def copy_hashed(
    source: IO[bytes], target: IO[bytes], digest: hashlib._Hash, limit: int, tell: Callable[[int], None]
) -> int:
    """Copy a stream while hashing it; the bytes copied, at most ``limit + 1`` so that excess can be seen."""
    copied = 0
    while copied <= limit and (block := source.read(min(CHUNK_BYTES, limit + 1 - copied))):
        target.write(block)
        digest.update(block)
        copied += len(block)
        tell(copied)
    return copied


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """sha256 of a file, in hexadecimal.

    Raises:
        OSError: when it cannot be read.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(f"hash {path.name}", done, total)
    return digest.hexdigest()


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that an artifact consists of: itself, or those in its folder, sorted by name."""
    return tuple(sorted(item for item in path.iterdir() if item.is_file())) if path.is_dir() else (path,)


def content_hash(path: Path, progress: Progress | None = None) -> str:
    """sha256 of a file; of a folder, that of the lines ``<sha256>  <name>`` of its files, sorted by name.

    Raises:
        OSError: when it cannot be read.
    """
    if not path.is_dir():
        return hash_file(path, progress)
    lines = [f"{hash_file(file, progress)}  {file.name}\n" for file in files_of(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def _touched_ns(path: Path) -> int:
    return max(file.stat().st_mtime_ns for file in files_of(path))


def known_hash(path: Path, progress: Progress | None = None) -> str:
    """`content_hash` of what lies outside the cache, remembered by path, size, modification time and inode.

    Raises:
        OSError: when it cannot be read.
        CacheError: when the hash cannot be remembered.
    """
    states = [(file.name, file.stat()) for file in files_of(path)]
    identity = f"{path}\0" + "\0".join(f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for name, s in states)
    note = folder("hashes") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    remembered = _read_json(note, _Note)
    if remembered is not None and remembered.identity == identity:
        return remembered.sha256
    digest = content_hash(path, progress)
    write_json(note, _Note(identity=identity, sha256=digest))
    return digest


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    identity: str
    sha256: str


# --- placing and finding ----------------------------------------------------------------------------------------------


def place(temporary: Path, target: Path, artifact: Artifact) -> Artifact:
    """Give a finished, verified file or folder its final name, and write its marker; the artifact with its final path.

    Raises:
        CacheError: when the cache cannot be written.
    """
    with cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for part in files_of(temporary):
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir():  # a folder cannot be renamed over another
            shutil.rmtree(target)
        temporary.replace(target)
        _sync_folder(target.parent)
        mtime_ns = _touched_ns(target)
    artifact = msgspec.structs.replace(artifact, path=str(target))
    write_json(marker_of(target), Marker(artifact=artifact, mtime_ns=mtime_ns))
    return artifact


def find(target: Path, *, verify: bool, progress: Progress | None = None) -> Artifact | None:
    """The artifact at this place, or None when there is none.

    The hash is read again when ``verify`` is set, and when the file has been touched since it was last right.

    Raises:
        ArtifactError: when the file is damaged; it is removed.
        CacheError: when the cache cannot be read.
    """
    marker = _read_json(marker_of(target), Marker)
    with cache_errors(target):
        if marker is None or not target.exists() or not files_of(target):
            return None
        size, mtime_ns = size_of(target), _touched_ns(target)
        artifact = msgspec.structs.replace(marker.artifact, path=str(target))
        if not verify and size == artifact.bytes and mtime_ns == marker.mtime_ns:
            return artifact
        actual = content_hash(target, progress)
        if actual != artifact.sha256:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            raise ArtifactError(
                f"{target} is damaged: its sha256 is {actual}, not {artifact.sha256}; it has been removed.",
                "run the same command again; if it happens twice, check the disk.",
            )
    write_json(marker_of(target), Marker(artifact=artifact, mtime_ns=mtime_ns))
    return artifact


def marker_of(target: Path) -> Path:
    """Where the marker of a file lies."""
    return target.with_name(target.name + ".json")


def write_json(target: Path, value: msgspec.Struct) -> None:
    """Write a small file atomically.

    Raises:
        CacheError: when the cache cannot be written.
    """
    with cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(value))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _read_json(path: Path, kind: type[_T]) -> _T | None:
    """A small file of ours; None when it is missing or not what we write (it is then written again)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise CacheError(f"The cache cannot read {path}: {error.strerror}.", _WAYS_OUT) from error


def _sync_folder(path: Path) -> None:
    """Make a rename survive a power cut (``fsync(2)``: the directory entry needs its own)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
