"""Supply rails of a Raspberry Pi 5 (also 500 and Compute Module 5) in W, measured by its power management chip.

The firmware answers ``pmic_read_adc`` with one line per current and per voltage; the two of a rail belong together by
name (``VDD_CORE_A``, ``VDD_CORE_V``), not by number. ``EXT5V_V`` and ``BATT_V`` are voltages without a current. One
answer takes some 23 ms inside the firmware, so it is asked 5 times a second, through the kernel's mailbox device where
that opens (no process to start) and else by the tool ``vcgencmd``.

The sum of the rails is neither what the supply delivers (USB ports, fan, HATs and the converters' losses are missing:
a community fit says ``input = 1.1451 * sum + 0.5879`` W, so the sum is 10-25 % low) nor what the processor takes. It
is reported as ``board_rails``. With a calibration in the device profile the input power is a channel of its own. The
memory's rails read exactly 0 at idle (the converter's smallest step), so a rail may be 0 W; the sum may not.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Callable, Sequence

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host, Unavailable
from edgebench.records import Channel

_COMMAND = "pmic_read_adc"
_LINE = re.compile(
    r"\s*(?P<rail>[A-Za-z0-9_]{1,32})_(?P<unit>[AV])\s+(?:current|volt)\(\d{1,3}\)=(?P<value>\d{1,4}\.\d{1,12})[AV]\s*",
    re.ASCII,
)
# The mailbox message of raspberrypi/utils, vcgencmd: total size, request code 0, tag, size of its buffer, size of the
# answer, error; then the buffer, with the command in and the text out; then an end tag of 0.
_HEAD = struct.Struct("=6I")
_TAG = 0x00030080
_BUFFER = 1024
_REQUEST = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8  # _IOWR(100, 0, char *)
_DEVICES = ("dev/vcio_gencmd", "dev/vcio")

Ask = Callable[[], str | None]


def parse_rails(text: str) -> dict[str, float]:
    """Power in W of every rail with both a current and a voltage."""
    found: dict[tuple[str, str], float] = {}
    for line in re.split(r"[\0\n]+", text):
        match = _LINE.fullmatch(line)
        if match:
            found[match["rail"], match["unit"]] = float(match["value"])
    return {
        rail: amperes * found[rail, "V"]
        for (rail, unit), amperes in found.items()
        if unit == "A" and (rail, "V") in found
    }


def request(command: str) -> bytearray:
    """The mailbox message that asks the firmware for a command's text."""
    size = _HEAD.size + _BUFFER + 4
    head = _HEAD.pack(size, 0, _TAG, _BUFFER, 0, 0)
    return bytearray(head + command.encode().ljust(_BUFFER, b"\0") + bytes(4))


def answer(message: bytes) -> str | None:
    """The text in an answered message, or None when the firmware reports an error."""
    error = _HEAD.unpack_from(message)[5]
    text = message[_HEAD.size : _HEAD.size + _BUFFER].rstrip(b"\0").decode("utf-8", "replace")
    return None if error or "error" in text.partition("\n")[0] else text


class Mailbox:
    """The firmware behind the kernel's mailbox device; opened for each question, so that nothing stays open."""

    def __init__(self, host: Host) -> None:
        self._paths = [path for path in (host.root / device for device in _DEVICES) if path.exists()]

    def __call__(self) -> str | None:
        """The text, or None when no device opens or answers."""
        for path in self._paths:
            message = request(_COMMAND)
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.ioctl(descriptor, _REQUEST, message, True)  # noqa: FBT003 - it has no keyword: change the message
            except OSError:
                continue
            finally:
                os.close(descriptor)
            return answer(bytes(message))
        return None


def _tool(host: Host) -> Ask:
    def ask() -> str | None:
        try:
            return host.run(["vcgencmd", _COMMAND], timeout_s=0.5).stdout
        except Unavailable:
            return None

    return ask


class PmicSensor:
    """Gauges ``pmic.board`` (sum), ``pmic.input`` (calibrated, where it is) and ``pmic.<rail>``, in W."""

    name = "pmic"
    period_s = 0.2

    def __init__(self, ask: Ask, rails: Sequence[str], calibration: tuple[float, float] | None) -> None:
        self._ask = ask
        self._rails = tuple(rails)
        self._calibration = calibration

    def channels(self) -> Sequence[Channel]:
        """The sum, the calibrated input, the rails."""
        totals = [Channel(name="pmic.board", unit="W", kind="gauge", scope="board_rails")]
        if self._calibration is not None:
            totals.append(Channel(name="pmic.input", unit="W", kind="gauge", scope="dc_input"))
        parts = (
            Channel(name=f"pmic.{rail}", unit="W", kind="gauge", scope="component", part_of="pmic.board")
            for rail in self._rails
        )
        return (*totals, *parts)

    def read(self) -> Sequence[float | None]:
        """Power now. Of an answer that lacks a rail there is no sum: it would be too low."""
        rails = parse_rails(self._ask() or "")
        values = [rails.get(rail) for rail in self._rails]
        known = [value for value in values if value is not None]
        total = sum(known) if len(known) == len(values) and sum(known) > 0 else None
        totals = [total]
        if self._calibration is not None:
            factor, offset = self._calibration
            totals.append(None if total is None else factor * total + offset)
        return [*totals, *values]


def detect(host: Host, profile: DeviceProfile | None) -> PmicSensor | None:
    """The sensor where the firmware names at least one rail, asked by mailbox or else by the tool."""
    calibration = profile.power.calibration if profile is not None and profile.power is not None else None
    ways: list[Ask] = [Mailbox(host)] if host.is_live else []
    for ask in (*ways, _tool(host)):
        rails = parse_rails(ask() or "")
        if rails:
            return PmicSensor(ask, list(rails), calibration)
    return None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    model = host.try_read(host.sys("firmware/devicetree/base/model")) or ""
    if "Raspberry Pi" not in model:
        return "this is no Raspberry Pi", ""
    if not any(name in model for name in ("Raspberry Pi 5", "Compute Module 5")):
        return "a Raspberry Pi before the 5 has no power sensor", "use a USB-C or wall meter."
    return (
        "the firmware does not answer",
        "sudo apt install raspi-utils; sudo usermod -aG video $USER; log in anew.",
    )
