"""Control groups: the limits a container puts on this process, for both versions and the hybrid of the two.

A limit holds for a group and everything below it, so the effective limit is the smallest one on the way from the
process's own group to the root of the hierarchy. Version 1 has one hierarchy per controller, version 2 one for all; in
the hybrid set-up a controller sits in exactly one of them, and version 1 wins where it is mounted.

Inside a container without its own cgroup namespace the path of the process does not exist below the mount point: the
mount point is then the process's group itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebench.host import Host
from edgebench.kerneltext import parse_count, parse_cpu_list

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest page count it can hold, about 2^63 bytes."""


@dataclass(frozen=True)
class Cgroup:
    """The groups of a process for one controller, innermost first."""

    version: Literal[1, 2]
    directories: tuple[Path, ...]


def find(host: Host, controller: str, pid: int | None = None) -> Cgroup | None:
    """The groups that rule ``controller`` for a process (this one if no pid), or None when none is visible."""
    text = host.try_read(host.proc(f"{pid or 'self'}/cgroup"))
    if text is None:
        return None
    unified = None
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            for name in (controller, names):
                mount = host.sys("fs/cgroup") / name
                if mount.is_dir():
                    return Cgroup(1, _ancestry(mount, path))
        elif not names and path:
            unified = path
    mount = host.sys("fs/cgroup")
    controllers = host.try_read(mount / "cgroup.controllers")
    if unified is not None and controllers is not None and controller in controllers.split():
        return Cgroup(2, _ancestry(mount, unified))
    return None


def _ancestry(mount: Path, path: str) -> tuple[Path, ...]:
    """The group at ``path`` and all above it up to the mount point."""
    own = mount / path.strip("/")
    if ".." in Path(path).parts or not own.is_dir():
        return (mount,)
    steps = len(own.relative_to(mount).parts)
    return (own, *own.parents[:steps])


def memory_usage_file(host: Host, pid: int | None = None) -> Path | None:
    """The file with the bytes charged to the process's memory group now, or None when there is none."""
    group = find(host, "memory", pid)
    if group is None:
        return None
    path = group.directories[0] / ("memory.usage_in_bytes" if group.version == 1 else "memory.current")
    return path if path.is_file() else None


def memory_limit(host: Host) -> int | None:
    """The smallest memory limit in bytes that holds for this process, or None when no limit is set."""
    group = find(host, "memory")
    if group is None:
        return None
    name = "memory.limit_in_bytes" if group.version == 1 else "memory.max"
    limits = [parse_count(host.try_read(directory / name) or "") for directory in group.directories]
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def cpu_quota(host: Host) -> float | None:
    """CPU time per wall time that this process may use (1.5 = one and a half CPUs), or None without a quota."""
    group = find(host, "cpu")
    if group is None:
        return None
    quotas = []
    for directory in group.directories:
        if group.version == 2:
            words = (host.try_read(directory / "cpu.max") or "").split()
        else:
            words = [host.try_read(directory / f"cpu.cfs_{what}_us") or "" for what in ("quota", "period")]
        numbers = [number for word in words if (number := parse_count(word)) is not None]
        if len(numbers) == 2 and numbers[1]:
            quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)


def cpuset(host: Host) -> frozenset[int] | None:
    """The CPUs that the process's group may use, or None when no group restricts them."""
    group = find(host, "cpuset")
    if group is None:
        return None
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
        text = host.try_read(group.directories[0] / name)
        if text:
            return parse_cpu_list(text)
    return None
