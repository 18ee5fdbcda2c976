"""``edgebench export``: a model as an ONNX folder or a GGUF file, without torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebench.errors import ArtifactError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgebench.derive import Kind
    from edgebench.specs import Artifact


@click.command()
@click.argument("model")
@click.option("--to", "form", type=click.Choice(["onnx", "gguf"]), required=True, help="Format.")
@click.option(
    "--precision",
    metavar="NAME",
    required=True,
    help="The same weights in both formats: shipped, q8_0, q4_0, q4_k_m... ONNX only: fp32, int8, int4, int4-mixed.",
)
@click.option(
    "--exporter",
    type=click.Choice(["direct", "optimum"]),
    default="direct",
    show_default=True,
    help="optimum: the slow reference, for a Hugging Face folder of any architecture; needs edgebench[optimum].",
)
@click.option(
    "--imatrix",
    metavar="TEXT",
    help="GGUF: round the weights by their importance on this text file, some ten thousand tokens of typical use.",
)
@click.option("-o", "--output", metavar="PATH", help="Where to; without it, the cache's own copy is named.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="ONNX: tokens that the graph can hold.")
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    help="ONNX: multiply matrices with activations of 8 bits (4) or with floats (0). [default: 4]",
)
@click.option(
    "--device", metavar="NAME", help="ONNX: export for this compute device; cuda and tensorrt take half precision only."
)
@click.option("--force", is_flag=True, help="Replace what lies there.")
@click.option("--accept-license", is_flag=True, help="Accept the model's terms before its first download.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(**options: Any) -> int:
    """Export MODEL to another format or precision, without torch.

    MODEL is a card id, a GGUF file, a Hugging Face folder (safetensors), or hf:owner/repo/file.gguf.
    """
    from rich.console import Console

    from edgebench.artifacts.delivery import deliver
    from edgebench.cli._progress import Progress
    from edgebench.derive import Maker, obtain_source, quantizer_version
    from edgebench.export.imatrix import read_calibration
    from edgebench.export.precisions import check_imatrix, check_precision, formats_of
    from edgebench.host import Host
    from edgebench.records import Failure
    from edgebench.topology import default_threads, read_topology

    teller, host = Progress(Console(stderr=True), quiet=options["quiet"]), Host()
    precision, form = check_precision(options["precision"]), options["form"]
    if form not in formats_of(precision):
        raise UsageError(f"{precision} is not made as {form}.", f"use --to {formats_of(precision)[0]}.")
    kind = _kind(options, precision)
    if options["exporter"] == "optimum" and (form, precision, options["context"]) != ("onnx", "fp32", None):
        raise UsageError(
            "optimum exports to ONNX at fp32, for any length.", "use --to onnx --precision fp32, without --context."
        )
    calibration = None
    if options["imatrix"] is not None:
        check_imatrix(precision, form)
        calibration = read_calibration(Path(options["imatrix"]).expanduser())
    target = Path(options["output"]) if options["output"] else None
    if target is not None and target.exists() and not options["force"]:
        raise UsageError(f"{target} exists already.", "give another -o, or add --force to replace it.")
    source = obtain_source(options["model"], accept_license=options["accept_license"], progress=teller.progress)
    maker = Maker(host, quantizer_version(host), default_threads(read_topology(host))[0], teller)
    if options["exporter"] == "optimum":
        made = maker.reference(source)
    else:
        made = maker.gguf(source, precision, calibration) if form == "gguf" else maker.onnx(source, precision, kind)
    teller.clear()
    if isinstance(made, Failure):
        raise ArtifactError(f"{options['model']} could not be exported: {made.says.rstrip('.')}.", made.next_step)
    place = Path(made.path) if target is None else deliver(made, target, force=options["force"])
    _print(made, place, options)
    return 0


def _kind(options: dict[str, Any], precision: str) -> Kind:
    """Which kind of ONNX export is wanted.

    Raises:
        UsageError: when it makes no sense for this format, exporter or precision.
    """
    from edgebench.derive import Kind
    from edgebench.registry import load

    level, device = options["accuracy_level"], options["device"]
    if (level or device) and (options["form"] != "onnx" or options["exporter"] != "direct"):
        raise UsageError(
            "--accuracy-level and --device are for our own ONNX exports.", "use --to onnx, or leave them out."
        )
    if level == "0" and precision == "fp32":
        raise UsageError("fp32 has no matrices in blocks, so it has no accuracy level.", "leave --accuracy-level out.")
    runtime = load("runtimes", "ort").RUNTIME
    if device is not None and device not in runtime.devices:
        raise UnknownNameError("compute device of onnxruntime", device, list(runtime.devices))
    halved = device is not None and runtime.kv_type(device) == "f16"
    return Kind(options["context"], None if level is None else int(level), halved=halved)


def _print(made: Artifact, place: Path, options: dict[str, Any]) -> None:
    import msgspec

    from edgebench.derive import measured_bits
    from edgebench.units import format_bytes_mib

    bits = measured_bits(made)
    if options["as_json"]:
        document = {**msgspec.to_builtins(made), "path": str(place), "bits_per_weight": bits}
        click.echo(msgspec.json.encode(document).decode())
        return
    click.echo(f"{place}: {format_bytes_mib(made.bytes)} MiB, {bits:.2f} bits per weight")
    for note in made.quantizer_notes:
        click.echo(f"note: {note}")
    where = shlex.quote(str(place))
    speaks = place.is_file() or (place / "tokenizer.gguf").is_file()
    click.echo(
        f"next: edgebench generate {where} 'Once upon a time'" if speaks else f"next: edgebench profile --model {where}"
    )
