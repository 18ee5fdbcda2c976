"""One generation from end to end: prepare the artifact, let a child generate, say how fast it was."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgebench.derive import quantizer_version
from edgebench.engine.child import run_job
from edgebench.engine.messages import GenerateJob, Piece, Reply
from edgebench.engine.protocol import Limits
from edgebench.host import Host
from edgebench.plan import Preparer, Request, Teller, settings_for
from edgebench.records import Fact, Failure
from edgebench.topology import default_threads, read_topology
from edgebench.units import format_rate, format_seconds


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was generated, and how fast. One run: a look, not a measurement."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    ttft_s: float | None
    decode_tokens_per_s: float | None
    artifact: str
    runtime: str
    threads: int
    failure: Failure | None = None

    @property
    def speed(self) -> str:
        """One line for people."""
        decode = "" if self.decode_tokens_per_s is None else f", decode {format_rate(self.decode_tokens_per_s)} tok/s"
        first = "" if self.ttft_s is None else f"first token after {format_seconds(self.ttft_s)}"
        return (
            f"{self.artifact} on {self.runtime}, {self.threads} threads: {self.prompt_tokens} tokens of prompt, "
            f"{len(self.tokens)} of answer; {first}{decode} (one run, not a measurement)"
        )


def generate(
    request: Request,
    prompt: str,
    teller: Teller,
    hear: Callable[[Reply], None],
    *,
    chat: bool,
    system: str,
    max_tokens: int,
) -> Answer:
    """Generate greedily with the first runtime of the request.

    Args:
        request: one model, one precision.
        prompt: what to continue.
        teller: told about preparation.
        hear: given each message of the child, pieces of text among them.
        chat: put the prompt into the model's chat template.
        system: the system message.
        max_tokens: the longest answer.

    Raises:
        EdgebenchError: when the request or the model is wrong.
    """
    host = Host()
    topology = read_topology(host)
    preparer = Preparer(request, host, topology, teller)
    preparer.keep_first_runtime()
    preparer.make(Fact(value=quantizer_version(host)))
    threads = request.threads or default_threads(topology)[0]
    settings = {r.name: settings_for(request, topology, r, threads, threads) for r in preparer.runtimes}
    prepared = preparer.trials(settings)
    trial = prepared.trials[0] if prepared.trials else prepared.rejected[0].trial
    pieces: list[str] = []

    def take(message: Reply) -> None:
        if isinstance(message, Piece):
            pieces.append(message.text)
        hear(message)

    failure = prepared.rejected[0].failure if not prepared.trials else None
    finished = None
    if failure is None:
        job = GenerateJob(trial=trial, prompt=prompt, system=system, chat=chat, max_tokens=max_tokens)
        ended = run_job(job, host, Limits(), take)
        failure, finished = ended.failure, ended.attempt.finished
    steps = len(finished.generated) - 1 if finished else 0
    return Answer(
        text="".join(pieces),
        tokens=finished.generated if finished else (),
        prompt_tokens=finished.prompt_tokens if finished else 0,
        ttft_s=finished.ttft_s if finished else None,
        decode_tokens_per_s=steps / finished.decode_s if finished and steps > 0 and finished.decode_s > 0 else None,
        artifact=f"{trial.artifact.model} {trial.artifact.precision}",
        runtime=trial.runtime,
        threads=trial.settings.threads,
        failure=failure,
    )
