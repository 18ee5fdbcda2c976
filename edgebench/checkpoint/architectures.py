"""What the supported architectures are, as data: one description each, shared by both readers and both writers.

Tensor names are llama.cpp's (``blk.0.attn_q.weight``), the field's common tongue for checkpoints; a description adds
what the same tensor is called in a Hugging Face folder. A new decoder that differs only in what is described here is
one more entry in ``ARCHITECTURES``.

Sources: llama.cpp's ``src/llama-arch.cpp`` for names and keys, and the ``modeling_*.py`` of transformers for the maths.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgebench.errors import ArtifactError
from edgebench.specs import Spec


class Architecture(Spec, frozen=True, kw_only=True):
    """How one family of decoders is built and stored."""

    name: str
    """llama.cpp's ``general.architecture``."""
    model_types: tuple[str, ...]
    """``model_type`` values of ``config.json``."""
    qkv: tuple[str, ...] = ("attn_q", "attn_k", "attn_v")
    """The tensors that make queries, keys and values, in this order; one name when they are stored as one."""
    gate_up: tuple[str, ...] = ("ffn_gate", "ffn_up")
    """The gate and the up projection, in this order; one name when stored as one, and see ``gated``."""
    gated: bool = True
    """Whether the MLP is ``down(act(gate(x)) * up(x))``; otherwise ``down(act(up(x)))``."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    """Hugging Face stores RMS weights minus this; a GGUF stores what is multiplied."""
    biased: tuple[str, ...] = ()
    """Linear layers that have a bias whenever the checkpoint is of this architecture."""
    optional_biases: tuple[str, ...] = ()
    """Linear layers that may have one."""
    rotary: Literal["none", "halves", "pairs"] = "halves"
    """How a GGUF orders the rows of q and k: ``halves`` as Hugging Face does, ``pairs`` interleaved (llama only)."""
    qk_norm: bool = False
    """Whether each head of q and k goes through an RMS norm of its own before it is rotated."""
    post_norms: bool = False
    """Whether attention and MLP outputs are normalised again before they are added."""
    scaled_embedding: bool = False
    """Whether token embeddings are multiplied by the root of their width."""
    transposed: bool = False
    """Whether Hugging Face stores linear weights as [in, out] (GPT-2's ``Conv1D``)."""
    hf_prefixes: tuple[str, ...] = ("model.",)
    """What may stand before the names below; the first that fits the folder is taken."""
    hf_head: str = "lm_head"
    hf_global: dict[str, str] = msgspec.field(
        default_factory=lambda: {"token_embd": "embed_tokens", "output_norm": "norm"}
    )
    hf_layer: dict[str, str]
    """Tensor of a layer without ``blk.N.`` and suffix -> its name below ``layers.N.``."""
    hf_layers: str = "layers"

    @property
    def norms(self) -> tuple[str, ...]:
        """The normalisations of a layer, by tensor name."""
        return tuple(name for name in self.hf_layer if name.endswith("norm"))


_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_GATED_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA_LAYER = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", **_GATED_MLP}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for entry in (
        Architecture(
            name="llama",
            model_types=("llama",),
            rotary="pairs",
            optional_biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
            hf_layer=_LLAMA_LAYER,
        ),
        Architecture(
            name="qwen2", model_types=("qwen2",), biased=("attn_q", "attn_k", "attn_v"), hf_layer=_LLAMA_LAYER
        ),
        Architecture(
            name="qwen3",
            model_types=("qwen3",),
            qk_norm=True,
            optional_biases=("attn_q", "attn_k", "attn_v", "attn_output"),
            hf_layer={**_LLAMA_LAYER, **_QK_NORMS},
        ),
        Architecture(
            name="gemma3",
            model_types=("gemma3_text", "gemma3"),
            activation="gelu_tanh",
            norm_offset=1.0,
            qk_norm=True,
            post_norms=True,
            scaled_embedding=True,
            hf_prefixes=("model.", "language_model.model.", "model.language_model."),
            hf_layer={
                **_ATTENTION,
                **_QK_NORMS,
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                **_GATED_MLP,
                "post_ffw_norm": "post_feedforward_layernorm",
            },
        ),
        Architecture(
            name="phi3",
            model_types=("phi3",),
            qkv=("attn_qkv",),
            gate_up=("ffn_up",),
            hf_layer={
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
        Architecture(
            name="gpt2",
            model_types=("gpt2",),
            qkv=("attn_qkv",),
            gate_up=("ffn_up",),
            gated=False,
            activation="gelu_tanh",
            norm="layer",
            biased=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
            rotary="none",
            transposed=True,
            hf_prefixes=("transformer.", ""),
            hf_global={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"},
            hf_layers="h",
            hf_layer={
                "attn_norm": "ln_1",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
        ),
    )
}

_ELSEWHERE = (
    "export it by the reference road, which knows more architectures: edgebench export --to onnx --exporter optimum"
)


def by_name(name: str, where: str) -> Architecture:
    """The architecture that a GGUF calls by this name.

    Raises:
        ArtifactError: when none is described here; it names the ones that are.
    """
    found = ARCHITECTURES.get(name)
    if found is None:
        raise _unknown(name, where)
    return found


def by_model_type(model_type: str, where: str) -> Architecture:
    """The architecture of a ``config.json`` with this ``model_type``.

    Raises:
        ArtifactError: when none is described here; it names the ones that are.
    """
    for entry in ARCHITECTURES.values():
        if model_type in entry.model_types:
            return entry
    raise _unknown(model_type, where)


def _unknown(name: str, where: str) -> ArtifactError:
    return ArtifactError(
        f"{where} is of the architecture {name!r}; the direct exporter knows {', '.join(ARCHITECTURES)}.",
        f"{_ELSEWHERE}.",
    )
