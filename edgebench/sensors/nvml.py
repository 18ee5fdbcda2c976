"""NVIDIA GPUs: energy counter (J), power (W), why clocks are low, temperature, memory.

The counter (mJ since the driver was loaded, Volta and newer) is renewed about every 0.1 s. NVML's ordinary power
reading is a mean over 1 s on Ampere and newer (NVML documentation, nvmlDeviceGetPowerUsage), so the instantaneous
field is preferred, and the channels have different names. Counter and power are both recorded because they can
disagree, and on some GPUs the power sensor looks only a quarter of the time (arXiv 2312.02741). Both cover the board:
die, memory, regulators; the rest of the computer is not in them. The bits of ``clocks_event_reasons`` stand in
``throttle_bits``.

A question that the GPU refuses when the sensor is found is no channel. Asked too fast the library answers 0: a GPU
that runs never draws 0 W, so 0 is a missing value.

Below a captured tree the recorded answers of ``commands/nvml`` are used: a JSON list with one object per GPU, whose
keys are the questions below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from edgebench.device_profile import DeviceProfile
from edgebench.host import Host, Unavailable
from edgebench.records import Channel
from edgebench.sensors._nvml_library import Library

_QUESTIONS: dict[str, tuple[Channel, float]] = {
    "energy_mj": (
        Channel(name="energy", unit="J", kind="counter", scope="gpu_board", update_s=0.1, wrap=2**64 * 1e-3),
        1e-3,
    ),
    "instant_mw": (Channel(name="power", unit="W", kind="gauge", scope="gpu_board", update_s=0.1), 1e-3),
    "average_mw": (Channel(name="power_mean_1s", unit="W", kind="gauge", scope="gpu_board", update_s=1.0), 1e-3),
    "reasons": (Channel(name="clocks_event_reasons", unit="1", kind="gauge"), 1.0),
    "temperature_c": (Channel(name="temperature", unit="C", kind="gauge"), 1.0),
    "memory_used_bytes": (Channel(name="memory_used", unit="bytes", kind="gauge"), 1.0),
    "memory_process_bytes": (Channel(name="memory_process", unit="bytes", kind="gauge"), 1.0),
}
_NEVER_ZERO = frozenset({"energy_mj", "instant_mw", "average_mw"})


class Nvml(Protocol):
    """Whoever answers: the library, or a recording of it."""

    def count(self) -> int:
        """GPUs."""
        ...

    def ask(self, gpu: int, question: str, pid: int | None = None) -> float | None:
        """One answer in NVML's own unit, or None when it is refused."""
        ...


class Recorded:
    """Answers that were captured on another machine."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def _answers(self) -> list[dict[str, float | None]]:
        try:
            text = self._host.run(["nvml"]).stdout
            return msgspec.json.decode(text.encode(), type=list[dict[str, float | None]])
        except (Unavailable, msgspec.MsgspecError, UnicodeEncodeError):
            return []

    def count(self) -> int:
        """GPUs of the recording."""
        return len(self._answers())

    def ask(self, gpu: int, question: str, pid: int | None = None) -> float | None:
        """What was answered to this question; a process's memory whatever its id was."""
        answers = self._answers()
        return answers[gpu].get(question) if gpu < len(answers) and (pid or "process" not in question) else None


class NvmlSensor:
    """Channels ``nvml.gpu<N>.energy`` (J), ``.power`` (W), ``.clocks_event_reasons``, ``.memory_used`` and others."""

    name = "nvml"
    period_s = 0.1

    def __init__(self, nvml: Nvml, asked: Sequence[tuple[int, str]]) -> None:
        self._nvml = nvml
        self._asked = tuple(asked)
        self._pid: int | None = None

    def channels(self) -> Sequence[Channel]:
        """What each GPU answers."""
        return tuple(
            msgspec.structs.replace(channel, name=f"nvml.gpu{gpu}.{channel.name}")
            for gpu, question in self._asked
            for channel in (_QUESTIONS[question][0],)
        )

    def watch(self, pid: int | None) -> None:
        """Follow the GPU memory of this process."""
        self._pid = pid

    def read(self) -> Sequence[float | None]:
        """Answers now."""
        return [self._answer(gpu, question) for gpu, question in self._asked]

    def _answer(self, gpu: int, question: str) -> float | None:
        value = self._nvml.ask(gpu, question, self._pid)
        if value is None or not 0 <= value <= 2.0**64 or (value == 0 and question in _NEVER_ZERO):
            return None
        return value * _QUESTIONS[question][1]


def from_answers(nvml: Nvml) -> NvmlSensor | None:
    """The sensor of a library whose GPUs tell power or energy; None when none does.

    The mean power is a channel only where the instantaneous one is refused.
    """
    asked: list[tuple[int, str]] = []
    for gpu in range(nvml.count()):
        told = [question for question in _QUESTIONS if nvml.ask(gpu, question) is not None]
        if not _NEVER_ZERO & set(told):
            continue
        if "instant_mw" in told and "average_mw" in told:
            told.remove("average_mw")
        asked += [(gpu, question) for question in [*told, "memory_process_bytes"]]
    return NvmlSensor(nvml, asked) if asked else None


def detect(host: Host, profile: DeviceProfile | None) -> NvmlSensor | None:
    """The GPUs that answer for power or energy; None on a Jetson, whose library refuses all of it."""
    if not host.is_live:
        return from_answers(Recorded(host))
    try:
        return from_answers(Library())
    except (ImportError, OSError):
        return None


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    if host.try_read(host.proc("driver/nvidia/version")) is None:
        return "no driver of an NVIDIA GPU is loaded", ""
    if not host.is_live:
        return "no GPU of the recording tells power", ""
    try:
        Library()
    except ImportError:
        return "an NVIDIA driver is loaded, but its Python package is not installed", "pip install 'edgebench[nvidia]'"
    except OSError as error:
        return f"NVIDIA's library does not start: {error}", "make `nvidia-smi` work first."
    return "NVIDIA's library answers, but refuses power and energy (a Jetson, an old or a shared GPU)", ""


def recording(nvml: Nvml) -> str:
    """What every GPU answers now, as a captured tree keeps it in ``commands/nvml``; no process is asked about."""
    asked = [question for question in _QUESTIONS if "process" not in question]
    answers = [{question: nvml.ask(gpu, question) for question in asked} for gpu in range(nvml.count())]
    return msgspec.json.encode(answers).decode()
