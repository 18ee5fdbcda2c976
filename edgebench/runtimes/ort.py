"""Plain onnxruntime over the fused graphs of ``edgebench.export.onnx``, timed like llama-bench.

One KV buffer of the size of the workload is shared by past and present, so that a step appends in place. Everything is
bound once: a decode step writes three integers and runs. The CPU kernels of GroupQueryAttention compute in float32, so
the cache is float32 there. Graphs that somebody else exported are run by ``_ort_foreign.py``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.onnx_file import graph_of
from edgebench.errors import ArtifactError
from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.runtimes._ort_foreign import ForeignModel
from edgebench.runtimes._ort_session import Sessions, time_calls
from edgebench.specs import KVType, OnnxManifest, Settings, TrialSpec


class OrtContext:
    """One KV cache over a session."""

    def __init__(self, model: OrtModel, n_ctx: int, settings: Settings) -> None:
        self._model, self._n_ctx, self._settings = model, n_ctx, settings
        shape = model.manifest
        self.n_past = 0
        cache = (1, shape.kv_heads, n_ctx, shape.head_dim)
        self._cache = [np.zeros(cache, np.float32) for _ in range(2 * shape.layers)]
        self._logits = np.zeros((1, 1, shape.vocabulary), np.float32)
        self._seqlens, self._total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._session = model.sessions.get(settings.threads)
        self._bindings: dict[int, tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]] = {}

    def _binding(self, length: int) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """The binding for calls of this many tokens, and the arrays behind it."""
        if length not in self._bindings:
            ids = np.zeros((1, length), np.int64)
            positions = np.zeros((1, length), np.int64) if self._model.wants_positions else None
            binding = self._session.io_binding()
            value = self._model.sessions.value
            binding.bind_ortvalue_input("input_ids", value(ids))
            binding.bind_ortvalue_input("seqlens_k", value(self._seqlens))
            binding.bind_ortvalue_input("total_sequence_length", value(self._total))
            if positions is not None:
                binding.bind_ortvalue_input("position_ids", value(positions))
            for index, cache in enumerate(self._cache):
                layer, part = index // 2, ("key", "value")[index % 2]
                shared = value(cache)
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", shared)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", shared)
            binding.bind_ortvalue_output("logits", value(self._logits))
            self._bindings[length] = binding, ids, positions
        return self._bindings[length]

    def _run(self, tokens: Sequence[int]) -> None:
        length = len(tokens)
        if self.n_past + length > self._n_ctx:
            raise RuntimeError(f"{self.n_past} + {length} tokens do not fit a cache of {self._n_ctx}")
        binding, ids, positions = self._binding(length)
        ids[0] = tokens
        if positions is not None:
            positions[0] = range(self.n_past, self.n_past + length)
        self.n_past += length
        self._seqlens[0] = self.n_past - 1
        self._total[()] = self.n_past
        self._session.run_with_iobinding(binding)

    def _chunks(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        size = self._settings.ubatch
        return [tokens[first : first + size] for first in range(0, len(tokens), size)]

    def clear(self) -> None:
        self.n_past = 0

    def prefill(self, tokens: Sequence[int]) -> None:
        for chunk in self._chunks(tokens):
            self._run(chunk)

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        chunks = self._chunks(tokens)
        for chunk in chunks:
            self._binding(len(chunk))
        start, end, durations = time_calls(self._run, chunks)
        self._logits[0, 0].argmax()
        return start, end, durations, time.monotonic_ns() - start

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        self._binding(1)
        return time_calls(self._run, [[token] for token in tokens])

    def save(self) -> object:
        return self.n_past, [cache[:, :, : self.n_past].copy() for cache in self._cache]

    def restore(self, state: Any) -> None:
        self.n_past, saved = state
        for cache, kept in zip(self._cache, saved, strict=True):
            cache[:, :, : self.n_past] = kept

    def logits(self) -> npt.NDArray[np.float32]:
        copy: npt.NDArray[np.float32] = self._logits[0, 0].copy()
        return copy

    def set_threads(self, threads: int, threads_batch: int) -> None:
        del threads_batch  # one session has one pool
        self._session = self._model.sessions.get(threads)
        self._bindings.clear()

    def close(self) -> None:
        self._bindings.clear()
        self._cache = []


class OrtModel:
    """A loaded export."""

    def __init__(self, trial: TrialSpec) -> None:
        path = Path(trial.artifact.path) / "model.onnx"
        self.manifest = _read_manifest(path.parent)
        self.sessions = Sessions(path, trial.settings.threads)
        inputs = self.sessions.get(trial.settings.threads).get_inputs()
        self.wants_positions = any(item.name == "position_ids" for item in inputs)
        self.first_token = self.manifest.first_token
        self._kv_bytes = 0
        self.loaded = Loaded(
            load_s=self.sessions.load_s,
            parameters=self.manifest.parameters,
            weight_bytes=self.manifest.weight_bytes,
            context_trained=self.manifest.context,
            vocabulary=self.manifest.vocabulary,
            architecture=self.manifest.architecture,
            description=f"{self.manifest.architecture} {self.manifest.precision}",
        )

    def context(self, n_ctx: int, settings: Settings) -> OrtContext:
        shape = self.manifest
        self._kv_bytes = max(self._kv_bytes, 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim * n_ctx)
        return OrtContext(self, n_ctx, settings)

    def memory(self) -> EngineMemory | None:
        weights = {"file": self.manifest.weight_bytes, "prepacked": self.sessions.prepacked_bytes}
        return EngineMemory(weights=weights, kv=self._kv_bytes, compute=0, output=0)

    def close(self) -> None:
        self.sessions.close()


def _read_manifest(folder: Path) -> OnnxManifest:
    try:
        return msgspec.json.decode((folder / "edgebench.json").read_bytes(), type=OnnxManifest)
    except OSError as error:
        raise ArtifactError(
            f"{folder} has no readable edgebench.json: {error.strerror}.", "make it with edgebench export."
        ) from error
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{folder}/edgebench.json is damaged: {error}.", "export the model again.") from error


class Ort:
    """The runtime ``ort``."""

    name = "ort"
    formats = ("onnx",)
    default = True
    package = "onnxruntime"
    kv_types: tuple[KVType, ...] = ("f32",)
    one_pool = True

    def installed(self) -> bool:
        return importlib.util.find_spec("onnxruntime") is not None

    def version(self) -> Fact:
        return Fact(value=f"onnxruntime {importlib.metadata.version('onnxruntime')}")

    def build(self) -> Fact:
        import onnxruntime

        return Fact(value=onnxruntime.get_build_info())

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> OrtModel | ForeignModel:
        del log  # what onnxruntime says below an error is about placement, and nothing that a reader must know
        folder = Path(trial.artifact.path)
        if folder.is_dir() and not (folder / "edgebench.json").is_file() and graph_of(folder) is not None:
            return ForeignModel(trial)
        return OrtModel(trial)


RUNTIME = Ort()
