"""``edgebench devices``: the device profiles that ship with edgebench, and which of them this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgebench.specs import Claim, DeviceProfile


@click.group(short_help="Device profiles: list, show, detect.")
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


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Look at a captured tree of another machine instead of this one.",
)
def detect(as_json: bool, root: Path) -> None:
    """Say which profile fits this machine, and what its CPUs are."""
    from edgebench import devices
    from edgebench.host import Host
    from edgebench.topology import default_threads, read_topology

    host = Host(root)
    topology = read_topology(host)
    profile = devices.detect(host, topology)
    threads, reason = default_threads(topology)
    if as_json:
        answer = {"device": profile, "topology": topology, "default_threads": threads, "default_threads_reason": reason}
        _print_json(answer)
        return
    _print_profile(profile)
    model = topology.cpu_model
    click.echo(f"\nCPU      {model.value if model.value is not None else model.unknown_because}")
    click.echo(f"cores    {topology.clusters}")
    click.echo(f"threads  {threads}: {reason}")


def _print_profile(profile: DeviceProfile) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgebench.units import format_bytes_mib

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("id", profile.id), ("device", profile.title + (" (generic)" if profile.generic else ""))]
    for name, claim in (("cores", profile.cores), ("memory GB/s", profile.memory_bandwidth_gb_s)):
        if claim is not None:
            rows.append((name, f"{claim.value}{' (unverified)' if claim.unverified else ''}\n{claim.source}".strip()))
    if profile.memory_bytes:
        rows.append(("memory MiB", ", ".join(map(format_bytes_mib, profile.memory_bytes))))
    if profile.isa:
        rows.append(("instructions", " ".join(profile.isa)))
    if profile.throttle:
        rows.append(("throttling", profile.throttle))
    rows.extend(("advice", line) for line in profile.advice)
    for name, text in rows:
        table.add_row(name, Text(text))
    Console(highlight=False).print(table)


def _short(claim: Claim | None) -> str:
    return "-" if claim is None else f"{claim.value}{'?' if claim.unverified else ''}"


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value))
