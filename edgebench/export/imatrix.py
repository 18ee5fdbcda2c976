"""The importance matrix of a model: how much each column of each weight matrix matters, measured on a text.

A quantizer rounds the weights w of a matrix so that ``sum_j v_j (w_j - q_j)^2`` is small. With v_j = E[x_j^2], where x
is what the matrix is multiplied with, that is the expected error of its output if the columns are uncorrelated. So
v_j is the mean of x_j^2 over the tokens of a text, as in llama.cpp's ``llama-imatrix``, whose conventions are followed:
chunks of 512 tokens that do not see each other, the begin-of-sequence token in place of the first token of each where
the model wants one, what is left over at the end of the text is not used, and only matrices of the layers (``blk.``)
are collected.

llama.cpp computes; its callback for each node of the graph is given a pointer to ``struct ggml_tensor``, which has no
accessors for what it was computed from. Its layout is therefore declared here and proven on a node made for that
purpose before anything is read through it. Runs in a child process only.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.gguf import read_header
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.errors import ArtifactError, MissingDependency, UsageError
from edgebench.specs import Calibration

CHUNK = 512
"""Tokens that see each other, or the model's whole context where that is shorter."""
LEAST_TOKENS = CHUNK
COLLECTOR = f"imatrix-1x{CHUNK}"
"""Part of the identity of what is made with a matrix: counted up when the same text gives another one."""
_MOST_BYTES = 16 * 1024 * 1024
_BATCH = 128  # tokens computed together: every one has a row of logits, 134 MB with a vocabulary of 262k
_F32 = 0  # enum ggml_type
_ERROR_LEVEL = 4
_callbacks: list[object] = []


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """Importances by the name of the weight tensor, [columns] each."""

    values: dict[str, npt.NDArray[np.float32]]
    chunk: int
    chunks: int
    tokens: int
    missing: tuple[str, ...]
    """Weight matrices of the layers that the text did not reach."""


def read_calibration(path: Path) -> Calibration:
    """Read the text.

    Raises:
        UsageError: when there is none, it is empty, or not UTF-8.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise UsageError(f"There is no file {path}.", "give a plain text of some thousand words in UTF-8.")
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}.", "check the path and its rights."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#04x}.", "convert it: iconv -t UTF-8."
        ) from error
    if not text.strip():
        raise UsageError(f"{path} holds no text.", "give a plain text of some thousand words.")
    if len(data) > _MOST_BYTES:
        raise UsageError(
            f"{path} has {len(data) / 1e6:.0f} MB; {_MOST_BYTES / 1e6:.0f} MB are allowed.",
            "give a part of it: 100,000 tokens are plenty.",
        )
    return Calibration(name=path.name, text=text, sha256=hashlib.sha256(data).hexdigest())


def compute(
    model: str, calibration: Calibration, threads: int, note: Callable[[str], None], tell: Callable[[int, int], None]
) -> Matrix:
    """Run the text through the model and collect.

    Args:
        model: path of a GGUF.
        calibration: the text.
        threads: to compute with.
        note: given every line that llama.cpp says.
        tell: chunks done, and of how many.

    Raises:
        UsageError: when the text has fewer than ``LEAST_TOKENS`` tokens.
        ArtifactError: when llama.cpp refuses the model, or what it computes is not finite.
        MissingDependency: when llama-cpp-python is missing, or is a version whose layout is unknown.
    """
    with closing(Vocabulary(Path(model))) as vocabulary:
        tokens = vocabulary.tokenize(calibration.text)
    if len(tokens) < LEAST_TOKENS:
        raise UsageError(
            f"{calibration.name} has {len(tokens)} tokens; an importance matrix needs at least {LEAST_TOKENS}.",
            "give a longer text: some ten thousand tokens of what the model will be used for.",
        )
    header = read_header(model)
    chunk = min(CHUNK, header.context_length or CHUNK)
    chunks = [tokens[first : first + chunk] for first in range(0, len(tokens) - chunk + 1, chunk)]
    with closing(_Engine(model, chunk, threads, note)) as engine:
        for done, part in enumerate(chunks, 1):
            engine.run(part)
            tell(done, len(chunks))
        values = engine.collector.means()
    wanted = [tensor.name for tensor in header.tensors if _is_collected(tensor.name) and len(tensor.shape) > 1]
    return Matrix(
        values=values,
        chunk=chunk,
        chunks=len(chunks),
        tokens=chunk * len(chunks),
        missing=tuple(name for name in wanted if name not in values),
    )


def as_parameter(library: Any, values: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """The array that ``llama_model_quantize_params.imatrix`` points to; it borrows the memory of ``values``."""
    array = (library.llama_model_imatrix_data * (len(values) + 1))()  # an entry without a name ends it
    for entry, (name, row) in zip(array, values.items(), strict=False):
        entry.name, entry.size = name.encode(), row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def _is_collected(name: str) -> bool:
    return name.startswith("blk.") and name.endswith(".weight")


# --- reading ggml's nodes


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params`` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Ggml:
    """The functions of ggml that are needed, from the library that llama-cpp-python brings."""

    def __init__(self, library: Any) -> None:
        loaded = library.llama_cpp._lib  # noqa: SLF001 - ggml is not among its bindings
        pointer = ctypes.c_void_p
        try:
            self.init = self._function(loaded.ggml_init, pointer, _InitParams)
            self.free = self._function(loaded.ggml_free, None, pointer)
            self.new_2d = self._function(
                loaded.ggml_new_tensor_2d, pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
            )
            self.mul_mat = self._function(loaded.ggml_mul_mat, pointer, pointer, pointer, pointer)
            self.set_name = self._function(loaded.ggml_set_name, pointer, pointer, ctypes.c_char_p)
            self.get_data = self._function(loaded.ggml_get_data, pointer, pointer)
            self.nbytes = self._function(loaded.ggml_nbytes, ctypes.c_size_t, pointer)
            self.read = self._function(
                loaded.ggml_backend_tensor_get, None, pointer, pointer, ctypes.c_size_t, ctypes.c_size_t
            )
        except AttributeError as error:
            raise _unknown_layout(str(error)) from error
        self.matrix_product = self._prove_layout()

    @staticmethod
    def _function(function: Any, result: Any, *arguments: Any) -> Any:
        function.restype, function.argtypes = result, arguments
        return function

    def _prove_layout(self) -> int:
        """The number of the operation MUL_MAT, once every field that is used later was found where it is expected."""
        context = self.init(_InitParams(mem_size=1 << 16))
        try:
            weight, inputs = self.new_2d(context, _F32, 3, 5), self.new_2d(context, _F32, 3, 7)
            self.set_name(weight, b"blk.0.proof.weight")
            address = self.mul_mat(context, weight, inputs)
            node, first, second = (_Tensor.from_address(at) for at in (address, weight, inputs))
            proven = (
                list(node.src[:3]) == [weight, inputs, None]
                and list(node.ne) == [5, 7, 1, 1]
                and list(second.nb) == [4, 12, 84, 84]
                and (node.type, first.op) == (_F32, 0)
                and 0 < node.op < 1 << 10
                and second.data == self.get_data(inputs)
                and first.name == b"blk.0.proof.weight"
            )
        finally:
            self.free(context)
        if not proven:
            raise _unknown_layout("the fields of a tensor lie elsewhere")
        return int(node.op)


def _unknown_layout(what: str) -> MissingDependency:
    return MissingDependency(
        f"This llama-cpp-python cannot be looked into ({what}), so it gives no importance matrix.",
        "install another version of llama-cpp-python from 0.3.36 on, or leave --imatrix out.",
    )


class _Collector:
    """Sums of squares, from the callback for every node of the graph.

    An exception cannot cross C: it is kept, the computation is stopped, and `raise_failure` raises it.
    """

    def __init__(self, ggml: _Ggml) -> None:
        self._ggml = ggml
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._failure: Exception | None = None

    def observe(self, address: int, ask: bool, _user: object) -> bool:  # noqa: FBT001 - llama.cpp calls it
        """With ``ask``: whether the node is wanted. Without: it is computed; whether to go on."""
        try:
            node = _Tensor.from_address(address)
            if ask:
                return self._is_wanted(node)
            self._add(node)
        except Exception as error:  # noqa: BLE001 - see the docstring of the class
            self._failure = error
            return False
        return True

    def _is_wanted(self, node: _Tensor) -> bool:
        if node.op != self._ggml.matrix_product:
            return False
        inputs = _Tensor.from_address(node.src[1])
        return inputs.type == _F32 and _is_collected(_weight_name(node))

    def _add(self, node: _Tensor) -> None:
        address = node.src[1]
        inputs, size = _Tensor.from_address(address), self._ggml.nbytes(address)
        data = np.empty(size, np.uint8)
        self._ggml.read(address, data.ctypes.data, 0, size)
        x: npt.NDArray[np.float32] = np.ndarray(
            tuple(inputs.ne)[::-1], np.float32, data.data, strides=tuple(inputs.nb)[::-1]
        )
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        name, sums = _weight_name(node), np.einsum("ij,ij->j", rows, rows)
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def raise_failure(self) -> None:
        """Raise what went wrong in the callback, if anything did."""
        if self._failure is not None:
            raise self._failure

    def means(self) -> dict[str, npt.NDArray[np.float32]]:
        """Mean squares by the name of the weight.

        Raises:
            ArtifactError: when one is not finite.
        """
        means = {name: (sums / self._counts[name]).astype(np.float32) for name, sums in self._sums.items()}
        for name, row in means.items():
            if not np.isfinite(row).all():
                raise ArtifactError(
                    f"What {name} is multiplied with is not finite, so there is no importance matrix.",
                    "check the weights of the model, or leave --imatrix out.",
                )
        return means


def _weight_name(node: _Tensor) -> str:
    """``CPU#blk.0.attn_k.weight#0`` is how the scheduler names a copy of ``blk.0.attn_k.weight``."""
    name = _Tensor.from_address(node.src[0]).name.decode("utf-8", "replace")
    return str(name.split("#")[1] if "#" in name else name)


# --- running the model


class _Engine:
    """A model in llama.cpp whose matrix products are observed."""

    def __init__(self, model: str, chunk: int, threads: int, note: Callable[[str], None]) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a debugger's backtrace would bury what llama.cpp says
        import llama_cpp

        self._library: Any = llama_cpp
        self._said: list[str] = []

        def take(level: int, text: bytes, _user: object) -> None:
            line = text.decode("utf-8", "replace").strip()
            if level == _ERROR_LEVEL:
                self._said.append(line)
            note(line)

        log = llama_cpp.llama_log_callback(take)
        _callbacks.append(log)  # llama.cpp keeps a pointer to it
        llama_cpp.llama_log_set(log, None)
        self.collector = _Collector(_Ggml(llama_cpp))
        self._observe = llama_cpp.ggml_backend_sched_eval_callback(self.collector.observe)
        self._model, self._context = self._open_model(model), None
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._open_context(model, chunk, threads)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def _open_model(self, model: str) -> Any:
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        opened = self._library.llama_model_load_from_file(model.encode(), params)
        if not opened:
            raise ArtifactError(f"{model}: llama.cpp refuses the file: {self._reason()}.", "check how it was made.")
        return opened

    def _open_context(self, model: str, chunk: int, threads: int) -> None:
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = chunk, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _F32
        params.offload_kqv = params.op_offload = False
        params.cb_eval = self._observe
        self._context = self._library.llama_init_from_model(self._model, params)
        if not self._context:
            self._library.llama_model_free(self._model)
            raise ArtifactError(f"{model}: llama.cpp opens no context: {self._reason()}.", "free memory.")

    def _reason(self) -> str:
        return self._said[0] if self._said else "it gave no reason"

    def close(self) -> None:
        """Free it."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def run(self, tokens: Sequence[int]) -> None:
        """Compute one chunk, from an empty cache."""
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)  # noqa: FBT003 - ctypes takes no names
        tokens = list(tokens)
        if library.llama_vocab_get_add_bos(self._vocabulary):
            tokens[0] = library.llama_vocab_bos(self._vocabulary)
        for first in range(0, len(tokens), _BATCH):
            self._fill(tokens[first : first + _BATCH], first)
            status = library.llama_decode(self._context, self._batch)
            self.collector.raise_failure()
            if status != 0:
                raise ArtifactError(f"llama_decode returned {status}: {self._reason()}.", "see what it said.")

    def _fill(self, tokens: Sequence[int], position: int) -> None:
        """Logits are asked for every token: in its last layer llama.cpp computes only the rows that give some."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
