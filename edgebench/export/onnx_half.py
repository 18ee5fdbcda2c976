"""An export that computes in half precision: for devices whose attention kernel takes no float32.

The graphs keep their nodes. Every float32 tensor becomes float16: what flows between the nodes, the KV cache, the
logits, and the weights that are not in blocks. Blocks stay as they are; a scale that came from a GGUF was float16 to
begin with. Values that need the range of bfloat16 overflow, which the check of the logits before a measurement finds.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from edgebench.errors import ArtifactError
from edgebench.export.onnx import DATA, MANIFEST, MODEL, SCORING
from edgebench.export.onnx_data import DataFile, Place
from edgebench.manifest import OnnxManifest

_TABLES = ("cos", "sin")
_NOTE = "computes in half precision: activations, KV cache and weights that are not in blocks are float16"


def halve(folder: Path, manifest: OnnxManifest) -> OnnxManifest:
    """Rewrite an export in place; what it is now.

    Args:
        folder: a finished export in float32.
        manifest: what it says about itself.

    Raises:
        ArtifactError: when a weight is beyond the range of float16.
        OSError: when the folder cannot be written.
    """
    old, new = folder / DATA, folder / f"{DATA}.half"
    data = np.memmap(old, np.uint8, "r")
    writer = _Writer(data, DataFile(new), folder)
    try:
        graphs = {name: writer.convert(onnx.load(folder / name, load_external_data=False)) for name in (MODEL, SCORING)}
    finally:
        writer.file.close()
    del data
    new.replace(old)
    for name, model in graphs.items():
        (folder / name).write_bytes(model.SerializeToString())
    changed = msgspec.structs.replace(
        manifest,
        activations="f16",
        same_weights=False,
        weight_bytes=manifest.weight_bytes - writer.saved_bytes,
        notes=(*manifest.notes, _NOTE),
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(changed), indent=1))
    return changed


class _Writer:
    """Moves tensors to another data file, each once, float32 as float16."""

    def __init__(self, data: npt.NDArray[np.uint8], file: DataFile, folder: Path) -> None:
        self._data, self.file, self._folder = data, file, folder
        self._moved: dict[tuple[int, int, int], Place] = {}
        self.saved_bytes = 0

    def convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The same model in half precision, its external tensors in the new file."""
        for value in (*model.graph.input, *model.graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                self._move(tensor)
            elif tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(
                    numpy_helper.from_array(self._half(numpy_helper.to_array(tensor), tensor.name), tensor.name)
                )
        return model

    def _move(self, tensor: TensorProto) -> None:
        where = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(where["offset"]), int(where["length"])
        key = (offset, length, tensor.data_type)
        if key not in self._moved:
            raw = self._data[offset : offset + length]
            self._moved[key] = self.file.write(
                self._half(raw.view(np.float32), tensor.name) if tensor.data_type == TensorProto.FLOAT else raw
            )
            if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith(_TABLES):
                self.saved_bytes += length // 2
        place = self._moved[key]
        if tensor.data_type == TensorProto.FLOAT:
            tensor.data_type = TensorProto.FLOAT16
        for entry in tensor.external_data:
            if entry.key in ("offset", "length"):
                entry.value = str(getattr(place, entry.key))

    def _half(self, values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
        with np.errstate(over="ignore"):  # looked at below
            half = values.astype(np.float16)
        if not np.array_equal(np.isfinite(half), np.isfinite(values)):
            raise ArtifactError(
                f"{self._folder}: {name} holds weights beyond the range of half precision.",
                "use --device cpu, or another model.",
            )
        return half
