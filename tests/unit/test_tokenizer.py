"""Tokenizers of Hugging Face folders, as a GGUF wants them described."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgebench.checkpoint.pretokenizer import GPT2, GPT4O, LLAMA3, QWEN2, QWEN35, TEKKEN, recognise
from edgebench.checkpoint.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_model
from edgebench.checkpoint.tokenizer import BYTE_TOKENS, Tokenizer, read_tokenizer
from edgebench.errors import ArtifactError

SPACE = "\u2581"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SILENT = {**BYTE_LEVEL, "use_regex": False}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(number: int, content: str, *, special: bool = True, **more) -> dict:
    return {"id": number, "content": content, "special": special, "normalized": False, **more}


def byte_level(**changes) -> dict:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<bos>": 3}, "merges": [["a", "b"]]}
    return {
        "model": model,
        "added_tokens": [added(3, "<bos>"), added(4, "<eos>"), added(5, "<html>", special=False)],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        **changes,
    }


def spaced(**changes) -> dict:
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, "a", "b", SPACE, "ab", f"{SPACE}ab", "aab"]
    at = {token: number for number, token in enumerate(tokens)}
    merges = ["a b", f"{SPACE} ab", "a ab"]
    return {
        "model": {"type": "BPE", "vocab": at, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"},
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        **changes,
    }


@pytest.fixture
def read(tmp_path: Path):
    """Write a tokenizer and its neighbours, then read them."""

    def written(document: dict, rows: int = 8, config: dict | None = None, **files: dict | str) -> Tokenizer:
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        for name, content in files.items():
            path = tmp_path / (f"{name}.json" if isinstance(content, dict) else f"{name}.jinja")
            path.write_text(json.dumps(content) if isinstance(content, dict) else content, encoding="utf-8")
        return read_tokenizer(tmp_path, rows, config or {})

    return written


# --- pre-tokenizers


@pytest.mark.parametrize(
    ("node", "normalises", "ignores_merges", "name"),
    [
        (BYTE_LEVEL, False, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), False, False, "smollm"),
        (sequence(split(GPT2), SILENT), False, False, "gpt-2"),
        (sequence(split(LLAMA3), SILENT), False, True, "llama-bpe"),
        (sequence(split(LLAMA3), SILENT), False, False, "smaug-bpe"),
        (sequence(split(QWEN2), SILENT), True, False, "qwen2"),
        (sequence(split(QWEN2), SILENT), False, False, "deepseek-r1-qwen"),
        (sequence(split(QWEN35), SILENT), True, False, "qwen35"),
        (sequence(split(GPT4O), SILENT), False, False, "gpt-4o"),
        (sequence(split(TEKKEN), SILENT), False, True, "tekken"),
        (sequence(split(TEKKEN), SILENT), False, False, None),
        (sequence(split(r"\p{N}"), SILENT), False, False, None),
        (sequence({**split(QWEN2), "behavior": "Removed"}, SILENT), True, False, None),
        (sequence({"type": "Punctuation"}, BYTE_LEVEL), False, False, None),
        ({**BYTE_LEVEL, "add_prefix_space": True}, False, False, None),
        (None, False, False, None),
    ],
)
def test_a_pre_tokenizer_is_recognised_by_what_it_does(node, normalises, ignores_merges, name):
    assert recognise(node, normalises=normalises, ignores_merges=ignores_merges) == name


def test_the_expressions_are_written_as_their_models_publish_them():
    assert LLAMA3 == (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    assert LLAMA3.replace("{1,3}", "") == QWEN2


# --- byte-level BPE


def test_a_byte_level_tokenizer_is_described(read):
    found = read(byte_level(), tokenizer_config={"bos_token": "<bos>", "eos_token": {"content": "<eos>"}})
    assert (found.family, found.pre, found.merges, found.scores) == ("gpt2", "gpt-2", ("a b",), ())
    assert found.tokens == ("a", "b", "ab", "<bos>", "<eos>", "<html>", "[PAD6]", "[PAD7]")
    assert found.types == (NORMAL, NORMAL, NORMAL, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED)
    assert found.ids == {"bos": 3, "eos": 4}
    assert not found.add_bos
    assert not found.add_eos
    assert not found.add_space_prefix


def test_merges_may_be_written_either_way(read):
    document = byte_level()
    document["model"]["merges"] = ["a b"]
    assert read(document).merges == ("a b",)


def test_ids_come_from_the_tokenizer_then_the_configuration(read):
    config = {"bos_token_id": 1, "eos_token_id": [2, 4], "pad_token_id": 99, "unk_token_id": None}
    found = read(
        byte_level(), config=config, special_tokens_map={"bos_token": "<bos>"}, generation_config={"pad_token_id": 0}
    )
    assert found.ids == {"bos": 3, "eos": 2, "pad": 0}


def test_what_is_put_before_a_text_comes_from_its_template(read):
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}]}
    document = byte_level(post_processor={"type": "Sequence", "processors": [SILENT, template]})
    assert read(document, tokenizer_config={"bos_token": "<bos>"}).add_bos
    assert not read(document, tokenizer_config={"bos_token": "<bos>", "add_bos_token": False}).add_bos
    assert not read(document, tokenizer_config={"bos_token": "<eos>"}).add_bos


def test_chat_templates_are_found_wherever_they_are(read):
    assert read(byte_level(), tokenizer_config={"chat_template": "one"}).chat_templates == {"default": "one"}
    several = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    found = read(byte_level(), tokenizer_config={"chat_template": several})
    assert found.chat_templates == {"default": "one", "tool_use": "two"}
    assert read(byte_level(), chat_template="three", tokenizer_config={}).chat_templates == {"default": "three"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre_tokenizer": sequence(split("x"), SILENT)}, "as no pre-tokenizer of llama.cpp does"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text by Lowercase"),
        ({"pre_tokenizer": None}, "neither spells bytes"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "of the kind 'Unigram'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "no merges"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}}}, "not what a tokenizer.json should be"),
        ({"added_tokens": [added(5, "a")]}, "two ids to the token 'a'"),
        ({"added_tokens": [added(8, "<more>")]}, "up to the id 8; the embedding has 8 rows"),
        ({"added_tokens": [added(-1, "<less>")]}, "up to the id"),
    ],
)
def test_a_tokenizer_that_cannot_be_expressed_is_refused(read, change, words):
    with pytest.raises(ArtifactError, match=r"tokenizer\.json") as caught:
        read(byte_level(**change))
    assert words in str(caught.value)


def test_the_image_token_of_gemma_needs_no_row(read):
    assert read(byte_level(added_tokens=[added(8, "<image_soft_token>")])).tokens[-1] == "[PAD7]"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no tokenizer"):
        read_tokenizer(tmp_path, 8, {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, 8, {})


# --- sentencepiece-like BPE


def test_scores_follow_the_order_of_the_merges(read):
    found = read(spaced(), rows=265, tokenizer_config={"bos_token": "<s>"})
    assert (found.family, found.pre, found.merges) == ("llama", "default", ())
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert [score[token] for token in ("ab", f"{SPACE}ab", "aab", "a")] == [0.0, -1.0, -2.0, -3.0]
    assert found.types[:4] == (UNKNOWN, CONTROL, CONTROL, BYTE)
    assert found.types[259] == NORMAL
    assert found.ids == {"bos": 1, "unk": 0}


@pytest.mark.parametrize(
    ("change", "prefix", "noted"),
    [
        ({}, False, False),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaced()["normalizer"]],
                }
            },
            True,
            False,
        ),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}, True, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True, True),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False, False),
    ],
)
def test_the_space_before_the_text_is_kept(read, change, prefix, noted):
    found = read(spaced(**change), rows=265)
    assert (found.add_space_prefix, bool(found.notes)) == (prefix, noted)


def test_all_bytes_must_have_tokens(read):
    document = spaced()
    del document["model"]["vocab"]["<0x41>"]
    with pytest.raises(ArtifactError, match="<0x41>"):
        read(document, rows=265)


def test_an_added_run_of_spaces_is_an_ordinary_token(read):
    document = spaced()
    document["added_tokens"] += [added(265, SPACE * 2, special=False), added(266, "<b>", special=False)]
    assert read(document, rows=267).types[-2:] == (NORMAL, USER_DEFINED)


# --- tokenizer.model


def field(number: int, value: bytes | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value % (1 << 64))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def piece(text: str, score: float, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != NORMAL else b""))


def sentencepiece(*, model_type: int = 2, prefix: int = 1, whitespace: int = 0) -> bytes:
    pieces = [piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL)]
    pieces += [piece(token, 0.0, BYTE) for token in BYTE_TOKENS]
    pieces += [piece("ab", -1.0), piece("a", -2.0), piece("b", -3.0), piece(SPACE * 2, 0.0, USER_DEFINED)]
    trainer = field(3, model_type) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1) + field(99, b"later")
    normalizer = field(1, b"identity") + field(3, prefix) + field(4, whitespace)
    return b"".join(pieces) + field(2, trainer) + field(3, normalizer) + field(7, b"unknown to this reader")


def test_a_sentencepiece_model_is_read(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece())
    model = read_model(path)
    assert [(p.text, p.score, p.type) for p in model.pieces[-4:-1]] == [("ab", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1)]
    assert model.ids == {"unk": 0, "bos": 1, "eos": 2}
    assert model.is_bpe
    assert model.dummy_prefix
    assert not model.removes_whitespace


def test_a_sentencepiece_model_serves_without_a_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(prefix=0))
    found = read_tokenizer(tmp_path, 264, {})
    assert found.tokens[-2:] == (SPACE * 2, "[PAD263]")
    assert found.types[-2:] == (NORMAL, UNUSED)
    assert found.ids == {"unk": 0, "bos": 1, "eos": 2}
    assert found.add_bos
    assert not found.add_space_prefix
    with pytest.raises(ArtifactError, match="the embedding has 262 rows"):
        read_tokenizer(tmp_path, 262, {})


@pytest.mark.parametrize(("change", "words"), [({"model_type": 1}, "unigram"), ({"whitespace": 1}, "repeated spaces")])
def test_a_sentencepiece_model_that_llama_cpp_would_read_otherwise_is_refused(tmp_path, change, words):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(**change))
    with pytest.raises(ArtifactError, match=words):
        read_tokenizer(tmp_path, 264, {})


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_sentencepiece_model_that_ends_inside_a_field_is_refused(tmp_path, cut):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece()[:-cut])
    with pytest.raises(ArtifactError, match="no sentencepiece model"):
        read_model(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(cut=1, at=0, byte=0x0A)
@given(cut=st.integers(0, 4000), at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_a_damaged_sentencepiece_model_is_an_error_and_never_a_crash(tmp_path, cut, at, byte):
    data = bytearray(sentencepiece())
    if at < len(data):
        data[at] = byte
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bytes(data[: len(data) - cut]) if cut < len(data) else b"")
    with contextlib.suppress(ArtifactError):
        read_model(path)
