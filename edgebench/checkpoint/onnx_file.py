"""What an ONNX file holds, read from its wire format without loading it and without trusting it.

The ``onnx`` package reads a file whole; a graph with its weights inside would then sit in the memory of a process whose
memory is being measured. Here the file is mapped, weights are stepped over, and only nodes, names and shapes are kept.

The format is protobuf (``onnx/onnx.proto``): fields of (number << 3 | wire type) and a value; wire type 0 is a varint,
1 and 5 are fixed 8 and 4 bytes, 2 is a length and that many bytes. Every length is compared with its parent's end.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Spec

MODEL = "model.onnx"
# TensorProto.DataType -> bytes of an element; types that hold no weights (text, shapes, switches) are left out.
_WIDTHS = {1: 4.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 10: 2.0, 11: 8.0, 16: 2.0, 17: 1.0, 18: 1.0, 19: 1.0, 20: 1.0}
_WIDTHS |= {21: 0.5, 22: 0.5}
_BYTE_TYPES = (2, 3)
# Operator -> inputs that are quantized weights, and their scales and zero points.
_QUANTIZED = {"MatMulNBits": (1, (2, 3)), "GatherBlockQuantized": (0, (2, 3)), "DequantizeLinear": (0, (1, 2))}
_DEFAULT_BITS = {"MatMulNBits": 4, "GatherBlockQuantized": 4}
_TABLES = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
_MOST = 1 << 20


class Node(Spec, frozen=True, kw_only=True):
    """One operator, with its attributes that are whole numbers."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, int] = msgspec.field(default_factory=dict)


class Weight(Spec, frozen=True, kw_only=True):
    """One stored tensor; ``type`` is TensorProto's number."""

    shape: tuple[int, ...]
    type: int

    @property
    def elements(self) -> int:
        """Stored numbers: several weights may share one."""
        product = 1
        for size in self.shape:
            product *= size
        return product


class OnnxFile(Spec, frozen=True, kw_only=True):
    """Nodes in their order, and stored tensors by name."""

    nodes: tuple[Node, ...]
    weights: dict[str, Weight]

    def sizes(self) -> tuple[int, int]:
        """(parameters, bytes) of the weights; rotary tables, shapes and switches are none.

        Scales and zero points count as bytes, as in a GGUF.
        """
        named = {node.outputs[0]: node.inputs[0] for node in self.nodes if node.op in ("Reshape", "Identity")}
        packed: dict[str, int] = {}
        companions: set[str] = set()
        tables: set[str] = set()
        for node in self.nodes:
            data, rest = _QUANTIZED.get(node.op, (None, ()))
            if data is not None and data < len(node.inputs):
                packed[named.get(node.inputs[data], node.inputs[data])] = node.numbers.get(
                    "bits", _DEFAULT_BITS.get(node.op, 8)
                )
            companions |= {named.get(name, name) for index, name in enumerate(node.inputs) if index in rest}
            tables |= {name for index, name in enumerate(node.inputs) if index in _TABLES.get(node.op, ())}
        parameters, size = 0, 0.0
        for name, weight in self.weights.items():
            if weight.type not in _WIDTHS or name in tables:
                continue
            size += weight.elements * _WIDTHS[weight.type]
            if name not in companions:
                share = 8 // max(1, packed.get(name, 8)) if weight.type in _BYTE_TYPES else 1
                parameters += weight.elements * share
        return parameters, round(size)

    def shares_cache(self, layers: int) -> bool:
        """Whether every layer's past goes straight into a GroupQueryAttention and its present straight out of one.

        Past and present may then be the same buffer.
        """
        attention = [node for node in self.nodes if node.op == "GroupQueryAttention"]
        into = {name for node in attention for name in node.inputs}
        out = {name for node in attention for name in node.outputs}
        parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        return all(f"past_key_values.{part}" in into and f"present.{part}" in out for part in parts)

    def slides_cache(self) -> bool:
        """Whether a cache keeps the last window only and moves it along, which its caller must take part in."""
        return any(node.numbers.get("sliding_window_cache") for node in self.nodes)


def graph_of(folder: Path) -> Path | None:
    """The graph in a folder: ``model.onnx``, or the only ``.onnx``; None where there is none.

    Raises:
        UsageError: when there are several and none is called ``model.onnx``.
    """
    if (folder / MODEL).is_file():
        return folder / MODEL
    found = sorted(path for path in folder.glob("*.onnx") if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{folder} holds several graphs ({names}) and no {MODEL}.", "leave one, or rename it.")
    return found[0] if found else None


class Beside(Spec, frozen=True, kw_only=True):
    """What the configuration beside a foreign graph says."""

    context: int
    """Tokens that the model was trained for."""
    head_dim: int | None
    """Width of a head, for graphs that leave it open."""


def read_beside(folder: Path) -> Beside:
    """Read ``config.json``, or genai's ``genai_config.json``.

    Raises:
        ArtifactError: when neither tells how many tokens the model was trained for.
    """
    keys = _keys(folder / "config.json", "text_config") | _keys(folder / "genai_config.json", "model", "decoder")
    context = _first(keys, "max_position_embeddings", "n_positions", "context_length")
    if context is None:
        raise ArtifactError(
            f"{folder} does not tell how many tokens the model was trained for.",
            "put its config.json beside the graph.",
        )
    head_dim, hidden, heads = (
        _first(keys, *names)
        for names in (("head_dim", "head_size"), ("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
    )
    if head_dim is None and hidden is not None and heads is not None:
        head_dim = hidden // heads
    return Beside(context=context, head_dim=head_dim)


def _keys(path: Path, *inner: str) -> dict[str, Any]:
    """The keys of a JSON object and of the objects inside it, flat; empty when there is no such file."""
    try:
        level: Any = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.", "get it again.") from error
    found: dict[str, Any] = {}
    for name in (None, *inner):
        level = level if name is None else level.get(name)
        if not isinstance(level, dict):
            break
        found |= level
    return found


def _first(keys: dict[str, Any], *names: str) -> int | None:
    values = (keys.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def read_onnx(path: Path) -> OnnxFile:
    """Read a graph's nodes and the shapes of its weights.

    Raises:
        UsageError: when the file cannot be opened.
        ArtifactError: when it is truncated, damaged, or no ONNX file.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UsageError(f"{path} cannot be read: {error}.", "check the path and its rights.") from error
    with mapped:
        return _Reader(mapped, path).read()


class _Reader:
    """Walks one mapped file."""

    def __init__(self, mapped: mmap.mmap, path: Path) -> None:
        self._bytes, self._path = mapped, path

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self._path} is no ONNX file, or is damaged: {why}.", "get it again, or export it again."
        )

    def read(self) -> OnnxFile:
        nodes: list[Node] = []
        weights: dict[str, Weight] = {}
        for number, wire, start, end in self._fields(0, len(self._bytes)):
            if (number, wire) != (7, 2):
                continue
            for field, kind, first, last in self._fields(start, end):
                if (field, kind) == (1, 2):
                    nodes.append(self._node(first, last))
                elif (field, kind) == (5, 2):
                    name, weight = self._weight(first, last)
                    weights[name] = weight
                if len(nodes) + len(weights) > _MOST:
                    raise self._damaged(f"more than {_MOST} nodes and tensors")
        if not nodes:
            raise self._damaged("it has no graph")
        return OnnxFile(nodes=tuple(nodes), weights=weights)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for count, byte in enumerate(self._bytes[at : min(end, at + 10)]):
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + count + 1
        raise self._damaged(f"a number at byte {at} does not end")

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, start, end) of each field; of a varint start is its value."""
        while at < end:
            tag, at = self._varint(at, end)
            wire = tag & 7
            if wire == 0:
                value, at = self._varint(at, end)
                yield tag >> 3, wire, value, at
                continue
            if wire == 2:
                length, at = self._varint(at, end)
            else:
                length = {1: 8, 5: 4}.get(wire, -1)
            if length < 0 or at + length > end:
                raise self._damaged(f"a field at byte {at} reaches beyond its end")
            yield tag >> 3, wire, at, at + length
            at += length

    def _text(self, start: int, end: int) -> str:
        return self._bytes[start:end].decode("utf-8", "replace")

    def _node(self, start: int, end: int) -> Node:
        inputs: list[str] = []
        outputs: list[str] = []
        numbers: dict[str, int] = {}
        op = ""
        for number, wire, first, last in self._fields(start, end):
            if wire != 2:
                continue
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(self._text(first, last))
            elif number == 4:
                op = self._text(first, last)
            elif number == 5:
                numbers |= self._number(first, last)
        if not outputs:
            raise self._damaged(f"the node at byte {start} has no output")
        return Node(op=op, inputs=tuple(inputs), outputs=tuple(outputs), numbers=numbers)

    def _number(self, start: int, end: int) -> dict[str, int]:
        """The attribute, if it is a whole number."""
        name, value = "", None
        for number, wire, first, last in self._fields(start, end):
            if (number, wire) == (1, 2):
                name = self._text(first, last)
            elif (number, wire) == (3, 0):
                value = first
        return {} if value is None else {name: value}

    def _weight(self, start: int, end: int) -> tuple[str, Weight]:
        shape: list[int] = []
        name, kind = "", 0
        for number, wire, first, last in self._fields(start, end):
            if number == 1 and wire == 0:
                shape.append(first)
            elif number == 1 and wire == 2:  # packed
                while first < last:
                    size, first = self._varint(first, last)  # noqa: PLW2901 - the cursor
                    shape.append(size)
            elif (number, wire) == (2, 0):
                kind = first
            elif (number, wire) == (8, 2):
                name = self._text(first, last)
        return name, Weight(shape=tuple(shape), type=kind)
