"""``edgebench.json``: what the folder of an ONNX export says about itself."""

from __future__ import annotations

from typing import Literal

from edgebench.specs import Spec

Activations = Literal["f32", "f16"]


class OnnxManifest(Spec, frozen=True, kw_only=True):
    """``edgebench.json`` in the folder of an ONNX export: what its graphs hold, readable without onnx."""

    model: str
    precision: str
    architecture: str
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    """Tokens the model was trained for."""
    table_context: int
    """Tokens that the rotary tables in the data file cover."""
    parameters: int
    weight_bytes: int
    accuracy_level: int
    activations: Activations = "f32"
    """Type of the tensors between the nodes, of the KV cache and of the logits."""
    same_weights: bool
    """Whether every weight has exactly the value that the checkpoint stores."""
    first_token: int | None = None
    """Begin-of-sequence token, if the model wants one."""
    notes: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """What tells it from others of its precision, as in `Artifact`."""
        level = ["acc0"] if self.accuracy_level == 0 and self.precision != "fp32" else []
        return " ".join([*level, *(["f16"] if self.activations == "f16" else [])])
