"""``edgebench models``: list, show and pull model files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edgebench.errors import UnknownNameError

if TYPE_CHECKING:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.artifacts import Progress
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.checkpoint.gguf import GGUFHeader
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.specs import Artifact, Claim, ModelCard


@click.group()
def command() -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """Model files: which there are, what is known about them, and how to get them."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def list_models(as_json: bool) -> None: noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy# noqa: FBT001 - click passes options by name
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """Every model with a card, and whether its file is in the cache."""
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.artifacts import cache_dir, cached  # noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  files = cached()
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if as_json:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      _print_json({"cache": str(cache_dir()), "models": files})
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      return
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from rich.console import Console  # noqa: PLC0415
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from rich.table import Table  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.units import format_bytes_mib  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  table = Table("model", "precision", "MiB", "licence", "in the cache", box=None, pad_edge=False)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  table.columns[2].justify = "right"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for file in files:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      here = "yes" if file.path else "no"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      table.add_row(file.model, file.precision, format_bytes_mib(file.bytes), file.license, here)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  console = Console()
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  console.print(table)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  console.print(f"Cache: {cache_dir()}", soft_wrap=True, highlight=False, markup=False)


@command.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def show(reference: str, as_json: bool) -> None: noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy# noqa: FBT001 - click passes options by name
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """What a model card declares, or what a GGUF file says about itself.

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  REFERENCE is the id of a card, or the path of a .gguf file.
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench import cards  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  try:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      card = cards.model_card(reference)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  except UnknownNameError:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      if "/" not in reference and not reference.endswith(".gguf"):
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          raise
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      _show_file(reference, as_json=as_json)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      return
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if as_json:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      _print_json(card)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      return
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for line in _card_lines(card):
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      click.echo(line)


@command.command()
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--accept-license", is_flag=True, help="Accept the terms of models that have some.")
@click.option("--verify", is_flag=True, help="Read the hash again of files that are already in the cache.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def pull(
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  references: tuple[str, ...],
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  accept_license: bool,  # noqa: FBT001 - click passes options by name
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  verify: bool,  # noqa: FBT001
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  quiet: bool,  # noqa: FBT001
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  as_json: bool,  # noqa: FBT001
) -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """Get model files into the cache and prove by hash that they are right.

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  REF is the id of a card, the path of a .gguf file, or hf:owner/repo/file.gguf[@revision].
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.artifacts import obtain  # noqa: PLC0415
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.checkpoint.gguf import identify  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  artifacts: list[Artifact] = []
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for reference in references:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      with _progress(quiet=quiet) as progress:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          artifact = obtain(reference, accept_license=accept_license, verify=verify, progress=progress)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      artifacts.append(identify(artifact)[0])
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      if not as_json and not quiet:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          done = artifacts[-1]
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          click.echo(f"{done.model} {done.precision}: {done.path}\n  sha256 {done.sha256}, from {done.origin}")
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if as_json:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      _print_json({"artifacts": artifacts})


# --- rendering --------------------------------------------------------------------------------------------------------


def _print_json(value: object) -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  import msgspec  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _card_lines(card: ModelCard) -> Iterator[str]:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.artifacts import cached  # noqa: PLC0415
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.units import format_bytes_mib  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  paths = {file.sha256: file.path for file in cached()}
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  yield f"{card.title} ({card.id})"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  yield f"  architecture  {card.architecture}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  yield f"  licence       {card.license}, {card.license_url}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  yield f"  distilled     {f'yes; teacher: {card.teacher}' if card.distilled else 'no'}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for file in card.files:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield f"  file          {file.precision}, {format_bytes_mib(file.bytes)} MiB, sha256 {file.sha256}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield f"                {paths[file.sha256] or 'not in the cache'}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if card.claims:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield "  declared by others, not measured here:"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  width = max((len(name) for name in card.claims), default=0)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for name, claim in card.claims.items():
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield f"    {name:<{width}}  {_claim(claim)}"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if card.license_notice:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield "  terms:"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield from (f"    {line}" for line in card.license_notice.strip().splitlines())


def _claim(claim: Claim) -> str:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  value = f"{claim.value:,.15g}" if isinstance(claim.value, int | float) else claim.value
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  return f"{value}  [{claim.source}]" if claim.source else f"{value}  [unverified: no source found]"


def _show_file(reference: str, *, as_json: bool) -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.artifacts import obtain  # noqa: PLC0415
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from edgebench.checkpoint.gguf import identify  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  artifact, header = identify(obtain(reference))
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  facts = _header_facts(header)
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if as_json:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      _print_json({"artifact": artifact, "header": facts})
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      return
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  click.echo(f"{artifact.path}\n  sha256                {artifact.sha256}")
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for key, value in facts.items():
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      text = ", ".join(f"{name} {share:.1%}" for name, share in value.items()) if isinstance(value, dict) else value
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      click.echo(f"  {key:<20}  {'not in the file' if text is None else text}")


def _header_facts(header: GGUFHeader) -> dict[str, Any]:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  by_type: dict[str, int] = {}
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  for tensor in header.tensors:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.bytes
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  names = ("architecture", "name", "file_type", "context_length", "embedding_length", "block_count", "head_count")
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  more = ("head_count_kv", "vocabulary", "parameters", "weight_bytes", "bits_per_weight", "file_bytes")
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  facts = {name: getattr(header, name) for name in (*names, *more)}
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  ordered = sorted(by_type.items(), key=lambda item: -item[1])
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  return {**facts, "share_of_bytes": {name: size / header.weight_bytes for name, size in ordered}}


# --- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress | None]:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  """A bar on a terminal, one line per step elsewhere; always on standard error."""
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  if quiet:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield None
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  elif sys.stderr.isatty():
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      with _bar() as progress:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          yield progress
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  else:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield _lines()


def _lines() -> Progress:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  last = ""

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  def tell(what: str, done_bytes: int, total_bytes: int | None) -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      nonlocal last
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      if what != last:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          last = what
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          size = "" if total_bytes is None else f" ({(total_bytes - done_bytes) / 1e6:.0f} MB to go)"
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          click.echo(f"{what}{size}", err=True)

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  return tell


@contextmanager
def _bar() -> Iterator[Progress]:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from rich import progress as rich  # noqa: PLC0415
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  from rich.console import Console  # noqa: PLC0415

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  columns = (
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      rich.TextColumn("{task.description}", markup=False),
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      rich.BarColumn(),
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      rich.DownloadColumn(),
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      rich.TransferSpeedColumn(),
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      rich.TimeRemainingColumn(),
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  )
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy  with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      task = bar.add_task("", total=None)

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      def tell(what: str, done_bytes: int, total_bytes: int | None) -> None:
 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy          bar.update(task, description=what, completed=done_bytes, total=total_bytes)

 noqa: PLC0415 - see the brief of edgebench.cli: imports are lazy      yield tell
