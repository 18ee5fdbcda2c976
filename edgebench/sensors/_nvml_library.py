"""NVIDIA's management library, asked through nvidia-ml-py (module ``pynvml``), which is optional.

Every question is asked on its own and may be refused: on a Jetson the library starts, counts one GPU, and answers
NOT_SUPPORTED to everything (the rails of the board are read by ``ina3221``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Library:
    """The library of this machine, started.

    Raises:
        ImportError: when nvidia-ml-py is not installed.
        OSError: when there is no driver, or no GPU that it serves.
    """

    def __init__(self) -> None:
        self._nvml: ModuleType = importlib.import_module("pynvml")
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles: list[Any] = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from error

    def count(self) -> int:
        """GPUs of this machine."""
        return len(self._handles)

    def ask(self, gpu: int, question: str, pid: int | None = None) -> float | None:
        """One answer in NVML's unit (mJ, mW, bytes, C), or None when it is refused."""
        try:
            value = self._questions(pid)[question](self._handles[gpu])
        except (self._nvml.NVMLError, AttributeError):  # refused, or unknown to this version of the package
            return None
        return None if value is None else float(value)

    def _questions(self, pid: int | None) -> dict[str, Callable[[Any], Any]]:
        return {
            "energy_mj": self._nvml.nvmlDeviceGetTotalEnergyConsumption,
            "instant_mw": self._instant,
            "average_mw": self._nvml.nvmlDeviceGetPowerUsage,
            "reasons": self._reasons,
            "temperature_c": lambda handle: self._nvml.nvmlDeviceGetTemperature(handle, 0),  # 0: the GPU itself
            "memory_used_bytes": lambda handle: self._nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory_process_bytes": lambda handle: self._of_process(handle, pid),
        }

    def _instant(self, handle: Any) -> int | None:
        """Power now: field 186 of scope 0, the GPU (nvml.h: NVML_FI_DEV_POWER_INSTANT, NVML_POWER_SCOPE_GPU)."""
        answer = self._nvml.nvmlDeviceGetFieldValues(handle, [(self._nvml.NVML_FI_DEV_POWER_INSTANT, 0)])[0]
        return int(answer.value.uiVal) if answer.nvmlReturn == self._nvml.NVML_SUCCESS else None

    def _reasons(self, handle: Any) -> int:
        """Why the clock is below its maximum; the function was renamed in 2023."""
        ask = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        return int((ask or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))

    def _of_process(self, handle: Any, pid: int | None) -> int | None:
        """Bytes that a process holds on the GPU; the library says None under Windows and in some containers."""
        if pid is None:
            return None
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return next((process.usedGpuMemory for process in processes if process.pid == pid), None)
