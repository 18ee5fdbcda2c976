"""Whether llama.cpp cuts text into the same tokens as the model's own tokenizer. Runs in a child process only.

A GGUF names its pre-tokenizer and lists its tokens; what llama.cpp makes of them is other code than what the model was
trained with. So both are run on the same pieces of text before anything large is written. The pieces are in Unicode's
form NFC, because llama.cpp does not normalise text and many tokenizers do: for decomposed text the ids may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.checkpoint.sentencepiece import CONTROL, NORMAL
from edgebench.checkpoint.tokenizer import SPACE, Tokenizer
from edgebench.errors import ArtifactError, MissingDependency

if TYPE_CHECKING:
    import tokenizers

PIECES = (
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog; it didn't look back, and they've never met since.",
    "I'M SURE YOU'LL AGREE we'd've said don't, it's, O'Neill's",
    " leading space, trailing space ",
    "two  spaces, three   spaces,     five, and a\ttab\tor\t\ttwo",
    "line\nbreak, blank line\n\nand three\n\n\nthen \n mixed \r\n ends\r\n\r\n",
    "   \n   indented\n\t\tby tabs\n        by eight",
    "0 1 12 123 1234 12345 3.14159 -273.15 1,000,000 2024-02-29 6.022e23 0xDEADBEEF 1/2 50%",
    "٣١٤ १२३ ²³ Ⅷ ½",  # other digits, superscripts, numerals
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\" if x != 0 else '\\n'\n\nclass A(B[T]): ...",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; } // &&, ||, ->, ::",
    '<div class="a b"><p>&nbsp;©</p></div> {{ template }} $x^2 + \\alpha_{i}$ `code` **bold** __init__',
    "https://example.org/path/to?query=1&other=%20#fragment user@example.org C:\\Temp\\file.txt",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case x1y2z3 v1.2.3-rc.4",
    "!!! ??? ... --- ___ *** ### ~~~ (((([[{{<<>>}}]])))) '\"'\"' … — \u2013 “quoted” \u2018so\u2019",
    "Français: déjà vu, cœur, naïve — Straße, Übergröße, Ångström, señor, mañana, Łódź, čeština",
    "Съешь же ещё этих мягких булок. Россия, Україна, Србија.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "مرحبا بالعالم، كيف حالك؟ ٣٤٥",
    "שלום עולם, מה שלומך?",
    "我们今天去公园\uff0c你呢\uff1f繁體中文也要測試。",
    "日本語のテキスト、ひらがなとカタカナ。\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48",
    "안녕하세요, 세계! 한국어 문장입니다.",
    "हिन्दी में एक वाक्य। สวัสดีชาวโลก Tiếng Việt",
    "😀🚀 👨\u200d👩\u200d👧 👍🏽 🇩🇪 ❤\ufe0f ok🎉🎉",
    "∑∫∂√∞ ≤≥≠ →⇒ €£¥ §¶ │┌─ █░",
    "\U0001d400 𠀀 \U0001d7d8",  # beyond the basic plane
    "zero\u200bwidth, no\u00a0break, thin\u2009space, ideographic\u3000space",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "                                  " + "x" + "\n" * 9 + "y",
)
"""Text in many scripts, code, numbers and runs of white space; none of it is taken from anywhere."""


def check(gguf: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Compare llama.cpp's tokens of a GGUF (its vocabulary is enough) with those of the folder's own tokenizer.

    Raises:
        ArtifactError: when llama.cpp refuses the vocabulary, or a piece of text has other ids; it names the first.
        MissingDependency: when ``tokenizers`` or ``llama-cpp-python`` is not installed.
    """
    judge = _judge(folder, tokenizer)
    texts = [*PIECES, *_special_texts(tokenizer)]
    expected = [judge.encode(text, add_special_tokens=False).ids for text in texts]
    for text, theirs, ours in zip(texts, expected, llama_token_ids(gguf, texts), strict=True):
        if theirs != ours:
            raise ArtifactError(
                f"{folder}: llama.cpp would cut {text!r} into the tokens {_shown(ours, theirs)}; "
                f"the model's own tokenizer makes {_shown(theirs, ours)}.",
                "convert it with llama.cpp's own converter, or export it to ONNX.",
            )


def llama_token_ids(gguf: Path, texts: Iterable[str], *, add_special: bool = False) -> list[list[int]]:
    """llama.cpp's ids of each text; special tokens written out in it are recognised.

    Raises:
        ArtifactError: when llama.cpp refuses the file.
        MissingDependency: when llama-cpp-python is not installed.
    """
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a debugger's backtrace would bury what llama.cpp says
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingDependency("llama-cpp-python is not installed.", "pip install llama-cpp-python") from error
    said: list[str] = []

    def take(level: int, text: bytes, _user: object) -> None:
        if level == _ERROR_LEVEL:
            said.append(text.decode("utf-8", "replace").strip())

    callback = llama_cpp.llama_log_callback(take)
    llama_cpp.llama_log_set(callback, None)
    _callbacks.append(callback)  # llama.cpp keeps a pointer to it
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), params)
    if not model:
        raise ArtifactError(
            f"{gguf}: llama.cpp refuses the vocabulary: {said[0] if said else 'it gave no reason'}.",
            "convert the model with llama.cpp's own converter.",
        )
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        return [_tokenize(llama_cpp, vocabulary, text, add_special=add_special) for text in texts]
    finally:
        llama_cpp.llama_model_free(model)


_ERROR_LEVEL = 4
_callbacks: list[object] = []


def _tokenize(library: Any, vocabulary: Any, text: str, *, add_special: bool) -> list[int]:
    data = text.encode()
    buffer = (library.llama_token * (len(data) + 8))()  # a token is at least a byte; a few special ones may join
    count = library.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), add_special, True)  # noqa: FBT003 - ctypes takes no names
    if count < 0:
        raise ArtifactError(f"llama.cpp wants room for {-count} tokens of {text!r}.", "report this text.")
    return list(buffer[:count])


def _special_texts(tokenizer: Tokenizer) -> Sequence[str]:
    """The first special tokens, as they stand in a chat template: between words, and one after the other."""
    names = [token for token, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind == CONTROL][:20]
    if tokenizer.add_space_prefix:
        # What comes after a special token differs on purpose in the newer tokenizers of this family (see the notes).
        return ["".join(names), *(f"a{name}" for name in names)]
    return ["".join(names), *(f"a{name}b" for name in names), *(f"{name}\n" for name in names)]


def _shown(ids: Sequence[int], other: Sequence[int]) -> str:
    """The ids from just before the first difference."""
    first = next((at for at, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    start = max(first - 2, 0)
    part = ", ".join(str(number) for number in ids[start : start + 8])
    return f"[{'..., ' if start else ''}{part}{', ...' if start + 8 < len(ids) else ''}]"


# --- the judge


def _judge(folder: Path, tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency(
            "Token ids are verified with the tokenizers library, which is not installed.", "pip install tokenizers"
        ) from error
    path = folder / "tokenizer.json"
    if path.is_file():
        return tokenizers.Tokenizer.from_file(str(path))
    return _from_pieces(tokenizer)


def _from_pieces(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A BPE that joins in the order of the scores, for folders that have only a ``tokenizer.model``."""
    from tokenizers import AddedToken, models, normalizers
    from tokenizers import Tokenizer as Library

    at = {token: number for number, token in enumerate(tokenizer.tokens)}
    order = sorted(range(len(tokenizer.tokens)), key=lambda number: (-tokenizer.scores[number], number))
    merges = [
        (token[:cut], token[cut:])
        for token in (tokenizer.tokens[number] for number in order if tokenizer.types[number] == NORMAL)
        for cut in range(1, len(token))
        if token[:cut] in at and token[cut:] in at
    ]
    unknown = tokenizer.tokens[tokenizer.ids["unk"]] if "unk" in tokenizer.ids else None
    library = Library(models.BPE(at, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown))
    spaces = normalizers.Replace(" ", SPACE)
    prefix = [normalizers.Prepend(SPACE)] if tokenizer.add_space_prefix else []
    library.normalizer = normalizers.Sequence([*prefix, spaces])
    names = [token for token, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind == CONTROL]
    library.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return library
