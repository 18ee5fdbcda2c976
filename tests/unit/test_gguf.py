"""The GGUF header reader, against files written here byte by byte and mutations of them."""

from __future__ import annotations

import ctypes
import os
import struct
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgebench.checkpoint.ggml_types import GGML_TYPES
from edgebench.checkpoint.gguf import GGUFHeader, identify, read_header
from edgebench.errors import ArtifactError, UsageError
from edgebench.specs import Artifact

U32, U64, F32, BOOL, STRING, ARRAY = 4, 10, 6, 7, 8, 9
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", U32: "<I", 5: "<i", F32: "<f", BOOL: "<?", U64: "<Q", 11: "<q", 12: "<d"}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(value_bytes(inner, item) for item in items)
    return struct.pack(FORMATS[kind], value)


KEYS = [
    ("general.architecture", STRING, "llama"),
    ("general.name", STRING, "Tiny"),
    ("general.file_type", U32, 15),
    ("llama.context_length", U32, 2048),
    ("llama.embedding_length", U32, 256),
    ("llama.block_count", U64, 2),
    ("llama.attention.head_count", U32, 8),
    ("llama.attention.head_count_kv", U32, 2),
    ("llama.rope.freq_base", F32, 10000.0),
    ("tokenizer.ggml.add_bos_token", BOOL, True),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "b"])),
    ("tokenizer.ggml.scores", ARRAY, (F32, [0.0, -1.0, -2.0])),
]
TENSORS = [("token_embd.weight", (256, 3), 8), ("blk.0.attn_q.weight", (256, 2), 12), ("output_norm.weight", (256,), 0)]


def gguf(
    keys=KEYS,
    tensors=TENSORS,
    *,
    magic=b"GGUF",
    version=3,
    alignment=32,
    offsets=None,
    tensor_count=None,
    key_count=None,
) -> bytes:
    """A GGUF file. ``tensors``: (name, shape, type id); every header field can be given a wrong value."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        tensor_count if tensor_count is not None else len(tensors),
        key_count if key_count is not None else len(keys),
    )
    for name, kind, value in keys:
        head += text(name) + struct.pack("<I", kind) + value_bytes(kind, value)
    position, sizes = 0, []
    for index, (name, shape, kind) in enumerate(tensors):
        size = 1
        for dimension in shape:
            size *= dimension
        block = GGML_TYPES.get(kind, (None, 1, 1))
        size = size // block[1] * block[2]
        at = position if offsets is None else offsets[index]
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", kind, at)
        sizes.append(size)
        position = -(-(position + size) // alignment) * alignment
    head += b"\0" * (-len(head) % alignment)
    last_padding = -sizes[-1] % alignment if sizes else 0
    return head + b"\1" * min(position - last_padding, 1 << 20)


GOOD = gguf()


@pytest.fixture
def write(tmp_path):
    def write_bytes(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write_bytes


def test_a_header_says_what_was_written(write):
    header = read_header(write(GOOD))
    assert (header.version, header.architecture, header.name, header.file_type) == (3, "llama", "Tiny", "q4_k_m")
    assert (header.context_length, header.embedding_length, header.block_count) == (2048, 256, 2)
    assert (header.head_count, header.head_count_kv, header.key_length, header.value_length) == (8, 2, 32, 32)
    assert header.vocabulary == 3
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.arrays == {"tokenizer.ggml.tokens": 3, "tokenizer.ggml.scores": 3}


def test_tensors_have_the_bytes_of_their_types(write):
    header = read_header(write(GOOD))
    assert [(t.name, t.shape, t.type, t.bytes) for t in header.tensors] == [
        ("token_embd.weight", (256, 3), "q8_0", 3 * 8 * 34),
        ("blk.0.attn_q.weight", (256, 2), "q4_k", 2 * 144),
        ("output_norm.weight", (256,), "f32", 1024),
    ]
    assert header.parameters == 256 * 6
    assert header.weight_bytes == 816 + 288 + 1024
    assert header.bits_per_weight == pytest.approx(8 * 2128 / 1536)
    assert header.data_offset % 32 == 0
    assert header.data_offset + header.tensors[-1].offset + header.tensors[-1].bytes == header.file_bytes


def test_version_2_and_another_alignment_are_read(write):
    keys = [*KEYS, ("general.alignment", U32, 64)]
    header = read_header(write(gguf(keys, version=2, alignment=64)))
    assert header.version == 2
    assert header.data_offset % 64 == 0


def test_what_a_file_does_not_say_is_none(write):
    header = read_header(write(gguf([("general.architecture", STRING, "llama")])))
    assert header.name is header.file_type is header.context_length is header.vocabulary is header.head_count_kv is None


def test_without_kv_heads_every_head_has_its_own(write):
    header = read_header(write(gguf([k for k in KEYS if not k[0].endswith("head_count_kv")])))
    assert header.head_count_kv == 8


def test_heads_that_differ_per_layer_are_no_single_number(write):
    keys = [k for k in KEYS if "head_count" not in k[0]]
    keys += [("llama.attention.head_count", U32, 8), ("llama.attention.head_count_kv", ARRAY, (U32, [2, 4]))]
    assert read_header(write(gguf(keys))).head_count_kv is None


def test_a_long_text_is_walked_over_and_not_kept(write):
    header = read_header(write(gguf([*KEYS, ("tokenizer.huggingface.json", STRING, "x" * 100_000)])))
    assert "tokenizer.huggingface.json" not in header.metadata
    assert header.parameters == 1536


def test_identify_names_the_precision_that_only_the_header_tells(write):
    path = write(GOOD)
    artifact = Artifact(model="m", precision="shipped", format="gguf", path=str(path), bytes=len(GOOD), sha256="0" * 64)
    assert identify(artifact)[0].precision == "q4_k_m"
    declared = msgspec.structs.replace(artifact, precision="q8_0")
    assert identify(declared)[0] is declared


BAD = {
    "wrong magic": (gguf(magic=b"GGML"), "starts with b'GGML'"),
    "zero length": (b"", "holds 0 bytes"),
    "three bytes": (b"GGU", "holds 3 bytes"),
    "only the magic": (b"GGUF", "ends inside the version"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "big endian": (gguf(version=3 << 24), "big-endian"),
    "too many keys": (gguf(key_count=2**63), "claims 9223372036854775808 keys"),
    "too many tensors": (gguf(tensor_count=2**40), "claims 1099511627776 tensors"),
    "one key too many": (gguf(key_count=len(KEYS) + 1), ""),
    "one tensor too many": (gguf(tensor_count=len(TENSORS) + 1), ""),
    "data cut by one byte": (GOOD[:-1], "is truncated: 1 bytes are missing at its end, inside the tensor 'output_norm"),
    "no data": (GOOD[:-2128], "is truncated"),
    "cut inside a key": (GOOD[:300], "ends inside"),
    "key not UTF-8": (gguf([*KEYS, (b"\xff\xfe", U32, 1)]), "not UTF-8"),
    "tensor not UTF-8": (gguf(tensors=[(b"\xc3\x28", (4,), 0)]), "not UTF-8"),
    "empty tensor name": (gguf(tensors=[("", (4,), 0)]), "empty"),
    "key twice": (gguf([*KEYS, KEYS[0]]), "'general.architecture' twice"),
    "tensor twice": (gguf(tensors=[("a", (4,), 0), ("a", (4,), 0)]), "same name"),
    "last string overruns": (
        gguf([("k", ARRAY, (STRING, ["a", "b"]))], [])[:58] + struct.pack("<Q", 2**40) + b"b" + bytes(40),
        "ends inside the strings of 'k'",
    ),
    "unknown value type": (gguf([*KEYS])[:24] + text("k") + struct.pack("<I", 99) + b"\0" * 600, "unknown type 99"),
    "array of arrays": (gguf([*KEYS, ("k", ARRAY, (ARRAY, []))]), "array of the unknown type 9"),
    "unknown tensor type": (gguf(tensors=[("a", (4,), 36)]), "'a' of the unknown type 36"),
    "not whole blocks": (gguf(tensors=[("a", (33,), 2)]), "not whole blocks of 32"),
    "a dimension of zero": (gguf(tensors=[("a", (4, 0), 0)]), "not whole blocks"),
    "rank 0": (gguf(tensors=[("a", (), 0)]), "rank 0"),
    "rank 5": (gguf(tensors=[("a", (1, 1, 1, 1, 1), 0)]), "rank 5"),
    "huge shape": (gguf(tensors=[("a", (2**62, 2**62), 0)]), "is truncated"),
    "huge offset": (gguf(offsets=[0, 2**60, 1152]), "is truncated"),
    "crooked offset": (gguf(offsets=[0, 833, 1152]), "not a multiple of 32"),
    "overlapping tensors": (gguf(offsets=[0, 32, 1152]), "inside the tensor 'token_embd.weight'"),
    "alignment 3": (gguf([*KEYS, ("general.alignment", U32, 3)]), "general.alignment = 3"),
    "alignment 0": (gguf([*KEYS, ("general.alignment", U32, 0)]), "general.alignment = 0"),
    "alignment text": (gguf([*KEYS, ("general.alignment", STRING, "x")]), "general.alignment = 'x'"),
    "no architecture": (gguf(KEYS[1:]), "general.architecture"),
    "no tensors": (gguf(tensors=[]), "vocabulary, not a model"),
    "a part": (gguf([*KEYS, ("split.count", 2, 3)]), "one of 3 parts"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_name_and_a_next_step(name, write):
    content, says = BAD[name]
    path = write(content)
    with pytest.raises(ArtifactError) as caught:
        read_header(path)
    assert str(path) in caught.value.what
    assert says in caught.value.what
    assert caught.value.next_step


def test_a_missing_file_a_folder_and_a_pipe_are_usage_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.gguf", tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match=str(path)):
            read_header(path)


def test_a_name_of_64_kib_does_not_fill_the_screen(write):
    with pytest.raises(ArtifactError) as caught:
        read_header(write(gguf(tensors=[("n" * 60_000, (4,), 99)])))
    assert len(str(caught.value)) < 500


def test_a_vocabulary_of_262k_words_is_walked_and_not_kept(write):
    words = (STRING, [f"word{n}" for n in range(262_144)])
    path = write(gguf([*KEYS[:10], ("tokenizer.ggml.tokens", ARRAY, words)]))
    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert header.vocabulary == 262_144


def test_a_claimed_vocabulary_of_billions_ends_at_once(tmp_path):
    path = tmp_path / "sparse.gguf"
    array = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 2**29)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + array)
        file.truncate(8 << 30)  # sparse: eight GiB of empty strings
    with pytest.raises(ArtifactError, match="more than any vocabulary"):
        read_header(path)


def read_or_refuse(path: Path, content: bytes) -> GGUFHeader | None:
    """The header or None; any other end than an `ArtifactError` fails the test, and so does using much memory."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        return read_header(path)
    except ArtifactError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100e6


quick = settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(at=st.integers(0, len(GOOD) - 2129), patch=st.binary(min_size=1, max_size=16))
@example(at=24, patch=struct.pack("<Q", 2**64 - 1))
def test_a_patched_header_is_read_or_refused(at, patch, tmp_path):
    header = read_or_refuse(tmp_path / "m.gguf", GOOD[:at] + patch + GOOD[at + len(patch) :])
    if header is not None:
        assert header.data_offset + header.weight_bytes <= header.file_bytes


@quick
@given(length=st.integers(0, len(GOOD) - 1))
def test_a_file_cut_anywhere_is_refused(length, tmp_path):
    assert read_or_refuse(tmp_path / "m.gguf", GOOD[:length]) is None


@quick
@given(content=st.binary(max_size=300))
def test_random_bytes_after_the_preamble_are_read_or_refused(content, tmp_path):
    read_or_refuse(tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + content)
    read_or_refuse(tmp_path / "m.gguf", content)


@quick
@given(numbers=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=12))
def test_random_counts_are_read_or_refused(numbers, tmp_path):
    read_or_refuse(tmp_path / "m.gguf", b"GGUF\3\0\0\0" + struct.pack(f"<{len(numbers)}Q", *numbers))


def test_block_sizes_are_those_of_the_engine():
    spec = find_spec("llama_cpp")
    libraries = (
        [] if spec is None or spec.origin is None else sorted((Path(spec.origin).parent / "lib").glob("*ggml-base*"))
    )
    if not libraries:
        pytest.skip("llama-cpp-python with libggml-base is not installed")
    ggml = ctypes.CDLL(str(libraries[0]))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    for number, kind in GGML_TYPES.items():
        if kind.name in ("q1_0", "q2_0", "nvfp4"):  # younger than the oldest engine that is supported
            continue
        assert ggml.ggml_type_name(number).decode().lower() == kind.name
        assert (ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == (kind.block, kind.bytes), kind.name
