"""From a path to an opened checkpoint, by what lies there."""

from __future__ import annotations

from pathlib import Path

from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights


def open_checkpoint(path: Path) -> GGUFWeights | HFWeights:
    """Open a GGUF file or a Hugging Face folder.

    Raises:
        UsageError: when nothing readable lies there.
        ArtifactError: when it is damaged or of an unknown architecture.
    """
    return HFWeights(path) if path.is_dir() else GGUFWeights(path)
