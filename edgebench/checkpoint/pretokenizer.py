"""Which of llama.cpp's pre-tokenizers cuts text as a ``tokenizer.json`` does.

A byte-level BPE first cuts text into words by regular expressions. A GGUF only names the set of expressions
(``tokenizer.ggml.pre``), and the expressions stand in llama.cpp's ``llama-vocab.cpp``. Here they are recognised by what
the tokenizer does, not by which model it belongs to: the structure of ``pre_tokenizer``, whether whole words skip the
merges, and whether text is normalised.
"""

from __future__ import annotations

from typing import Any

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT_FORMS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OPTIONAL = r"[^\r\n\p{L}\p{N}]?"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression that ``ByteLevel`` with ``use_regex`` applies."""
LLAMA3 = rf"{_SHORT_FORMS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_SHORT_FORMS}|{_WORD}|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"{_OPTIONAL}{_UPPER}*{_LOWER}+{_SHORT_FORMS}?|{_OPTIONAL}{_UPPER}+{_LOWER}*{_SHORT_FORMS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASH_TAIL}"
)
TEKKEN = rf"{_OPTIONAL}{_UPPER}*{_LOWER}+|{_OPTIONAL}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH_TAIL}"
_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    _DEEPSEEK3_WORDS,
)
_DIGIT = "digits one by one"  # ``Digits`` with individual_digits, not an expression

_WHOLE_WORDS: dict[tuple[str, ...], str] = {(LLAMA3,): "llama-bpe", (TEKKEN,): "tekken"}
_BY_STEPS: dict[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (_DIGIT, GPT2): "smollm",
    (LLAMA3,): "smaug-bpe",  # as llama-bpe, but a whole word goes through the merges
    (QWEN2,): "qwen2",
    (QWEN35,): "qwen35",
    (GPT4O,): "gpt-4o",
    _DEEPSEEK3: "deepseek-v3",
}


def cuts_bytes(pre_tokenizer: object) -> bool:
    """Whether words are spelled in bytes (``ByteLevel``)."""
    return any(step.get("type") == "ByteLevel" for step in steps(pre_tokenizer))


def steps(node: object) -> list[dict[str, Any]]:
    """A ``Sequence`` of normalizers, pre-tokenizers or post-processors, flat."""
    if not isinstance(node, dict):
        return []
    if node.get("type") != "Sequence":
        return [node]
    inner: object = next((node[key] for key in ("pretokenizers", "normalizers", "processors") if key in node), [])
    return [step for one in inner for step in steps(one)] if isinstance(inner, list) else []


def recognise(pre_tokenizer: object, *, normalises: bool, ignores_merges: bool) -> str | None:
    """llama.cpp's name of the pre-tokenizer of a byte-level BPE; None when it has none that does the same.

    Args:
        pre_tokenizer: that part of ``tokenizer.json``.
        normalises: whether the tokenizer brings text into a Unicode normal form first.
        ignores_merges: whether a word that is a token is taken as it is (``model.ignore_merges``).
    """
    cuts = _cuts(pre_tokenizer)
    if cuts is None:
        return None
    if ignores_merges:
        return _WHOLE_WORDS.get(cuts)
    name = _BY_STEPS.get(cuts)
    # Both names cut the same; the second is the distilled Qwen of DeepSeek, which does not normalise.
    return "deepseek-r1-qwen" if name == "qwen2" and not normalises else name


def _cuts(pre_tokenizer: object) -> tuple[str, ...] | None:
    """The expressions in the order of their use; None when a step is of another kind."""
    found: list[str] = []
    for step in steps(pre_tokenizer):
        kind = step.get("type")
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                return None
            found += [GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits"):
            found.append(_DIGIT)
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step.get("pattern")
            if not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str):
                return None
            found.append(pattern["Regex"].replace("\r", r"\r").replace("\n", r"\n"))
        else:
            return None
    return tuple(found)
