"""How fast is edgebench's ONNX road beside the two usual ones, and beside llama.cpp?

The same weights, taken from one GGUF, run as

- ``ours int4``: edgebench's int4 graph on edgebench's onnxruntime runner;
- ``genai int4``: the int4 graph of onnxruntime-genai's model builder, run by genai's own Generator loop;
- ``optimum fp32``: optimum-onnx's export, run by ``ORTModelForCausalLM.generate``;
- ``ours q4_0`` and ``llama.cpp q4_0``: one q4_0 file on both of edgebench's runtimes, block for block the same weights;
- ``ours greedy``: edgebench's int4 graph again, each token chosen from the logits as a generation does; the same
  process measures the Python time between two decode steps.

All in one run: in each round every participant gets a fresh process, in an order that turns around from round to round
(ABBA), with the same number of threads. A process times pp512, then tg128 from an empty cache (128 forward passes),
after a warm-up of each; its value is the median of its repetitions.

The targets are ratios by paired rounds, so that what slows both members of a pair cancels. ``PASS``: the whole 95 %
interval is good enough. ``MISS``: the ratio is not. ``WIDE``: the ratio is, but its interval is not, or there is none.

    decode   ours int4 >= 1.25 x genai,  >= 6 x optimum's generate
    prefill  ours int4 >= 1.5 x genai
    Python time between two decode steps <= 60 us

What a reader must know: edgebench's tg128 and llama-bench's choose no tokens; the loops of genai and optimum do,
greedily; ``ours greedy`` shows what that is worth. genai's builder computes the logits of every token of a
prompt, edgebench's graph for speed those of the last one; with ``--genai-options prune_lm_head=true`` so does genai.
llama.cpp's prefill depends by some 6 % on where the heap puts its scratch memory (see llama_bench_parity.py).

Each peer lives in a virtual environment of its own (see peer_graphs.py), and both start from the GGUF, dequantised by
edgebench's reader (gguf_as_hf.py). In the first round the logits of all after one text are compared: that they
correlate shows that everybody runs the same model.

    python scripts/onnx_peers.py
    python scripts/onnx_peers.py --models smollm2-135m-instruct --rounds 20 --quiet-only --json peers.json

Exit status: 0 when nothing missed, 1 when something did.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import experiment
import gguf_as_hf
import msgspec
import numpy as np
import peer_graphs

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.derive import Kind, Maker, obtain_source, quantizer_version
from edgebench.engine.about import about
from edgebench.errors import HostError, NothingMeasured, UsageError
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.stats import median, median_interval, ratio, ratio_interval
from edgebench.topology import default_threads

PREFILL, DECODE, BETWEEN = "pp512", "tg128", "between_us"
PROMPT_TOKENS, STEPS = 512, 128
WORKLOADS = tuple(parse_workload(name) for name in (PREFILL, DECODE))
# Plain text: after special tokens, or words at random, rounding to 4 bits changes logits much more.
CHECK_TEXT = (
    "The first railways were built to carry coal from the mines to the nearest river. Horses pulled the waggons along "
    "wooden rails, and later along rails of iron. When the steam engine became small enough to stand on wheels, the "
    "horses were no longer needed, and the lines grew longer every year. The most important of them connected"
)
LEAST_CORRELATION = 0.85  # of int4 logits with those of fp32; those of another model, or rotation, are below
BETWEEN_LIMIT_US = 60.0
OURS, GENAI, OPTIMUM = "ours int4", "genai int4", "optimum fp32"
OURS_TWIN, LLAMACPP, GREEDY = "ours q4_0", "llama.cpp q4_0", "ours greedy"


class Comparison(NamedTuple):
    """One line of the result: a ratio of rates, and how large it should be where the project has a target."""

    metric: str
    ours: str
    theirs: str
    target: float | None


COMPARISONS = (
    Comparison(DECODE, OURS, GENAI, 1.25),
    Comparison(DECODE, OURS, OPTIMUM, 6.0),
    Comparison(PREFILL, OURS, GENAI, 1.5),
    Comparison(DECODE, GREEDY, GENAI, None),
    Comparison(DECODE, GREEDY, OPTIMUM, None),
    Comparison(PREFILL, OURS, OPTIMUM, None),
    Comparison(DECODE, OURS_TWIN, LLAMACPP, None),
    Comparison(PREFILL, OURS_TWIN, LLAMACPP, None),
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One process: its medians (tokens/s; ``between_us`` in us), and who else was seen using the machine meanwhile."""

    model: str
    participant: str
    round: int
    values: dict[str, float]
    disturbed_by: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of one model. ``value``: ratio by paired rounds, or us; ``-``: there is no target."""

    model: str
    what: str
    rounds: int
    ours: float
    theirs: float | None
    value: float
    low: float | None
    high: float | None
    target: float | None
    verdict: str


class Contest(NamedTuple):
    """One model in all its forms."""

    model: str
    trials: dict[str, TrialSpec]
    """By participant: those that edgebench's engine measures."""
    genai: Path
    optimum: Path
    vocabulary: int
    window: int
    """Tokens that genai's sliding caches must hold at least; 0 without a sliding window."""
    prompt: list[int]
    check: list[int]


Measurement = Callable[[], dict[str, float]]


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(model: str, options: argparse.Namespace, pythons: dict[str, Path]) -> Contest:
    """Everything that is to be measured of one model."""
    source = obtain_source(model, accept_license=options.accept_license, progress=lambda *_: None)
    if source.format != "gguf":
        raise UsageError(f"{model} is no GGUF.", "name a model card or a GGUF file.")
    maker = Maker(
        experiment.HOST,
        quantizer_version(experiment.HOST),
        default_threads(experiment.TOPOLOGY)[0],
        experiment.Teller(),
    )
    context = max(workload.context for workload in WORKLOADS)
    ours = experiment.required(maker.onnx(source, "int4", Kind(context)), "int4 ONNX")
    twin = experiment.required(maker.onnx(source, "q4_0", Kind(context)), "q4_0 ONNX")
    gguf = experiment.required(maker.gguf(source, "q4_0"), "q4_0 GGUF")
    place = peer_graphs.place_of(source)
    folder = gguf_as_hf.make_folder(source, place)
    checkpoint = GGUFWeights(Path(source.path))
    shape, first = checkpoint.config, checkpoint.first_token
    checkpoint.close()
    words = Vocabulary(Path(source.path))
    check = words.tokenize(CHECK_TEXT)
    words.close()
    chooser = random.Random(0)  # noqa: S311 - token ids, not secrets
    prompt = [chooser.randrange(shape.vocabulary) for _ in range(PROMPT_TOKENS)]
    return Contest(
        model=source.model,
        trials={
            OURS: trial_of(ours, "ort", options),
            OURS_TWIN: trial_of(twin, "ort", options),
            LLAMACPP: trial_of(gguf, "llamacpp", options),
        },
        genai=peer_graphs.genai_graph(pythons["genai"], folder, place, options.genai_options),
        optimum=peer_graphs.optimum_graph(pythons["optimum"], folder, place),
        vocabulary=shape.vocabulary,
        window=shape.window or 0,
        prompt=prompt if first is None else [first, *prompt[1:]],
        check=check,
    )


def trial_of(artifact: Artifact, runtime: str, options: argparse.Namespace) -> TrialSpec:
    """One round of edgebench's engine."""
    settings = Settings(
        threads=options.threads, threads_batch=options.threads, kv_type="f32" if runtime == "ort" else "f16"
    )
    return TrialSpec(
        artifact=artifact, runtime=runtime, settings=settings, workloads=WORKLOADS, blocks=options.repetitions
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def time_peer(python: Path, program: str, job: dict[str, Any]) -> dict[str, float]:
    """Medians of one process of a peer."""
    return {name: median(values) for name, values in peer_graphs.run_peer(python, program, job).items()}


def participants(
    contest: Contest, pythons: dict[str, Path], options: argparse.Namespace, logits: Path
) -> dict[str, Measurement]:
    """Everybody, in the order of an even round."""
    job: dict[str, Any] = {
        "threads": options.threads,
        "repetitions": options.repetitions,
        "prompt": contest.prompt,
        "prompt_context": WORKLOADS[0].context,
        "steps": STEPS,
        "steps_context": WORKLOADS[1].context,
        "check": contest.check,
        "vocabulary": contest.vocabulary,
    }
    at = {name: {"logits_to": str(logits / f"{name}.f32")} for name in (GENAI, OPTIMUM, GREEDY)}
    mine = {"trial": msgspec.to_builtins(contest.trials[OURS])}
    optimum = {"folder": str(contest.optimum)}
    room = {"steps_context": max(WORKLOADS[1].context, contest.window)}
    genai = {"folder": str(contest.genai), "prompt_context": max(WORKLOADS[0].context, contest.window), **room}
    return {
        OURS: partial(experiment.measure_round, contest.trials[OURS]),
        GENAI: partial(time_peer, pythons["genai"], "run_genai.py", job | at[GENAI] | genai),
        GREEDY: partial(time_peer, Path(sys.executable), "run_stepping.py", job | at[GREEDY] | mine),
        OPTIMUM: partial(time_peer, pythons["optimum"], "run_optimum.py", job | at[OPTIMUM] | optimum),
        OURS_TWIN: partial(experiment.measure_round, contest.trials[OURS_TWIN]),
        LLAMACPP: partial(experiment.measure_round, contest.trials[LLAMACPP]),
    }


def measure_round(
    number: int, model: str, everybody: dict[str, Measurement], options: argparse.Namespace
) -> list[Sample]:
    """One process each; the order turns around from round to round."""
    samples = []
    for name in everybody if number % 2 == 0 else reversed(everybody):
        if options.quiet_only:
            experiment.wait_until_quiet()
        values, says = experiment.observed(everybody[name], options.threads)
        samples.append(Sample(model=model, participant=name, round=number, values=values, disturbed_by=says))
        shown = ", ".join(f"{metric} {value:.1f}" for metric, value in values.items())
        experiment.say(f"{model} round {number + 1}: {name:15} {shown}{f'  [{says}]' if says else ''}")
    return samples


def measure_all(contests: list[Contest], options: argparse.Namespace, pythons: dict[str, Path]) -> list[Sample]:
    """All rounds, each over all models and participants, or those made until Ctrl-C."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch)
        everybody = {}
        for contest in contests:
            (logits / contest.model).mkdir()
            everybody[contest.model] = participants(contest, pythons, options, logits / contest.model)
        try:
            for number in range(options.rounds * (experiment.ATTEMPTS if options.quiet_only else 1)):
                for model, measurements in everybody.items():
                    if rounds_done(samples, model, options) < options.rounds:
                        samples += measure_round(number, model, measurements, options)
                        if number == 0:
                            check_same_model(model, logits / model)
        except KeyboardInterrupt:
            if not all(rounds_done(samples, model, options) for model in everybody):
                raise
            experiment.say("interrupted: the result is that of the rounds so far")
    return samples


def check_same_model(model: str, folder: Path) -> None:
    """The logits after a short prompt must resemble those of the fp32 export.

    Raises:
        HostError: when somebody runs another model.
    """
    found = {path.stem: np.fromfile(path, np.float32) for path in folder.iterdir()}
    reference = found.pop(OPTIMUM)
    for name, logits in found.items():
        alike = float(np.corrcoef(reference, logits)[0, 1]) if logits.shape == reference.shape else 0.0
        experiment.say(f"{model}: logits of {name} correlate with those of {OPTIMUM}: {alike:.3f}")
        if not alike >= LEAST_CORRELATION:
            raise HostError(f"{name} does not run the same model as {OPTIMUM}.", "remove peers/ from the cache.")


# --- result -----------------------------------------------------------------------------------------------------------


def paired(
    samples: list[Sample], model: str, metric: str, names: tuple[str, ...], options: argparse.Namespace
) -> list[list[float]]:
    """The values of each participant in the rounds that all of them have (with ``--quiet-only``: undisturbed)."""
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        counts = not (options.quiet_only and sample.disturbed_by)
        if sample.model == model and sample.participant in names and counts:
            by_round.setdefault(sample.round, {})[sample.participant] = sample.values[metric]
    complete = [found for found in by_round.values() if len(found) == len(names)]
    return [[found[name] for found in complete] for name in names]


def rounds_done(samples: list[Sample], model: str, options: argparse.Namespace) -> int:
    """How many rounds the comparison has that has the fewest."""
    counts = [len(paired(samples, model, line.metric, (line.ours, line.theirs), options)[0]) for line in COMPARISONS]
    return min(counts)


def lines_of(samples: list[Sample], model: str, options: argparse.Namespace) -> list[Line]:
    """All comparisons of one model, and the Python time between two steps.

    Raises:
        NothingMeasured: when every round was disturbed.
    """
    lines = []
    for metric, ours, theirs, target in COMPARISONS:
        mine, other = paired(samples, model, metric, (ours, theirs), options)
        if not mine:
            raise NothingMeasured("Every round was disturbed by other processes.", "use an idle machine.")
        value, interval = ratio(mine, other), ratio_interval(mine, other)
        lines.append(
            Line(
                model=model,
                what=f"{metric}: {ours} / {theirs}",
                rounds=len(mine),
                ours=median(mine),
                theirs=median(other),
                value=value,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                target=target,
                verdict=experiment.judge(value, interval, low=target) or "-",
            )
        )
    (between,) = paired(samples, model, BETWEEN, (GREEDY,), options)
    interval, value = median_interval(between), median(between)
    lines.append(
        Line(
            model=model,
            what="Python time between decode steps, us",
            rounds=len(between),
            ours=value,
            theirs=None,
            value=value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            target=BETWEEN_LIMIT_US,
            verdict=experiment.judge(value, interval, high=BETWEEN_LIMIT_US),
        )
    )
    return lines


def print_table(lines: list[Line]) -> None:
    """Medians over rounds in tokens/s, ratios by pairs with their intervals."""
    print(f"\n{'model':22} {'what':40} rounds      ours    theirs   value  95 % interval   target verdict")
    for line in lines:
        interval = "none" if line.low is None or line.high is None else f"{line.low:.3f}-{line.high:.3f}"
        theirs = "" if line.theirs is None else f"{line.theirs:.1f}"
        target = "" if line.target is None else f"{'<=' if line.theirs is None else '>='}{line.target:g}"
        print(
            f"{line.model:22} {line.what:40} {line.rounds:6} {line.ours:9.1f} {theirs:>9} {line.value:7.3f}  "
            f"{interval:14} {target:>7} {line.verdict}"
        )


def describe(options: argparse.Namespace, versions: dict[str, str]) -> dict[str, str]:
    """Which machine, versions and commit."""
    return {
        **experiment.machine(),
        "ours": f"{about('ort', experiment.HOST).version.value}; {about('llamacpp', experiment.HOST).version.value}",
        **versions,
        "genai options": " ".join(options.genai_options) or "the builder's own",
        "threads": str(options.threads),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="edgebench's ONNX road beside genai, optimum and llama.cpp")
    parser.add_argument("--models", default="smollm2-135m-instruct,gemma-3-270m", help="cards or files, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="processes of each participant")
    parser.add_argument("--repetitions", type=int, default=2, help="timed repetitions inside a process")
    parser.add_argument("--genai-options", nargs="*", default=[], metavar="K=V", help="extra options of its builder")
    parser.add_argument("--quiet-only", action="store_true", help="make rounds again that other processes disturbed")
    parser.add_argument("--accept-license", action="store_true", help="accept a model's terms (Gemma has some)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    if min(options.rounds, options.repetitions, options.threads) < 1:
        parser.error("--rounds, --repetitions and --threads are at least 1")
    return options


def main() -> int:
    """Prepare, measure, print; the exit status."""
    options = parse_arguments()
    made = {name: peer_graphs.environment(name) for name in peer_graphs.REQUIREMENTS}
    pythons = {name: python for name, (python, _) in made.items()}
    facts = describe(options, {name: versions for name, (_, versions) in made.items()})
    experiment.print_facts(facts)
    contests = [prepare(model, options, pythons) for model in options.models.split(",")]
    samples = measure_all(contests, options, pythons)
    lines = [line for contest in contests for line in lines_of(samples, contest.model, options)]
    print_table(lines)
    seen = sum(bool(sample.disturbed_by) for sample in samples)
    print(f"other processes were seen during {seen} of {len(samples)} processes; left out: {options.quiet_only}")
    passed = all(line.verdict != "MISS" for line in lines)
    summary = {
        "question": "edgebench's ONNX road / its peers",
        "facts": facts,
        "lines": lines,
        "nothing_missed": passed,
    }
    return experiment.conclude(summary, {"samples": samples}, options.json, met=passed)


if __name__ == "__main__":
    experiment.start(main, "what was made stays in the cache")
