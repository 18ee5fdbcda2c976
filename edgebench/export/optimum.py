"""The reference road to ONNX: optimum traces the model's original code with torch, for any architecture it knows.

What it makes is right and slow: attention is spelled out, and each step copies the whole KV cache (see
``runtimes/_ort_foreign.py``). It is there to check the direct road against, and for architectures that the direct road
does not know.

It is an extra, ``pip install 'edgebench[optimum]'``, and best in an environment of its own: optimum-onnx 0.1.0, the
last release, needs transformers before 4.58 and huggingface-hub before 1.0, and so cannot live beside transformers 5,
onnxruntime-genai's model builder, or lm-eval with today's datasets.

Three traps are closed here. transformers 4 silently rotates with a base of 10000 when a folder describes its rotation
as transformers 5 does, so the description is given in both spellings. Pickled weights run code when they are read, so
only safetensors are shown to it. And ``trust_remote_code`` is never set: a model that needs its own code is refused.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from edgebench.errors import ArtifactError, MissingDependency, UsageError

PRECISIONS = ("fp32",)
TASK = "text-generation-with-past"
INSTALL = "pip install 'edgebench[optimum]'"
_SHOWN = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "merges.txt", "vocab.txt")


def version() -> str:
    """``optimum-onnx 0.1.0``, part of the identity of what it makes; nothing is imported.

    Raises:
        MissingDependency: when it, or torch, is not installed.
    """
    try:
        found = importlib.metadata.version("optimum-onnx")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependency("The reference exporter needs optimum-onnx.", INSTALL) from error
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("The reference exporter needs torch.", INSTALL)
    return f"optimum-onnx {found}"


def export(source: Path, folder: Path) -> tuple[str, ...]:
    """Export a Hugging Face folder at fp32 with a growing KV cache.

    Args:
        source: with ``config.json`` and safetensors.
        folder: an existing empty folder; it gets ``model.onnx`` and what lies beside it.

    Returns:
        What a reader must know.

    Raises:
        MissingDependency: when optimum-onnx or torch is not installed.
        UsageError: when the source is no folder with safetensors.
        ArtifactError: when optimum refuses the model.
    """
    maker = version()
    check_source(source)
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory(prefix="edgebench-") as scratch:
        shown = _show(source, Path(scratch) / "model")
        try:
            main_export(
                str(shown),
                str(folder),
                task=TASK,
                dtype="fp32",
                library_name="transformers",
                local_files_only=True,
                trust_remote_code=False,
                do_validation=False,
            )
        except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
            raise ArtifactError(
                f"{source}: optimum does not export it: {type(error).__name__}: {error}.",
                "see which architectures it knows, or use the GGUF of the model with llama.cpp.",
            ) from error
    return (f"made by {maker}: each step copies the whole KV cache",)


def check_source(source: Path) -> None:
    """Refuse what the reference exporter cannot start from.

    Raises:
        UsageError: when it is no folder with ``config.json`` and safetensors.
    """
    if not (source / "config.json").is_file() or not any(source.glob("*.safetensors")):
        raise UsageError(
            f"{source} is no Hugging Face folder with config.json and safetensors.",
            "give such a folder; the direct exporter also takes a GGUF.",
        )


def _show(source: Path, place: Path) -> Path:
    """A folder that shows what may be read, by links, and a configuration in both spellings."""
    place.mkdir()
    for pattern in _SHOWN:
        for path in source.glob(pattern):
            if path.name != "config.json" and not (place / path.name).exists():
                (place / path.name).symlink_to(path.resolve())
    try:
        document = msgspec.json.decode((source / "config.json").read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{source / 'config.json'} is damaged: {error}.", "get it again.") from error
    (place / "config.json").write_bytes(msgspec.json.encode(both_spellings(document, str(source))))
    return place


def both_spellings(document: dict[str, Any], where: str) -> dict[str, Any]:
    """``config.json`` with its rotation also spelled as before transformers 5.

    ``rope_parameters`` holds base and scaling together, flat or by kind of layer; transformers 4 reads ``rope_theta``
    and ``rope_scaling``, and for sliding layers ``rope_local_base_freq``.

    Raises:
        ArtifactError: when there is no such spelling.
    """
    new = document.get("rope_parameters")
    if not isinstance(new, dict) or not new:
        return document
    full = new.get("full_attention", new)
    sliding = new.get("sliding_attention")
    nested = [name for name, value in new.items() if isinstance(value, dict)]
    if not isinstance(full, dict) or set(nested) - {"full_attention", "sliding_attention"}:
        raise ArtifactError(
            f"{where}/config.json rotates {', '.join(nested)} in ways that transformers 4 cannot be told.",
            "use the direct exporter, or the GGUF of the model with llama.cpp.",
        )
    old: dict[str, Any] = {}
    if "rope_theta" in full:
        old["rope_theta"] = full["rope_theta"]
    if full.get("partial_rotary_factor") is not None:
        old["partial_rotary_factor"] = full["partial_rotary_factor"]
    if full.get("rope_type", "default") != "default":
        old["rope_scaling"] = {name: value for name, value in full.items() if name != "rope_theta"}
    if isinstance(sliding, dict) and "rope_theta" in sliding:
        old["rope_local_base_freq"] = sliding["rope_theta"]
    return {**old, **{name: value for name, value in document.items() if value is not None or name not in old}}
