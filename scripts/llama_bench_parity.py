"""Are edgebench's speeds those of llama-bench?

edgebench times llama.cpp from Python; ``llama-bench`` is llama.cpp's own benchmark, in C++. Both claim to time the same
calls. This script lets them measure the same files at the same thread counts and compares the results:

1. ``llama-bench`` is built from the sources of the *installed* llama-cpp-python, with the GGML options that this wheel
   recorded. The build counts only if its system info string (SIMD, OpenMP, repacking) is that of the wheel.
2. Both run in turns, one fresh process each, order ABBA: even rounds llama-bench first, odd rounds edgebench first. A
   round's value is the median of its repetitions. Workloads are pp512, then tg128, as llama-bench orders them.
3. The figure is edgebench's speed over llama-bench's, by paired rounds, so that what slows both members of a pair
   cancels. ``PASS``: the whole 95 % interval lies in 0.98 to 1.02. ``MISS``: the ratio lies outside. ``WIDE``: the ratio
   lies inside but the interval does not; more rounds decide.

It needs edgebench, a C++ compiler, cmake and, the first time, the package index. The build stays in edgebench's cache,
below ``llama-bench/``; a second run builds nothing.

    python scripts/llama_bench_parity.py
    python scripts/llama_bench_parity.py --rounds 20 --threads 4 --precisions q4_k_m --json parity.json

Where both sides agree in fact, not only in name (llama.cpp 0c1e570): batch 2048, micro-batch 512, f16 cache, flash
attention and load mode ``auto``, repacking on, context rounded up to 256, no affinity, BOS first, logits of the last
token only, a synchronisation after each generated token. They differ in three things: llama-bench attaches a thread
pool, which an OpenMP build uses for nothing but its (empty) affinity mask; it warms ``tg`` up with one token, edgebench
with four; and edgebench reserves one row of logits instead of one for each token of a batch (``n_outputs_max``).

Exit status: 0 when nothing missed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

import edgebench
from edgebench.analysis.disturbance import disturbance
from edgebench.artifacts import adopt_derived, cache_dir, find_derived, obtain, work_file
from edgebench.engine.about import about
from edgebench.engine.child import run_job
from edgebench.engine.edges import EdgeReader
from edgebench.engine.messages import MeasureJob, QuantizeJob
from edgebench.engine.protocol import Limits
from edgebench.errors import EdgebenchError, FetchError, HostError, MissingDependency, NothingMeasured, UsageError
from edgebench.export.quantize import check_precision
from edgebench.host import Host
from edgebench.records import Block, Edge
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.stats import median, ratio, ratio_interval
from edgebench.topology import read_topology

PACKAGE = "llama-cpp-python"
LOWEST, HIGHEST = 0.98, 1.02
WORKLOADS = ("pp512", "tg128")
MOST_JOBS = 2  # more than two compilers at once need more memory than a small board has
NO_BUDGET_S = 1e9
HOST = Host()

# What llama-bench says about itself must be what edgebench asks for; -1 is "auto".
EXPECTED = {"n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "cpu_mask": "0x0", "n_depth": 0}

SYSTEM_INFO = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.llama_print_system_info.restype = ctypes.c_char_p
sys.stdout.write(library.llama_print_system_info().decode().strip(" |"))
"""

# Written by cmake, not options for it.
NOT_OPTIONS = re.compile(
    r"_(FOUND|DEFAULT|ENABLED)$|^GGML_(VERSION|BUILD_|PUBLIC_HEADERS|AVAILABLE_|GIT_|STANDALONE|SHARED_LIB|CCACHE)"
)


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """The installed llama-cpp-python, as far as a second build must follow it."""

    version: str
    commit: str
    options: dict[str, str]
    """cmake options by name; from the wheel, or the assumed ones."""
    options_from: str
    system_info: str
    compiler: str


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-bench that was built here."""

    binary: str
    sdist_sha256: str
    system_info: str
    compiler: str
    build_s: float


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
    verdict: Literal["PASS", "MISS", "WIDE"]


Key = tuple[str, int, str]
"""Precision, threads, workload."""


# --- processes --------------------------------------------------------------------------------------------------------


def run_program(argv: list[str], output: IO[bytes] | int, nice: int = 0) -> tuple[int, bytes]:
    """Run a program in a process group of its own; whatever interrupts us kills the whole group."""
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        said, _ = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, said or b""


def require_program(*names: str) -> None:
    """One of these programs must be on the PATH."""
    if not any(shutil.which(name) for name in names):
        raise MissingDependency(
            f"None of {', '.join(names)} is installed, and llama-bench must be built.",
            "install it (Debian, Ubuntu, Raspberry Pi OS: apt install build-essential cmake).",
        )


def step(argv: list[str], log: Path, nice: int = 0) -> None:
    """Run a step of the build, its output appended to ``log``."""
    with log.open("ab") as output:
        status, _ = run_program(argv, output, nice)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise HostError(f"{' '.join(argv[:4])} ... ended with status {status}:\n{tail}\n", f"read the log {log}.")


# --- the installed wheel ----------------------------------------------------------------------------------------------


def installed_wheel() -> Wheel:
    """Version, cmake options and system info of the llama-cpp-python that edgebench uses."""
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency(f"{PACKAGE} is not installed.", f"pip install {PACKAGE}") from None
    files = {file.name: file.locate() for file in importlib.metadata.files(PACKAGE) or ()}
    config, llama = files.get("ggml-config.cmake"), files.get("llama-config.cmake")
    info = about("llamacpp", HOST).build
    if info.value is None:
        raise HostError(f"llama.cpp's system info is unknown: {info.unknown_because}.", "edgebench doctor")
    if config is None:
        options, where = {"GGML_NATIVE": "ON", "GGML_OPENMP": "ON"}, "assumed: the wheel does not record its options"
    else:
        options, where = recorded_options(Path(str(config)).read_text()), "recorded in the wheel"
    commit = re.search(r"LLAMA_BUILD_COMMIT\s+(\w+)", Path(str(llama)).read_text()) if llama else None
    library = files.get("libggml-cpu.so") or files.get("libggml-cpu.dylib")
    return Wheel(
        version=version,
        commit=commit[1] if commit else "unknown",
        options=options,
        options_from=where,
        system_info=str(info.value),
        compiler=compiler_of(Path(str(library))) if library else "unknown",
    )


def recorded_options(config: str) -> dict[str, str]:
    """The GGML options that cmake wrote into ``ggml-config.cmake``, without what it only derived."""
    found = re.findall(r'^set\((GGML_\w+) "([^"]*)"\)', config, re.MULTILINE)
    return {name: value for name, value in found if value and not NOT_OPTIONS.search(name)}


def compiler_of(library: Path) -> str:
    """The compiler that the ``.comment`` section of an ELF file names."""
    found = re.search(rb"GCC: \([^)\0]*\) [0-9.]+|clang version [0-9][^\0]*", library.read_bytes())
    return found[0].decode("utf-8", "replace") if found else "unknown"


# --- building llama-bench ---------------------------------------------------------------------------------------------


def get_llama_bench(wheel: Wheel) -> Bench:
    """The llama-bench that belongs to this wheel: from the cache, or built now.

    Raises:
        HostError: when it cannot be built, or is not built like the wheel.
    """
    identity = msgspec.json.encode((wheel.version, wheel.options, wheel.system_info), order="deterministic")
    root = cache_dir() / "llama-bench"
    place = root / f"{wheel.version}-{hashlib.sha256(identity).hexdigest()[:8]}"
    root.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f"{place.name}.lock")):
        note = place / "bench.json"
        if not note.is_file():
            build(wheel, place)
        bench = msgspec.json.decode(note.read_bytes(), type=Bench)
    if bench.system_info != wheel.system_info:
        raise HostError(
            f"llama-bench is not built like {PACKAGE} {wheel.version}, so their speeds cannot be compared:\n"
            f"  llama-bench: {bench.system_info}\n  wheel:       {wheel.system_info}\n",
            f"build {PACKAGE} with this machine's compiler: pip install --force-reinstall --no-binary {PACKAGE} {PACKAGE}",
        )
    return bench


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process builds; the others wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(wheel: Wheel, place: Path) -> None:
    """Build below ``<place>.work``; an interrupted build goes on there. ``place`` appears when all is done."""
    require_program("cmake")
    require_program("c++", "g++", "clang++")
    work, log = (place.with_name(f"{place.name}.{suffix}") for suffix in ("work", "log"))
    work.mkdir(exist_ok=True)
    log.write_text("")
    sdist = get_sdist(wheel.version, place.parent, log)
    source = work / "source"
    if not source.is_dir():
        unpack(sdist, source)
    say(f"building llama-bench with {MOST_JOBS} jobs (minutes; log: {log})")
    started = time.monotonic()
    options = [f"-D{name}={value}" for name, value in wheel.options.items()]
    options += [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP", "UI")]
    options += ["-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_OPENSSL=OFF", "-DBUILD_SHARED_LIBS=ON"]
    options += [f"-DLLAMA_BUILD_COMMIT={wheel.commit}", "-DLLAMA_BUILD_NUMBER=1", "-DCMAKE_BUILD_TYPE=Release"]
    options += ["-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]  # so that the result can be moved
    step(["cmake", "-S", str(source), "-B", str(work / "build"), *options], log)
    step(["cmake", "--build", str(work / "build"), "--target", "llama-bench", "-j", str(MOST_JOBS)], log, nice=10)
    finish(work, place, sdist, time.monotonic() - started)


def finish(work: Path, place: Path, sdist: Path, build_s: float) -> None:
    """Keep the program and its libraries, write the note, remove the rest."""
    folder = work / "build" / "bin"
    library = next(path for path in sorted(folder.glob("libllama.*")) if path.suffix in (".so", ".dylib"))
    status, said = run_program([sys.executable, "-c", SYSTEM_INFO, str(library)], subprocess.PIPE)
    if status != 0:
        raise HostError(f"The new {library} does not load: {said.decode(errors='replace')}.", "see the log beside it.")
    bench = Bench(
        binary=str(place / "llama-bench"),
        sdist_sha256=hashlib.sha256(sdist.read_bytes()).hexdigest(),
        system_info=said.decode(),
        compiler=compiler_of(next(iter(sorted(folder.glob("libggml-cpu.*"))), library)),
        build_s=build_s,
    )
    (folder / "bench.json").write_bytes(msgspec.json.encode(bench))
    folder.rename(place)
    shutil.rmtree(work)


def get_sdist(version: str, folder: Path, log: Path) -> Path:
    """The source distribution, from the cache or by this Python's pip (which also runs a small metadata build)."""
    name = f"llama_cpp_python-{version}.tar.gz"
    if not (folder / name).is_file():
        say(f"downloading {name} (77 MB)")
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--no-cache-dir"]
        partly = folder / "partly"
        step([*argv, "-d", str(partly), f"{PACKAGE}=={version}"], log)
        if not (partly / name).is_file():
            raise FetchError(f"pip left no {name}.", f"read the log {log}.")
        (partly / name).replace(folder / name)
        shutil.rmtree(partly)
    return folder / name


def unpack(sdist: Path, target: Path) -> None:
    """The vendored llama.cpp out of the source distribution; ``target`` appears when it is complete."""
    partly = target.with_suffix(".partly")
    shutil.rmtree(partly, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        wanted = [member for member in archive if member.name.split("/")[1:3] == ["vendor", "llama.cpp"]]
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(partly, wanted)  # noqa: S202 - filtered where this Python can, and hashed by the index
    (inner,) = partly.glob("*/vendor/llama.cpp")
    inner.rename(target)
    shutil.rmtree(partly)


# --- measuring --------------------------------------------------------------------------------------------------------


def get_artifact(parent: Artifact, precision: str, version: str, threads: int) -> Artifact:
    """The model at this precision, made once by the engine's own quantizer."""
    maker = f"{PACKAGE} {version}"
    known = find_derived(parent, precision, maker)
    if known is not None:
        return known
    say(f"making {precision} of {parent.model}")
    target = work_file(".gguf")
    job = QuantizeJob(source=parent.path, target=str(target), precision=precision, threads=threads)
    ended = run_job(job, HOST, Limits())
    if ended.failure is not None or ended.attempt.finished is None:
        raise HostError(f"No {precision} file could be made: {ended.failure}.", "see edgebench doctor.")
    return adopt_derived(parent, precision, maker, target, ended.attempt.finished.notes)


def time_llama_bench(bench: Bench, artifact: Artifact, threads: int, repetitions: int) -> dict[str, float]:
    """Median rate of each workload, tokens/s, by one run of llama-bench with its own warm-up."""
    argv = [bench.binary, "-m", artifact.path, "-p", "512", "-n", "128", "-t", str(threads), "-r", str(repetitions)]
    status, said = run_program([*argv, "-ngl", "0", "-o", "json"], subprocess.PIPE)
    if status != 0:
        raise HostError(f"llama-bench ended with status {status}: {said.decode(errors='replace')[-500:]}", "run it alone.")
    rates = {}
    for test in msgspec.json.decode(said[said.index(b"[") :]):
        check_settings(test, threads)
        tokens = test["n_prompt"] or test["n_gen"]
        name = f"pp{tokens}" if test["n_prompt"] else f"tg{tokens}"
        rates[name] = median([tokens / (ns / 1e9) for ns in test["samples_ns"]])
    return rates


def check_settings(test: dict[str, Any], threads: int) -> None:
    """llama-bench must have used what edgebench uses."""
    wanted = {**EXPECTED, "n_threads": threads}
    wrong = {name: test.get(name) for name, value in wanted.items() if test.get(name) != value}
    if wrong or str(test.get("flash_attn")) not in ("-1", "auto"):
        raise HostError(
            f"llama-bench used {wrong or {'flash_attn': test.get('flash_attn')}}, edgebench {wanted} and flash attention auto.",
            "this version of llama-bench has other defaults: pass them in this script.",
        )


def time_edgebench(artifact: Artifact, threads: int, repetitions: int) -> dict[str, float]:
    """Median rate of each workload, tokens/s, by one round of edgebench."""
    trial = TrialSpec(
        artifact=artifact,
        runtime="llamacpp",
        settings=Settings(threads=threads, threads_batch=threads),
        workloads=tuple(parse_workload(name) for name in WORKLOADS),
        blocks=repetitions,
    )
    # Round 0 keeps the order of the workloads, as llama-bench does; odd rounds would turn it around.
    ended = run_job(MeasureJob(trial=trial, round=0, budget_s=NO_BUDGET_S), HOST, Limits())
    if ended.failure is not None:
        raise HostError(f"edgebench could not measure: {ended.failure.says}.", ended.failure.next_step)
    return {
        name: median([block.tokens_per_s for block in ended.attempt.blocks if block.workload == name])
        for name in WORKLOADS
    }


def observed(measure: Callable[[], dict[str, float]], threads: int) -> tuple[dict[str, float], str]:
    """Measure, and say who else was seen using the machine while the child ran (empty: nobody)."""
    start = edge()
    rates = measure()
    end = edge()
    window = Block(
        workload="child", index=0, tokens=1, start=start, end=end, t0_ns=start.t_ns, t1_ns=end.t_ns, step_ns=()
    )
    return rates, disturbance(window, threads, len(os.sched_getaffinity(0))).says


def edge() -> Edge:
    """The counters now; "own" are we and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(usage.ru_utime + usage.ru_stime for usage in used)
    # Of a child's threads no run delay remains once it has ended.
    return msgspec.structs.replace(EdgeReader(HOST).read(), own_cpu_s=own_s, run_delay_s=None)


def measure_round(
    number: int, bench: Bench, artifact: Artifact, threads: int, repetitions: int
) -> dict[str, Pair]:
    """One pair of processes; the order turns around from round to round."""
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "llama-bench": lambda: time_llama_bench(bench, artifact, threads, repetitions),
        "edgebench": lambda: time_edgebench(artifact, threads, repetitions),
    }
    order = list(sides) if number % 2 == 0 else list(sides)[::-1]
    found = {side: observed(sides[side], threads) for side in order}
    disturbed = "; ".join(f"{side}: {says}" for side, (_, says) in found.items() if says)
    return {
        name: Pair(
            round=number,
            llama_bench=found["llama-bench"][0][name],
            edgebench=found["edgebench"][0][name],
            disturbed_by=disturbed,
        )
        for name in WORKLOADS
    }


# --- result -----------------------------------------------------------------------------------------------------------


def judge(key: Key, pairs: list[Pair], *, quiet_only: bool) -> Cell:
    """Medians, ratio and verdict of one cell."""
    used = [pair for pair in pairs if not (quiet_only and pair.disturbed_by)]
    if not used:
        raise NothingMeasured("Every round was disturbed by other processes.", "use an idle machine.")
    ours, theirs = [pair.edgebench for pair in used], [pair.llama_bench for pair in used]
    middle, interval = ratio(ours, theirs), ratio_interval(ours, theirs)
    verdict: Literal["PASS", "MISS", "WIDE"] = "WIDE"
    if not LOWEST <= middle <= HIGHEST:
        verdict = "MISS"
    elif interval is not None and interval.low >= LOWEST and interval.high <= HIGHEST:
        verdict = "PASS"
    precision, threads, workload = key
    return Cell(
        precision=precision,
        threads=threads,
        workload=workload,
        rounds=len(used),
        left_out=len(pairs) - len(used),
        llama_bench=median(theirs),
        edgebench=median(ours),
        ratio_of_medians=median(ours) / median(theirs),
        ratio=middle,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        verdict=verdict,
    )


def print_table(cells: list[Cell]) -> None:
    """The table: medians over rounds in tokens/s, ratio edgebench/llama-bench with its interval."""
    print("\nprecision threads workload rounds  llama-bench    edgebench  of medians   paired  95 % interval   verdict")
    for cell in cells:
        interval = f"{cell.low:.3f} to {cell.high:.3f}" if cell.low and cell.high else "none (1 round)"
        print(
            f"{cell.precision:9} {cell.threads:7} {cell.workload:8} {cell.rounds:6} {cell.llama_bench:12.1f} "
            f"{cell.edgebench:12.1f} {cell.ratio_of_medians:11.4f} {cell.ratio:8.4f}  {interval:15} {cell.verdict}"
        )


def describe(wheel: Wheel, bench: Bench) -> dict[str, str]:
    """Which machine, versions and commit."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    status, said = run_program(git, subprocess.PIPE) if shutil.which("git") else (1, b"")
    topology = read_topology(HOST)
    cpu = topology.cpu_model
    return {
        "machine": f"{HOST.machine()}, {cpu.value or cpu.unknown_because}, {topology.logical} CPUs, {platform.release()}",
        "edgebench": f"{edgebench.__version__} ({said.decode().strip() if status == 0 else 'no commit: not a checkout'})",
        "llama.cpp": f"{wheel.commit}, {PACKAGE} {wheel.version}, options {wheel.options_from}",
        "system info": wheel.system_info,
        "compilers": f"wheel {wheel.compiler}; llama-bench {bench.compiler}",
        "llama-bench": f"{bench.binary}, built in {bench.build_s:.0f} s from the sdist {bench.sdist_sha256[:12]}",
    }


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Are edgebench's speeds those of llama-bench?")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model card, path or hf: reference")
    parser.add_argument("--precisions", default="q8_0,q4_0", help="separated by commas")
    parser.add_argument("--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of processes for each file and thread count")
    parser.add_argument("--repetitions", type=int, default=2, help="timed repetitions inside a process")
    parser.add_argument("--quiet-only", action="store_true", help="leave out pairs that other processes disturbed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    if options.rounds < 1 or options.repetitions < 1:
        parser.error("--rounds and --repetitions are at least 1")
    return options


def measure_all(options: argparse.Namespace, wheel: Wheel, bench: Bench) -> dict[Key, list[Pair]]:
    """All rounds, each over all files and thread counts."""
    parent = obtain(options.model)
    counts = [int(count) for count in options.threads.split(",")]
    names = [check_precision(name) for name in options.precisions.split(",")]
    files = {name: get_artifact(parent, name, wheel.version, max(counts)) for name in names}
    pairs: dict[Key, list[Pair]] = {(n, t, w): [] for n in names for t in counts for w in WORKLOADS}
    started = time.monotonic()
    for number in range(options.rounds):
        for name in names:
            for threads in counts:
                found = measure_round(number, bench, files[name], threads, options.repetitions)
                for workload, pair in found.items():
                    pairs[name, threads, workload].append(pair)
        left_s = (time.monotonic() - started) / (number + 1) * (options.rounds - number - 1)
        say(f"round {number + 1} of {options.rounds} done, about {left_s:.0f} s left")
    return pairs


def main() -> int:
    """Build, measure, print; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are then killed as on Ctrl-C
    options = parse_arguments()
    wheel = installed_wheel()
    bench = get_llama_bench(wheel)
    facts = describe(wheel, bench)
    for name, value in facts.items():
        print(f"{name:12} {value}", flush=True)
    pairs = measure_all(options, wheel, bench)
    cells = [judge(key, found, quiet_only=options.quiet_only) for key, found in pairs.items()]
    print_table(cells)
    disturbed = sum(bool(pair.disturbed_by) for found in pairs.values() for pair in found)
    total = sum(len(found) for found in pairs.values())
    print(f"other processes were seen in {disturbed} of {total} pairs; left out: {'yes' if options.quiet_only else 'no'}")
    passed = all(cell.verdict != "MISS" for cell in cells)
    summary = {"question": "edgebench / llama-bench", "facts": facts, "cells": cells, "nothing_missed": passed}
    if options.json is not None:
        samples = [{"precision": p, "threads": t, "workload": w, "pairs": found} for (p, t, w), found in pairs.items()]
        options.json.write_bytes(msgspec.json.encode({**summary, "samples": samples}))
    print(msgspec.json.encode(summary).decode())
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebenchError as error:
        say(f"error: {error}")
        sys.exit(2 if isinstance(error, UsageError) else error.exit_code)
    except KeyboardInterrupt:
        say("interrupted; no child is left, and what was built stays in the cache")
        sys.exit(130)
