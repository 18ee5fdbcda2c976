"""Memory of this process, phase by phase.

Writing ``5`` to ``clear_refs`` resets the peak (VmHWM) to the present size (kernel documentation,
filesystems/proc), so that each phase has a peak of its own. The proportional set size costs about 12 ms per GiB and
takes the mmap lock: once per phase, never inside a timed block.
"""

from __future__ import annotations

from edgebench.host import Host, Unavailable
from edgebench.kerneltext import parse_sizes
from edgebench.records import MemoryPhase


class MemoryReader:
    """Reads the memory of this process between `begin` and `end`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._resettable = True

    def begin(self) -> None:
        """Start a phase: its peak counts from now."""
        try:
            self._host.write(self._host.proc("self/clear_refs"), "5")
        except Unavailable:
            self._resettable = False

    def end(self, phase: str) -> MemoryPhase:
        """The phase's figures. Without a reset its peak is unknown, not the peak of an earlier phase."""
        sizes = self._sizes("status")
        return MemoryPhase(
            phase=phase,
            rss_peak=sizes.get("VmHWM") if self._resettable else None,
            anon=sizes.get("RssAnon"),
            file=sizes.get("RssFile"),
            swap=sizes.get("VmSwap"),
            pss=self._sizes("smaps_rollup").get("Pss"),
        )

    def _sizes(self, name: str) -> dict[str, int]:
        return parse_sizes(self._host.try_read(self._host.proc(f"self/{name}")) or "")
