"""The tokenizer of a Hugging Face folder, described as a GGUF wants it.

Two families: byte-level BPE ("gpt2": merges, and the name of a pre-tokenizer) and sentencepiece-like BPE ("llama":
spaces are ``\u2581``, unknown characters become byte tokens, and the neighbours whose union has the highest score are
joined first). ``tokenizer.json`` decides where there is one, because it is what transformers runs: scores are the
negated ranks of its merges, so that llama.cpp joins in the same order. ``tokenizer.model`` serves folders without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgebench.checkpoint.pretokenizer import cuts_bytes, recognise, steps
from edgebench.checkpoint.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)
from edgebench.errors import ArtifactError
from edgebench.specs import Spec

SPACE = "\u2581"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_WITHOUT_ROW = ("<image_soft_token>",)  # Gemma 3 adds it to text-only models too; their embedding has no row for it
_NEXT = "get the whole folder again, or convert it with llama.cpp's own converter"


class Tokenizer(Spec, frozen=True, kw_only=True):
    """Everything below ``tokenizer.`` in a GGUF. The lists are as long as the embedding has rows."""

    family: Literal["gpt2", "llama"]
    pre: str
    """llama.cpp's name of the pre-tokenizer; ``default`` for the family llama."""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    """``NORMAL`` to ``BYTE`` of `edgebench.checkpoint.sentencepiece`."""
    scores: tuple[float, ...] = ()
    """Of the family llama: the higher, the earlier a token is made by joining."""
    merges: tuple[str, ...] = ()
    """Of the family gpt2: two tokens with a space between."""
    ids: dict[str, int]
    """Of ``bos``, ``eos``, ``unk`` and ``pad``, those that there are."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    strips_right: bool = False
    """Whether special tokens swallow the spaces after them (Phi-3)."""
    chat_templates: dict[str, str] = msgspec.field(default_factory=dict)
    """By name; the usual one is called ``default``."""
    notes: tuple[str, ...] = ()
    """What a reader of the GGUF must know."""


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: dict[str, int] | list[Any] = msgspec.field(default_factory=dict)
    merges: list[str | tuple[str, str]] = msgspec.field(default_factory=list)
    byte_fallback: bool = False
    ignore_merges: bool = False
    unk_token: str | None = None


class _Document(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = msgspec.field(default_factory=list)
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None


def read_tokenizer(folder: Path, vocabulary: int, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder.

    Args:
        folder: with ``tokenizer.json`` or ``tokenizer.model``.
        vocabulary: rows of the embedding. Tokens that are missing become ``[PADn]``, of the type UNUSED.
        config: of ``config.json``, for ids that the tokenizer's files do not give.

    Raises:
        ArtifactError: when there is none, it is damaged, larger than the embedding, or of a kind that llama.cpp lacks.
    """
    settings = _Settings(folder, config)
    path = folder / "tokenizer.json"
    if path.is_file():
        return _FromJSON(path, vocabulary, settings).read()
    path = folder / "tokenizer.model"
    if path.is_file():
        return _from_sentencepiece(path, read_model(path), vocabulary, settings)
    raise ArtifactError(
        f"{folder} holds no tokenizer: neither tokenizer.json nor tokenizer.model.",
        "get the whole folder again; without a tokenizer a GGUF cannot run.",
    )


class _Settings:
    """``tokenizer_config.json`` and what stands in for it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self._config = folder, config
        self._tokenizer = _json_object(folder / "tokenizer_config.json")
        self._special = _json_object(folder / "special_tokens_map.json")
        self._generation = _json_object(folder / "generation_config.json")

    def flag(self, name: str) -> bool | None:
        value = self._tokenizer.get(name)
        return value if isinstance(value, bool) else None

    def ids(self, tokens: Iterable[str], known: Mapping[str, int] = {}) -> dict[str, int]:
        """Special ids by role: by the tokenizer's files first, then ``known``, then the model's configuration."""
        tokens = tuple(tokens)
        at = {token: number for number, token in enumerate(tokens)}
        found = {}
        for role in ("bos", "eos", "unk", "pad"):
            for source in (self._tokenizer, self._special):
                text = _content(source.get(f"{role}_token"))
                if text in at:
                    found[role] = at[text]
                    break
            else:
                number = known.get(role, self._configured(role, len(tokens)))
                if number is not None:
                    found[role] = number
        return found

    def _configured(self, role: str, count: int) -> int | None:
        for source in (self._config, self._generation):
            value = source.get(f"{role}_token_id")
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
                return value
        return None

    def templates(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in (_json_object(self.folder / "chat_template.json"), self._tokenizer):
            template = source.get("chat_template")
            if isinstance(template, str):
                found["default"] = template
            elif isinstance(template, list):
                pairs = (entry for entry in template if isinstance(entry, dict))
                found |= {
                    str(entry["name"]): str(entry["template"]) for entry in pairs if {"name", "template"} <= set(entry)
                }
        plain = self.folder / "chat_template.jinja"
        if plain.is_file():
            found["default"] = _text(plain)
        return found


class _FromJSON:
    """A ``tokenizer.json``."""

    def __init__(self, path: Path, vocabulary: int, settings: _Settings) -> None:
        self.path, self._rows, self._settings = path, vocabulary, settings
        try:
            self._all = msgspec.json.decode(path.read_bytes(), type=_Document)
        except (msgspec.DecodeError, RecursionError, OSError) as error:
            raise ArtifactError(f"{path} is not what a tokenizer.json should be: {error}.", f"{_NEXT}.") from error
        model = self._all.model
        if (model.type or "BPE") != "BPE" or not isinstance(model.vocab, dict):
            raise self._refuse(
                f"is of the kind {model.type!r}; the GGUF writer knows BPE (byte-level or with byte fallback)"
            )
        self._model, self._vocab = model, model.vocab
        self._added = [token for token in self._all.added_tokens if not self._lacks_row(token)]

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}.", f"{_NEXT}.")

    def _lacks_row(self, token: _Added) -> bool:
        return token.id >= self._rows and token.content in _WITHOUT_ROW

    def read(self) -> Tokenizer:
        """The description."""
        if cuts_bytes(self._all.pre_tokenizer):
            return self._byte_level()
        if self._model.byte_fallback and self._writes_spaces():
            return self._sentencepiece()
        raise self._refuse("is a BPE that neither spells bytes (ByteLevel) nor falls back to them (byte_fallback)")

    # --- the families

    def _byte_level(self) -> Tokenizer:
        kinds = [str(step.get("type")) for step in steps(self._all.normalizer)]
        unknown = [kind for kind in kinds if kind not in _NORMAL_FORMS]
        if unknown:
            raise self._refuse(f"normalises text by {unknown[0]}, which llama.cpp does not")
        pre = recognise(self._all.pre_tokenizer, normalises=bool(kinds), ignores_merges=self._model.ignore_merges)
        if pre is None:
            raise self._refuse(f"cuts text into words as no pre-tokenizer of llama.cpp does: {self._all.pre_tokenizer}")
        tokens, types = self._lists()
        merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in self._model.merges)
        if not merges:
            raise self._refuse("holds no merges, which llama.cpp needs")
        notes = [f"llama.cpp does not normalise text ({', '.join(kinds)})"] if kinds else []
        return self._tokenizer("gpt2", pre, tokens, types, notes=notes, merges=merges)

    def _writes_spaces(self) -> bool:
        """Whether spaces become ``SPACE``."""
        replaces = any(
            step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE
            for step in steps(self._all.normalizer)
        )
        return replaces or any(step.get("type") == "Metaspace" for step in steps(self._all.pre_tokenizer))

    def _sentencepiece(self) -> Tokenizer:
        tokens, types = self._lists()
        missing = next((token for token in BYTE_TOKENS if token not in self._vocab), None)
        if missing:
            raise self._refuse(f"falls back to bytes but lacks the token {missing}")
        first_space = self._space_prefix()
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(self._model.merges):
            joined = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
            ranks.setdefault(joined, rank)
        last = len(self._model.merges)
        scores = tuple(float(-ranks.get(token, last)) for token in tokens)
        notes = []
        if first_space == "first":
            notes.append("llama.cpp puts a space before text after a special token too, transformers at the start only")
        return self._tokenizer(
            "llama", "default", tokens, types, notes=notes, scores=scores, prefix=first_space != "never"
        )

    def _space_prefix(self) -> str:
        """``always``, ``first`` (only at the start of the text) or ``never``."""
        for step in steps(self._all.pre_tokenizer):
            if step.get("type") == "Metaspace":
                scheme = step.get("prepend_scheme")
                return (
                    scheme if isinstance(scheme, str) else "always" if step.get("add_prefix_space", True) else "never"
                )
        prepends = any(step.get("type") == "Prepend" for step in steps(self._all.normalizer))
        return "always" if prepends else "never"

    # --- what both have

    def _lists(self) -> tuple[list[str], list[int]]:
        """Tokens and their types by id, as long as the embedding."""
        at: dict[int, tuple[str, int]] = {}
        unknown = self._model.unk_token
        for token, number in self._vocab.items():
            kind = UNKNOWN if token == unknown else BYTE if self._is_byte(token) else NORMAL
            at[number] = (token, kind)
        for added in self._added:
            at[added.id] = (added.content, self._added_type(added))
        largest = max(at, default=-1)
        if min(at, default=0) < 0 or largest >= self._rows:
            raise self._refuse(f"has tokens up to the id {largest}; the embedding has {self._rows} rows")
        filled = [at.get(number, (f"[PAD{number}]", UNUSED)) for number in range(self._rows)]
        return [token for token, _ in filled], [kind for _, kind in filled]

    def _is_byte(self, token: str) -> bool:
        return self._model.byte_fallback and len(token) == 6 and token in BYTE_TOKENS

    def _added_type(self, added: _Added) -> int:
        if added.content == self._model.unk_token:
            return UNKNOWN
        if added.special:
            return CONTROL
        # ``normalized: false`` matches raw text, and raw text has spaces: only the merges ever make such a token.
        return NORMAL if SPACE in added.content and self._model.byte_fallback else USER_DEFINED

    def _tokenizer(
        self,
        family: Literal["gpt2", "llama"],
        pre: str,
        tokens: list[str],
        types: list[int],
        *,
        notes: list[str],
        merges: tuple[str, ...] = (),
        scores: tuple[float, ...] = (),
        prefix: bool = False,
    ) -> Tokenizer:
        twice = _first_repeated(tokens)
        if twice is not None:
            raise self._refuse(f"gives two ids to the token {twice!r}")
        ids = self._settings.ids(
            tokens, {"unk": tokens.index(self._model.unk_token)} if self._model.unk_token in tokens else {}
        )
        first, last = self._template(tokens)
        add_bos, add_eos = self._settings.flag("add_bos_token"), self._settings.flag("add_eos_token")
        special = [token for token in self._added if token.special]
        return Tokenizer(
            family=family,
            pre=pre,
            tokens=tuple(tokens),
            types=tuple(types),
            scores=scores,
            merges=merges,
            ids=ids,
            add_bos="bos" in ids and (first == ids["bos"] if add_bos is None else add_bos),
            add_eos="eos" in ids and (last == ids["eos"] if add_eos is None else add_eos),
            add_space_prefix=prefix,
            strips_right=any(token.rstrip for token in special),
            chat_templates=self._settings.templates(),
            notes=tuple(notes),
        )

    def _template(self, tokens: list[str]) -> tuple[int | None, int | None]:
        """Ids that ``post_processor`` puts before and after a text."""
        for step in steps(self._all.post_processor):
            if step.get("type") == "TemplateProcessing":
                single = [part for part in step.get("single") or [] if isinstance(part, dict)]
                ends = [part.get("SpecialToken", {}).get("id") for part in (single[0], single[-1])] if single else []
                numbers = [tokens.index(text) if text in tokens else None for text in ends]
                return (numbers[0], numbers[1]) if numbers else (None, None)
        return None, None


def _from_sentencepiece(path: Path, model: SentencePieceModel, vocabulary: int, settings: _Settings) -> Tokenizer:
    if not model.is_bpe:
        raise ArtifactError(f"{path} is a unigram model; llama.cpp joins by score, as BPE does.", f"{_NEXT}.")
    if model.removes_whitespace:
        raise ArtifactError(f"{path} removes repeated spaces, which llama.cpp does not.", f"{_NEXT}.")
    if len(model.pieces) > vocabulary:
        raise ArtifactError(f"{path} has {len(model.pieces)} tokens; the embedding has {vocabulary} rows.", f"{_NEXT}.")
    pieces = model.pieces
    padding = range(len(pieces), vocabulary)
    tokens = [piece.text for piece in pieces] + [f"[PAD{number}]" for number in padding]
    missing = next((token for token in BYTE_TOKENS if token not in set(tokens)), None)
    twice = _first_repeated(tokens)
    if missing or twice is not None:
        what = f"lacks the byte token {missing}" if missing else f"gives two ids to the token {twice!r}"
        raise ArtifactError(f"{path} {what}.", f"{_NEXT}.")
    ids = settings.ids(tokens, model.ids)
    add_bos, add_eos = settings.flag("add_bos_token"), settings.flag("add_eos_token")
    return Tokenizer(
        family="llama",
        pre="default",
        tokens=tuple(tokens),
        types=tuple(_piece_type(piece.type, piece.text) for piece in pieces) + (UNUSED,) * len(padding),
        scores=tuple(piece.score for piece in pieces) + (float(-len(pieces)),) * len(padding),
        ids=ids,
        add_bos="bos" in ids and add_bos is not False,  # llama.cpp's default for this family
        add_eos="eos" in ids and bool(add_eos),
        add_space_prefix=model.dummy_prefix,
        chat_templates=settings.templates(),
    )


def _piece_type(kind: int, text: str) -> int:
    return NORMAL if kind == USER_DEFINED and SPACE in text else kind


def _first_repeated(tokens: list[str]) -> str | None:
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            return token
        seen.add(token)
    return None


def _content(token: object) -> str | None:
    """``"<s>"`` or ``{"content": "<s>", ...}``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _json_object(path: Path) -> dict[str, Any]:
    """The file's object; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError, OSError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}.", "get it again.") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} holds no object.", "get it again.")
    return document


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as UTF-8: {error}.", "get it again.") from error
