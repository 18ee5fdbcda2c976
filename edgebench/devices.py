"""Which device this is: the profile whose rules all hold.

A specific profile is preferred to a generic one, and among equals the one with more rules, so that a profile for one
board of a family may stand beside the profile of the family.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgebench.cards import device_profiles
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.provenance import device_tree_model, firmware_names
from edgebench.specs import DeviceProfile, Match
from edgebench.topology import Topology


def detect(host: Host, topology: Topology, profiles: Iterable[DeviceProfile] | None = None) -> DeviceProfile:
    """The profile that fits this machine best.

    Args:
        host: the machine or a captured tree.
        topology: its CPUs.
        profiles: profiles to choose from; None takes the shipped ones.

    Raises:
        HostError: when no profile fits, not even a generic one.
    """
    candidates = device_profiles().values() if profiles is None else profiles
    seen = _Seen(host, topology)
    fitting = [profile for profile in candidates if seen.fits(profile.match)]
    if not fitting:
        raise HostError(
            f"No device profile fits this machine ({seen.summary()}).",
            "add one: copy profiles/generic.toml, give it rules under [match], and keep its id equal to its file name.",
        )
    return min(fitting, key=lambda profile: (profile.generic, -_rules(profile.match), profile.id))


class _Seen:
    """What the rules are compared with."""

    def __init__(self, host: Host, topology: Topology) -> None:
        self.machine = host.machine().lower()
        self.board = (device_tree_model(host) or "").lower()
        self.firmware = firmware_names(host).lower()
        self.cpu = str(topology.cpu_model.value or "").lower()

    def fits(self, match: Match) -> bool:
        """Whether every given rule holds: one alternative of each."""
        texts = ((match.device_tree_model, self.board), (match.dmi, self.firmware), (match.cpu_model, self.cpu))
        return (not match.machine or self.machine in {name.lower() for name in match.machine}) and all(
            not words or any(word.lower() in text for word in words) for words, text in texts
        )

    def summary(self) -> str:
        """The same in one phrase."""
        return ", ".join(text for text in (self.board, self.firmware, self.cpu, self.machine) if text)


def _rules(match: Match) -> int:
    return sum(bool(rule) for rule in (match.machine, match.device_tree_model, match.dmi, match.cpu_model))
