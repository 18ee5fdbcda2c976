"""``config.json`` of a Hugging Face folder as a `ModelConfig`; both spellings of the rotary parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgebench.checkpoint.architectures import Architecture, by_model_type
from edgebench.checkpoint.base import ModelConfig, Rope
from edgebench.checkpoint.rotary import llama3_factors, longrope_attention_factor
from edgebench.errors import ArtifactError, UsageError

_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
_TIED_BY_DEFAULT = ("gemma3", "gpt2")


class HFConfig:
    """The keys of one ``config.json``; a missing one is an error that names it.

    Raises:
        UsageError: when there is no such file.
        ArtifactError: when it is no JSON, or describes an architecture or a variant that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        try:
            document = msgspec.json.decode(self.path.read_bytes())
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be read: {error.strerror}.", "give a folder with config.json and safetensors."
            ) from error
        except msgspec.DecodeError as error:
            raise ArtifactError(f"{self.path} is not JSON: {error}.", "get it again.") from error
        if not isinstance(document, dict):
            raise ArtifactError(f"{self.path} holds no object.", "get it again.")
        self.model_type = str(document.get("model_type", ""))
        self.architecture: Architecture = by_model_type(self.model_type, str(self.path))
        self._all = {**document, **document.get("text_config", {})}
        self.raw: dict[str, Any] = self._all

    # --- keys

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", "use the optimum road, which runs the original code.")

    def _number(self, *names: str, default: float | None = None) -> float:
        for name in names:
            value = self._all.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                    raise ArtifactError(f"{self.path} has {name} = {value!r}.", "get it again.")
                return value
        if default is None:
            raise ArtifactError(f"{self.path} lacks the key {' or '.join(names)}.", "get the whole folder again.")
        return default

    def _whole(self, *names: str, default: float | None = None) -> int:
        return int(self._number(*names, default=default))

    # --- the shape

    def read(self, name: str) -> ModelConfig:
        """The shape that the file describes."""
        arch = self.architecture
        self._check_variant()
        hidden, heads = self._whole("hidden_size", "n_embd"), self._whole("num_attention_heads", "n_head")
        layers = self._whole("num_hidden_layers", "n_layer")
        head_dim = self._whole("head_dim", default=hidden // heads)
        window, local_layers = self._window(layers)
        tied = bool(self._all.get("tie_word_embeddings", arch.name in _TIED_BY_DEFAULT))
        scalar = self._all.get("query_pre_attn_scalar") if arch.name == "gemma3" else None
        local = self._rope(head_dim, "sliding_attention") if arch.name == "gemma3" else None
        return ModelConfig(
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
            attention_scale=None if scalar in (None, head_dim) else float(scalar) ** -0.5,
            final_softcap=self._softcap(),
        )

    def _check_variant(self) -> None:
        """Refuse what the graph would silently get wrong."""
        activation = self._all.get("hidden_activation") or self._all.get("hidden_act") or self._all.get("activation_function")
        known = _ACTIVATIONS[self.architecture.activation]
        if activation is not None and activation not in known:
            raise self._refuse(f"has the activation {activation!r}; {self.architecture.name} is built with {known[0]!r}")
        if self._all.get("attn_logit_softcapping") is not None:
            raise self._refuse("caps its attention logits, which gemma3 does not")
        for flag in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_bidirectional_attention"):
            if self._all.get(flag):
                raise self._refuse(f"sets {flag}, which the direct exporter does not know")
        if self._all.get("quantization_config"):
            raise self._refuse("is a quantized checkpoint")

    def _softcap(self) -> float | None:
        value = self._all.get("final_logit_softcapping")
        return float(value) if isinstance(value, (int, float)) else None

    def _window(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
        name = self.architecture.name
        window = self._all.get("sliding_window")
        if not isinstance(window, int) or name not in ("gemma3", "phi3", "qwen2", "qwen3"):
            return None, ()
        types = self._all.get("layer_types")
        if isinstance(types, list) and len(types) == layers:
            local = tuple(kind == "sliding_attention" for kind in types)
        elif name == "gemma3":
            pattern = self._whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
            local = tuple((layer + 1) % pattern != 0 for layer in range(layers))
        elif name == "phi3":
            local = (True,) * layers
        elif self._all.get("use_sliding_window"):
            first = self._whole("max_window_layers", default=layers)
            local = tuple(layer >= first for layer in range(layers))
        else:
            local = ()
        return (window, local) if any(local) else (None, ())

    # --- rotary

    def _rope(self, head_dim: int, layer_type: str) -> Rope:
        scheme = self._scheme(layer_type)
        base = scheme.get("rope_theta")
        if base is None and layer_type == "sliding_attention":
            base = self._number("rope_local_base_freq", default=10000.0)
        if base is None:
            base = self._number("rope_theta", default=10000.0)
        share = scheme.get("partial_rotary_factor", self._all.get("partial_rotary_factor", 1.0))
        dimensions = int(head_dim * float(share))
        kind = scheme.get("rope_type", scheme.get("type", "default"))
        rope = Rope(base=float(base), dimensions=dimensions)
        if kind in ("default", None):
            return rope
        if kind == "linear":
            return msgspec.structs.replace(rope, scale=float(scheme["factor"]))
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
        try:
            return llama3_factors(
                rope.base,
                rope.dimensions,
                factor=float(scheme["factor"]),
                low=float(scheme["low_freq_factor"]),
                high=float(scheme["high_freq_factor"]),
                original=int(scheme["original_max_position_embeddings"]),
            )
        except KeyError as error:
            raise ArtifactError(
                f"{self.path} lacks the key {error} of its rope scaling.", "get the whole folder again."
            ) from error

    def _longrope(self, rope: Rope, scheme: dict[str, Any]) -> Rope:
        context = self._whole("max_position_embeddings")
        original = int(scheme.get("original_max_position_embeddings") or self._whole("original_max_position_embeddings", default=context))
        stretched = context / original
        factors = scheme.get("long_factor" if stretched > 1 else "short_factor")
        if not isinstance(factors, list) or len(factors) != rope.dimensions // 2:
            raise ArtifactError(
                f"{self.path} has no long_factor and short_factor of {rope.dimensions // 2} numbers.", "get it again."
            )
        attention = scheme.get("attention_factor")
        return msgspec.structs.replace(
            rope,
            factors=tuple(float(factor) for factor in factors),
            attention_factor=longrope_attention_factor(stretched, original) if attention is None else float(attention),
        )
