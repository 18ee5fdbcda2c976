"""The usual roads to ONNX beside ours: onnxruntime-genai's model builder and optimum-onnx, as their makers mean them.

Each lives in a virtual environment of its own below edgebench's cache (``peers/``), because genai needs transformers 5
and optimum-onnx needs one before 4.58; each takes some 1.5 GB, and needs the package index once. Both start from one
Hugging Face folder (`gguf_as_hf`), and what they made is kept beside it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from experiment import failed, run_program, say

from edgebench.artifacts import cache_dir
from edgebench.specs import Artifact

PROGRAMS = Path(__file__).resolve().parent / "peers"
# torch first, by its own line: the plain version is then satisfied for what comes after.
REQUIREMENTS = {
    "genai": (("torch==2.13.0",), ("transformers>=5,<6", "onnxruntime-genai==0.18.0", "onnx", "onnx_ir")),
    "optimum": (("torch==2.13.0",), ("transformers>=4.57,<4.58", "optimum-onnx[onnxruntime]==0.1.0", "onnx_ir")),
    "codecarbon": (("codecarbon==3.3.2",),),
    "zeus": (("zeus==0.16.0",),),
}
# Nobody asks a hub for anything, or tells it anything.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def peer_variables() -> dict[str, str]:
    """The environment variables of a peer: ours, but for Python's own paths, and offline."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")} | OFFLINE


def step(argv: list[str], what: str) -> str:
    """Run one step of preparation; what it wrote to standard output.

    Raises:
        HostError: when it fails.
    """
    say(what)
    status, said, complained = run_program(argv, environment=peer_variables(), nice=10)
    if status != 0:
        raise failed(argv, status, said + complained, "see above.")
    return said


def peer_argv(python: Path, program: str, job: dict[str, Any]) -> list[str]:
    """The command of one of the programs in ``scripts/peers``."""
    return [str(python), str(PROGRAMS / program), msgspec.json.encode(job).decode()]


def run_peer(python: Path, program: str, job: dict[str, Any]) -> dict[str, Any]:
    """What one of the programs in ``scripts/peers`` prints.

    Raises:
        HostError: when it fails.
    """
    argv = peer_argv(python, program, job)
    status, said, complained = run_program(argv, environment=peer_variables())
    if status != 0:
        raise failed(argv[1:2], status, said + complained, "run it alone, or see above.")
    return msgspec.json.decode(said.strip().splitlines()[-1]) if said.strip() else {}


def place_of(source: Artifact) -> Path:
    """Where everything that peers make of a model lies."""
    return cache_dir() / "peers" / "models" / source.sha256[:16]


def environment(name: str) -> tuple[Path, str]:
    """The Python of a peer's virtual environment, made once, and the versions that pip reports there."""
    steps = REQUIREMENTS[name]
    identity = hashlib.sha256(msgspec.json.encode((steps, platform.python_version()))).hexdigest()[:8]
    place = cache_dir() / "peers" / f"{name}-{identity}"
    python, ready = place / "bin" / "python", place / "versions.txt"
    if not ready.is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        step([sys.executable, "-m", "venv", str(place)], f"making a virtual environment for {name} (up to 1.5 GB)")
        for wanted in steps:
            step([str(python), "-m", "pip", "install", "--quiet", *wanted], f"installing {', '.join(wanted)}")
        listed = step([str(python), "-m", "pip", "freeze"], "asking pip what it installed")
        ready.write_text(listed, encoding="utf-8")
    told = re.compile(
        r"^(?:torch|transformers|onnxruntime|onnxruntime-genai|optimum-onnx|codecarbon|zeus)==\S+$", re.MULTILINE
    )
    return python, ", ".join(told.findall(ready.read_text(encoding="utf-8")))


def make_once(target: Path, make: Callable[[Path], object]) -> Path:
    """A folder that appears when it is complete."""
    if not target.is_dir():
        partly = target.with_name(target.name + ".partly")
        shutil.rmtree(partly, ignore_errors=True)
        make(partly)
        partly.rename(target)
    return target


def genai_graph(python: Path, folder: Path, place: Path, extra: list[str]) -> Path:
    """The builder's int4 graph for the CPU, with its own defaults but for what was asked for."""
    name = "-".join(["genai-int4", *(re.sub(r"\W+", "-", option) for option in extra)])

    def build(partly: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            argv = [str(python), str(PROGRAMS / "build_genai.py"), "-i", str(folder), "-o", str(partly), "-p", "int4"]
            argv += ["-e", "cpu", "-c", scratch, *(["--extra_options", *extra] if extra else [])]
            step(argv, "building genai's int4 graph")

    return make_once(place / name, build)


def optimum_graph(python: Path, folder: Path, place: Path) -> Path:
    """The export of optimum at fp32."""

    def export(partly: Path) -> None:
        say("exporting with optimum")
        run_peer(python, "run_optimum.py", {"export": str(folder), "folder": str(partly)})

    return make_once(place / "optimum-fp32", export)
