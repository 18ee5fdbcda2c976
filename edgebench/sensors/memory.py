"""Memory of the watched process and of the system, in bytes.

Anonymous pages (weights read into the heap, KV cache, compute buffers) cannot be dropped, only swapped; file pages are
the mapped model file, which the kernel may drop and read again. RSS is the two together, so it alone says little about
whether a model fits: the parts are read separately, all from one read of ``status`` so that they belong together.

MemAvailable is the kernel's estimate of what can be had without swapping. The memory group's usage counts what the
container's limit counts: anonymous pages plus the page cache that the group brought in.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgebench.cgroups import memory_usage_file
from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.kerneltext import parse_sizes, read_scaled
from edgebench.records import Channel

_PROCESS = {"anon": "RssAnon", "file": "RssFile", "swap": "VmSwap", "rss": "VmRSS"}


class MemorySensor:
    """Gauges ``memory.anon``, ``.file``, ``.swap``, ``.rss`` (watched process), ``.available`` and ``.cgroup``."""

    name = "memory"
    period_s = 0.1

    def __init__(self, host: Host, *, has_cgroup: bool) -> None:
        self._host = host
        self._pid: int | None = None
        self._has_cgroup = has_cgroup
        self._usage = memory_usage_file(host) if has_cgroup else None

    def channels(self) -> Sequence[Channel]:
        """The process's parts, then the system, then the memory group where one was found."""
        names = [*_PROCESS, "available", *(["cgroup"] if self._has_cgroup else [])]
        return tuple(Channel(name=f"memory.{name}", unit="bytes", kind="gauge") for name in names)

    def watch(self, pid: int | None) -> None:
        """Follow this process, and the memory group it is in."""
        self._pid = pid
        if self._has_cgroup:
            self._usage = memory_usage_file(self._host, pid)

    def read(self) -> Sequence[float | None]:
        """Bytes now; the process's channels are None while none is watched or once it is gone."""
        status = self._host.try_read(self._host.proc(f"{self._pid}/status")) if self._pid is not None else None
        sizes = parse_sizes(status or "")
        values: list[float | None] = [sizes.get(key) for key in _PROCESS.values()]
        system = parse_sizes(self._host.try_read(self._host.proc("meminfo")) or "")
        values.append(system.get("MemAvailable"))
        if self._has_cgroup:
            values.append(read_scaled(self._host, self._usage) if self._usage is not None else None)
        return values


def detect(host: Host, profile: DeviceProfile | None) -> MemorySensor | None:
    """The sensor where the kernel publishes ``meminfo``."""
    if host.try_read(host.proc("meminfo")) is None:
        return None
    return MemorySensor(host, has_cgroup=memory_usage_file(host) is not None)


def absent(host: Host) -> tuple[str, str]:
    """Why there is none here, and what would help."""
    return "the kernel shows no meminfo", "mount procfs in this container."
