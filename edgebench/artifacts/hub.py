"""Files on a model hub, through ``huggingface_hub`` (extra ``[hub]``).

Its own cache is used, so that a file which another program has pulled is not pulled twice; HF_ENDPOINT, HF_HOME,
HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. A connection that breaks is resumed where it broke. The
revision is pinned: the artifact's origin names the commit, never a branch. For large files the hub's ETag is the
sha256, which is compared with the bytes on the disk.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import msgspec

from edgebench.artifacts import local
from edgebench.artifacts.cache import Progress
from edgebench.errors import FetchError, MissingDependency
from edgebench.specs import Artifact, HubSource

_SHA256 = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.1


def fetch(source: HubSource, progress: Progress) -> Artifact:
    """The file as an artifact, pulled if the hub's cache lacks it.

    Raises:
        MissingDependency: when huggingface_hub is not installed.
        FetchError: when the hub has no such file, refuses it, cannot be reached, or sent other bytes.
        ArtifactError: when the file is not a GGUF.
        CacheError: when the hash cannot be remembered.
    """
    hub = _library()
    with _watched(hub, source, progress):
        path = Path(_download(hub, source))
    # <cache>/models--owner--repo/snapshots/<commit>/<file>; the file is a link to blobs/<etag>.
    commit = path.parents[source.file.count("/")].name
    etag = path.resolve().name
    artifact = local.describe(path, progress)
    if _SHA256.fullmatch(etag) and etag != artifact.sha256:
        Path(artifact.path).unlink(missing_ok=True)
        raise FetchError(
            f"{source.file} of {source.repo} arrived with the sha256 {artifact.sha256}, and the hub promised {etag}.",
            "run the same command again: the damaged file has been removed.",
        )
    return msgspec.structs.replace(
        artifact, model=Path(source.file).stem, origin=f"hf:{source.repo}/{source.file}@{commit}"
    )


def _library() -> ModuleType:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingDependency(
            "Files on a hub need the package huggingface_hub.", "pip install 'edgebench[hub]'."
        ) from error
    return huggingface_hub


def _download(hub: ModuleType, source: HubSource) -> str:
    """The path in the hub's cache; every way to fail as an error with a next step."""
    errors = hub.errors
    # The HTTP library below huggingface_hub has changed twice; its base error is what HfHubHTTPError derives from.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    name = f"{source.file} of {source.repo} at {source.revision}"
    try:
        with _quiet(hub):
            return str(hub.hf_hub_download(source.repo, source.file, revision=source.revision))
    except errors.GatedRepoError as error:
        raise _refused(name, error, "accept its terms on the hub's page, then log in: hf auth login.") from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(name, error, "check the spelling; a private repository needs hf auth login.") from error
    except errors.RevisionNotFoundError as error:
        raise _refused(name, error, "check the branch, tag or commit after '@'.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _refused(
            name, error, "connect to the network (or unset HF_HUB_OFFLINE), or give a local path."
        ) from error
    except errors.EntryNotFoundError as error:
        raise _refused(name, error, "check the file's name and folder in the repository.") from error
    except (transport, OSError, ValueError) as error:
        raise _refused(name, error, "check the network and HF_ENDPOINT, and run the same command again.") from error


def _refused(name: str, error: Exception, next_step: str) -> FetchError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    return FetchError(f"The hub did not give {name}: {reason}.", next_step)


@contextmanager
def _quiet(hub: ModuleType) -> Iterator[None]:
    """Our progress instead of the library's bars."""
    was_on = not hub.utils.are_progress_bars_disabled()
    if was_on:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            hub.utils.enable_progress_bars()


@contextmanager
def _watched(hub: ModuleType, source: HubSource, progress: Progress) -> Iterator[None]:
    """Report the size of the growing file while the library blocks."""
    folder = f"models--{source.repo.replace('/', '--')}"
    blobs = Path(hub.constants.HF_HUB_CACHE).expanduser() / folder / "blobs"
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            size = max((_size(path) for path in blobs.glob("*.incomplete")), default=0)
            if size:
                progress(f"download {source.file}", size, None)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _size(path: Path) -> int:
    """Size of a file that may be renamed at any moment."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
