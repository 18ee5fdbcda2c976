"""A power meter outside the machine: a smart plug, a USB meter, or a program that prints watts.

It sees what no sensor on the board sees (the supply, fans, drives), so its scope is the widest there is: ``wall_ac``
before the power supply, ``dc_input`` behind it. Where it stands only its owner knows.

A meter is named by one text, ``[SCOPE=]KIND:TARGET``, with ``--meter``, in ``EDGEBENCH_METER``, or in a device profile
as ``attached_meter``:

    shelly1:http://192.168.1.5      Shelly Gen1       shelly2:http://192.168.1.5     Shelly Gen2 and later
    tasmota:http://192.168.1.6      Tasmota           homeassistant:http://ha.local:8123/sensor.plug_power
    json:http://host/path#w=a.0.b   any JSON: where its watts are (units w, mw, kw) and its energy (j, wh, kwh, wmin)
    command:cat watts.txt           a program that prints watts and ends
    lines:python logger.py          a program that prints watts, line by line, until it is stopped
    serial:/dev/ttyACM0@115200      a cable on which lines of watts come in
    hwmon:powerz                    a meter with a kernel driver, by the name of its chip

Without ``SCOPE=``, ``serial`` and ``hwmon`` are ``dc_input`` and everything else is ``wall_ac``. Secrets are in
``EDGEBENCH_METER_TOKEN`` only (a bearer token for Home Assistant, else ``user:password``), never in a command line that
a record would keep.

A reading counts at the middle of its request, and not at all if the answer took longer than 0.3 s (1 s for a program):
nobody knows when in that time it was taken. Zero watts is a meter that does not see the machine, for the machine runs.
How often the source changes its value is measured: it is asked ten times a second for the first 3 s, then twice per
update.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edgebench.device_profile import DeviceProfile
from edgebench.errors import UnknownNameError, UsageError
from edgebench.host import Host, Unavailable
from edgebench.records import Channel
from edgebench.sensors import _meter_http, _meter_local
from edgebench.stats import median

KINDS = (*_meter_http.KINDS, *_meter_local.KINDS)
MeterScope = Literal["wall_ac", "dc_input"]
ENVIRONMENT, TOKEN = "EDGEBENCH_METER", "EDGEBENCH_METER_TOKEN"

_TEXT = re.compile(r"(?:(?P<scope>[a-z_]+)=)?(?P<kind>[A-Za-z0-9]+):(?P<target>.+)", re.DOTALL)
_BEHIND_THE_SUPPLY = frozenset({"serial", "hwmon"})
_LARGEST_W = 1e5
_PROBE_S, _PROBE_PERIOD_S = 3.0, 0.1
_SLOWEST_S = 1.0
_CHANGES_KEPT = 64
_BACK_OFF_S = 1.0


@dataclass(frozen=True)
class MeterSpec:
    """A meter as its owner named it."""

    kind: str
    target: str
    scope: MeterScope


def parse_meter(text: str) -> MeterSpec:
    """Read ``[SCOPE=]KIND:TARGET``; whether the meter answers is not looked at.

    Raises:
        UnknownNameError: when there is no such kind.
        UsageError: when the text has another form, or the target is no address for this kind.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a meter.",
            "write KIND:TARGET, for example shelly2:http://192.168.1.5 or 'command:cat watts.txt'.",
        )
    kind, target = match["kind"].lower(), match["target"].strip()
    if kind not in KINDS:
        raise UnknownNameError("kind of meter", kind, KINDS)
    given = match["scope"] or ("dc_input" if kind in _BEHIND_THE_SUPPLY else "wall_ac")
    if given not in ("wall_ac", "dc_input"):
        raise UsageError(
            f"A meter cannot stand at {given!r}.",
            "write wall_ac= for one before the power supply, dc_input= for one behind it.",
        )
    (_meter_http if kind in _meter_http.KINDS else _meter_local).check(kind, target)
    return MeterSpec(kind, target, "wall_ac" if given == "wall_ac" else "dc_input")


class Source(Protocol):
    """Where readings come from: one value per quantity, watts first where there are any."""

    names: Sequence[Literal["power", "energy"]]
    period_s: float
    """How often to ask; 0 for a source that speaks by itself, so that asking is waiting."""
    taken_ns: int

    def read(self) -> Sequence[float]:
        """W and J, in the order of ``names``.

        Raises:
            Unavailable: with the reason.
        """
        ...


class MeterSensor:
    """Gauge ``meter.<kind>.power`` (W), counter ``.energy`` (J) where asked for, gauge ``.update`` (s, measured)."""

    name = "meter"

    def __init__(self, spec: MeterSpec, source: Source) -> None:
        self._spec, self._source = spec, source
        self.period_s = _PROBE_PERIOD_S if source.period_s else 1e-3
        self.taken_ns, self.trouble = 0, ""
        self._began_ns: int | None = None
        self._before: float | None = None
        self._changed_ns: int | None = None
        self._gaps_s: deque[float] = deque(maxlen=_CHANGES_KEPT)

    def channels(self) -> Sequence[Channel]:
        """What the meter tells, then how often it tells something new."""
        prefix, scope = f"meter.{self._spec.kind}", self._spec.scope
        made = {
            "power": Channel(name=f"{prefix}.power", unit="W", kind="gauge", scope=scope),
            "energy": Channel(name=f"{prefix}.energy", unit="J", kind="counter", scope=scope),
        }
        return (*(made[name] for name in self._source.names), Channel(name=f"{prefix}.update", unit="s", kind="gauge"))

    def read(self) -> Sequence[float | None]:
        """Ask once and wait; None where the meter gave no usable answer (``trouble`` says why)."""
        asked_ns = time.monotonic_ns()
        self._began_ns = self._began_ns or asked_ns
        values: list[float | None]
        try:
            values = [*self._source.read()]
            self.taken_ns = self._source.taken_ns
        except Unavailable as error:
            self.taken_ns, self.trouble = time.monotonic_ns(), str(error)
            values = [None for _ in self._source.names]
            if not self._source.period_s:
                time.sleep(_BACK_OFF_S)  # a stream that ended is opened again, but not a thousand times a second
        for index, (name, value) in enumerate(zip(self._source.names, values, strict=True)):
            if value is not None and (doubt := _doubt(name, value)):
                values[index], self.trouble = None, f"{self._spec.kind}: {doubt}"
        self._learn(values[0])
        return [*values, self.update_s]

    def close(self) -> None:
        """Let go of a program or a cable. Twice is fine."""
        if isinstance(self._source, _meter_local.LineSource):
            self._source.close()

    @property
    def update_s(self) -> float | None:
        """Median time between two changes of the value; None before three changes."""
        return median(self._gaps_s) if len(self._gaps_s) >= 3 else None

    def _learn(self, value: float | None) -> None:
        """Note a change, and ask as often as it makes sense."""
        now = self.taken_ns
        if value is not None and value != self._before:
            if self._changed_ns is not None:
                self._gaps_s.append((now - self._changed_ns) / 1e9)
            self._changed_ns = now if self._before is not None else None  # the first value is no change
            self._before = value
        if self._source.period_s and self._began_ns is not None and now - self._began_ns > _PROBE_S * 1e9:
            update_s = self.update_s
            usual = self._source.period_s if update_s is None else update_s / 2
            self.period_s = min(max(usual, _PROBE_PERIOD_S), _SLOWEST_S)


def _doubt(name: str, value: float) -> str:
    """Why a number cannot be a power or an energy; empty when it can."""
    if name == "energy":
        return "" if value >= 0 else f"says {value:g} J, and energy only grows"
    if value == 0:
        return "says 0 W, but the machine runs: is it plugged into this meter?"
    return "" if 0 < value <= _LARGEST_W else f"says {value:g} W, which no machine here draws"


def named(profile: DeviceProfile | None) -> str:
    """The text that names the meter: of the session (it travels in the profile), else of the environment."""
    return (profile.attached_meter if profile is not None else "") or os.environ.get(ENVIRONMENT, "")


def detect(host: Host, profile: DeviceProfile | None) -> MeterSensor | None:
    """The meter that was named, whether or not it answers now: it may come back.

    Raises:
        UsageError: when the text that names it is wrong.
    """
    text = named(profile)
    if not text:
        return None
    spec = parse_meter(text)
    source: Source
    if spec.kind in _meter_http.KINDS:
        source = _meter_http.HttpSource(spec.kind, spec.target, os.environ.get(TOKEN, ""))
    else:
        source = _meter_local.source(host, spec.kind, spec.target)
    return MeterSensor(spec, source)


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here; a meter is never needed, but nothing sees more."""
    return "no external meter was named", "if you have one: edgebench profile --meter shelly2:http://ADDRESS"
