"""What crosses the pipe between parent and child: it arrives as it was sent, and nothing else is taken for it."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from edgebench.engine.messages import (
    About,
    AboutJob,
    Advance,
    ExportJob,
    Failed,
    Finished,
    GenerateJob,
    Job,
    Measured,
    MeasureJob,
    Opened,
    Phase,
    Piece,
    QuantizeJob,
    Ready,
    Reply,
    ThreadSearchJob,
    Timed,
)
from edgebench.records import Block, Edge, EngineMemory, Fact, Loaded, MemoryPhase
from edgebench.specs import Artifact, Calibration, Settings, TrialSpec, parse_workload

TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="gguf", path="/a b/ü.gguf", bytes=1, sha256="00"),
    runtime="fake",
    settings=Settings(threads=2, threads_batch=2, cpus=(0, 1)),
    workloads=(parse_workload("pp100"), parse_workload("tg10@d5")),
    script={"tg_token_s": 0.1},
)
EDGE = Edge(
    t_ns=2**62,
    own_cpu_s=0.1,
    run_delay_s=None,
    busy_s=1e9,
    steal_s=0.0,
    cpu_pressure_s=None,
    major_faults=3,
    swapped_in_pages=None,
)
BLOCK = Block(
    workload="tg10@d5", index=1, tokens=10, start=EDGE, end=EDGE, t0_ns=1, t1_ns=2, step_ns=(1, 2**60), ttft_ns=7
)
JOBS: list[Job] = [
    MeasureJob(trial=TRIAL, round=3, budget_s=0.5),
    ThreadSearchJob(trial=TRIAL, counts=(1, 2, 4)),
    QuantizeJob(source="/a\nb", target="c", precision="q8_0", threads=2),
    QuantizeJob(
        source="/a",
        target="c",
        precision="iq2_xs",
        threads=2,
        calibration=Calibration(name="ü.txt", text='a\n\u2028ü"', sha256="0f"),
    ),
    ExportJob(source="/a b", target="/c", to="onnx", precision="int4", context=10),
    ExportJob(source="/a b", target="/c.gguf", to="gguf", precision="bf16"),
    GenerateJob(trial=TRIAL, prompt="a\nü", system="s", chat=True, max_tokens=3),
    AboutJob(runtime="llamacpp"),
]
REPLIES: list[Reply] = [
    Phase(name="load", t_ns=1),
    Ready(workload="tg10", index=0),
    About(version=Fact(value="1\n2"), build=Fact(unknown_because="it does not say")),
    Opened(
        loaded=Loaded(
            load_s=0.1,
            parameters=10**12,
            weight_bytes=5,
            context_trained=1,
            vocabulary=2,
            architecture="x",
            description="ü",
        )
    ),
    Timed(block=BLOCK),
    Measured(phase=MemoryPhase(phase="load", rss_peak=None, anon=1, file=2, swap=0, pss=None)),
    Advance(done=1, total=2, unit="chunks of text"),
    Piece(text="line\nü"),
    Finished(engine_memory=EngineMemory(weights={"CPU": 1}, kv=2, compute=3, output=4), greedy=(1, 2), notes=("a\nb",)),
    Failed(kind="python-error", says="line\nline", next_step="x", detail="Traceback\n..."),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_a_job_is_one_line_and_arrives_as_it_was_sent(job: Job):
    line = msgspec.json.encode(job)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Job) == job


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_a_reply_is_one_line_and_arrives_as_it_was_sent(reply: Reply):
    line = msgspec.json.encode(reply)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Reply) == reply


def test_every_kind_of_message_is_tried_here():
    assert {type(job) for job in JOBS} == set(get_args(Job))
    assert {type(reply) for reply in REPLIES} == set(get_args(Reply))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"ggml: hello",
        b"null",
        b"{}",
        b'{"say":"unheard-of"}',
        b'{"say":"phase","name":"load"}',
        b'{"say":"phase","name":"load","t_ns":"soon"}',
        b'{"say":"ready","workload":"tg10","index":0',
        msgspec.json.encode(JOBS[0]),
    ],
)
def test_what_is_no_reply_is_refused(line: bytes):
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(line, type=Reply)
