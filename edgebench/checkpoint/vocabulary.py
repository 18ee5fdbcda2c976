"""Text to token ids and back, by llama.cpp's tokenizer, whichever runtime computes.

An ONNX export carries its vocabulary as a GGUF without tensors, so both runtimes get the same ids from the same code.
Loads a native library: called in a child process only.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgebench.errors import ArtifactError, MissingDependency, UsageError

_LONGEST_PIECE = 1 << 12


class Vocabulary:
    """The vocabulary of a GGUF, with or without its weights.

    Raises:
        MissingDependency: when llama-cpp-python is missing.
        ArtifactError: when llama.cpp refuses the file.
    """

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        try:
            import llama_cpp
        except ImportError as error:
            raise MissingDependency("Tokenizing needs llama-cpp-python.", "pip install llama-cpp-python") from error
        self._lib: Any = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)
        llama_cpp.llama_log_set(self._silent, None)
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ArtifactError(f"{path}: llama.cpp refuses the vocabulary.", "export the model again.")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids.

        Args:
            text: any text.
            add_special: put the begin-of-sequence token first, if the model wants one.
            parse_special: take special tokens that are written out (``<|im_start|>``) for what they mean.
        """
        raw = text.encode()
        room = len(raw) + 8
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, add_special, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        """The bytes of one token; special tokens have none. A character may be split over several tokens."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)  # noqa: FBT003 - ctypes takes no names
        return buffer.raw[: max(0, count)]

    def ends(self, token: int) -> bool:
        """Whether generation stops at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages in the model's own chat template, ready for its answer.

        Raises:
            UsageError: when the model has no template, or its template refuses the messages.
        """
        template = self._lib.llama_model_chat_template(self._model, None)
        if not template:
            raise UsageError("The model has no chat template: it was not trained to chat.", "leave --chat out.")
        return _render(template.decode("utf-8", "replace"), messages, self._special("bos"), self._special("eos"))

    def _special(self, which: str) -> str:
        token = getattr(self._lib, f"llama_vocab_{which}")(self._vocab)
        if token < 0:
            return ""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)  # noqa: FBT003 - ctypes takes no names
        return buffer.raw[: max(0, count)].decode("utf-8", "replace")

    def close(self) -> None:
        """Free it. Twice is fine."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None


def _render(template: str, messages: Sequence[dict[str, str]], bos: str, eos: str) -> str:
    """A template comes with the model and is not trusted: it runs in Jinja's sandbox, as in transformers."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=list(messages), add_generation_prompt=True, bos_token=bos, eos_token=eos)
    except TemplateError as error:
        raise UsageError(
            f"The model's chat template refuses the messages: {error}.", "leave --chat or --system out."
        ) from error
