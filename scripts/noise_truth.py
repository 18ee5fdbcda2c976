"""Does edgebench tell the truth on a noisy machine, and does it find no difference where there is none?

**Noise.** A competing process takes a core on and off at random (each state lasts 0.2 to 3 s, exponential, 1 s on
average before clipping) while ``edgebench profile`` measures one precision of a model. Quiet and noisy profiles take
turns, because machines drift: the truth for a noisy one is the median of the quiet ones before and after it, and is
*firm* when these agree within 5 %. Kinds of noise, in turns: ``spin`` computes wherever the scheduler puts it,
``pinned`` computes on one CPU, ``memory`` copies a buffer larger than the caches and so also takes memory bandwidth,
which is what decode lives on.

- *misled*: the reported decode speed is more than 5 % wrong and no ``contention`` finding says so. Target: none.
- *badly misled*: the same with 10 %. Target: none.
- *undecided*: neither a finding nor a firm truth. Target: at most 10 %; above, the machine is too restless to ask.
- *clean blocks within 5 %*: how often the blocks that edgebench considers clean, used alone, come within 5 % of a firm
  truth. The useful figure, without a target: a finding on every noisy run would be honest and of little help. To be
  compared with *quiet profiles within 5 %*, which is the same question without noise: what remains is the machine.
- *warned too mildly*: more than 5 % wrong with a ``note`` ("they were set aside") instead of a ``suspect``.
- *other threads chosen*: noisy profiles whose thread search chose otherwise than most quiet ones.
- *quiet profiles with a finding*: false alarms, unless the machine has other work.
- *blocks that noise touched, flagged* and *untouched blocks, flagged*: how well edgebench tells single decode blocks
  apart. The noise keeps a log, so this needs no truth. Touched: for more than 5 % of its time.

**A/A.** The same trial is measured against itself: two sets of rounds, each round a fresh process, order ABBA, compared
as a user would compare two models (`edgebench.stats.ratio_interval` and `verdict`), each workload by itself. Target:
"faster" or "slower" in at most 5 % of the comparisons. With 8 rounds the interval is nominally one of 99.2 %, so more
than 2 of 40 would happen by chance once in 300 times. The median half-width says how small a difference is found.

    python scripts/noise_truth.py                                        # everything, up to 20 minutes
    python scripts/noise_truth.py --parts noise --repetitions 2 --firm-after 2
    python scripts/noise_truth.py --parts aa --comparisons 4 --json aa.json

It needs edgebench and, the first time, the package index. Use a machine that is otherwise idle. The last line of the
output is one JSON document; ``--json`` adds all samples. Exit status: 0 when every target was met, else 1.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from competitor import HOGS, competing, noisy_times
from experiment import conclude, failed, running, say, start
from same_trial import Comparison, measure_same, print_comparisons

from edgebench.analysis.disturbance import disturbed_blocks
from edgebench.profile import Outcome
from edgebench.records import Run
from edgebench.specs import TrialSpec
from edgebench.stats import median

CLOSE, FAR = 0.05, 0.10
DIFFERENT_AT_MOST = 0.05
UNDECIDED_AT_MOST = 0.10
FIRM_SPREAD = 0.05
TOUCHED = 0.05
MOST_REFERENCES = 8
PROFILE_LIMIT_S = 600.0
Verdict = Literal["close", "warned", "warned mildly", "MISLED", "BADLY MISLED", "warned, no truth", "undecided"]


class SeenBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One timed decode block: what it measured, what really happened beside it, and whether edgebench saw that."""

    tokens_per_s: float
    noise_share: float
    """Share of its time in which the competing process was working."""
    flagged: bool


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """One ``edgebench profile``."""

    hog: str
    """Kind of noise; empty for a quiet one."""
    tokens_per_s: float
    clean_tokens_per_s: float | None
    """Median over rounds of the blocks that edgebench considers clean; None when there is none."""
    rounds: int
    threads: int
    findings: dict[str, str]
    """Severity by kind."""
    blocks: tuple[SeenBlock, ...]
    wall_s: float


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A profile against the truth; errors are relative, negative for too slow."""

    shot: Shot
    truth: float | None
    """None where fewer than two quiet neighbours were undisturbed."""
    truth_spread: float | None
    firm: bool
    error: float | None
    clean_error: float | None
    verdict: Verdict


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the result; without a target it informs and cannot be missed."""

    what: str
    figure: str
    target: str = ""
    met: bool = True


# --- processes --------------------------------------------------------------------------------------------------------


def edgebench(arguments: Sequence[str], log: Path) -> None:
    """Run the command.

    Raises:
        HostError: with the end of what it said, when it fails or hangs.
    """
    argv = [sys.executable, "-m", "edgebench", *arguments]
    with log.open("wb") as output, running(argv, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            status: int | str = process.wait(timeout=PROFILE_LIMIT_S)
        except subprocess.TimeoutExpired:
            status = f"none within {PROFILE_LIMIT_S:g} s"
    if status != 0:
        raise failed(argv, status, log.read_text(errors="replace"), "run it alone.")


# --- noise ------------------------------------------------------------------------------------------------------------


def profile(options: argparse.Namespace, wanted: Sequence[str], folder: Path) -> Outcome:
    """One profile of the chosen model and precision, into a store that is thrown away."""
    output = folder / "profile.json"
    arguments = [
        "profile",
        "--runtime",
        "llamacpp",
        "--model",
        options.model,
        "--precision",
        options.precision,
        *wanted,
    ]
    arguments += ["--store", str(folder / "store.db"), "--output", str(output), "--quiet"]
    if options.threads is not None:
        arguments += ["--threads", str(options.threads)]
    edgebench(arguments, folder / "said.log")
    return msgspec.json.decode(output.read_bytes(), type=Outcome)


def take_shot(options: argparse.Namespace, folder: Path, hog: str, seed: int) -> Shot:
    """One profile, with or without noise beside it."""
    wanted = ["--workload", options.decode, "--workload", options.prefill, "--budget", options.budget]
    started = time.monotonic()
    with competing(hog, seed, folder / "noise.log"):
        outcome = profile(options, wanted, folder)
        wall_s = time.monotonic() - started
    return read_shot(outcome, options.decode, hog, noisy_times(folder / "noise.log"), wall_s)


def read_shot(outcome: Outcome, workload: str, hog: str, noise: Sequence[tuple[int, int]], wall_s: float) -> Shot:
    """What a profile reported about its one trial, and what really happened."""
    trial = outcome.trials[0]
    runs = [run for run in outcome.runs if run.purpose == "measure" and run.outcome == "ok"]
    rounds = [seen for run in runs if (seen := seen_blocks(run, workload, noise))]
    clean = [[block.tokens_per_s for block in blocks if not block.flagged] for blocks in rounds]
    values = [median(rates) for rates in clean if rates]
    return Shot(
        hog=hog,
        tokens_per_s=trial.workloads[workload].tokens_per_s.value,
        clean_tokens_per_s=median(values) if values else None,
        rounds=trial.rounds_ok,
        threads=trial.trial.settings.threads,
        findings={finding.kind: finding.severity for finding in trial.findings},
        blocks=tuple(block for blocks in rounds for block in blocks),
        wall_s=wall_s,
    )


def seen_blocks(run: Run, workload: str, noise: Sequence[tuple[int, int]]) -> list[SeenBlock]:
    """The decode blocks of one round."""
    flagged = disturbed_blocks(run)
    return [
        SeenBlock(
            tokens_per_s=block.tokens_per_s,
            noise_share=sum(max(0, min(off, block.t1_ns) - max(on, block.t0_ns)) for on, off in noise)
            / (block.t1_ns - block.t0_ns),
            flagged=(block.workload, block.index) in flagged,
        )
        for block in run.blocks
        if block.workload == workload
    ]


def spread(values: Sequence[float]) -> float:
    """Range of the values relative to their median."""
    return (max(values) - min(values)) / median(values)


def measure_noise(options: argparse.Namespace, folder: Path) -> list[Shot]:
    """Quiet profiles until the last three agree, then noisy and quiet ones in turns; the last one is quiet."""
    draw = random.Random(options.seed)  # noqa: S311 - noise, not secrets
    shots: list[Shot] = []

    def shoot(hog: str) -> None:
        shots.append(take_shot(options, folder, hog, draw.randrange(1 << 31)))
        last = shots[-1]
        say(
            f"profile {len(shots)}: {hog or 'quiet':6} {last.tokens_per_s:7.1f} tok/s, {last.threads} threads, "
            f"{last.rounds} rounds, contention {last.findings.get('contention', 'none')}, {last.wall_s:.1f} s"
        )

    recent: list[float] = []
    while len(shots) < options.firm_after or (spread(recent) > FIRM_SPREAD and len(shots) < MOST_REFERENCES):
        shoot("")
        recent = [shot.tokens_per_s for shot in shots[-3:]]
    for number in range(options.repetitions):
        shoot(options.hogs[number % len(options.hogs)])
        shoot("")
    return shots


def judge_shots(shots: Sequence[Shot]) -> list[Judged]:
    """Every profile, noisy or not, against its quiet neighbours."""
    return [judge_shot(shot, neighbours(shots, at)) for at, shot in enumerate(shots)]


def neighbours(shots: Sequence[Shot], at: int) -> list[float]:
    """Speeds of the two nearest quiet profiles, leaving out those that say themselves that somebody disturbed them."""
    quiet = [index for index, shot in enumerate(shots) if not shot.hog and index != at]
    calm = [index for index in quiet if shots[index].findings.get("contention") != "suspect"]
    return [shots[index].tokens_per_s for index in sorted(calm, key=lambda index: abs(index - at))[:2]]


def judge_shot(shot: Shot, quiet: Sequence[float]) -> Judged:
    """The errors of one profile, and whether its reader was misled."""
    truth = median(quiet) if len(quiet) == 2 else None
    firm = truth is not None and spread(quiet) <= FIRM_SPREAD
    error = shot.tokens_per_s / truth - 1 if truth else None
    clean = shot.clean_tokens_per_s
    warning = shot.findings.get("contention")
    return Judged(
        shot=shot,
        truth=truth,
        truth_spread=spread(quiet) if truth else None,
        firm=firm,
        error=error,
        clean_error=clean / truth - 1 if clean and truth else None,
        verdict=judge_error(error if firm else None, warning),
    )


def judge_error(error: float | None, warning: str | None) -> Verdict:
    """Whether somebody who reads the speed and the contention finding (its severity) was misled; no error: no truth."""
    if error is None:
        return "warned, no truth" if warning else "undecided"
    if abs(error) <= CLOSE:
        return "close"
    if warning is None:
        return "BADLY MISLED" if abs(error) > FAR else "MISLED"
    return "warned mildly" if warning == "note" else "warned"


def noise_figures(judged: Sequence[Judged]) -> list[Figure]:
    """What the profiles show together."""
    noisy = [one for one in judged if one.shot.hog]
    quiet = [one for one in judged if not one.shot.hog]
    firm, firm_quiet = [one for one in noisy if one.firm], [one for one in quiet if one.firm]
    misled = count(noisy, "MISLED") + count(noisy, "BADLY MISLED")
    badly, undecided = count(noisy, "BADLY MISLED"), count(noisy, "undecided")
    clean = sum(one.clean_error is not None and abs(one.clean_error) <= CLOSE for one in firm)
    usual = median([one.shot.threads for one in quiet])
    other = sum(one.shot.threads != usual for one in noisy)
    alarms = sum("contention" in one.shot.findings for one in quiet)
    return [
        Figure(
            what="misled (> 5 % wrong, no contention finding)", figure=of(misled, noisy), target="0", met=not misled
        ),
        Figure(what="badly misled (> 10 % wrong, none)", figure=of(badly, noisy), target="0", met=not badly),
        Figure(
            what="undecided (no finding, no firm truth)",
            figure=of(undecided, noisy),
            target="<= 10 %",
            met=undecided <= UNDECIDED_AT_MOST * len(noisy),
        ),
        Figure(what="reported speed within 5 %, where the truth is firm", figure=of(count(firm, "close"), firm)),
        Figure(what="clean blocks within 5 %, where the truth is firm", figure=of(clean, firm)),
        Figure(what="quiet profiles within 5 %, likewise", figure=of(count(firm_quiet, "close"), firm_quiet)),
        Figure(what="warned too mildly", figure=of(count(firm, "warned mildly"), firm)),
        Figure(what="other threads chosen", figure=of(other, noisy)),
        Figure(what="quiet profiles with a finding", figure=of(alarms, quiet)),
        *block_figures([block for one in judged for block in one.shot.blocks]),
    ]


def count(judged: Sequence[Judged], wanted: Verdict) -> int:
    """How many got this verdict."""
    return sum(one.verdict == wanted for one in judged)


def block_figures(blocks: Sequence[SeenBlock]) -> list[Figure]:
    """How well single disturbed blocks are told from undisturbed ones."""
    touched = [block for block in blocks if block.noise_share > TOUCHED]
    untouched = [block for block in blocks if block.noise_share == 0]
    return [
        Figure(what="blocks that noise touched, flagged", figure=of(sum(block.flagged for block in touched), touched)),
        Figure(what="untouched blocks, flagged", figure=of(sum(block.flagged for block in untouched), untouched)),
    ]


def of(some: int, every: Sequence[object]) -> str:
    """``3 of 20``."""
    return f"{some} of {len(every)}"


def shown(value: float | None, form: str) -> str:
    """A number in this format, or ``none``."""
    return "none" if value is None else format(value, form)


def print_judged(judged: Sequence[Judged]) -> None:
    """A line for each noisy profile."""
    print("\nnoise      truth spread reported   error clean error rounds threads flagged   contention verdict")
    for one in (one for one in judged if one.shot.hog):
        shot = one.shot
        flagged = of(sum(block.flagged for block in shot.blocks), shot.blocks)
        print(
            f"{shot.hog:8} {shown(one.truth, '.1f'):>7} {shown(one.truth_spread, '.1%'):>6} {shot.tokens_per_s:8.1f} "
            f"{shown(one.error, '+.1%'):>7} {shown(one.clean_error, '+.1%'):>11} {shot.rounds:6} {shot.threads:7} "
            f"{flagged:9} {shot.findings.get('contention', 'none'):10} {one.verdict}"
        )


# --- A/A --------------------------------------------------------------------------------------------------------------


def prepare_trial(options: argparse.Namespace, folder: Path) -> TrialSpec:
    """The trial of the A/A comparisons: what a shortest profile chooses, its file made when it is not there yet."""
    wanted = ["--workload", "tg64", "--workload", "pp128", "--budget", "1s"]
    return msgspec.structs.replace(profile(options, wanted, folder).plan.trials[0], blocks=1)


def same_figures(found: Sequence[Comparison]) -> list[Figure]:
    """What the comparisons show together."""
    different = sum(one.verdict in ("faster", "slower") for one in found)
    names = dict.fromkeys(one.workload for one in found)
    return [
        Figure(
            what='A/A comparisons that say "different"',
            figure=of(different, found),
            target="<= 5 %",
            met=different <= DIFFERENT_AT_MOST * len(found),
        ),
        Figure(what='A/A comparisons that say "same"', figure=of(sum(one.verdict == "same" for one in found), found)),
        *(
            Figure(
                what=f"A/A median half-width, {name}",
                figure=f"{median([one.high / one.low for one in found if one.workload == name]) ** 0.5 - 1:.1%}",
            )
            for name in names
        ),
    ]


# --- the whole --------------------------------------------------------------------------------------------------------


def print_figures(figures: Sequence[Figure]) -> None:
    """The result."""
    width = max(len(figure.what) for figure in figures)
    print(f"\n{'what':{width}}  {'figure':>12}  target")
    for figure in figures:
        met = "" if not figure.target else "PASS" if figure.met else "MISS"
        print(f"{figure.what:{width}}  {figure.figure:>12}  {figure.target:8} {met}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Does edgebench tell the truth on a noisy machine?")
    parser.add_argument("--parts", default="noise,aa", help="noise, aa, or both (the default)")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--precision", default="q4_0")
    parser.add_argument("--threads", type=int, help="without it profile searches, and A/A uses the default")
    parser.add_argument("--decode", default="tg128", help="the decode workload that is judged")
    parser.add_argument("--prefill", default="pp128", help="the prefill workload measured beside it")
    parser.add_argument("--budget", default="8s", help="of each profile")
    parser.add_argument("--repetitions", type=int, default=20, help="noisy profiles")
    parser.add_argument("--firm-after", type=int, default=3, help="quiet profiles before the first noisy one, at least")
    parser.add_argument("--hogs", default=",".join(HOGS), help="kinds of noise, in turns")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--comparisons", type=int, default=40, help="A/A comparisons; a set of rounds gives two")
    parser.add_argument("--rounds", type=int, default=8, help="rounds on each side of a comparison")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    options.parts, options.hogs = options.parts.split(","), options.hogs.split(",")
    if set(options.parts) - {"noise", "aa"} or set(options.hogs) - set(HOGS):
        parser.error(f"the parts are noise and aa, the kinds of noise {', '.join(HOGS)}")
    if min(options.repetitions, options.firm_after, options.comparisons, options.rounds - 1) < 1:
        parser.error("--repetitions, --firm-after and --comparisons are at least 1, --rounds at least 2")
    return options


def main() -> int:
    """Measure, judge, print; the exit status."""
    options = parse_arguments()
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    if "noise" in options.parts:
        with tempfile.TemporaryDirectory(prefix="edgebench-noise-") as folder:
            shots = measure_noise(options, Path(folder))
        judged = judge_shots(shots)
        print_judged(judged)
        figures += noise_figures(judged)
        samples["judged"] = judged
    if "aa" in options.parts:
        with tempfile.TemporaryDirectory(prefix="edgebench-aa-") as folder:
            trial = prepare_trial(options, Path(folder))
        comparisons = measure_same(trial, options.comparisons, options.rounds)
        print_comparisons(comparisons)
        figures += same_figures(comparisons)
        samples["comparisons"] = comparisons
    print_figures(figures)
    passed = all(figure.met for figure in figures)
    summary = {"question": "truth under noise", "figures": figures, "passed": passed}
    return conclude(summary, samples, options.json, met=passed)


if __name__ == "__main__":
    start(main)
