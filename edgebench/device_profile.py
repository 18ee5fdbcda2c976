"""What is declared about a device: ``profiles/<id>.toml``, how it is recognised, and what is known of its power.

Frozen msgspec structs, as all of `edgebench.specs`; `edgebench.cards` reads them, `edgebench.devices` chooses one.
"""

from __future__ import annotations

from typing import Literal

from edgebench.specs import Claim, Scope, Spec


class Match(Spec, frozen=True, kw_only=True):
    """How to recognise a device. Every given rule must hold; of a list, one entry is enough.

    Texts are compared without case, as substrings except where whole names are said.
    """

    machine: tuple[str, ...] = ()
    """``uname -m`` values, whole."""
    device_tree: tuple[str, ...] = ()
    """In the device tree's ``model``, or in one of its ``compatible`` names."""
    dmi: tuple[str, ...] = ()
    """In vendor, product and board of the firmware tables."""
    cpu_model: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()
    """Whole names of a GPU, as its driver says them."""
    memory_gib: tuple[float, float] | None = None
    """The total memory lies between the two, in GiB: tells modules of one name apart."""
    unless: tuple[str, ...] = ()
    """In none of the texts that the other rules look at."""


class Cluster(Spec, frozen=True, kw_only=True):
    """Cores of one kind."""

    core: str
    count: int
    max_clock_mhz: Claim | None = None


class PowerMode(Spec, frozen=True, kw_only=True):
    """A setting of the device that trades speed for power."""

    name: str
    watts: Claim | None = None
    command: str = ""
    """What switches it on; empty where that depends on the system's release."""


class ThrottleRule(Spec, frozen=True, kw_only=True):
    """When the device makes itself slower, and how."""

    when: str
    effect: str
    above_c: Claim | None = None
    """The temperature, where the rule has one."""


class PowerDraw(Spec, frozen=True, kw_only=True):
    """What somebody's meter showed for the whole device, idle and under full load."""

    idle_w: Claim
    full_w: Claim
    scope: Scope
    meter: str
    load: str
    """What ran for ``full_w``."""


class Rail(Spec, frozen=True, kw_only=True):
    """One measured supply rail of a board."""

    label: str
    """As the kernel spells it: ``VDD_IN``."""
    scope: Scope
    """What the rail covers, or, of a rail that is summed, what the sum of all of them covers."""
    total: bool = False
    """Whether it belongs to the sum that is the board's figure. A rail that others contain does not."""


class PowerHints(Spec, frozen=True, kw_only=True):
    """What is known about the power of a device: ``[power]`` in its profile."""

    rails: tuple[Rail, ...] = ()
    calibration: tuple[float, float] | None = None
    """``(a, b)``: input power is ``a * sum of the measured rails + b`` W, fitted with a meter at the input."""
    calibration_source: str = ""
    """Which board and which meter the fit was made with."""
    meter: str = ""
    """What to measure with where the board cannot do it itself."""


class DeviceProfile(Spec, frozen=True, kw_only=True):
    """``profiles/<id>.toml``: what is declared about a device."""

    id: str
    title: str
    kind: Literal["machine", "gpu"] = "machine"
    """A machine has one profile of its own; each GPU in it may have one more."""
    match: Match
    also: tuple[Match, ...] = ()
    """Other ways to recognise the same device."""
    generic: bool = False
    """A generic profile answers only when no specific one does."""
    cores: Claim | None = None
    clusters: tuple[Cluster, ...] = ()
    """Fastest first."""
    memory_bytes: tuple[int, ...] = ()
    memory_bandwidth_gb_s: Claim | None = None
    """Nominal: bus width times data rate, GB/s."""
    isa: tuple[str, ...] = ()
    """Instruction sets that matter here, in the kernel's names."""
    power_limit_w: Claim | None = None
    """What the maker declares as the limit or design power of the processor, module or card."""
    power_modes: tuple[PowerMode, ...] = ()
    power: PowerHints | None = None
    power_draw: PowerDraw | None = None
    throttle: str = ""
    """Name of the throttle sensor to expect, if any."""
    attached_meter: str = ""
    """A power meter outside the machine, ``[SCOPE=]KIND:TARGET`` (see ``sensors/meter.py``); ``--meter`` sets it."""
    throttle_rules: tuple[ThrottleRule, ...] = ()
    advice: tuple[str, ...] = ()
    build_flags: tuple[str, ...] = ()
    """CMake options with which llama.cpp uses this device fully."""
    tune: tuple[str, ...] = ()
    """Commands that quieten this device beyond what is known for all; ``doctor --tune`` prints them."""
