"""What a checkpoint is: weights, shape and tokenizer as somebody published them, whatever the container.

Readers give tensors under llama.cpp's names, one at a time, in one convention: linear weights are [out, in], and the
rows of q and k are ordered by halves (the rotation pairs row i with row i + head_dim/2), as Hugging Face stores them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.architectures import Architecture
from edgebench.specs import Spec

MOST_LAYERS = 1024
"""A file that claims more is damaged; the deepest decoders in use have 126."""


class Rope(Spec, frozen=True, kw_only=True):
    """Rotary position embedding: ``angle(position, i) = position * frequency_i``.

    ``factors`` divide the frequencies one by one (Llama 3's scaling, LongRoPE), ``scale`` divides them all (linear),
    and ``attention_factor`` multiplies both cosine and sine. LongRoPE has a second set: ``long_factors`` take the place
    of ``factors``, at every position, in a context made for more than ``original`` tokens.
    """

    base: float
    dimensions: int
    """Width of a head that is rotated; the rest is left alone."""
    scale: float = 1.0
    factors: tuple[float, ...] = ()
    """Empty, or one for each pair: ``dimensions / 2``."""
    long_factors: tuple[float, ...] = ()
    """LongRoPE's, as many; empty for all others."""
    original: int | None = None
    """Tokens of the context it was first trained for; given where there are ``long_factors``."""
    attention_factor: float = 1.0


class ModelConfig(Spec, frozen=True, kw_only=True):
    """The shape of a decoder; names as in the literature."""

    architecture: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int
    """Tokens it was trained for."""
    norm_eps: float
    tied: bool
    """Whether the output head is the token embedding."""
    rope: Rope | None = None
    """Of layers with full attention; None for learned positions."""
    local_rope: Rope | None = None
    """Of layers with a sliding window, where it differs."""
    window: int | None = None
    """Tokens that a layer with a sliding window sees, itself included."""
    local_layers: tuple[bool, ...] = ()
    """By layer: whether it has the sliding window; empty when none has."""
    attention_scale: float | None = None
    """Multiplies q . k; None means 1 / sqrt(head_dim)."""
    final_softcap: float | None = None

    def is_local(self, layer: int) -> bool:
        """Whether this layer sees a sliding window only."""
        return bool(self.local_layers) and self.local_layers[layer]


class Blocks(NamedTuple):
    """A tensor as a GGUF stores it: ``data`` is uint8 [rows, bytes per row]."""

    type: str
    """ggml's name: ``q8_0``."""
    data: npt.NDArray[np.uint8]


class Checkpoint(Protocol):
    """An opened checkpoint. Tensors are mapped, and converted one at a time."""

    path: Path
    architecture: Architecture
    config: ModelConfig

    def names(self) -> Iterator[str]:
        """All tensors under llama.cpp's names, suffix (``.weight``, ``.bias``) included, in file order."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in numpy's order: [out, in] for a linear layer."""
        ...

    def type_of(self, name: str) -> str:
        """How it is stored: ``f32``, ``bf16``, ``q4_0``..."""
        ...

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A fresh or mapped (then read-only) float32 array.

        Raises:
            ArtifactError: when it is not there, or of a type that cannot be read.
        """
        ...

    def blocks(self, name: str) -> Blocks | None:
        """Its stored blocks with rows in the convention above; None where it is not stored in blocks."""
        ...

    def close(self) -> None:
        """Unmap it. Twice is fine."""
        ...
