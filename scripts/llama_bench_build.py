"""llama.cpp's own benchmark, built from the sources of the installed llama-cpp-python.

With the GGML options that this wheel recorded; the build counts only if its system info (SIMD, OpenMP, repacking) is
word for word that of the wheel. It needs a C++ compiler, cmake and, the first time, the package index. The build stays
in edgebench's cache, below ``llama-bench/``; a second run builds nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path

import msgspec
from experiment import HOST, failed, run_program, say

from edgebench.artifacts import cache_dir
from edgebench.engine.about import about
from edgebench.errors import FetchError, HostError, MissingDependency

PACKAGE = "llama-cpp-python"
MOST_JOBS = 2  # more compilers at once need more memory than a small board has

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


# --- building ---------------------------------------------------------------------------------------------------------


def with_libraries(folder: str) -> dict[str, str]:
    """Our environment variables; shared libraries are looked for in ``folder`` first, if there is one."""
    return os.environ | ({"LD_LIBRARY_PATH": folder} if folder else {})


def step(argv: list[str], log: Path, nice: int = 0) -> None:
    """Run one step of the build, its output appended to ``log``."""
    if shutil.which(argv[0]) is None:
        raise MissingDependency(f"{argv[0]} is not installed, and llama-bench must be built.", f"install {argv[0]}.")
    with log.open("ab") as output:
        status, _, _ = run_program(argv, log=output, nice=nice)
    if status != 0:
        raise failed(argv, status, log.read_text(errors="replace"), f"read the log {log}.")


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
    _, loaded, _ = run_program(argv, environment=with_libraries(wheel.libraries))
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
