"""What happens inside the child for one generation: tokenize, prefill, choose greedily, say each piece."""

from __future__ import annotations

import codecs
import time
from pathlib import Path

from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.engine.measure import Parent
from edgebench.engine.messages import Finished, GenerateJob, Opened, Phase, Piece
from edgebench.errors import UsageError
from edgebench.runtimes.base import Runtime


def generate(job: GenerateJob, runtime: Runtime, parent: Parent) -> Finished:
    """Generate greedily; pieces are said as they come.

    Raises:
        UsageError: when the prompt does not fit the model's context, or it has no chat template.
        ArtifactError: when the artifact is damaged.
    """
    parent.say(Phase(name="load", t_ns=time.monotonic_ns()))
    path = Path(job.trial.artifact.path)
    vocabulary = Vocabulary(_vocabulary_of(path))
    tokens = _prompt(job, vocabulary)
    model = runtime.open(job.trial, parent.note)
    parent.say(Opened(loaded=model.loaded))
    room = model.loaded.context_trained
    if len(tokens) + job.max_tokens > room:
        raise UsageError(
            f"{len(tokens)} tokens of prompt and {job.max_tokens} of answer do not fit the context of {room}.",
            "shorten the prompt, or give a smaller --max-tokens.",
        )
    parent.say(Phase(name="generate", t_ns=time.monotonic_ns()))
    context = model.context(-(-(len(tokens) + job.max_tokens) // 256) * 256, job.trial.settings)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    started = time.monotonic_ns()
    context.prefill(tokens)
    chosen = [int(context.logits().argmax())]
    first = time.monotonic_ns()
    while not vocabulary.ends(chosen[-1]):
        if text := decoder.decode(vocabulary.piece(chosen[-1])):
            parent.say(Piece(text=text))
        if len(chosen) >= job.max_tokens:
            break
        context.prefill(chosen[-1:])
        chosen.append(int(context.logits().argmax()))
    ended = time.monotonic_ns()
    if text := decoder.decode(b"", final=True):
        parent.say(Piece(text=text))
    context.close()
    model.close()
    vocabulary.close()
    return Finished(
        generated=tuple(chosen),
        prompt_tokens=len(tokens),
        ttft_s=(first - started) / 1e9,
        decode_s=(ended - first) / 1e9,
    )


def _vocabulary_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / "tokenizer.gguf").is_file():
        raise UsageError(
            f"{path} holds no tokenizer.gguf, so it can be profiled and not talked to.",
            "export the model again and read its notes: they say whether, and why not, its tokenizer was taken along.",
        )
    return path / "tokenizer.gguf"


def _prompt(job: GenerateJob, vocabulary: Vocabulary) -> list[int]:
    if not job.chat:
        return vocabulary.tokenize(job.prompt)
    messages = [{"role": "user", "content": job.prompt}]
    if job.system:
        messages.insert(0, {"role": "system", "content": job.system})
    text = vocabulary.chat(messages)
    ids = vocabulary.tokenize(text, add_special=True, parse_special=True)
    # Most templates write the begin-of-sequence token themselves.
    return ids[1:] if ids[:1] == ids[1:2] else ids
