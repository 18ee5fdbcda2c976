"""Model cards and device profiles: ``models/*.toml`` and ``profiles/*.toml`` as structs of `edgebench.specs`.

Cards are data that people write by hand, so the reader is strict: an unknown key, a wrong type, an id that differs from
the file's name or a claim without a source is an error that names the file and the key, never a silent default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgebench.device_profile import DeviceProfile
from edgebench.errors import HostError, UnknownNameError, UsageError
from edgebench.specs import Claim, ModelCard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Card = TypeVar("_Card", ModelCard, DeviceProfile)


def model_cards() -> dict[str, ModelCard]:
    """All model cards by id, sorted.

    Raises:
        UsageError: when a card is wrong.
    """
    return _read_all(data_dir("models"), ModelCard)


def model_card(card_id: str) -> ModelCard:
    """One model card.

    Raises:
        UnknownNameError: when there is no card with this id.
        UsageError: when a card is wrong.
    """
    cards = model_cards()
    if card_id not in cards:
        raise UnknownNameError(
            "model",
            card_id,
            cards,
            hint="a GGUF file of your own is given by its path, a file on a hub as hf:owner/repo/file.gguf",
        )
    return cards[card_id]


def device_profiles() -> dict[str, DeviceProfile]:
    """All device profiles by id, sorted.

    Raises:
        UsageError: when a profile is wrong.
    """
    return _read_all(data_dir("profiles"), DeviceProfile)


def device_profile(profile_id: str) -> DeviceProfile:
    """One device profile.

    Raises:
        UnknownNameError: when there is no profile with this id.
        UsageError: when a profile is wrong.
    """
    profiles = device_profiles()
    if profile_id not in profiles:
        raise UnknownNameError("device profile", profile_id, profiles)
    return profiles[profile_id]


def data_dir(kind: str) -> Path:
    """Where the cards of a kind (``models``, ``profiles``) lie: inside the installed package, else in the checkout.

    Raises:
        HostError: when they are in neither place.
    """
    package = Path(__file__).parent
    for candidate in (package / "_data" / kind, package.parent / kind):
        if candidate.is_dir():
            return candidate
    raise HostError(f"The {kind} that belong to edgebench are not beside {package}.", "install edgebench again.")


def read_model_card(path: Path) -> ModelCard:
    """Read one ``models/<id>.toml``.

    Raises:
        UsageError: when the file is unreadable, no TOML, or not a valid card; names the file and the key.
    """
    return _read(path, ModelCard)


def read_device_profile(path: Path) -> DeviceProfile:
    """Read one ``profiles/<id>.toml``.

    Raises:
        UsageError: when the file is unreadable, no TOML, or not a valid profile; names the file and the key.
    """
    return _read(path, DeviceProfile)


def _read_all(folder: Path, kind: type[_Card]) -> dict[str, _Card]:
    return {path.stem: _read(path, kind) for path in sorted(folder.glob("*.toml"))}


def _read(path: Path, kind: type[_Card]) -> _Card:
    try:
        card = msgspec.convert(tomllib.loads(path.read_bytes().decode("utf-8")), kind)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, f"is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise _wrong(path, f"is not a valid card: {error}") from error
    if card.id != path.stem:
        raise _wrong(path, f"says id = {card.id!r}, but its file name says {path.stem!r}")
    for key, claim in _claims(card):
        if not claim.source and not claim.unverified:
            raise _wrong(path, f"has a claim {key!r} with neither a source nor unverified = true")
    if isinstance(card, ModelCard):
        _check_files(path, card)
    else:
        _check_device(path, card)
    return card


def _check_device(path: Path, profile: DeviceProfile) -> None:
    """What the types cannot say."""
    cores = profile.cores
    if profile.clusters and cores is not None and sum(cluster.count for cluster in profile.clusters) != cores.value:
        raise _wrong(path, f"says 'cores' = {cores.value}, but its 'clusters' add up to something else")
    for name, rules in (("match", profile.match), *((f"also[{n}]", rule) for n, rule in enumerate(profile.also))):
        if rules.memory_gib is not None and rules.memory_gib[0] >= rules.memory_gib[1]:
            raise _wrong(path, f"has a range '{name}.memory_gib' whose beginning is not below its end")
        if (profile.kind == "gpu") != bool(rules.gpu):
            raise _wrong(path, f"has kind {profile.kind!r}; the rule '{name}.gpu' belongs to the kind 'gpu' alone")
    labels = [rail.label for rail in profile.power.rails] if profile.power is not None else []
    if len(set(labels)) < len(labels):
        raise _wrong(path, "lists a label twice under 'power.rails'")
    if labels and profile.power is not None and not any(rail.total for rail in profile.power.rails):
        raise _wrong(path, "marks no rail under 'power.rails' with total = true")


def _check_files(path: Path, card: ModelCard) -> None:
    if not card.files:
        raise _wrong(path, "lists no file under 'files'")
    seen: set[str] = set()
    for index, file in enumerate(card.files):
        if file.precision in seen:
            raise _wrong(path, f"lists the precision {file.precision!r} twice: at 'files[{index}]' again")
        seen.add(file.precision)


def _claims(value: Any, key: str = "") -> Iterator[tuple[str, Claim]]:
    """Every claim inside a card, however deep, with the path of its key."""
    if isinstance(value, Claim):
        yield key, value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _claims(getattr(value, name), f"{key}.{name}".lstrip("."))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _claims(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from _claims(inner, f"{key}[{index}]")


def _wrong(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} {why}.", "correct the file; edgebench/specs.py lists every key and its type.")
