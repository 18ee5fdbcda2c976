"""The largest memory charge of this process's control group while something ran.

The group also holds the session itself and the page cache it caused, so this is an upper bound for the child; the note
says so. Version 1 resets its peak by a write. Version 2 could not be reset before Linux 6.12, and since then only for
the descriptor that wrote: there the largest of the sampler's readings stands in, and the note says that instead.
"""

from __future__ import annotations

from edgebench import cgroups
from edgebench.host import Host, Unavailable

_POLLED = "the whole control group, page cache included, polled at 10 Hz"


class CgroupPeak:
    """Reset at the start, read at the end."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._file = None
        group = cgroups.find(host, "memory")
        if group is None:
            self.note = "no memory control group is visible"
            return
        name = "memory.max_usage_in_bytes" if group.version == 1 else "memory.peak"
        path = group.directories[0] / name
        if not path.is_file():
            self.note = f"{name} does not exist in this group"
        elif group.version != 1:
            self.note = _POLLED
        else:
            self._file = path
            self.note = "the whole control group, page cache included"
        self.reset()

    def reset(self) -> None:
        """Start counting from now."""
        if self._file is None:
            return
        try:
            self._host.write(self._file, "0")
        except Unavailable as error:
            self.note, self._file = f"{_POLLED} (it cannot be reset: {error.reason})", None

    def read(self, polled: int | None) -> int | None:
        """Bytes, or None for the reason in ``note``.

        Args:
            polled: the largest reading of the sampler, used where the kernel's own peak cannot be reset.
        """
        if self._file is None:
            return polled
        try:
            return self._host.read_int(self._file)
        except Unavailable as error:
            self.note = error.reason
            return None
