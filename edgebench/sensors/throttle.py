"""Whether the machine ran slower than asked: Intel's throttle counters, the Raspberry Pi's flags, cooling devices.

Intel counts throttle events and their time per core and per package since boot (kernel documentation,
ABI/testing/sysfs-devices-system-cpu); siblings of a core show the same counter, so each core and package counts once.
The Raspberry Pi firmware answers ``get_throttled`` with bits 0-3 for now and 16-19 for "since boot" (Raspberry Pi
documentation, vcgencmd); the sticky bits never clear, so only a bit that appears during a run tells about the run. Its
``measure_clock`` tells the clock that the firmware really set, while ``scaling_cur_freq`` shows what was asked for.
A cooling device in a state above 0 limits the processor (fans are left out: they cool without slowing anything).
What slows an NVIDIA GPU is told by its own sensor.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host, Unavailable
from edgebench.kerneltext import channel_part, natural, read_scaled
from edgebench.records import Channel
from edgebench.throttle_bits import PI_BITS, PI_SINCE_BOOT

_PI_MASK = 0xF000F
_CLOCK = re.compile(r"frequency\(\d{1,3}\)=(\d{1,11})")
_TOOL_S = 0.5
_FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"

Reader = Callable[[], float | None]


def decode_pi_bits(value: int) -> tuple[str, ...]:
    """The set flags in words: ``under-voltage now``, ``throttled since boot``. Bits 0-3 are now, 16-19 since boot."""
    now = tuple(f"{text} now" for bit, text in PI_BITS.items() if value >> bit & 1)
    past = tuple(f"{text} since boot" for bit, text in PI_BITS.items() if value >> (bit + PI_SINCE_BOOT) & 1)
    return now + past


class ThrottleSensor:
    """Counters of throttle events and time (Intel), gauge ``throttle.pi_bits``, gauges ``throttle.cooling.*``."""

    name = "throttle"
    period_s = 1.0

    def __init__(self, sources: Sequence[tuple[Channel, Reader]]) -> None:
        self._sources = tuple(sources)

    def channels(self) -> Sequence[Channel]:
        """Whatever this machine has, Intel first."""
        return tuple(channel for channel, _ in self._sources)

    def read(self) -> Sequence[float | None]:
        """Values now."""
        return [read() for _, read in self._sources]


class FirmwareSensor(ThrottleSensor):
    """The same where some of it is asked of the firmware by a program, which takes its time."""

    def __init__(self, sources: Sequence[tuple[Channel, Reader]]) -> None:
        super().__init__(sources)
        self.taken_ns, self.trouble = 0, ""

    def read(self) -> Sequence[float | None]:
        """Values now, stamped in the middle."""
        before = time.monotonic_ns()
        values = super().read()
        self.taken_ns = (before + time.monotonic_ns()) // 2
        if None in values:
            self.trouble = "vcgencmd gave no answer: is it installed, and may this user open its device (group video)?"
        return values


def _intel(host: Host) -> Iterator[tuple[Channel, Reader]]:
    """Sums over distinct cores and distinct packages."""
    folders = sorted(
        host.glob(host.sys("devices/system/cpu"), "cpu[0-9]*/thermal_throttle"), key=lambda f: natural(f.parent)
    )
    for part in ("core", "package"):
        units: dict[str, Path] = {}
        for folder in folders:
            topology = folder.parent / "topology"
            package = host.try_read(topology / "physical_package_id") or "0"
            siblings = host.try_read(topology / "thread_siblings_list") or folder.parent.name
            units.setdefault(package if part == "package" else siblings, folder)
        for suffix, unit, factor in (("throttle_count", "events", 1.0), ("throttle_total_time_ms", "s", 1e-3)):
            files = [folder / f"{part}_{suffix}" for folder in units.values()]
            if files and files[0].exists():
                name = f"throttle.{part}_{'events' if unit == 'events' else 'time'}"
                yield Channel(name=name, unit=unit, kind="counter"), _sum(host, files, factor)


def _sum(host: Host, files: Sequence[Path], factor: float) -> Reader:
    def read() -> float | None:
        values = [read_scaled(host, path, factor) for path in files]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return read


def _pi_bits(host: Host) -> int | None:
    """The firmware's flags, from the kernel's copy (boards up to the Pi 4) or from the firmware's own tool."""
    text = host.try_read(host.sys(_FIRMWARE))
    if text is None:
        text = _ask_firmware(host, "get_throttled").removeprefix("throttled=")
    match = re.fullmatch(r"(?:0[xX])?([0-9a-fA-F]{1,8})", text)
    return int(match[1], 16) & _PI_MASK if match else None


def _pi_clock(host: Host) -> float | None:
    """The clock of the cores in Hz, as the firmware measures it."""
    match = _CLOCK.fullmatch(_ask_firmware(host, "measure_clock", "arm"))
    return float(match[1]) or None if match else None


def _ask_firmware(host: Host, *words: str) -> str:
    """What the firmware's tool answers; nothing where there is none."""
    try:
        return host.run(["vcgencmd", *words], timeout_s=_TOOL_S).stdout.strip()
    except Unavailable:
        return ""


def _firmware(host: Host, profile: DeviceProfile | None) -> Iterator[tuple[Channel, Reader]]:
    expected = profile is not None and profile.throttle == "raspberry-pi"
    if expected or _pi_bits(host) is not None:
        yield Channel(name="throttle.pi_bits", unit="1", kind="gauge"), lambda: _pi_bits(host)
        if _pi_clock(host) is not None:
            yield Channel(name="throttle.pi_clock", unit="Hz", kind="gauge"), lambda: _pi_clock(host)


def _cooling(host: Host) -> Iterator[tuple[Channel, Reader]]:
    for device in sorted(host.glob(host.sys("class/thermal"), "cooling_device*"), key=natural):
        kind = host.try_read(device / "type")
        if kind is None or "fan" in kind.lower() or not (device / "cur_state").exists():
            continue
        name = f"throttle.cooling.{channel_part(kind)}.{device.name.removeprefix('cooling_device')}"
        yield Channel(name=name, unit="1", kind="gauge"), _state(host, device / "cur_state")


def _state(host: Host, path: Path) -> Reader:
    def read() -> float | None:
        value = read_scaled(host, path)
        return None if value is None else max(value, 0.0)  # intel_powerclamp says -1 for "not active"

    return read


def detect(host: Host, profile: DeviceProfile | None) -> ThrottleSensor | None:
    """The sensor where any of the three sources exists, or where the profile expects the Pi's flags."""
    firmware = list(_firmware(host, profile))
    sources = [*_intel(host), *firmware, *_cooling(host)]
    if not sources:
        return None
    waits = firmware and (len(firmware) > 1 or not host.sys(_FIRMWARE).exists())
    return FirmwareSensor(sources) if waits else ThrottleSensor(sources)


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    return (
        "neither throttle counters (Intel), firmware flags (Raspberry Pi) nor cooling devices are visible",
        "watch the clock and the temperature instead; on a Raspberry Pi: sudo apt install raspi-utils",
    )
