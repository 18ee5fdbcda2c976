"""``edgebench devices``: the device profiles that ship with edgebench, and which of them this machine is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgebench.device_profile import DeviceProfile
    from edgebench.specs import Claim


@click.group(short_help="Device profiles: detect, list, show, draft.")
def command() -> None:
    """Device profiles: what is declared about a device, with the source of each figure."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(as_json: bool) -> None:
    """List all profiles."""
    from edgebench.cards import device_profiles

    profiles = tuple(device_profiles().values())
    if as_json:
        _print_json({"devices": profiles})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in (("id", "left"), ("device", "left"), ("cores", "right"), ("GB/s", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for profile in profiles:
        table.add_row(profile.id, profile.title, _short(profile.cores), _short(profile.memory_bandwidth_gb_s))
    console = Console(highlight=False)
    console.print(table)
    console.print("\n? is a declared figure that nobody has verified; - is not declared.")


@command.command()
@click.argument("device_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(device_id: str, as_json: bool) -> None:
    """Show one profile with the source of each figure."""
    from edgebench.cards import device_profile

    profile = device_profile(device_id)
    if as_json:
        _print_json(profile)
    else:
        _print_profile(profile)


_ROOT = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Look at a captured tree of another machine instead of this one.",
)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_ROOT
def detect(as_json: bool, root: Path) -> None:
    """Say which profile fits this machine and its GPUs, and what its CPUs are."""
    from edgebench import devices
    from edgebench.host import Host
    from edgebench.topology import default_threads, read_topology

    host = Host(root)
    topology = read_topology(host)
    profile = devices.detect(host, topology)
    threads, reason = default_threads(topology)
    gpus, names = devices.accelerators(host), devices.gpu_names(host)
    if as_json:
        answer = {"device": profile, "gpus": gpus, "gpu_names": names, "topology": topology}
        _print_json({**answer, "default_threads": threads, "default_threads_reason": reason})
        return
    _print_profile(profile)
    model = topology.cpu_model
    click.echo(f"\nCPU      {model.value if model.value is not None else model.unknown_because}")
    click.echo(f"cores    {topology.clusters}")
    click.echo(f"threads  {threads}: {reason}")
    for name in names:
        known = next((gpu.id for gpu in gpus if name.lower() in {own.lower() for own in gpu.match.gpu}), None)
        click.echo(f"GPU      {name}: {f'edgebench devices show {known}' if known else 'no profile'}")
    if profile.generic:
        click.echo("\nThis device has no profile of its own: edgebench devices draft writes a first one.")


@command.command()
@click.argument("device_id", metavar="[ID]", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_ROOT
def draft(device_id: str, as_json: bool, root: Path) -> None:
    """Write a first profile of this machine from what it says about itself, without serial numbers.

    Its text goes to standard output: edgebench devices draft my-board > profiles/my-board.toml
    """
    from edgebench.draft import draft as write
    from edgebench.host import Host
    from edgebench.topology import read_topology

    host = Host(root)
    name, text = write(host, read_topology(host), device_id)
    if as_json:
        _print_json({"id": name, "toml": text})
    else:
        click.echo(text, nl=False)


def _print_profile(profile: DeviceProfile) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(profile):
        table.add_row(name, Text(text))
    Console(highlight=False).print(table)


def _rows(profile: DeviceProfile) -> Iterator[tuple[str, str]]:
    """What a profile says, line by line, each figure with its source below it."""
    from edgebench.units import format_bytes_mib

    yield "id", profile.id
    yield "device", profile.title + (" (generic)" if profile.generic else "")
    if profile.cores is not None:
        yield "cores", _claim(profile.cores)
    for cluster in profile.clusters:
        clock = f" up to {_claim(cluster.max_clock_mhz, ' MHz')}" if cluster.max_clock_mhz is not None else ""
        yield "cluster", f"{cluster.count} x {cluster.core}{clock}"
    if profile.memory_bytes:
        yield "memory MiB", ", ".join(map(format_bytes_mib, profile.memory_bytes))
    if profile.memory_bandwidth_gb_s is not None:
        yield "memory GB/s", _claim(profile.memory_bandwidth_gb_s)
    if profile.isa:
        yield "instructions", " ".join(profile.isa)
    if profile.power_limit_w is not None:
        yield "power limit", _claim(profile.power_limit_w, " W")
    yield from _power_rows(profile)
    if profile.throttle:
        yield "throttling", profile.throttle
    yield from (("slower", f"when {rule.when}: {rule.effect}") for rule in profile.throttle_rules)
    if profile.build_flags:
        yield "build", " ".join(f"-D{flag}" for flag in profile.build_flags)
    yield from (("advice", line) for line in profile.advice)


def _power_rows(profile: DeviceProfile) -> Iterator[tuple[str, str]]:
    for mode in profile.power_modes:
        watts = f": {_claim(mode.watts, ' W')}" if mode.watts is not None else ""
        yield "power mode", mode.name + watts + (f"\n{mode.command}" if mode.command else "")
    if profile.power is not None:
        for rail in profile.power.rails:
            yield "rail", f"{rail.label} ({rail.scope}{', total' if rail.total else ''})"
        if profile.power.meter:
            yield "measure with", profile.power.meter
    draw = profile.power_draw
    if draw is not None:
        yield "idle", f"{_claim(draw.idle_w, f' W ({draw.scope}, {draw.meter})')}"
        yield "full load", f"{_claim(draw.full_w, f' W ({draw.scope}, {draw.load})')}"


def _claim(claim: Claim, unit: str = "") -> str:
    return f"{claim.value}{unit}{' (unverified)' if claim.unverified else ''}\n{claim.source}".strip()


def _short(claim: Claim | None) -> str:
    return "-" if claim is None else f"{claim.value}{'?' if claim.unverified else ''}"


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value))
