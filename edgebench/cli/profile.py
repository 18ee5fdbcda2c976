"""``edgebench profile``: the main job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgebench.errors import HostError, UsageError

if TYPE_CHECKING:
    from edgebench.metering import EstimateRequest
    from edgebench.plan import Request
    from edgebench.profile import Outcome
    from edgebench.specs import Protocol

_DEFAULT_MODEL = "smollm2-135m-instruct"
_QUICK_PRECISIONS = ("q4_0",)  # three rounds of it on two runtimes fill half a minute


@click.command()
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Compute device: cpu, cuda, or of onnxruntime alone tensorrt, coreml, webgpu.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="Card id, GGUF file, Hugging Face or ONNX folder, or hf:owner/repo/file.gguf@revision. Repeatable.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME",
    help="shipped, q8_0, q4_0, q4_k_m... ONNX only: fp32, int8, int4, int4-mixed. Repeatable, or a list with commas.",
)
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME", help="Engine; without it, every installed one. Repeatable."
)
@click.option("--threads", type=int, metavar="N", help="Use N threads instead of searching for the best number.")
@click.option("--pin", is_flag=True, help="onnxruntime: keep each thread on a physical performance core of its own.")
@click.option(
    "--spinning/--no-spinning", default=None, help="onnxruntime: whether idle threads wait busily. [default: spinning]"
)
@click.option(
    "--arena/--no-arena",
    default=None,
    help="onnxruntime: whether it keeps scratch memory itself. [default: arena]",
)
@click.option(
    "--accuracy-level",
    type=int,
    metavar="0|4",
    help="ONNX: multiply matrices with activations of 8 bits (4) or with floats (0). [default: 4]",
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="pp<N>: prefill, tg<N>: decode, with @d<DEPTH> after a filled cache; sustained:<TIME>: decode for so long, to "
    "see when the device slows down. Repeatable.",
)
@click.option("--budget", metavar="TIME", help="Time for measuring: 90s, 10m.")
@click.option(
    "--quick",
    is_flag=True,
    help="An answer within half a minute: q4_0 unless --precision says more, few rounds, wide intervals.",
)
@click.option("--thorough", is_flag=True, help="Up to 15 minutes, for intervals of 1 %.")
@click.option(
    "--energy",
    is_flag=False,
    flag_value="60s",
    metavar="[TIME]",
    help="Blocks for a minute or for TIME, five rounds, idle phases before and after. Minutes a round.",
)
@click.option(
    "--cooldown",
    metavar="auto|TIME|off",
    help="Before each round: wait until as cool as at the start, or so long. [default: off; auto with --energy]",
)
@click.option(
    "--allow-energy-estimate",
    is_flag=True,
    help="Where nothing measures energy, estimate a range from the device profile. Kept apart from measurements.",
)
@click.option(
    "--watts", metavar="IDLE:FULL", help="For the estimate: the watts of the idle and of the fully loaded machine."
)
@click.option(
    "--output",
    metavar="FILE.json",
    type=click.Path(dir_okay=False),
    help="Also write everything, raw samples included, to a file.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="last",
    metavar="[SESSION]",
    help="Finish an interrupted session; only what is missing is repeated.",
)
@click.option(
    "--meter",
    metavar="[SCOPE=]KIND:TARGET",
    help="A power meter outside: shelly1, shelly2, tasmota, homeassistant, json (http://...), command, lines, serial, "
    "hwmon. SCOPE: wall_ac (default of plugs) or dc_input.",
)
@click.option("--timeout", metavar="TIME", help="Longest silence of a step before it counts as hanging. [default: 15m]")
@click.option("--store", metavar="URL", help="Result store: a path or a URL.")
@click.option("--accept-license", is_flag=True, help="Accept the model's terms before its first download.")
@click.option("--force-context", is_flag=True, help="Allow workloads longer than the model's context.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="With --runtime fake: read the sensors of a captured machine (edgebench capture).",
)
@click.option(
    "--script", multiple=True, metavar="KEY=VALUE", help="For --runtime fake, e.g. tg_token_s=0.005. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(**options: Any) -> int:
    """Profile a language model: prefill and decode speed, latency, memory, and how far to trust them.

    Without options: the default model as shipped and at two more precisions, on every installed runtime, in two
    minutes. Rows of two runtimes that hold the same weights are named.
    """
    from rich.console import Console

    from edgebench.cli._progress import Progress
    from edgebench.engine.protocol import Limits
    from edgebench.profile import Options, Profiler
    from edgebench.units import parse_duration

    listener = Progress(Console(stderr=True), quiet=options["quiet"])
    request, limits = _request(options), Limits()
    if options["timeout"]:
        limits = Limits(load_s=parse_duration(options["timeout"]), block_s=parse_duration(options["timeout"]))
    _check_output(options["output"])
    command_line = ("edgebench", *sys.argv[1:])
    settings = Options(
        store=options["store"],
        command=command_line,
        limits=limits,
        estimate=_estimate(options),
        meter=options["meter"] or "",
        root=options["root"],
    )
    profiler = Profiler(settings, listener)
    outcome = profiler.resume(options["resume"]) if options["resume"] else profiler.run(request)
    listener.clear()
    _deliver(outcome, options)
    return outcome.exit_code


def _request(options: dict[str, Any]) -> Request:
    from edgebench.plan import Request

    names = [name for text in options["precisions"] for name in text.split(",") if name]
    if options["precisions"] and not names:
        raise UsageError("--precision names nothing.", "write for example --precision q8_0,q4_0")
    defaults = Request(models=())
    return Request(
        models=options["models"] or (_DEFAULT_MODEL,),
        precisions=names or (_QUICK_PRECISIONS if options["quick"] else defaults.precisions),
        runtimes=options["runtimes"],
        device=options["device"],
        threads=options["threads"],
        spinning=options["spinning"],
        arena=options["arena"],
        pin=options["pin"],
        accuracy_level=options["accuracy_level"],
        workloads=options["workloads"] or defaults.workloads,
        blocks=1 if options["quick"] else 2,
        protocol=_protocol(options),
        script=_script(options["script"]),
        accept_license=options["accept_license"],
        force_context=options["force_context"],
    )


def _protocol(options: dict[str, Any]) -> Protocol:
    from msgspec.structs import replace

    from edgebench.specs import EnergyBlocks, Protocol
    from edgebench.units import parse_duration

    if options["quick"] and options["energy"]:
        raise UsageError("--quick and --energy contradict each other.", "energy takes minutes: leave --quick out.")
    if options["quick"] and options["thorough"]:
        raise UsageError("--quick and --thorough contradict each other.", "choose one of them.")
    protocol = Protocol()
    if options["quick"]:
        protocol = Protocol(min_rounds=3, max_rounds=3, budget_s=20.0, target_half_width=0.1)
    if options["thorough"]:
        protocol = Protocol(min_rounds=10, max_rounds=60, budget_s=900.0, target_half_width=0.01)
    if options["energy"]:
        rounds, window_s = 10 if options["thorough"] else 5, parse_duration(options["energy"])
        if window_s < EnergyBlocks().window_s:
            raise UsageError(f"--energy {options['energy']} is too short for a steady figure.", "give 60s or more.")
        blocks = EnergyBlocks(window_s=window_s)
        protocol = Protocol(min_rounds=rounds, max_rounds=rounds, budget_s=86400.0, energy=blocks)
    if options["budget"]:
        protocol = replace(protocol, budget_s=parse_duration(options["budget"]))
    return replace(protocol, cooldown=_cooldown(options["cooldown"], "auto" if options["energy"] else "off"))


def _cooldown(text: str | None, default: Literal["auto", "off"]) -> Literal["auto", "off"] | float:
    from edgebench.units import parse_duration

    if text is None:
        return default
    if text == "auto":
        return "auto"
    return "off" if text == "off" else parse_duration(f"{text}s" if text.isdecimal() else text)


def _estimate(options: dict[str, Any]) -> EstimateRequest | None:
    from edgebench.metering import EstimateRequest

    if not options["allow_energy_estimate"]:
        if options["watts"]:
            raise UsageError("--watts is for an estimate of energy.", "add --allow-energy-estimate, or leave it out.")
        return None
    if not options["watts"]:
        return EstimateRequest()
    idle, _, full = options["watts"].partition(":")
    try:
        watts = (float(idle), float(full))
    except ValueError:
        watts = (0.0, 0.0)
    if not 0 < watts[0] <= watts[1] < 1e5:
        raise UsageError(f"{options['watts']!r} is not IDLE:FULL in watts.", "write for example --watts 2.7:6.4")
    return EstimateRequest(stated_w=watts)


def _script(pairs: tuple[str, ...]) -> dict[str, float]:
    script = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        try:
            script[key] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"{pair!r} is not KEY=NUMBER.", "write for example --script tg_token_s=0.005")
    return script


def _check_output(path: str | None) -> None:
    """Find out now, not after two minutes of measuring, that the file cannot be written."""
    if path is None:
        return
    target = Path(path)
    is_device = target.exists() and not target.is_file()
    if not is_device and not target.resolve().parent.is_dir():
        raise UsageError(f"The folder of {path} does not exist.", "make it, or give another --output.")
    if not os.access(target if is_device else target.resolve().parent, os.W_OK):
        raise HostError(f"{path} cannot be written.", "change the rights of its folder, or give another --output.")


def _deliver(outcome: Outcome, options: dict[str, Any]) -> None:
    import msgspec
    from rich.console import Console

    problem = _write(options["output"], outcome) if options["output"] else None
    if options["as_json"]:
        click.echo(msgspec.json.encode(msgspec.structs.replace(outcome, runs=())).decode())
    print_outcome(Console(stderr=options["as_json"]), outcome)
    _complain(outcome)
    if problem is not None:
        raise problem  # only now: the figures are shown all the same


def _write(path: str, outcome: Outcome) -> HostError | None:
    """Write the document whole or not at all; why it could not be written, if it could not."""
    import msgspec

    from edgebench.cli._runs_export import write_whole

    try:
        write_whole(path, [msgspec.json.format(msgspec.json.encode(outcome), indent=1)])
    except HostError as error:
        return HostError(error.what, "it is all in the store: edgebench runs export -o ANOTHER_FILE")
    return None


def print_outcome(console: Any, outcome: Outcome) -> None:
    """The table, what limits it, and what to look at next."""
    from edgebench.report import text

    console.print(f"device: {outcome.device}", highlight=False, markup=False, soft_wrap=True)
    for runtime, rates in outcome.thread_choice.items():
        settings = next((trial.settings for trial in outcome.plan.trials if trial.runtime == runtime), None)
        if settings is not None:
            text.print_threads(console, rates, runtime, (settings.threads, settings.threads_batch))
    text.print_result(console, outcome.trials)
    if any(trial.outcome == "ok" for trial in outcome.trials) and not outcome.interrupted_by:
        console.print(f"next: {outcome.next_step}", highlight=False, markup=False)


def _complain(outcome: Outcome) -> None:
    """Each distinct failure, and an interruption, as one line and its next step, on standard error."""
    failures: dict[tuple[str, str], list[str]] = {}
    for trial in outcome.trials:
        if trial.failure is not None:
            artifact, rounds = trial.trial.artifact, trial.rounds_ok + trial.rounds_failed
            some = f" ({trial.rounds_failed} of {rounds} rounds)" if trial.rounds_ok else ""
            name = f"{artifact.model} {artifact.label} on {trial.trial.runtime}{some}"
            failures.setdefault((trial.failure.says, trial.failure.next_step), []).append(name)
    for (says, next_step), names in failures.items():
        click.echo(f"edgebench: {', '.join(names)}: {says.rstrip('.')}.", err=True)
        click.echo(f"  next: {next_step}", err=True)
    if outcome.interrupted_by:
        click.echo(f"edgebench: interrupted by {outcome.interrupted_by}; what was measured is kept.", err=True)
        click.echo(f"  next: {outcome.next_step}", err=True)
