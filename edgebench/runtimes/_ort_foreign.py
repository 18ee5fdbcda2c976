"""Graphs that somebody else exported, run as well as their inputs allow.

What is accepted is the convention of optimum and of onnxruntime-genai: ``input_ids``, ``attention_mask``, sometimes
``position_ids``, ``past_key_values.N.key`` and ``.value``; ``logits`` and ``present.N.key`` and ``.value``.

- Where every past goes straight into a GroupQueryAttention (genai's graphs), past and present share one buffer of the
  size of the workload, as in our own graphs; the length of the mask tells how much of it is filled.
- Elsewhere (optimum's) each call returns a new cache, one token longer than the last: the graph copies all of it for
  every token. That is what such a graph costs, and the description says so: "growing KV".

All logits of a call are computed where the graph does; only those of the last token are looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.onnx_file import Beside, OnnxFile, graph_of, read_beside, read_onnx
from edgebench.errors import ArtifactError
from edgebench.records import EngineMemory, Loaded
from edgebench.runtimes._ort_session import SETTINGS, Sessions
from edgebench.runtimes.base import chunks, time_calls
from edgebench.specs import Settings, TrialSpec

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_KNOWN = {"input_ids", "attention_mask", "position_ids"}


class ForeignContext:
    """One KV cache over a session; growing or shared, see the module's text."""

    def __init__(self, model: ForeignModel, n_ctx: int, settings: Settings) -> None:
        self._model, self._n_ctx, self._settings = model, n_ctx, settings
        self._session = model.sessions.get(settings.threads)
        self.n_past = 0
        self._mask = np.ones((1, n_ctx), np.int64)
        self._logits: Any = None
        capacity = n_ctx if model.shared else 0
        self._empty = [np.zeros((1, model.kv_heads, capacity, model.head_dim), model.kv_type) for _ in model.pasts]
        self._cache = [model.sessions.value(array) for array in self._empty]
        self._bindings: dict[int, tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}

    # --- one call

    def _run(self, tokens: Sequence[int]) -> None:
        if self.n_past + len(tokens) > self._n_ctx:
            raise RuntimeError(f"{self.n_past} + {len(tokens)} tokens do not fit a cache of {self._n_ctx}")
        self._run_shared(tokens) if self._model.shared else self._run_growing(tokens)
        self.n_past += len(tokens)

    def _run_growing(self, tokens: Sequence[int]) -> None:
        value, model = self._model.sessions.value, self._model
        end = self.n_past + len(tokens)
        feeds = dict(zip(model.pasts, self._cache, strict=True))
        feeds["input_ids"] = value(np.asarray([tokens], np.int64))
        feeds["attention_mask"] = value(self._mask[:, :end])
        if model.wants_positions:
            feeds["position_ids"] = value(np.arange(self.n_past, end, dtype=np.int64)[None])
        self._logits, *self._cache = self._session.run_with_ort_values(["logits", *model.presents], feeds)

    def _run_shared(self, tokens: Sequence[int]) -> None:
        binding, ids, positions = self._binding(len(tokens))
        end = self.n_past + len(tokens)
        ids[0] = tokens
        positions[0] = range(self.n_past, end)
        binding.bind_ortvalue_input("attention_mask", self._model.sessions.value(self._mask[:, :end]))
        self._session.run_with_iobinding(binding)
        self._logits = binding.get_outputs()[0]

    def _binding(self, length: int) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The binding for calls of this many tokens with all but the mask, and the arrays behind it."""
        if length not in self._bindings:
            model, value = self._model, self._model.sessions.value
            ids, positions = np.zeros((1, length), np.int64), np.zeros((1, length), np.int64)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("input_ids", value(ids))
            if model.wants_positions:
                binding.bind_ortvalue_input("position_ids", value(positions))
            binding.bind_output("logits", "cpu")  # its length differs: some graphs compute the last token's only
            for past, present, shared in zip(model.pasts, model.presents, self._cache, strict=True):
                binding.bind_ortvalue_input(past, shared)
                binding.bind_ortvalue_output(present, shared)
            self._bindings[length] = binding, ids, positions
        return self._bindings[length]

    # --- the protocol

    def clear(self) -> None:
        self.n_past = 0
        if not self._model.shared:
            self._cache = [self._model.sessions.value(array) for array in self._empty]

    def prefill(self, tokens: Sequence[int]) -> None:
        for chunk in chunks(tokens, self._settings.ubatch):
            self._run(chunk)

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        start, end, durations = time_calls(self._run, chunks(tokens, self._settings.ubatch))
        self.logits().argmax()
        return start, end, durations, time.monotonic_ns() - start

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        return time_calls(self._run, [[token] for token in tokens])

    def save(self) -> object:
        if not self._model.shared:
            return self.n_past, list(self._cache)  # every call makes new ones: these stay as they are
        return self.n_past, [array[:, :, : self.n_past].copy() for array in self._empty]

    def restore(self, state: Any) -> None:
        self.n_past, saved = state
        if not self._model.shared:
            self._cache = list(saved)
            return
        for array, kept in zip(self._empty, saved, strict=True):
            array[:, :, : self.n_past] = kept

    def logits(self) -> npt.NDArray[np.float32]:
        last: npt.NDArray[np.float32] = self._logits.numpy()[0, -1].astype(np.float32, copy=True)
        return last

    def set_threads(self, threads: int, threads_batch: int) -> None:
        del threads_batch  # one session has one pool
        self._session = self._model.sessions.get(threads)
        self._bindings.clear()

    def close(self) -> None:
        if self._empty:
            self._model.sessions.count_scratch(self._model.kv_bytes(self._n_ctx))
        self._bindings.clear()
        self._cache, self._empty, self._logits = [], [], None


class ForeignModel:
    """A loaded graph of somebody else.

    Raises:
        ArtifactError: when it does not follow the convention, or onnxruntime refuses it.
    """

    def __init__(self, trial: TrialSpec) -> None:
        folder = Path(trial.artifact.path)
        path = graph_of(folder)
        if path is None:
            raise ArtifactError(f"{folder} holds no ONNX graph.", "give a folder with model.onnx.")
        graph, beside = read_onnx(path), read_beside(folder)
        self._path = path
        if graph.slides_cache():
            raise ArtifactError(
                f"{path} keeps sliding caches, which only onnxruntime-genai moves along.",
                "export the model by edgebench export, which runs it with whole caches.",
            )
        if trial.settings.device != "cpu":
            raise ArtifactError(
                f"{path} was exported by somebody else, and edgebench runs such graphs on the CPU only.",
                "use --device cpu, or export the model by edgebench export.",
            )
        self.sessions = Sessions(path, trial.settings)
        self._take_inputs(trial, beside)
        self.shared = graph.shares_cache(len(self.pasts) // 2)
        self.first_token = None  # a graph does not tell what its tokenizer puts first
        self._kv_bytes = 0
        self._parameters, self._weight_bytes = graph.sizes()
        self.loaded = self._describe(trial, graph, beside)

    def _take_inputs(self, trial: TrialSpec, beside: Beside) -> None:
        """Names and shapes of what goes in and out."""
        session = self.sessions.get(trial.settings.threads)
        inputs = {item.name: item for item in session.get_inputs()}
        outputs = {item.name for item in session.get_outputs()}
        self.pasts = sorted(filter(_PAST.fullmatch, inputs), key=_layer)
        self.presents = [name.replace("past_key_values", "present") for name in self.pasts]
        self.wants_positions = "position_ids" in inputs
        strange = sorted(set(inputs) - _KNOWN - set(self.pasts))
        missing = sorted(({"input_ids", "attention_mask"} - set(inputs)) | ({"logits", *self.presents} - outputs))
        if strange or missing or not self.pasts:
            raise self._unconventional(f"unknown inputs: {strange[:4]}; missing: {missing[:4] or ['a KV cache']}")
        shapes = {(tuple(inputs[name].shape[1::2]), inputs[name].type) for name in self.pasts}
        (heads, width), kind = shapes.pop()
        width = width if isinstance(width, int) else beside.head_dim
        if shapes or not isinstance(heads, int) or not isinstance(width, int) or kind not in _TYPES:
            raise self._unconventional(
                f"a KV cache of {heads} heads of {width} in {kind}, or one that differs by layer"
            )
        self.kv_heads, self.head_dim, self.kv_type = heads, width, _TYPES[kind]

    def _unconventional(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self._path} does not follow the convention of optimum and genai ({what}).",
            "export it with a KV cache (text-generation-with-past), or by edgebench export.",
        )

    def _describe(self, trial: TrialSpec, graph: OnnxFile, beside: Beside) -> Loaded:
        probe = self.context(1, trial.settings)
        probe.prefill([0])  # the shape of the logits is often left open
        vocabulary = int(probe.logits().size)
        probe.close()
        self._kv_bytes = 0
        cache = "shared KV" if self.shared else "growing KV"
        return Loaded(
            load_s=self.sessions.load_s,
            parameters=self._parameters,
            weight_bytes=self._weight_bytes,
            context_trained=beside.context,
            vocabulary=vocabulary,
            architecture="foreign",
            description=f"foreign graph of {len(graph.nodes)} nodes, {cache}",
            settings=SETTINGS,
        )

    def kv_bytes(self, n_ctx: int) -> int:
        """Size of the cache; while a growing one is copied, the old one and the new one are there together."""
        copies = 1 if self.shared else 2
        return len(self.pasts) * copies * n_ctx * self.kv_heads * self.head_dim * np.dtype(self.kv_type).itemsize

    def context(self, n_ctx: int, settings: Settings) -> ForeignContext:
        self._kv_bytes = max(self._kv_bytes, self.kv_bytes(n_ctx))
        return ForeignContext(self, n_ctx, settings)

    def memory(self) -> EngineMemory | None:
        weights = {"file": self._weight_bytes, "prepacked": self.sessions.prepacked_bytes}
        scratch = self.sessions.scratch_bytes
        return EngineMemory(weights=weights, kv=self._kv_bytes, compute=scratch, output=0, kv_growing=not self.shared)

    def close(self) -> None:
        self.sessions.close()


def _layer(name: str) -> tuple[int, str]:
    found = _PAST.fullmatch(name)
    return (int(found[1]), found[2]) if found else (-1, name)
