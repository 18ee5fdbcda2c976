"""``edgebench models``: list, show and pull model files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edgebench.errors import UnknownNameError

if TYPE_CHECKING:
    from edgebench.artifacts import Progress
    from edgebench.checkpoint.gguf import GGUFHeader
    from edgebench.specs import Artifact, Claim, ModelCard


@click.group()
def command() -> None:
    """Model files: which there are, what is known about them, and how to get them."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def list_models(as_json: bool) -> None:
    """Every model with a card, and whether its file is in the cache."""
    from edgebench.artifacts import cache_dir, cached

    files = cached()
    if as_json:
        _print_json({"cache": str(cache_dir()), "models": files})
        return
    from rich.console import Console
    from rich.table import Table

    from edgebench.units import format_bytes_mib

    table = Table("model", "precision", "MiB", "licence", "in the cache", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for file in files:
        here = "yes" if file.path else "no"
        table.add_row(file.model, file.precision, format_bytes_mib(file.bytes), file.license, here)
    console = Console()
    console.print(table)
    console.print(f"Cache: {cache_dir()}", soft_wrap=True, highlight=False, markup=False)


@command.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def show(reference: str, as_json: bool) -> None:
    """What a model card declares, or what a GGUF file says about itself.

    REFERENCE is the id of a card, or the path of a .gguf file.
    """
    from edgebench import cards

    try:
        card = cards.model_card(reference)
    except UnknownNameError:
        if reference.startswith("hf:") or ("/" not in reference and not reference.endswith(".gguf")):
            raise
        _show_file(reference, as_json=as_json)
        return
    if as_json:
        _print_json(card)
        return
    for line in _card_lines(card):
        click.echo(line)


@command.command()
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--accept-license", is_flag=True, help="Accept the terms of models that have some.")
@click.option("--verify", is_flag=True, help="Read the hash again of files that are already in the cache.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def pull(
    references: tuple[str, ...],
    accept_license: bool,
    verify: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Get model files into the cache and prove by hash that they are right.

    REF is the id of a card, the path of a .gguf file, or hf:owner/repo/file.gguf[@revision].
    """
    from edgebench.artifacts import obtain
    from edgebench.checkpoint.gguf import identify

    artifacts: list[Artifact] = []
    for reference in references:
        with _progress(quiet=quiet) as progress:
            artifact = obtain(reference, accept_license=accept_license, verify=verify, progress=progress)
        artifacts.append(identify(artifact)[0])
        if not as_json and not quiet:
            done = artifacts[-1]
            click.echo(f"{done.model} {done.precision}: {done.path}\n  sha256 {done.sha256}, from {done.origin}")
    if as_json:
        _print_json({"artifacts": artifacts})


# --- rendering --------------------------------------------------------------------------------------------------------


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _card_lines(card: ModelCard) -> Iterator[str]:
    from edgebench.artifacts import cached
    from edgebench.units import format_bytes_mib

    paths = {file.sha256: file.path for file in cached()}
    yield f"{card.title} ({card.id})"
    yield f"  architecture  {card.architecture}"
    yield f"  licence       {card.license}, {card.license_url}"
    yield f"  distilled     {f'yes; teacher: {card.teacher}' if card.distilled else 'no'}"
    for file in card.files:
        yield f"  file          {file.precision}, {format_bytes_mib(file.bytes)} MiB, sha256 {file.sha256}"
        yield f"                {paths[file.sha256] or 'not in the cache'}"
    if card.claims:
        yield "  declared by others, not measured here:"
    width = max((len(name) for name in card.claims), default=0)
    for name, claim in card.claims.items():
        yield f"    {name:<{width}}  {_claim(claim)}"
    if card.license_notice:
        yield "  terms:"
        yield from (f"    {line}" for line in card.license_notice.strip().splitlines())


def _claim(claim: Claim) -> str:
    value = f"{claim.value:,.15g}" if isinstance(claim.value, int | float) else claim.value
    return f"{value}  [{claim.source}]" if claim.source else f"{value}  [unverified: no source found]"


def _show_file(reference: str, *, as_json: bool) -> None:
    from edgebench.artifacts import obtain
    from edgebench.checkpoint.gguf import identify

    artifact, header = identify(obtain(reference))
    facts = _header_facts(header)
    if as_json:
        _print_json({"artifact": artifact, "header": facts})
        return
    click.echo(f"{artifact.path}\n  sha256                {artifact.sha256}")
    for key, value in facts.items():
        text = ", ".join(f"{name} {share:.1%}" for name, share in value.items()) if isinstance(value, dict) else value
        click.echo(f"  {key:<20}  {'not in the file' if text is None else text}")


def _header_facts(header: GGUFHeader) -> dict[str, Any]:
    by_type: dict[str, int] = {}
    for tensor in header.tensors:
        by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.bytes
    names = ("architecture", "name", "file_type", "context_length", "embedding_length", "block_count", "head_count")
    more = ("head_count_kv", "vocabulary", "parameters", "weight_bytes", "bits_per_weight", "file_bytes")
    facts = {name: getattr(header, name) for name in (*names, *more)}
    ordered = sorted(by_type.items(), key=lambda item: -item[1])
    return {**facts, "share_of_bytes": {name: size / header.weight_bytes for name, size in ordered}}


# --- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress | None]:
    """A bar on a terminal, one line per step elsewhere; always on standard error."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines()


def _lines() -> Progress:
    last = ""

    def tell(what: str, done_bytes: int, total_bytes: int | None) -> None:
        nonlocal last
        if what != last:
            last = what
            size = "" if total_bytes is None else f" ({(total_bytes - done_bytes) / 1e6:.0f} MB to go)"
            click.echo(f"{what}{size}", err=True)

    return tell


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done_bytes: int, total_bytes: int | None) -> None:
            bar.update(task, description=what, completed=done_bytes, total=total_bytes)

        yield tell
