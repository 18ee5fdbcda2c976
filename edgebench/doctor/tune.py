"""Commands that would quieten this machine, each with its reason and the way back. They are printed, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import natural
from edgebench.provenance import speed_variables

_CPUS = "devices/system/cpu"
_SWITCHES = ((f"{_CPUS}/intel_pstate/no_turbo", "0", "1"), (f"{_CPUS}/cpufreq/boost", "1", "0"))
"""File, what it says while the clock may rise for a short time, and what stops that."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One command for a shell."""

    why: str
    command: str
    undo: str = ""
    """The way back; empty where the next boot, or a new shell, is the way back."""


def quieten(host: Host, profile: DeviceProfile, environment: Mapping[str, str]) -> tuple[Step, ...]:
    """What would make measurements on this machine steadier. Empty when nothing of that kind is left to do.

    Args:
        host: this machine or a captured tree; the paths in the commands are those of the machine itself.
        profile: its profile, which may know commands of its own.
        environment: variables of the measuring process.
    """
    steps = [
        *_power_mode(host),
        *_governor(host),
        *_turbo(host),
        *(_of_profile(command) for command in profile.tune),
        *_swap(host),
    ]
    variables = speed_variables(environment)
    if variables:
        unset = "unset " + " ".join(variables)
        steps.append(Step(why="these variables change how runtimes use the processor", command=unset))
    return tuple(steps)


def _power_mode(host: Host) -> Iterator[Step]:
    mode = host.try_read(host.sys("firmware/acpi/platform_profile"))
    choices = (host.try_read(host.sys("firmware/acpi/platform_profile_choices")) or "").split()
    if mode and mode != "performance" and "performance" in choices:
        yield _set("firmware/acpi/platform_profile", "performance", mode, f"the firmware's mode is {mode}")


def _governor(host: Host) -> Iterator[Step]:
    """One command for all policies; the way back names each policy where they differ."""
    before: dict[str, list[str]] = {}
    steady = False
    for policy in sorted(host.glob(host.sys(f"{_CPUS}/cpufreq"), "policy*"), key=natural):
        name = host.try_read(policy / "scaling_governor")
        steady = steady or name == "performance"
        if name and name != "performance":
            before.setdefault(name, []).append(policy.name)
    if not before:
        return
    files = Host().sys(f"{_CPUS}/cpufreq")
    everywhere = files / "policy*" / "scaling_governor"
    undo = [
        f"echo {name} | sudo tee {' '.join(str(files / policy / 'scaling_governor') for policy in policies)}"
        for name, policies in before.items()
    ]
    if len(before) == 1 and not steady:
        undo = [f"echo {next(iter(before))} | sudo tee {everywhere}"]
    yield Step(
        why=f"the governor {', '.join(before)} lets the clock follow the load",
        command=f"echo performance | sudo tee {everywhere}",
        undo="\n".join(undo),
    )


def _turbo(host: Host) -> Iterator[Step]:
    for file, on, off in _SWITCHES:
        if host.try_read(host.sys(file)) == on:
            yield _set(file, off, on, "turbo makes the first seconds faster than the rest")


def _set(file: str, value: str, before: str, why: str) -> Step:
    path = Host().sys(file)
    return Step(why=why, command=f"echo {value} | sudo tee {path}", undo=f"echo {before} | sudo tee {path}")


def _of_profile(command: str) -> Step:
    if command == "sudo jetson_clocks":
        why = "clocks that are fixed at the maximum of the power mode do not move while a model runs"
        return Step(why=why, command=f"sudo jetson_clocks --store && {command}", undo="sudo jetson_clocks --restore")
    return Step(why="the device's profile advises it", command=command)


def _swap(host: Host) -> Iterator[Step]:
    lines = (host.try_read(host.proc("swaps")) or "").splitlines()[1:]
    areas = [words[0].replace("\\040", " ") for line in lines if len(words := line.split()) >= 4]
    if areas:
        kind = "compressed memory (zram)" if all("zram" in area for area in areas) else "swap"
        quoted = " ".join(f"'{area}'" if " " in area else area for area in areas)
        why = f"with {kind} a model that does not fit gets slow instead of failing"
        yield Step(why=why, command=f"sudo swapoff {quoted}", undo=f"sudo swapon {quoted}")
