"""What already lies on this machine, as an artifact: a GGUF, an ONNX graph (ours or foreign), a Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgebench.artifacts.cache import Progress, known_hash, size_of
from edgebench.checkpoint.onnx_file import MODEL, graph_of
from edgebench.errors import ArtifactError, UsageError
from edgebench.manifest import OnnxManifest
from edgebench.specs import Artifact

FOREIGN = "foreign"
"""Precision of an ONNX graph that somebody else exported: it holds whatever it holds."""
_MAGIC = b"GGUF"


def describe(path: Path, progress: Progress | None = None) -> Artifact:
    """Look what it is, and hash it. The precision of a GGUF is ``shipped``: only its own header tells it.

    An ONNX graph without ``edgebench.json`` has the precision ``foreign``. Its folder is the artifact, because its
    weights may lie in other files there; a path of the graph itself means the same.

    Raises:
        UsageError: when there is no readable, non-empty, regular file, and no folder of a known kind.
        ArtifactError: when the file is not a GGUF, or the description of an export is damaged.
        CacheError: when the hash cannot be remembered.
    """
    try:
        path = Path(os.path.realpath(path, strict=True))  # Path.resolve raises RuntimeError for a loop of links
        path = _folder_of_graph(path)
        form, precision, variant = _kind(path)
        size, sha256 = size_of(path), known_hash(path, progress)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no file {path}.", "check the path, or see edgebench models list for ids."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}.", "check the path and its rights."
        ) from error
    return Artifact(
        model=_name(path),
        precision=precision,
        format=form,
        path=str(path),
        bytes=size,
        sha256=sha256,
        origin=str(path),
        variant=variant,
    )


def _name(path: Path) -> str:
    """A file without its ending, a folder whole: ``Qwen2.5-0.5B`` has no ending."""
    return path.name if path.is_dir() else path.stem


def _kind(path: Path) -> tuple[str, str, str]:
    """(format, precision, variant) of a file or folder."""
    if not path.is_dir():
        _require_gguf(path)
        return "gguf", "shipped", ""
    if (path / "edgebench.json").is_file():
        try:
            manifest = msgspec.json.decode((path / "edgebench.json").read_bytes(), type=OnnxManifest)
        except msgspec.DecodeError as error:
            raise ArtifactError(f"{path}/edgebench.json is damaged: {error}.", "export the model again.") from error
        return "onnx", manifest.precision, manifest.variant
    if not any(path.glob("*.safetensors")) and graph_of(path) is not None:
        return "onnx", FOREIGN, ""
    if (path / "config.json").is_file():
        return "hf", "shipped", ""
    raise UsageError(
        f"{path} is a folder without config.json, edgebench.json or an ONNX graph.",
        "give a .gguf file, a Hugging Face folder, or a folder made by edgebench export or by another exporter.",
    )


def _folder_of_graph(path: Path) -> Path:
    """The folder of an ``.onnx`` file; any other path unchanged."""
    if path.suffix != ".onnx" or not path.is_file():
        return path
    if graph_of(path.parent) != path:
        raise UsageError(
            f"{path.parent} holds another graph, {MODEL}, that would be taken instead of {path.name}.",
            "put one graph and its data into a folder of its own.",
        )
    return path.parent


def _require_gguf(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for ever
        raise UsageError(f"{path} is not a regular file.", "give the path of one .gguf file.")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if not start:
        raise UsageError(f"{path} is empty.", "get it again, or give another file.")
    if start != _MAGIC:
        raise ArtifactError(
            f"{path} is not a GGUF file: it starts with {start!r}.", "convert the model to GGUF, or give another file."
        )
