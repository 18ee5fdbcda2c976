"""A Hugging Face folder as a checkpoint: ``config.json``, one or several safetensors files, a tokenizer.

Pickle checkpoints (``.bin``, ``.pt``) are refused: reading one runs whatever it contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.base import Blocks
from edgebench.checkpoint.hf_config import HFConfig
from edgebench.checkpoint.safetensors import SafetensorsFile
from edgebench.checkpoint.shapes import global_shapes, layer_shapes, optional_shapes
from edgebench.errors import ArtifactError, UsageError

_INDEX = "model.safetensors.index.json"
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")  # made by the code, not learned
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}


class HFWeights:
    """An opened folder.

    Raises:
        UsageError: when the folder or a file in it is missing.
        ArtifactError: when a file is damaged, a shard is missing, or the tensors do not fit the configuration.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        found = HFConfig(folder)
        self.hf_config = found
        self.architecture = found.architecture
        self._files = _open_files(folder)
        self._at = {name: file for file in self._files for name in file.entries}
        self.config = found.read(folder.resolve().name)
        self._prefix = self._find_prefix()
        self._stored = self._map_names()
        self._check()

    # --- names

    def _find_prefix(self) -> str:
        embedding = self.architecture.hf_global["token_embd"]
        for prefix in self.architecture.hf_prefixes:
            if f"{prefix}{embedding}.weight" in self._at:
                return prefix
        wanted = " or ".join(f"{prefix}{embedding}.weight" for prefix in self.architecture.hf_prefixes)
        raise ArtifactError(f"{self.path} holds no tensor {wanted}.", "get the whole folder again.")

    def _map_names(self) -> dict[str, str]:
        """llama.cpp's name of each stored tensor -> the stored name."""
        arch, stored = self.architecture, {}
        outer = {name: f"{self._prefix}{theirs}" for name, theirs in arch.hf_global.items()} | {"output": arch.hf_head}
        if self.config.tied:
            del outer["output"]
        inner = {
            f"blk.{layer}.{name}": f"{self._prefix}{arch.hf_layers}.{layer}.{theirs}"
            for layer in range(self.config.layers)
            for name, theirs in arch.hf_layer.items()
        }
        for name, theirs in (outer | inner).items():
            for suffix in (".weight", ".bias"):
                if theirs + suffix in self._at:
                    stored[name + suffix] = theirs + suffix
        return stored

    def _check(self) -> None:
        wanted = dict(global_shapes(self.architecture, self.config))
        allowed: dict[str, tuple[int, ...]] = {}
        for layer in range(self.config.layers):
            for name, shape in layer_shapes(self.architecture, self.config).items():
                wanted[f"blk.{layer}.{name}"] = shape
            for name, shape in optional_shapes(self.architecture, self.config).items():
                allowed[f"blk.{layer}.{name}"] = shape
        for name in wanted:
            if name not in self._stored:
                raise ArtifactError(f"{self.path} lacks the tensor {name}.", "get the whole folder again.")
        for name, theirs in self._stored.items():
            shape = wanted.get(name, allowed.get(name))
            if shape is None:
                raise self._unused(theirs)
            if self.shape(name) != shape:
                raise ArtifactError(
                    f"{self._at[theirs].path} has the tensor {theirs} of shape {list(self.shape(name))}; "
                    f"config.json says {list(shape)}.",
                    "get the whole folder again.",
                )
        used = set(self._stored.values()) | {self.architecture.hf_head + ".weight"}
        for theirs in self._at:
            if theirs not in used and not _BUFFERS.search(theirs) and not theirs.startswith(_OTHER_PARTS):
                raise self._unused(theirs)

    def _unused(self, name: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} has the tensor {name}, which {self.architecture.name} does not use: it would be left out.",
            "use the optimum road, which runs the original code.",
        )

    # --- tensors

    def names(self) -> Iterator[str]:
        return iter(self._stored)

    def has(self, name: str) -> bool:
        return name in self._stored

    def _entry(self, name: str) -> tuple[SafetensorsFile, str]:
        if name not in self._stored:
            raise ArtifactError(f"{self.path} lacks the tensor {name}.", "get the whole folder again.")
        theirs = self._stored[name]
        return self._at[theirs], theirs

    def _is_transposed(self, name: str) -> bool:
        return self.architecture.transposed and name.startswith("blk.") and not name.endswith("norm.weight")

    def shape(self, name: str) -> tuple[int, ...]:
        file, theirs = self._entry(name)
        shape = file.entries[theirs].shape
        return shape[::-1] if self._is_transposed(name) else shape

    def type_of(self, name: str) -> str:
        file, theirs = self._entry(name)
        return _PLAIN.get(file.entries[theirs].dtype, file.entries[theirs].dtype.lower())

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        file, theirs = self._entry(name)
        values = file.tensor(theirs)
        if self._is_transposed(name):
            return np.ascontiguousarray(values.T)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            return values + np.float32(self.architecture.norm_offset)
        return values

    def blocks(self, name: str) -> Blocks | None:
        del name
        return None

    def close(self) -> None:
        for file in self._files:
            file.close()


def _open_files(folder: Path) -> tuple[SafetensorsFile, ...]:
    index = folder / _INDEX
    if index.is_file():
        try:
            weight_map = msgspec.json.decode(index.read_bytes())["weight_map"]
            names = sorted(set(msgspec.convert(weight_map, dict[str, str]).values()))
        except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
            raise ArtifactError(f"{index} has no usable weight_map: {error}.", "get it again.") from error
        if any("/" in name or "\\" in name for name in names):
            raise ArtifactError(f"{index} names files outside its folder.", "do not use this checkpoint.")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ArtifactError(f"{folder} lacks {', '.join(missing)} of {len(names)} shards.", "download what is missing.")
        return tuple(SafetensorsFile(folder / name) for name in names)
    single = folder / "model.safetensors"
    if single.is_file():
        return (SafetensorsFile(single),)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise ArtifactError(
            f"{folder} holds only pickled weights ({pickles[0]}), and reading those runs code.",
            "get the safetensors version of the model.",
        )
    raise UsageError(f"{folder} holds no model.safetensors.", "give a folder with config.json and safetensors.")
