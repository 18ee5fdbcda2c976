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

from edgebench.checkpoint.architectures import Architecture
from edgebench.checkpoint.base import Blocks, ModelConfig
from edgebench.checkpoint.hf_config import HFConfig
from edgebench.checkpoint.json_object import read_object
from edgebench.checkpoint.safetensors import SafetensorsFile
from edgebench.checkpoint.shapes import Misfit, find_misfit
from edgebench.errors import ArtifactError, EdgebenchError, UsageError

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\\\x00-\x1f]{1,200}\.safetensors")
_WHAT_TO_GIVE = "give a folder with config.json and safetensors."
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")  # made by the code, not learned
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


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
        self.architecture: Architecture = found.architecture
        self.config: ModelConfig = found.read(folder.resolve().name)
        self._files: list[SafetensorsFile] = []
        try:
            for path in _find_files(folder):
                self._files.append(SafetensorsFile(path))
            self._at = self._locate()
            self._prefix = self._find_prefix()
            self._stored = self._map_names()
            self._check()
        except EdgebenchError:
            self.close()
            raise

    # --- names

    def _locate(self) -> dict[str, SafetensorsFile]:
        """The file that holds each stored tensor."""
        at: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.entries:
                if name in at:
                    raise ArtifactError(
                        f"{self.path} has the tensor {name} in both {at[name].path.name} and {file.path.name}.",
                        "get the whole folder again.",
                    )
                at[name] = file
        return at

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
        misfit = find_misfit(self.architecture, self.config, {name: self.shape(name) for name in self._stored})
        if misfit is not None:
            raise self._misfitting(misfit)
        used = set(self._stored.values()) | {self.architecture.hf_head + ".weight"}
        for theirs in self._at:
            if theirs not in used and not _BUFFERS.search(theirs) and not theirs.startswith(_OTHER_PARTS):
                raise self._unused(theirs)

    def _misfitting(self, misfit: Misfit) -> ArtifactError:
        if misfit.wanted is None:
            return self._unused(self._stored[misfit.name])
        if misfit.found is None:
            return self._lacking(misfit.name)
        theirs = self._stored[misfit.name]
        return ArtifactError(
            f"{self._at[theirs].path} has the tensor {theirs} of shape {list(misfit.found)}; "
            f"config.json says {list(misfit.wanted)}.",
            "get the whole folder again.",
        )

    def _lacking(self, name: str) -> ArtifactError:
        return ArtifactError(f"{self.path} lacks the tensor {name}.", "get the whole folder again.")

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
            raise self._lacking(name)
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
        return file.entries[theirs].dtype.lower()

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        file, theirs = self._entry(name)
        values = file.tensor(theirs)
        if self._is_transposed(name):
            return np.ascontiguousarray(values.T)
        if self.architecture.norm_offset and name.endswith("norm.weight"):
            shifted: npt.NDArray[np.float32] = values + np.float32(self.architecture.norm_offset)
            return shifted
        return values

    def blocks(self, name: str) -> Blocks | None:
        del name
        return None

    @property
    def precision(self) -> str:
        """Of a GGUF that rounds nothing but f64: ``bf16`` or ``f16`` where every matrix is stored so, else ``f32``."""
        kinds = {self.type_of(name) for name in self._stored if len(self.shape(name)) > 1}
        return kinds.pop() if len(kinds) == 1 and kinds <= {"bf16", "f16"} else "f32"

    def close(self) -> None:
        for file in self._files:
            file.close()


def _find_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or the one."""
    index = folder / _INDEX
    if index.exists():
        return _indexed(index)
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise _pickled(folder, pickles[0])
    raise UsageError(f"{folder} holds no model.safetensors.", _WHAT_TO_GIVE)


def _indexed(index: Path) -> list[Path]:
    """The shards of an index, all of them beside it and there."""
    folder = index.parent
    try:
        weight_map = msgspec.convert(read_object(index, _WHAT_TO_GIVE).get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{index} has no usable weight_map: {error}.", "get it again.") from error
    names = sorted(set(weight_map.values()))
    for name in names:
        if name.endswith((".bin", ".pt", ".pth")):
            raise _pickled(index, name)
        if not _SHARD.fullmatch(name):
            raise ArtifactError(
                f"{index} names {name!r}, which is no safetensors file beside it.", "do not use this checkpoint."
            )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)} of {len(names)} shards.", "download what is missing.")
    return [folder / name for name in names]


def _pickled(where: Path, name: str) -> ArtifactError:
    return ArtifactError(
        f"{where}: the weights are pickled ({name}), and reading those runs code.",
        "get the safetensors version of the model.",
    )
