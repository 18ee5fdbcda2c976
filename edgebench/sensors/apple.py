"""Energy of an Apple chip's processor, graphics and neural engine: what Apple's own model of them says.

``zeus-apple-silicon`` (an optional package, macOS only) reads the counters of IOReport without root. Without it
``powermetrics`` is run for half a second at a time, which needs root. Both tell CPU + GPU + ANE: neither memory nor
display, drive and supply are in it, so the scope is ``soc_compute``. Apple's manual calls the values estimates that
should not be used to compare devices (powermetrics(1)).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from collections.abc import Sequence
from typing import Any

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host, Unavailable
from edgebench.records import Channel

_PACKAGE = "zeus_apple_silicon"
_COMMAND = ("powermetrics", "--samplers", "cpu_power,gpu_power", "-n", "1", "-i", "500")
_TIMEOUT_S = 5.0
_PARTS = ("CPU", "GPU", "ANE")
_LINE = re.compile(r"(?P<what>[A-Za-z]\w*) Power(?: \([A-Z+ ]+\))?: (?P<mw>\d{1,9}) mW", re.ASCII)
_ELAPSED = re.compile(r"\((?P<ms>\d{1,9}(?:\.\d{1,9})?)ms elapsed\)")


class CounterSensor:
    """Counter ``apple.soc`` in J."""

    name = "apple"
    period_s = 0.1

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def channels(self) -> Sequence[Channel]:
        """One counter."""
        return (Channel(name="apple.soc", unit="J", kind="counter", scope="soc_compute"),)

    def read(self) -> Sequence[float | None]:
        """Joules so far; None while the processor's own part is missing, for the rest is no total."""
        try:
            energy = self._monitor.get_cumulative_energy()
        except (RuntimeError, OSError):
            return [None]
        parts = [energy.cpu_total_mj, energy.gpu_mj, energy.ane_mj]
        if parts[0] is None:
            return [None]
        return [sum(part for part in parts if part is not None) * 1e-3]


class PowermetricsSensor:
    """Gauge ``apple.soc`` in W: a mean over half a second."""

    name = "apple"
    period_s = 0.5

    def __init__(self, host: Host) -> None:
        self._host = host
        self.taken_ns, self.trouble = 0, ""

    def channels(self) -> Sequence[Channel]:
        """One gauge."""
        return (Channel(name="apple.soc", unit="W", kind="gauge", scope="soc_compute"),)

    def read(self) -> Sequence[float | None]:
        """Mean watts of the half second that ended now, stamped in its middle."""
        try:
            done = self._host.run(_COMMAND, timeout_s=_TIMEOUT_S)
        except Unavailable as error:
            self.taken_ns, self.trouble = time.monotonic_ns(), str(error)
            return [None]
        watts, elapsed_s = parse_powermetrics(done.stdout)
        self.taken_ns = time.monotonic_ns() - round((elapsed_s or 0.0) / 2 * 1e9)
        if watts is None:
            said = (done.stderr.strip().splitlines() or ["nothing about power"])[-1][:100]
            self.trouble = f"powermetrics said: {said}"
        return [watts]


def parse_powermetrics(text: str) -> tuple[float | None, float | None]:
    """Watts of CPU + GPU + ANE, and the seconds they are a mean of, from the first sample; None for what is missing.

    Recent systems print the sum; on older ones the parts are added, and ``Package Power`` (with memory) is left alone.
    The line of the GPU may come twice.
    """
    elapsed = _ELAPSED.search(text)
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            found.setdefault(match["what"], int(match["mw"]) * 1e-3)
    total = found.get("Combined")
    if total is None and "CPU" in found:
        total = sum(found.get(part, 0.0) for part in _PARTS)
    return total, float(elapsed["ms"]) * 1e-3 if elapsed else None


def detect(host: Host, profile: DeviceProfile | None) -> CounterSensor | PowermetricsSensor | None:
    """The counters where the package is installed, else the program where it may be run."""
    if host.is_live and importlib.util.find_spec(_PACKAGE) is not None:
        try:
            return CounterSensor(importlib.import_module(_PACKAGE).AppleEnergyMonitor())
        except (ImportError, OSError, RuntimeError):
            pass  # built for another chip or system: the program may still tell
    sensor = PowermetricsSensor(host)
    return sensor if sensor.read()[0] is not None else None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    try:
        host.run(("powermetrics", "-h"))
    except Unavailable:
        return "this is no Apple machine: there is no powermetrics", ""
    return (
        "powermetrics tells its power to root only",
        "pip install zeus-apple-silicon, which needs no root; or sudo edgebench profile",
    )
