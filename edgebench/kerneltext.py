"""The text formats that the kernel repeats everywhere: CPU lists, ``Key: value`` tables, scaled numbers.

Each parser returns None (or leaves the entry out) for text that does not have the format, because a kernel file that is
half written, renamed or garbage is an unavailable source and never an error of edgebench.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgebench.host import Host, Unavailable

_COUNT = re.compile(r"\d{1,20}", re.ASCII)  # the kernel prints at most 64 bits
_SPAN = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_cpu_list(text: str) -> frozenset[int] | None:
    """The CPUs named by ``0-3,8``; None when the text is no such list. An empty text is an empty set."""
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        span = _SPAN.fullmatch(part.strip())
        if span is None:
            return None
        cpus.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    return frozenset(cpus)


def parse_count(word: str) -> int | None:
    """An unsigned number as the kernel prints it, or None."""
    return int(word) if _COUNT.fullmatch(word) else None


def parse_sizes(text: str) -> dict[str, int]:
    """Sizes in bytes from lines like ``VmRSS:  1234 kB`` (meminfo, status). Lines without ``kB`` are left out."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB" and (count := parse_count(words[1])) is not None:
            sizes[words[0].rstrip(":")] = count * 1024
    return sizes


def parse_counts(text: str) -> dict[str, int]:
    """Counts from lines like ``oom_kill 3`` (vmstat, cgroup events). Lines of another form are left out."""
    counts = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and (count := parse_count(words[1])) is not None:
            counts[words[0]] = count
    return counts


def find_counts(text: str, names: tuple[str, ...]) -> list[int | None]:
    """What `parse_counts` says about these names, None for one not found, ten times faster.

    It looks for the names instead of reading all lines: vmstat has nearly 200, and it is read ten times a second.
    """
    lines = f"\n{text}\n"
    counts = []
    for name in names:
        _, found, rest = lines.partition(f"\n{name} ")
        counts.append(parse_count(rest.partition("\n")[0]) if found else None)
    return counts


def parse_size(text: str) -> int | None:
    """Bytes of a cache size like ``2048K`` or ``16M``."""
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", text.strip())
    return int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]] if match else None


def cpuinfo_blocks(text: str) -> list[dict[str, str]]:
    """``cpuinfo`` as one table per processor, in file order; trailing tables without a processor are kept as well."""
    blocks: list[dict[str, str]] = []
    for paragraph in text.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines() if ":" in line)
        block = {key.strip(): value.strip() for key, _, value in pairs}
        if block:
            blocks.append(block)
    return blocks


def read_scaled(host: Host, path: Path, factor: float = 1.0) -> float | None:
    """A whole number in a kernel file times ``factor``, or None when it is not readable or not a number."""
    try:
        return host.read_int(path) * factor
    except Unavailable:
        return None


def natural(path: Path) -> tuple[str, int]:
    """Sort key that puts ``policy10`` after ``policy2``."""
    match = re.fullmatch(r"(.*?)(\d*)", path.name)
    stem, number = (match[1], match[2]) if match else (path.name, "")
    return stem, int(number or -1)


def channel_part(text: str) -> str:
    """A label of the kernel as a part of a channel name: ``Package id 0`` becomes ``Package_id_0``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text.strip()).strip("_") or "unnamed"
