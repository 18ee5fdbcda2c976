"""``config.json`` of a Hugging Face folder as a `ModelConfig`; both spellings of the rotary parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import msgspec

from edgebench.checkpoint.architectures import Architecture, by_model_type
from edgebench.checkpoint.base import MOST_LAYERS, ModelConfig, Rope
from edgebench.checkpoint.json_object import read_object
from edgebench.checkpoint.rotary import llama3_factors, longrope_attention_factor
from edgebench.checkpoint.shapes import find_contradiction
from edgebench.errors import ArtifactError

_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
_LARGEST = 1 << 31  # of any number in the file: no dimension comes near, and what is made from it stays finite
_TIED_BY_DEFAULT = ("gemma3", "gpt2")
# What published gemma3 folders leave out (transformers' ``Gemma3TextConfig``); others write these keys down.
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


class HFConfig:
    """The keys of one ``config.json``; a missing one is an error that names it.

    Raises:
        UsageError: when there is no such file.
        ArtifactError: when it is no JSON, or describes an architecture or a variant that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        document = read_object(self.path, "give a folder with config.json and safetensors.")
        self.model_type = str(document.get("model_type", ""))
        self.architecture: Architecture = by_model_type(self.model_type, str(self.path))
        inner = document.get("text_config")
        if not isinstance(inner, (dict, NoneType)):
            raise ArtifactError(f"{self.path} has a text_config that is no object.", "get it again.")
        usual = _GEMMA3 if self.architecture.name == "gemma3" else {}
        self._all: dict[str, Any] = {**usual, **document, **(inner or {})}
        self.raw: dict[str, Any] = self._all

    # --- keys

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", "use the optimum road, which runs the original code.")

    def _number(self, *names: str, default: float | None = None, of: Mapping[str, Any] | None = None) -> float:
        """The first of these keys that is there: a positive number. ``of`` is an object inside the file."""
        for name in names:
            value = (self._all if of is None else of).get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _LARGEST:
                    raise ArtifactError(f"{self.path} has {name} = {value!r}.", "get it again.")
                return value
        if default is None:
            raise ArtifactError(f"{self.path} lacks the key {' or '.join(names)}.", "get the whole folder again.")
        return default

    def _whole(self, *names: str, default: int | None = None, most: int = _LARGEST) -> int:
        value = self._number(*names, default=default)
        if value != int(value) or not 0 < value <= most:
            raise ArtifactError(f"{self.path} has {names[0]} = {value!r}.", "get it again.")
        return int(value)

    # --- the shape

    def read(self, name: str) -> ModelConfig:
        """The shape that the file describes.

        Raises:
            ArtifactError: when a key is missing, no positive number where one belongs, or contradicts another, and when
                the model is a variant that the direct exporter would get wrong.
        """
        arch = self.architecture
        self._check_variant()
        hidden, heads = self._whole("hidden_size", "n_embd"), self._whole("num_attention_heads", "n_head")
        layers = self._whole("num_hidden_layers", "n_layer", most=MOST_LAYERS)
        head_dim = self._whole("head_dim", default=hidden // heads)
        window, local_layers = self._window(layers)
        tied = bool(self._all.get("tie_word_embeddings", arch.name in _TIED_BY_DEFAULT))
        local = self._rope(head_dim, "sliding_attention") if arch.name == "gemma3" else None
        config = ModelConfig(
            architecture=arch.name,
            name=name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=self._whole("num_key_value_heads", default=heads) if arch.rotary != "none" else heads,
            head_dim=head_dim,
            ffn=self._whole("intermediate_size", "n_inner", default=4 * hidden if arch.name == "gpt2" else None),
            vocabulary=self._whole("vocab_size"),
            context=self._whole("max_position_embeddings", "n_positions"),
            norm_eps=self._number("rms_norm_eps", "layer_norm_epsilon"),
            tied=tied,
            rope=None if arch.rotary == "none" else self._rope(head_dim, "full_attention"),
            local_rope=local,
            window=window,
            local_layers=local_layers,
            attention_scale=self._attention_scale(head_dim),
            final_softcap=self._softcap(),
        )
        wrong = find_contradiction(config)
        if wrong is not None:
            raise ArtifactError(f"{self.path} {wrong}.", "get it again.")
        return config

    def _check_variant(self) -> None:
        """Refuse what the graph would silently get wrong."""
        activation = (
            self._all.get("hidden_activation") or self._all.get("hidden_act") or self._all.get("activation_function")
        )
        known = _ACTIVATIONS[self.architecture.activation]
        if activation is not None and activation not in known:
            raise self._refuse(
                f"has the activation {activation!r}; {self.architecture.name} is built with {known[0]!r}"
            )
        if self._all.get("attn_logit_softcapping") is not None:
            raise self._refuse("caps its attention logits, which gemma3 does not")
        for flag in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_bidirectional_attention"):
            if self._all.get(flag):
                raise self._refuse(f"sets {flag}, which the direct exporter does not know")
        if self._all.get("quantization_config"):
            raise self._refuse("is a quantized checkpoint")

    def _attention_scale(self, head_dim: int) -> float | None:
        if self.architecture.name == "gpt2":
            return 1.0 if self._all.get("scale_attn_weights") is False else None
        if self.architecture.name != "gemma3":
            return None
        scalar = self._number("query_pre_attn_scalar")
        return None if scalar == head_dim else 1 / math.sqrt(scalar)

    def _softcap(self) -> float | None:
        capped = self._all.get("final_logit_softcapping") is not None
        return self._number("final_logit_softcapping") if capped else None

    def _window(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
        name = self.architecture.name
        can = name in ("gemma3", "phi3") or (name in ("qwen2", "qwen3") and self._all.get("use_sliding_window"))
        if not can or self._all.get("sliding_window") is None:
            return None, ()
        window = self._whole("sliding_window")
        types = self._all.get("layer_types")
        if isinstance(types, list) and len(types) == layers:
            local = tuple(kind == "sliding_attention" for kind in types)
        elif name == "gemma3":
            pattern = self._whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
            local = tuple((layer + 1) % pattern != 0 for layer in range(layers))
        elif name == "phi3":
            local = (True,) * layers
        else:
            first = self._whole("max_window_layers", default=layers)
            local = tuple(layer >= first for layer in range(layers))
        return (window, local) if any(local) else (None, ())

    # --- rotary

    def _rope(self, head_dim: int, layer_type: str) -> Rope:
        scheme = self._scheme(layer_type)
        local = layer_type == "sliding_attention"
        usual = 1e6 if self.architecture.name == "gemma3" and not local else 10000.0
        old_key = "rope_local_base_freq" if local else "rope_theta"
        base = self._number("rope_theta", default=self._number(old_key, default=usual), of=scheme)
        share = self._number(
            "partial_rotary_factor", default=self._number("partial_rotary_factor", default=1.0), of=scheme
        )
        dimensions = int(head_dim * share)
        kind = scheme.get("rope_type", scheme.get("type", "default"))
        rope = Rope(base=base, dimensions=dimensions)
        if kind in ("default", None):
            return rope
        if kind == "linear":
            return msgspec.structs.replace(rope, scale=self._number("factor", of=scheme))
        if kind == "llama3":
            return msgspec.structs.replace(rope, factors=self._llama3(rope, scheme))
        if kind in ("longrope", "su"):
            return self._longrope(rope, scheme)
        raise self._refuse(f"stretches its context by {kind!r}, which the direct exporter does not know")

    def _scheme(self, layer_type: str) -> dict[str, Any]:
        """``rope_parameters`` (transformers 5) or ``rope_scaling`` (before), for this kind of layer."""
        new = self._all.get("rope_parameters")
        if isinstance(new, dict):
            by_type = new.get(layer_type)
            return by_type if isinstance(by_type, dict) else new
        if layer_type == "sliding_attention":
            return {}  # before transformers 5 only layers with full attention were stretched
        old = self._all.get("rope_scaling")
        return old if isinstance(old, dict) else {}

    def _llama3(self, rope: Rope, scheme: dict[str, Any]) -> tuple[float, ...]:
        low, high = (self._number(f"{end}_freq_factor", of=scheme) for end in ("low", "high"))
        if rope.dimensions < 2 or not low < high:
            raise ArtifactError(f"{self.path} has a rope scaling from {low} to {high}.", "get it again.")
        return llama3_factors(
            rope.base,
            rope.dimensions,
            factor=self._number("factor", of=scheme),
            low=low,
            high=high,
            original=int(self._number("original_max_position_embeddings", of=scheme)),
        )

    def _longrope(self, rope: Rope, scheme: dict[str, Any]) -> Rope:
        key = "original_max_position_embeddings"
        context = self._whole("max_position_embeddings")
        original = int(self._number(key, default=self._number(key, default=context), of=scheme))
        if original < 2:
            raise ArtifactError(f"{self.path} has {key} = {original}.", "get it again.")
        stretched = self._number("factor", default=context / original, of=scheme)
        return msgspec.structs.replace(
            rope,
            factors=self._factors(scheme, "short_factor", rope.dimensions // 2),
            long_factors=self._factors(scheme, "long_factor", rope.dimensions // 2),
            original=original,
            attention_factor=self._number(
                "attention_factor", default=longrope_attention_factor(stretched, original), of=scheme
            ),
        )

    def _factors(self, scheme: dict[str, Any], key: str, count: int) -> tuple[float, ...]:
        factors = scheme.get(key)
        numbers = [x for x in factors if isinstance(x, (int, float))] if isinstance(factors, list) else []
        if not isinstance(factors, list) or not len(numbers) == len(factors) == count:
            raise ArtifactError(f"{self.path} has no {key} of {count} numbers.", "get it again.")
        return tuple(map(float, numbers))
