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

It needs edgebench, a C++ compiler, cmake and, the first time, the package index. The build stays in edgebench's cache,
below ``llama-bench/``; a second run builds nothing.

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import msgspec

import edgebench
from edgebench.analysis.disturbance import disturbance
from edgebench.artifacts import adopt_derived, cache_dir, find_derived, obtain, work_file
from edgebench.engine.about import about
from edgebench.engine.child import run_job
from edgebench.engine.edges import EdgeReader
from edgebench.engine.messages import MeasureJob, QuantizeJob
from edgebench.engine.protocol import Limits
from edgebench.errors import EdgebenchError, FetchError, HostError, MissingDependency, NothingMeasured
from edgebench.export.quantize import check_precision
from edgebench.host import Host
from edgebench.records import Block, Edge
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.stats import median, ratio, ratio_interval
from edgebench.topology import read_topology

T = TypeVar("T")
PACKAGE = "llama-cpp-python"
LOWEST, HIGHEST = 0.98, 1.02
WORKLOADS = ("pp512", "tg128")
MOST_JOBS = 2  # more compilers at once need more memory than a small board has
ATTEMPTS = 3  # with --quiet-only, as a multiple of the rounds
QUIET_WAIT_S = 300.0
SAME_OFFSET = "glibc.malloc.mmap_threshold=131072"  # glibc's own first value; given, it no longer grows
HOST = Host()
TOPOLOGY = read_topology(HOST)

# What llama-bench reports must be what edgebench asks for; -1 is "auto".
EXPECTED = {"n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "n_depth": 0, "cpu_mask": "0x0"}
EXPECTED |= {"flash_attn": -1, "repack": True, "n_gpu_layers": 0}

SYSTEM_INFO = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.llama_print_system_info.restype = ctypes.c_char_p
sys.stdout.write(library.llama_print_system_info().decode().strip(" |"))
"""

# Written into ggml-config.cmake beside the options, but derived or without effect on speed.
NOT_OPTIONS = re.compile(
    r"_(FOUND|DEFAULT|ENABLED)$|^GGML_(VERSION|BUILD_|PUBLIC_HEADERS|AVAILABLE_|GIT_|STANDALONE|SHARED_LIB|CCACHE)"
)


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """The installed llama-cpp-python, as far as a second build must follow it; ``options``: cmake's, by name."""

    version: str
    engine: str
    commit: str
    options: dict[str, str]
    options_from: str
    system_info: str
    compiler: str
    libraries: str
    """The folder of its shared libraries."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-bench that was built here."""

    binary: str
    sdist_sha256: str
    system_info: str
    compiler: str
    build_s: float
    engine: str = ""
    """The folder of the libraries that it is to use; empty for those of its own build."""


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


Pairs = dict[tuple[str, int, str], list[Pair]]
"""By precision, threads and workload."""


# --- processes --------------------------------------------------------------------------------------------------------


def run_program(
    argv: list[str], log: IO[bytes] | None = None, nice: int = 0, libraries: str = ""
) -> tuple[int, str, str]:
    """Run a program in a process group of its own; whatever interrupts us kills the whole group.

    Args:
        argv: the program and its arguments.
        log: where both its outputs go; without it they are returned.
        nice: added to its niceness.
        libraries: a folder in which its shared libraries are looked for first.

    Returns:
        Exit status, standard output, standard error; both texts are empty when they go to ``log``.
    """
    output, errors = (log, subprocess.STDOUT) if log else (subprocess.PIPE, subprocess.PIPE)
    environment = os.environ | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True, env=environment
    )
    try:
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        said, complained = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, (said or b"").decode("utf-8", "replace"), (complained or b"").decode("utf-8", "replace")


def step(argv: list[str], log: Path, nice: int = 0) -> None:
    """Run one step of the build, its output appended to ``log``."""
    if shutil.which(argv[0]) is None:
        raise MissingDependency(f"{argv[0]} is not installed, and llama-bench must be built.", f"install {argv[0]}.")
    with log.open("ab") as output:
        status, _, _ = run_program(argv, output, nice)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise HostError(f"{' '.join(argv[:4])} ... ended with status {status}:\n{tail}\n", f"read the log {log}.")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


# --- the installed wheel ----------------------------------------------------------------------------------------------


def installed_wheel() -> Wheel:
    """Version, cmake options and system info of the llama-cpp-python that edgebench uses."""
    told = about("llamacpp", HOST)
    if told.build.value is None or told.version.value is None:
        raise HostError(f"llama.cpp's system info is unknown: {told.build.unknown_because}.", "see edgebench doctor.")
    files = {file.name: Path(str(file.locate())) for file in importlib.metadata.files(PACKAGE) or ()}
    ggml, llama = files.get("ggml-config.cmake"), files.get("llama-config.cmake")
    found = re.findall(r'^set\((GGML_\w+) "([^"]+)"\)', ggml.read_text(), re.MULTILINE) if ggml else []
    options = {name: value for name, value in found if not NOT_OPTIONS.search(name)}
    commit = re.search(r"LLAMA_BUILD_COMMIT\s+(\w+)", llama.read_text()) if llama else None
    return Wheel(
        version=importlib.metadata.version(PACKAGE),
        engine=str(told.version.value),
        commit=commit[1] if commit else "unknown",
        options=options or {"GGML_NATIVE": "ON", "GGML_OPENMP": "ON"},
        options_from="recorded in the wheel" if options else "assumed, because the wheel records none",
        system_info=str(told.build.value),
        compiler=compiler_of(files.get("libggml-cpu.so")),
        libraries=str(files["libllama.so"].parent) if "libllama.so" in files else "",
    )


def compiler_of(library: Path | None) -> str:
    """The compiler that the ``.comment`` section of an ELF file names."""
    pattern = rb"GCC: \([^)\0]*\) [0-9.]+|clang version [0-9][^\0]*"
    found = re.search(pattern, library.read_bytes()) if library and library.is_file() else None
    return found[0].decode("utf-8", "replace") if found else "unknown"


# --- building llama-bench ---------------------------------------------------------------------------------------------


def get_llama_bench(wheel: Wheel) -> Bench:
    """The llama-bench that belongs to this wheel, from the cache or built now.

    Raises:
        HostError: when it cannot be built, or is not built like the wheel.
    """
    identity = msgspec.json.encode((wheel.version, wheel.options, wheel.system_info), order="deterministic")
    place = cache_dir() / "llama-bench" / f"{wheel.version}-{hashlib.sha256(identity).hexdigest()[:8]}"
    if not (place / "bench.json").is_file():
        build(wheel, place)
    bench = msgspec.json.decode((place / "bench.json").read_bytes(), type=Bench)
    if bench.system_info != wheel.system_info:
        raise HostError(
            f"llama-bench is not built like {PACKAGE} {wheel.version}, so their speeds cannot be compared:\n"
            f"  llama-bench: {bench.system_info}\n  wheel:       {wheel.system_info}\n",
            f"build the wheel here: pip install --force-reinstall --no-cache-dir --no-binary {PACKAGE} {PACKAGE}",
        )
    return bench


def build(wheel: Wheel, place: Path) -> None:
    """Build below ``<place>.work``, where an interrupted build goes on; ``place`` appears when all is done."""
    work, log = (place.with_name(f"{place.name}.{suffix}") for suffix in ("work", "log"))
    source, tree = work / "source", work / "build"
    work.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    sdist = get_sdist(wheel.version, place.parent, log)
    if not source.is_dir():
        unpack(sdist, source)
    say(f"building llama-bench with {MOST_JOBS} jobs; this takes minutes (log: {log})")
    started = time.monotonic()
    options = [f"-D{name}={value}" for name, value in wheel.options.items()]
    options += [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP", "UI")]
    options += ["-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF"]
    options += [f"-DLLAMA_BUILD_COMMIT={wheel.commit}", "-DLLAMA_BUILD_NUMBER=1", "-DCMAKE_BUILD_TYPE=Release"]
    options += ["-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]  # $ORIGIN: the result can be moved
    step(["cmake", "-S", str(source), "-B", str(tree), *options], log)
    step(["cmake", "--build", str(tree), "--target", "llama-bench", "-j", str(MOST_JOBS)], log, nice=10)
    build_s = time.monotonic() - started
    keep(tree / "bin", place, hashlib.sha256(sdist.read_bytes()).hexdigest(), build_s)
    shutil.rmtree(work)


def keep(folder: Path, place: Path, sdist_sha256: str, build_s: float) -> None:
    """Ask the new library how it was built, write that down, and give the folder its final place."""
    library = next(path for path in sorted(folder.glob("libllama.*")) if path.suffix in (".so", ".dylib"))
    status, info, error = run_program([sys.executable, "-c", SYSTEM_INFO, str(library)])
    if status != 0:
        raise HostError(f"The new {library} does not load: {error.strip()[-300:]}.", "see the log beside it.")
    bench = Bench(
        binary=str(place / "llama-bench"),
        sdist_sha256=sdist_sha256,
        system_info=info,
        compiler=compiler_of(folder / "libggml-cpu.so"),
        build_s=build_s,
    )
    (folder / "bench.json").write_bytes(msgspec.json.encode(bench))
    folder.rename(place)


def choose_engine(bench: Bench, wheel: Wheel, *, own: bool) -> tuple[Bench, str]:
    """llama-bench on the wheel's libraries or on its own, and which, in words.

    Raises:
        HostError: when the loader would take another engine than it was told to.
    """
    if own or not wheel.libraries or platform.libc_ver()[0] != "glibc":
        return bench, "two builds of the same source"
    # glibc's loader prints what it would load instead of running the program (ld.so(8)).
    argv = ["env", "LD_TRACE_LOADED_OBJECTS=1", bench.binary]
    _, loaded, _ = run_program(argv, libraries=wheel.libraries)
    engines = re.findall(r"lib(?:llama|ggml|ggml-base|ggml-cpu)\.so\S* => (\S+)", loaded)
    if not engines or any(Path(path).parent != Path(wheel.libraries) for path in engines):
        raise HostError(
            f"llama-bench would load {', '.join(engines) or 'no engine'}, not the one in {wheel.libraries}.",
            "compare two builds instead: --own-libraries.",
        )
    return msgspec.structs.replace(bench, engine=wheel.libraries), "the wheel's libraries, the same bytes for both"


def get_sdist(version: str, folder: Path, log: Path) -> Path:
    """The source distribution, from the cache or by this Python's pip (which also makes its metadata, not a build)."""
    sdist = folder / f"llama_cpp_python-{version}.tar.gz"
    if not sdist.is_file():
        say(f"downloading {sdist.name} (about 80 MB)")
        partly = folder / "partly"
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-binary", PACKAGE]
        step([*argv, "-d", str(partly), f"{PACKAGE}=={version}"], log)
        if not (partly / sdist.name).is_file():
            raise FetchError(f"pip left no {sdist.name}.", f"read the log {log}.")
        (partly / sdist.name).replace(sdist)
        shutil.rmtree(partly)
    return sdist


def unpack(sdist: Path, target: Path) -> None:
    """The vendored llama.cpp out of the source distribution; ``target`` appears when it is complete."""
    partly = target.with_suffix(".partly")
    shutil.rmtree(partly, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        wanted = [member for member in archive if member.name.split("/")[1:3] == ["vendor", "llama.cpp"]]
        archive.extractall(partly, wanted)  # noqa: S202 - filtered where this Python can; the index vouches for it
    (inner,) = partly.glob("*/vendor/llama.cpp")
    inner.rename(target)
    shutil.rmtree(partly)


# --- measuring --------------------------------------------------------------------------------------------------------


def get_artifact(parent: Artifact, precision: str, maker: str, threads: int) -> Artifact:
    """The model at this precision, made once by the engine's own quantizer; `edgebench profile` finds it too."""
    known = parent if precision == parent.precision else find_derived(parent, precision, maker)
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
    status, said, complained = run_program([*argv, "-ngl", "0", "-o", "json"], libraries=bench.engine)
    if status != 0:
        raise HostError(f"{' '.join(argv)} ended with status {status}: {complained.strip()[-500:]}", "run it alone.")
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
    """Median rate of each workload, tokens/s, by one round of edgebench."""
    trial = TrialSpec(
        artifact=artifact,
        runtime="llamacpp",
        settings=Settings(threads=threads, threads_batch=threads),
        workloads=tuple(parse_workload(name) for name in WORKLOADS),
        blocks=repetitions,
    )
    # Round 0 keeps the order of the workloads, as llama-bench does; odd rounds would turn it around.
    ended = run_job(MeasureJob(trial=trial, round=0, budget_s=1e9), HOST, Limits())
    if ended.failure is not None:
        raise HostError(f"edgebench could not measure: {ended.failure.says}.", ended.failure.next_step)
    blocks = ended.attempt.blocks
    return {name: median([block.tokens_per_s for block in blocks if block.workload == name]) for name in WORKLOADS}


def observed(action: Callable[[], T], threads: int) -> tuple[T, str]:
    """Do something, and say who else was seen using the machine meanwhile (empty: nobody)."""
    start = edge()
    result = action()
    end = edge()
    window = Block(workload="", index=0, tokens=1, start=start, end=end, t0_ns=start.t_ns, t1_ns=end.t_ns, step_ns=())
    return result, disturbance(window, threads, TOPOLOGY.logical).says


def edge() -> Edge:
    """The counters now; "own" are this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(usage.ru_utime + usage.ru_stime for usage in used)
    # Of a child's threads no run delay remains once it has ended.
    return msgspec.structs.replace(EdgeReader(HOST).read(), own_cpu_s=own_s, run_delay_s=None)


def wait_until_quiet() -> None:
    """Wait, for five minutes at most, for one second in which nobody else uses the machine."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while observed(partial(time.sleep, 1), 1)[1] and time.monotonic() < deadline:
        pass


def measure_pair(number: int, bench: Bench, artifact: Artifact, threads: int, repetitions: int) -> dict[str, Pair]:
    """One pair of processes; the order turns around from round to round."""
    ours = partial(observed, partial(time_edgebench, artifact, threads, repetitions), threads)
    theirs = partial(observed, partial(time_llama_bench, bench, artifact, threads, repetitions), threads)
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
    parent = obtain(options.model)
    counts = [int(count) for count in options.threads.split(",")]
    names = [check_precision(name) for name in options.precisions.split(",")]
    files = {name: get_artifact(parent, name, wheel.engine, max(counts)) for name in names}
    pairs: Pairs = {(name, threads, workload): [] for name in names for threads in counts for workload in WORKLOADS}
    done = 0
    try:
        for number in range(options.rounds * (ATTEMPTS if options.quiet_only else 1)):
            if done < options.rounds:
                measure_round(number, options, bench, files, pairs)
                done = min(len(usable(found, options)) for found in pairs.values())
                say(f"{done} of {options.rounds} rounds done")
    except KeyboardInterrupt:
        if not all(usable(found, options) for found in pairs.values()):
            raise
        say("interrupted: the result is that of the rounds so far")
    return pairs


def measure_round(
    number: int, options: argparse.Namespace, bench: Bench, files: dict[str, Artifact], pairs: Pairs
) -> None:
    """Add one pair to each line that has too few; with ``--quiet-only`` disturbed pairs do not count."""
    for name, threads, first in list(pairs):
        if first != WORKLOADS[0] or len(usable(pairs[name, threads, first], options)) >= options.rounds:
            continue
        if options.quiet_only:
            wait_until_quiet()
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
    verdict: Literal["PASS", "MISS", "WIDE"] = "WIDE"
    if not LOWEST <= middle <= HIGHEST:
        verdict = "MISS"
    elif interval is not None and interval.low >= LOWEST and interval.high <= HIGHEST:
        verdict = "PASS"
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
        verdict=verdict,
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
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    status, commit, _ = run_program(git) if shutil.which("git") else (1, "", "")
    cpu = TOPOLOGY.cpu_model.value or TOPOLOGY.cpu_model.unknown_because
    return {
        "machine": f"{HOST.machine()}, {cpu}, {TOPOLOGY.logical} CPUs, {platform.release()}",
        "edgebench": f"{edgebench.__version__}, {commit.strip() if status == 0 else 'no git checkout'}",
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are then killed as on Ctrl-C
    options = parse_arguments()
    wheel = installed_wheel()
    bench = get_llama_bench(wheel)
    bench, engine = choose_engine(bench, wheel, own=options.own_libraries)
    facts = describe(wheel, bench) | {"engine": engine, "allocator": align_scratch_memory(as_is=options.as_is)}
    for name, value in facts.items():
        print(f"{name:12} {value}", flush=True)
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
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted: no child is left, and what was built stays in the cache")
        sys.exit(130)
