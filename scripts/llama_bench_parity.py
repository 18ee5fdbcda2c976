"""Are edgebench's speeds those of llama-bench?

edgebench times llama.cpp from Python; ``llama-bench`` is llama.cpp's own benchmark, in C++. Both claim to time the same
calls. This script lets them measure the same files at the same thread counts and compares the results:

1. ``llama-bench`` is built from the sources of the *installed* llama-cpp-python, with the GGML options that this wheel
   recorded. The build counts only if its system info (SIMD, OpenMP, repacking) is word for word that of the wheel.
   It then runs on the wheel's own libraries, so that one engine, the same bytes, is timed by two programs: two builds
   of one source may differ by the luck of code placement (``--own-libraries`` shows that).
2. Both run in turns, one fresh process each, order ABBA: even rounds llama-bench first, odd rounds edgebench first. A
   round's value is the median of its repetitions. Workloads are pp512, then tg128, as llama-bench orders them.
3. The figure is edgebench's speed over llama-bench's, by paired rounds, so that what slows both members of a pair
   cancels. ``PASS``: the whole 95 % interval lies in 0.98 to 1.02. ``MISS``: the ratio lies outside. ``WIDE``: the
   ratio lies inside but the interval does not; more rounds, or a quieter machine, decide.

It needs edgebench, a C++ compiler, cmake and, the first time, the package index (see llama_bench_build.py).

    python scripts/llama_bench_parity.py
    python scripts/llama_bench_parity.py --rounds 20 --threads 4 --precisions q4_k_m --quiet-only --json parity.json

Where both agree in fact, not only in name (read in llama.cpp 0c1e570): batch 2048, micro-batch 512, f16 cache, flash
attention auto, memory-mapped, repacking on, context rounded up to 256, no affinity, BOS first, logits of the last token
only, a synchronisation after each generated token, the cache cleared before each repetition.
Where they differ: llama-bench attaches a thread pool, which an OpenMP build uses for nothing but its (empty) affinity
mask; it warms ``tg`` up with one token, edgebench with four; and edgebench reserves one row of logits instead of one
for each token of a batch (``n_outputs_max``): 84 MiB less for a 49k vocabulary, at about half a per cent of pp512.

**The luck of the allocator.** llama.cpp's CPU backend takes its scratch memory (``work_data``) from ``new uint8_t[]``,
which promises 16 bytes of alignment. Its tiled flash attention runs about a quarter slower when the address is not a
multiple of 32, and pp512 of a 135M model then about 6 % slower. On one AMD EPYC core, q4_0: 481 tokens/s at multiples
of 32, 453 elsewhere, whoever measures; with ``-fa 0`` the difference is gone. The heap decides, and so does anything
that shifts it: llama-bench gave 484 or 456 tokens/s by the *length of the model's path* alone. That is no property of
either program, so both get glibc's documented ``glibc.malloc.mmap_threshold``, which puts this memory at one offset in
both (16 bytes into a page: the slower case). ``--as-is`` leaves the allocator alone and shows the luck as well.

Exit status: 0 when nothing missed, 1 when something did.
"""

from __future__ import annotations

import argparse
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import experiment
import msgspec
from llama_bench_build import Bench, Wheel, choose_engine, get_llama_bench, installed_wheel, with_libraries

from edgebench.derive import Maker, obtain_source
from edgebench.errors import HostError, NothingMeasured
from edgebench.export.precisions import check_precision
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.stats import median, ratio, ratio_interval

LOWEST, HIGHEST = 0.98, 1.02
WORKLOADS = ("pp512", "tg128")
SAME_OFFSET = "glibc.malloc.mmap_threshold=131072"  # glibc's own first value; given, it no longer grows

# What llama-bench reports must be what edgebench asks for; -1 is "auto".
EXPECTED = {"n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "n_depth": 0, "cpu_mask": "0x0"}
EXPECTED |= {"flash_attn": -1, "repack": True, "n_gpu_layers": 0}


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one workload: both rates in tokens/s, and who else was seen using the machine meanwhile."""

    round: int
    llama_bench: float
    edgebench: float
    disturbed_by: str


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. ``ratio`` is edgebench/llama-bench by paired rounds."""

    precision: str
    threads: int
    workload: str
    rounds: int
    left_out: int
    llama_bench: float
    edgebench: float
    ratio_of_medians: float
    ratio: float
    low: float | None
    high: float | None
    verdict: experiment.Verdict


Pairs = dict[tuple[str, int, str], list[Pair]]
"""By precision, threads and workload."""


# --- measuring --------------------------------------------------------------------------------------------------------


def time_llama_bench(bench: Bench, artifact: Artifact, threads: int, repetitions: int) -> dict[str, float]:
    """Median rate of each workload, tokens/s, by one run of llama-bench with its own warm-up."""
    argv = [bench.binary, "-m", artifact.path, "-p", "512", "-n", "128", "-t", str(threads), "-r", str(repetitions)]
    argv += ["-ngl", "0", "-o", "json"]
    status, said, complained = experiment.run_program(argv, environment=with_libraries(bench.engine))
    if status != 0:
        raise experiment.failed(argv, status, complained, "run it alone.")
    rates = {}
    for test in msgspec.json.decode(said):
        check_settings(test, threads)
        kind, tokens = ("pp", test["n_prompt"]) if test["n_prompt"] else ("tg", test["n_gen"])
        rates[f"{kind}{tokens}"] = median([tokens / (ns / 1e9) for ns in test["samples_ns"]])
    return rates


def check_settings(test: dict[str, Any], threads: int) -> None:
    """llama-bench must have used what edgebench asks for."""
    wanted = {**EXPECTED, "n_threads": threads}
    wrong = {name: test.get(name) for name, value in wanted.items() if test.get(name) != value}
    if wrong or test.get("load_mode") not in ("auto", "mmap"):
        raise HostError(
            f"llama-bench used {wrong}, load mode {test.get('load_mode')!r}; edgebench uses {wanted}, memory-mapped.",
            "this llama-bench has other defaults: pass edgebench's as options in time_llama_bench.",
        )


def time_edgebench(artifact: Artifact, threads: int, repetitions: int) -> dict[str, float]:
    """Median rate of each workload, tokens/s, by one round of edgebench, in the order of llama-bench."""
    trial = TrialSpec(
        artifact=artifact,
        runtime="llamacpp",
        settings=Settings(threads=threads, threads_batch=threads),
        workloads=tuple(parse_workload(name) for name in WORKLOADS),
        blocks=repetitions,
    )
    return experiment.measure_round(trial)


def measure_pair(number: int, bench: Bench, artifact: Artifact, threads: int, repetitions: int) -> dict[str, Pair]:
    """One pair of processes; the order turns around from round to round."""
    ours = partial(experiment.observed, partial(time_edgebench, artifact, threads, repetitions), threads)
    theirs = partial(experiment.observed, partial(time_llama_bench, bench, artifact, threads, repetitions), threads)
    if number % 2 == 0:
        (theirs_found, theirs_says), (ours_found, ours_says) = theirs(), ours()
    else:
        (ours_found, ours_says), (theirs_found, theirs_says) = ours(), theirs()
    says = "; ".join(f"{who}: {what}" for who, what in (("llama-bench", theirs_says), ("edgebench", ours_says)) if what)
    return {
        name: Pair(round=number, llama_bench=theirs_found[name], edgebench=ours_found[name], disturbed_by=says)
        for name in WORKLOADS
    }


def measure_all(options: argparse.Namespace, wheel: Wheel, bench: Bench) -> Pairs:
    """All rounds, each over all files and thread counts, or those made until Ctrl-C."""
    source = obtain_source(options.model, accept_license=False, progress=lambda *_: None)
    counts = [int(count) for count in options.threads.split(",")]
    names = [check_precision(name) for name in options.precisions.split(",")]
    maker = Maker(experiment.HOST, wheel.engine, max(counts), experiment.Teller())
    files = {name: experiment.required(maker.gguf(source, name), f"{name} GGUF") for name in names}
    pairs: Pairs = {(name, threads, workload): [] for name in names for threads in counts for workload in WORKLOADS}
    done = 0
    try:
        for number in range(options.rounds * (experiment.ATTEMPTS if options.quiet_only else 1)):
            if done < options.rounds:
                measure_round(number, options, bench, files, pairs)
                done = min(len(usable(found, options)) for found in pairs.values())
                experiment.say(f"{done} of {options.rounds} rounds done")
    except KeyboardInterrupt:
        if not all(usable(found, options) for found in pairs.values()):
            raise
        experiment.say("interrupted: the result is that of the rounds so far")
    return pairs


def measure_round(
    number: int, options: argparse.Namespace, bench: Bench, files: dict[str, Artifact], pairs: Pairs
) -> None:
    """Add one pair to each line that has too few; with ``--quiet-only`` disturbed pairs do not count."""
    for name, threads, first in list(pairs):
        if first != WORKLOADS[0] or len(usable(pairs[name, threads, first], options)) >= options.rounds:
            continue
        if options.quiet_only:
            experiment.wait_until_quiet()
        for workload, pair in measure_pair(number, bench, files[name], threads, options.repetitions).items():
            pairs[name, threads, workload].append(pair)


# --- result -----------------------------------------------------------------------------------------------------------


def usable(pairs: list[Pair], options: argparse.Namespace) -> list[Pair]:
    """All pairs, or with ``--quiet-only`` those that nobody was seen to disturb."""
    return [pair for pair in pairs if not (options.quiet_only and pair.disturbed_by)]


def judge(precision: str, threads: int, workload: str, pairs: list[Pair], left_out: int) -> Cell:
    """Medians, ratio and verdict of one line."""
    if not pairs:
        raise NothingMeasured("Every round was disturbed by other processes.", "use an idle machine.")
    ours, theirs = [pair.edgebench for pair in pairs], [pair.llama_bench for pair in pairs]
    middle, interval = ratio(ours, theirs), ratio_interval(ours, theirs)
    return Cell(
        precision=precision,
        threads=threads,
        workload=workload,
        rounds=len(pairs),
        left_out=left_out,
        llama_bench=median(theirs),
        edgebench=median(ours),
        ratio_of_medians=median(ours) / median(theirs),
        ratio=middle,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        verdict=experiment.judge(middle, interval, low=LOWEST, high=HIGHEST),
    )


def print_table(cells: list[Cell]) -> None:
    """Medians over rounds in tokens/s; ratio edgebench/llama-bench of medians, and by pairs with its interval."""
    print("\nprecision threads workload rounds  llama-bench  edgebench  of medians  by pairs  95 % interval    verdict")
    for cell in cells:
        interval = f"{cell.low:.4f}-{cell.high:.4f}" if cell.low and cell.high else "none: 1 round"
        print(
            f"{cell.precision:9} {cell.threads:7} {cell.workload:8} {cell.rounds:6} {cell.llama_bench:12.1f} "
            f"{cell.edgebench:10.1f} {cell.ratio_of_medians:11.4f} {cell.ratio:9.4f}  {interval:15}  {cell.verdict}"
        )


def align_scratch_memory(*, as_is: bool) -> str:
    """Make the allocator of all children put large blocks at the same offset in a page; what was done, in words."""
    if as_is:
        return "as is: prefill depends on where the heap puts llama.cpp's scratch memory"
    if platform.libc_ver()[0] != "glibc":
        return "not glibc: llama.cpp's scratch memory may lie at other offsets in the two programs"
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), SAME_OFFSET)))
    return f"{SAME_OFFSET} for both: the same offset of llama.cpp's scratch memory"


def describe(wheel: Wheel, bench: Bench) -> dict[str, str]:
    """Which machine, versions and commit."""
    return {
        **experiment.machine(),
        "llama.cpp": f"{wheel.engine}, commit {wheel.commit}; GGML options {wheel.options_from}",
        "system info": wheel.system_info,
        "compilers": f"wheel: {wheel.compiler}; llama-bench: {bench.compiler}",
        "llama-bench": f"{bench.binary}, built in {bench.build_s:.0f} s from the sdist {bench.sdist_sha256[:12]}",
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Are edgebench's speeds those of llama-bench?")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--precisions", default="q8_0,q4_0", help="separated by commas")
    parser.add_argument("--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of processes for each file and thread count")
    parser.add_argument("--repetitions", type=int, default=2, help="timed repetitions inside a process")
    parser.add_argument("--quiet-only", action="store_true", help="make pairs again that other processes disturbed")
    parser.add_argument("--as-is", action="store_true", help="leave the alignment of scratch memory to luck")
    parser.add_argument("--own-libraries", action="store_true", help="llama-bench uses the engine of its own build")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    if options.rounds < 1 or options.repetitions < 1:
        parser.error("--rounds and --repetitions are at least 1")
    return options


def main() -> int:
    """Build, measure, print; the exit status."""
    options = parse_arguments()
    wheel = installed_wheel()
    bench = get_llama_bench(wheel)
    bench, engine = choose_engine(bench, wheel, own=options.own_libraries)
    facts = describe(wheel, bench) | {"engine": engine, "allocator": align_scratch_memory(as_is=options.as_is)}
    experiment.print_facts(facts)
    pairs = measure_all(options, wheel, bench)
    cells = []
    for (precision, threads, workload), found in pairs.items():
        used = usable(found, options)
        cells.append(judge(precision, threads, workload, used, len(found) - len(used)))
    print_table(cells)
    seen = [bool(pair.disturbed_by) for found in pairs.values() for pair in found]
    print(f"other processes were seen during {sum(seen)} of {len(seen)} pairs; left out: {options.quiet_only}")
    passed = all(cell.verdict != "MISS" for cell in cells)
    summary = {"question": "edgebench / llama-bench", "facts": facts, "cells": cells, "nothing_missed": passed}
    samples = [{"precision": p, "threads": t, "workload": w, "pairs": found} for (p, t, w), found in pairs.items()]
    return experiment.conclude(summary, {"samples": samples}, options.json, met=passed)


if __name__ == "__main__":
    experiment.start(main, "what was built stays in the cache")
