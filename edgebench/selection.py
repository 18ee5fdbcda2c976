"""Which runtimes take part: those that are asked for or installed, and can compute on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgebench.errors import MissingDependency, UnknownNameError
from edgebench.registry import load, names
from edgebench.runtimes.base import Runtime


def chosen_runtimes(asked: Sequence[str]) -> tuple[Runtime, ...]:
    """The runtimes asked for, or every installed one that ``profile`` uses by default.

    Raises:
        UnknownNameError: for a runtime that does not exist.
        MissingDependency: when one that was asked for, or all, are not installed.
    """
    if asked:
        runtimes = tuple(load("runtimes", name).RUNTIME for name in dict.fromkeys(asked))
        for runtime in runtimes:
            if not runtime.installed():
                raise MissingDependency(
                    f"The runtime {runtime.name!r} is not installed.", f"pip install {runtime.package}"
                )
        return runtimes
    every = (load("runtimes", name).RUNTIME for name in names("runtimes"))
    runtimes = tuple(runtime for runtime in every if runtime.default and runtime.installed())
    if not runtimes:
        raise MissingDependency("No runtime is installed.", "pip install llama-cpp-python")
    return runtimes


def on_device(
    device: str, runtimes: Sequence[Runtime], usable: Callable[[str], Sequence[str]], *, asked: bool
) -> tuple[tuple[Runtime, ...], tuple[str, ...]]:
    """The runtimes that can compute on this device, and why each of the others is left out.

    Args:
        device: what the user wants; ``cpu`` is had by all.
        runtimes: to choose from.
        usable: the devices that the installed build of a runtime can use, asked in a child process.
        asked: whether the user named the runtimes: then none is left out silently.

    Raises:
        UnknownNameError: for a device that no runtime knows.
        MissingDependency: when a runtime that was asked for, or every one, cannot use it.
    """
    known = dict.fromkeys(name for each in names("runtimes") for name in load("runtimes", each).RUNTIME.devices)
    if device not in known:
        raise UnknownNameError("compute device", device, list(known))
    if device == "cpu":
        return tuple(runtimes), ()
    able: list[Runtime] = []
    reasons: list[str] = []
    for runtime in runtimes:
        if device not in runtime.devices:
            reasons.append(f"{runtime.name} has no {device} at all")
        elif device in (here := usable(runtime.name)):
            able.append(runtime)
        else:
            has = ", ".join(here) or "nothing"
            reasons.append(f"{runtime.name} can use {has} here; {device} comes with {runtime.devices[device]}")
    if reasons and (asked or not able):
        raise MissingDependency(f"--device {device} cannot be used: {'; '.join(reasons)}.", "use --device cpu.")
    return tuple(able), tuple(reasons)
