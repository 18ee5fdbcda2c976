"""A first profile of a device that has none: what the device tells about itself, as the text of ``profiles/<id>.toml``.

The device knows its name, its cores, its memory, its instruction sets and the labels of its sensors. It does not know
its bandwidth, its power modes or what a meter would show: these stay as comments that ask for a figure and its source.
Nothing that identifies one single device (serial numbers, addresses, names of hosts and users) is read for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from edgebench.devices import compatible_names, cpu_name
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.kerneltext import natural, parse_sizes, read_scaled
from edgebench.provenance import device_tree_model, firmware_names
from edgebench.sensors import throttle
from edgebench.topology import Topology

_ISA = (
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
    "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "rvv", "v",
)  # fmt: skip
_SIZES_GIB = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_CLUSTER = re.compile(r"(?P<count>\d+) (?:x )?(?P<core>[^+]+?)(?: \((?P<threads>\d+) threads\))?")
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that are known to contain all others of their board."""
_NO_RAIL = frozenset({"NC", "sum of shunt voltages"})
_COUNTED = "counted on the device by edgebench devices draft"


def draft(host: Host, topology: Topology, profile_id: str = "") -> tuple[str, str]:
    """Id and text of a profile.

    Args:
        host: the machine or a captured tree.
        topology: its CPUs.
        profile_id: what to call it; empty makes an id of the device's name.

    Raises:
        HostError: when the device says no name by which it could be recognised.
    """
    board, cpu = _clean(device_tree_model(host) or ""), _clean(cpu_name(host, topology))
    rule, title = _recognised_by(board, _clean(firmware_names(host)), cpu)
    if not rule:
        raise HostError(
            "This device says no name: it has neither a device tree, nor firmware tables, nor a processor with a name.",
            "copy profiles/generic.toml and write its [match] by hand.",
        )
    name = profile_id or _slug(title)
    lines = [
        "# A draft: every line is what the device said about itself. Add what its maker declares, with the source.",
        f"id = {_quoted(name)}",
        f"title = {_quoted(title)}",
        *_memory(host),
        *_flags(topology),
        *(['throttle = "raspberry-pi"'] if _has_pi_flags(host) else []),
        "advice = []",
        "",
        "[match]",
        rule,
        *(f"# also compatible with {_clean(other)}" for other in compatible_names(host)),
        *_cores(topology, cpu),
        "",
        "# What moves a token: bus width times data rate. Without a source it needs unverified = true.",
        "# [memory_bandwidth_gb_s]",
        "# value = 0.0",
        '# source = ""',
        *_power(host),
        *_sensors(host),
    ]
    return name, "\n".join(lines) + "\n"


def _recognised_by(board: str, firmware: str, cpu: str) -> tuple[str, str]:
    """The rule that recognises the device, and its title."""
    if board:
        model = re.sub(r"\s+Rev\s+[0-9.]+$", "", board)  # the next revision is the same device
        return f"device_tree = [{_quoted(model)}]", model
    if cpu and firmware:
        return f"dmi = [{_quoted(firmware)}]\ncpu_model = [{_quoted(cpu)}]", f"{firmware} with {cpu}"
    if firmware:
        return f"dmi = [{_quoted(firmware)}]", firmware
    return (f"cpu_model = [{_quoted(cpu)}]", f"Device with {cpu}") if cpu else ("", "")


def _memory(host: Host) -> Iterator[str]:
    total = parse_sizes(host.try_read(host.proc("meminfo")) or "").get("MemTotal")
    if total is not None:
        fitted = next((size for size in _SIZES_GIB if size * 2**30 >= total), None)
        yield f"memory_bytes = [{total if fitted is None else int(fitted * 2**30)}]"
        yield f"# the kernel has {total} bytes of it; other sizes of the same device belong into the list"


def _flags(topology: Topology) -> Iterator[str]:
    known = [flag for flag in _ISA if flag in topology.flags]
    if known:
        yield f"isa = [{', '.join(map(_quoted, known))}]"


def _cores(topology: Topology, cpu: str) -> Iterator[str]:
    """Cores and their classes, as this process may use them; a mere guess of the number is left out."""
    if topology.physical_cores.value is None:
        yield f"# cores: {_clean(topology.physical_cores.unknown_because)}"
        return
    yield from ("", "[cores]", f"value = {topology.physical_cores.value}", f"source = {_quoted(_COUNTED)}")
    clusters = [_CLUSTER.fullmatch(part) for part in topology.clusters.split(" + ")]
    found = [cluster for cluster in clusters if cluster is not None]
    if sum(int(cluster["count"]) for cluster in found) != topology.physical_cores.value:
        yield f"# clusters: {_clean(topology.clusters)} (of the cores that this process may use)"
        return
    for cluster in found:
        threads = int(cluster["threads"] or cluster["count"]) // int(cluster["count"])
        kind = re.sub(r"s$", "", cluster["core"])
        core = (cpu if kind in {"equal core", "core"} and cpu else kind) + (
            f" ({threads} threads)" if threads > 1 else ""
        )
        yield from ("", "[[clusters]]", f"core = {_quoted(_clean(core))}", f"count = {cluster['count']}")


def _power(host: Host) -> Iterator[str]:
    """Rails by label. Which of them adds up to the whole is only known of a few names; else a person must say it."""
    labels = list(_rail_labels(host))
    totals = [label for label in _TOTALS if label in labels]
    if totals:
        yield from ("", "[power]", "rails = [")
        for label in labels:
            scope = ("dc_input" if label == "VIN" else "module") if label == totals[0] else "component"
            total = ", total = true" if label == totals[0] else ""
            yield f'    {{ label = {_quoted(label)}, scope = "{scope}"{total} }},'
        yield "]"
    elif labels:
        yield from ("", "# Rails that were found. Write [power] with those that add up to the whole as total = true:")
        yield from (f"#   {label}" for label in labels)


def _rail_labels(host: Host) -> Iterator[str]:
    """Labels of power monitors, each once."""
    drivers = host.sys("bus/i2c/drivers")
    files = [
        *host.glob(drivers, "ina*/*/hwmon/hwmon*/in*_label"),
        *host.glob(drivers, "ina*/*/iio:device*/rail_name_*"),
        *host.glob(host.sys("class/hwmon"), "hwmon*/power*_label"),
    ]
    seen = {_clean(host.try_read(path) or ""): None for path in sorted(files, key=lambda path: natural(path.parent))}
    yield from (label for label in seen if label and label not in _NO_RAIL)


def _sensors(host: Host) -> Iterator[str]:
    """What else could be read, as comments for the person who completes the profile."""
    chips = (host.try_read(path) for path in host.glob(host.sys("class/hwmon"), "hwmon*/name"))
    zones = (host.try_read(path) for path in host.glob(host.sys("class/thermal"), "thermal_zone*/type"))
    clocks = (
        read_scaled(host, path, 1e-3)
        for path in host.glob(host.sys("devices/system/cpu/cpufreq"), "policy*/cpuinfo_max_freq")
    )
    found = {
        "sensor chips": sorted({_clean(chip) for chip in chips if chip}),
        "thermal zones": sorted({_clean(zone) for zone in zones if zone}),
        "highest clocks, MHz": [f"{clock:.0f}" for clock in sorted({clock for clock in clocks if clock}, reverse=True)],
    }
    told = [f"# {what}: {', '.join(names)}" for what, names in found.items() if names]
    yield from (["", *told] if told else [])


def _has_pi_flags(host: Host) -> bool:
    sensor = throttle.detect(host, None)
    return sensor is not None and any(channel.name == "throttle.pi_bits" for channel in sensor.channels())


def _clean(text: str) -> str:
    """One line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "device"


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, and what JSON does not escape was removed by `_clean`."""
    return json.dumps(text, ensure_ascii=False)
