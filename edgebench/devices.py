"""Which device this is: the profile whose rules all hold.

A specific profile is preferred to a generic one, and among equals the one with more rules, so that a profile for one
board of a family may stand beside the profile of the family. The GPUs in a machine have profiles of their own, beside
that of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgebench.cards import device_profiles
from edgebench.device_profile import DeviceProfile, Match
from edgebench.errors import HostError
from edgebench.host import Host, Unavailable
from edgebench.kerneltext import parse_sizes
from edgebench.provenance import device_tree_model, firmware_names
from edgebench.topology import Topology

_GPU_MODEL = re.compile(r"^Model:\s*(\S.*?)\s*$", re.MULTILINE)


def detect(host: Host, topology: Topology, profiles: Iterable[DeviceProfile] | None = None) -> DeviceProfile:
    """The profile that fits this machine best.

    Args:
        host: the machine or a captured tree.
        topology: its CPUs.
        profiles: profiles to choose from; None takes the shipped ones.

    Raises:
        HostError: when no profile fits, not even a generic one.
    """
    seen = _Seen(host, topology)
    fitting = [profile for profile in _choice(profiles, "machine") if seen.fits(profile)]
    if not fitting:
        raise HostError(
            f"No device profile fits this machine ({seen.summary()}).",
            "add one: edgebench devices draft writes what it can read; give it an id equal to its file name.",
        )
    return min(fitting, key=lambda profile: (profile.generic, -_rules(profile.match), profile.id))


def fitting(host: Host, topology: Topology, profiles: Iterable[DeviceProfile] | None = None) -> list[str]:
    """Ids of all specific profiles that fit this machine: more than one means that two profiles are not told apart."""
    seen = _Seen(host, topology)
    return [profile.id for profile in _choice(profiles, "machine") if not profile.generic and seen.fits(profile)]


def accelerators(host: Host, profiles: Iterable[DeviceProfile] | None = None) -> tuple[DeviceProfile, ...]:
    """Profiles of the GPUs in this machine, one for each GPU whose name has a profile."""
    by_name = {
        name.lower(): profile
        for profile in _choice(profiles, "gpu")
        for rules in (profile.match, *profile.also)
        for name in rules.gpu
    }
    return tuple(by_name[name.lower()] for name in gpu_names(host) if name.lower() in by_name)


def gpu_names(host: Host) -> tuple[str, ...]:
    """Names of the GPUs as the NVIDIA driver says them: from its files, else from its tool; empty without either."""
    files = host.glob(host.proc("driver/nvidia/gpus"), "*/information")
    names = [match[1] for file in files if (match := _GPU_MODEL.search(host.try_read(file) or ""))]
    if names:
        return tuple(names)
    try:
        listed = host.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    except Unavailable:
        return ()
    return tuple(filter(None, map(str.strip, listed.stdout.splitlines()))) if listed.status == 0 else ()


def compatible_names(host: Host) -> tuple[str, ...]:
    """What the device tree is compatible with, the board itself first; empty on machines without a device tree."""
    text = host.try_read(host.sys("firmware/devicetree/base/compatible")) or host.try_read(
        host.proc("device-tree/compatible")
    )
    return tuple(filter(None, map(str.strip, (text or "").split("\0"))))


def cpu_name(host: Host, topology: Topology) -> str:
    """The processor's name; on a Mac, which has no ``cpuinfo``, as ``sysctl`` says it. Empty where nothing tells."""
    if topology.cpu_model.value is not None:
        return str(topology.cpu_model.value)
    if host.try_read(host.proc("cpuinfo")) is not None:
        return ""
    try:
        return host.run(["sysctl", "-n", "machdep.cpu.brand_string"]).stdout.strip()
    except Unavailable:
        return ""


class _Seen:
    """What the rules are compared with."""

    def __init__(self, host: Host, topology: Topology) -> None:
        self.machine = host.machine().lower()
        self.board = "\n".join([device_tree_model(host) or "", *compatible_names(host)]).strip().lower()
        self.firmware = firmware_names(host).lower()
        self.cpu = cpu_name(host, topology).lower()
        total = parse_sizes(host.try_read(host.proc("meminfo")) or "").get("MemTotal")
        self.memory_gib = None if total is None else total / 2**30

    def fits(self, profile: DeviceProfile) -> bool:
        """Whether one of the profile's ways to be recognised fits."""
        return any(self._fits(rules) for rules in (profile.match, *profile.also))

    def _fits(self, match: Match) -> bool:
        """Whether every given rule holds: one alternative of each."""
        if match.machine and self.machine not in {name.lower() for name in match.machine}:
            return False
        if match.memory_gib is not None:
            low, high = match.memory_gib
            if self.memory_gib is None or not low <= self.memory_gib <= high:
                return False
        asked = [
            (words, text)
            for words, text in (
                (match.device_tree, self.board),
                (match.dmi, self.firmware),
                (match.cpu_model, self.cpu),
            )
            if words
        ]
        refused = any(word.lower() in text for word in match.unless for _, text in asked)
        return not refused and all(any(word.lower() in text for word in words) for words, text in asked)

    def summary(self) -> str:
        """The same in one phrase."""
        board = self.board.partition("\n")[0]
        return ", ".join(text for text in (board, self.firmware, self.cpu, self.machine) if text)


def _choice(profiles: Iterable[DeviceProfile] | None, kind: str) -> list[DeviceProfile]:
    chosen = device_profiles().values() if profiles is None else profiles
    return [profile for profile in chosen if profile.kind == kind]


def _rules(match: Match) -> int:
    given = (match.machine, match.device_tree, match.dmi, match.cpu_model, match.memory_gib)
    return sum(bool(rule) for rule in given)
