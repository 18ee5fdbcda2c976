"""Families of plug-ins, found by file name and by entry points, imported only when used.

A family is a sub-package (``edgebench.runtimes``, ``edgebench.sensors``): each of its modules but ``base`` is a
member, and the file name is the name. Another distribution adds a member with an entry point in the group
``edgebench.<family>`` whose value is a module. Listing names imports no member, so a missing library costs nothing
until its runtime is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from edgebench.errors import MissingDependency, UnknownNameError, UsageError

_NOT_MEMBERS = frozenset({"base"})


def names(family: str) -> tuple[str, ...]:
    """Names of all members of a family, sorted, without importing any of them."""
    return tuple(sorted({*_modules(family), *_entry_points(family)}))


def load(family: str, name: str) -> ModuleType:
    """Import one member of a family.

    Args:
        family: ``runtimes``, ``sensors``...
        name: the file name without suffix, or the name of the entry point.

    Raises:
        UnknownNameError: when no member has this name.
        UsageError: when an installed package claims the name of another member, or its entry point is no module.
        MissingDependency: when the member of another package cannot be imported.
    """
    own, foreign = _modules(family), _entry_points(family).get(name, ())
    if len(foreign) + (name in own) > 1:
        owners = ", ".join([*(["edgebench"] if name in own else []), *(entry.value for entry in foreign)])
        raise UsageError(
            f"The name {name!r} in the family {family!r} is claimed more than once: {owners}.",
            "uninstall the package that should not have it.",
        )
    if name in own:
        return importlib.import_module(f"edgebench.{family}.{name}")
    if foreign:
        return _import_foreign(family, foreign[0])
    raise UnknownNameError(family.removesuffix("s"), name, names(family))


def _modules(family: str) -> tuple[str, ...]:
    package = importlib.import_module(f"edgebench.{family}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(name for name in found if name not in _NOT_MEMBERS and not name.startswith("_"))


def _entry_points(family: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name."""
    return _installed_entry_points(family, tuple(sys.path))


@lru_cache(maxsize=32)
def _installed_entry_points(family: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:  # noqa: ARG001 - part of the key
    """Those that are visible on this path: to look takes 5 ms, and a session looks twenty times.

    The same one may be listed twice when a package is visible through two paths.
    """
    by_name: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=f"edgebench.{family}"):
        by_name.setdefault(entry.name, {})[entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in by_name.items()}


def _import_foreign(family: str, entry: EntryPoint) -> ModuleType:
    owner = entry.dist.name if entry.dist is not None else entry.value
    try:
        member = entry.load()
    except (ImportError, AttributeError) as error:
        raise MissingDependency(
            f"The {family.removesuffix('s')} {entry.name!r} of the package {owner} cannot be imported: {error}.",
            f"install what it needs, or uninstall {owner}.",
        ) from error
    if not isinstance(member, ModuleType):
        raise UsageError(
            f"The entry point {entry.name!r} of the package {owner} is {type(member).__name__}, not a module.",
            f"report it to the authors of {owner}: its value must be a module path without a colon.",
        )
    return member
