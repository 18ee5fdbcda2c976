"""Examine a machine before measuring on it: what it is, what can be read, what would disturb, and the exact fixes.

Nothing is changed and nothing is timed. A runtime's native library is only ever loaded in a child process.

    checks.py    a check as data
    machine.py   what this machine is
    sensing.py   what can be measured, and why not
    energy.py    which source the energy of a run would come from
    noise.py     what would disturb a measurement now
    tune.py      commands that would quieten the machine, with the way back
    software.py  runtimes, their builds, and where files go
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from edgebench import devices
from edgebench.doctor.checks import Check, Section, State
from edgebench.doctor.energy import examine_energy
from edgebench.doctor.machine import examine_machine
from edgebench.doctor.noise import examine_noise
from edgebench.doctor.sensing import examine_sensors, sense
from edgebench.doctor.software import Ask, examine_places, examine_runtimes
from edgebench.doctor.tune import Step, quieten
from edgebench.engine.about import about
from edgebench.host import Host
from edgebench.topology import read_topology

__all__ = ["Check", "Section", "State", "Step", "examine", "tuning"]


def examine(
    host: Host,
    *,
    ask: Ask = about,
    environment: Mapping[str, str] | None = None,
    watch_s: float = 1.0,
) -> tuple[Section, ...]:
    """Examine a machine.

    Args:
        host: this machine or a captured tree; of a tree, only what its files tell is examined.
        ask: asks a runtime for its version and build, in a child process.
        environment: variables of the measuring process; None takes this process's. Not used for a captured tree.
        watch_s: how long other load is watched, s.

    Raises:
        HostError: when the machine does not tell how many CPUs it has, or no device profile fits.
    """
    topology = read_topology(host)
    profile = devices.detect(host, topology)
    here = (os.environ if environment is None else environment) if host.is_live else {}
    sensed = sense(host, profile)
    sections = [
        examine_machine(host, topology, profile),
        examine_sensors(host, sensed),
        examine_energy(host, topology, profile, sensed),
        examine_noise(host, topology, here, watch_s),
        examine_runtimes(host, topology, ask),
    ]
    if host.is_live:
        sections.append(examine_places())
    return tuple(sections)


def tuning(host: Host, environment: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """Commands that would quieten a machine; nothing is run.

    Raises:
        HostError: when the machine does not tell how many CPUs it has, or no device profile fits.
    """
    here = (os.environ if environment is None else environment) if host.is_live else {}
    return quieten(host, devices.detect(host, read_topology(host)), here)
