"""Every way in which a child can end, judged without a process."""

from __future__ import annotations

import signal
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench.engine.messages import About, Failed, Finished, Measured, Opened, Phase, Ready, Reply, Timed
from edgebench.engine.protocol import Attempt, Exit, Limits
from edgebench.records import Block, Edge, Fact, Failure, Loaded, MemoryPhase, Outcome

SECOND = 10**9
LIMITS = Limits(load_s=10, block_s=100)


def edge(t_ns: int) -> Edge:
    return Edge(
        t_ns=t_ns,
        own_cpu_s=0.0,
        run_delay_s=None,
        busy_s=None,
        steal_s=None,
        cpu_pressure_s=None,
        major_faults=0,
        swapped_in_pages=None,
    )


def block(workload: str = "tg8", index: int = 0) -> Block:
    return Block(
        workload=workload,
        index=index,
        tokens=8,
        start=edge(0),
        end=edge(9),
        t0_ns=1,
        t1_ns=8,
        step_ns=(1,) * 7,
    )


LOADED = Loaded(
    load_s=0.1,
    parameters=1000,
    weight_bytes=500,
    context_trained=512,
    vocabulary=16,
    architecture="llama",
    description="tiny",
)
ABOUT = About(version=Fact(value="1"), build=Fact(unknown_because="it does not say"))
WHOLE: list[Reply] = [
    ABOUT,
    Phase(name="load", t_ns=1),
    Opened(loaded=LOADED),
    Measured(phase=MemoryPhase(phase="load", rss_peak=1, anon=1, file=1, swap=0)),
    Phase(name="tg8", t_ns=2),
    Ready(workload="tg8", index=0),
    Timed(block=block()),
    Phase(name="end", t_ns=3),
    Finished(greedy=(1, 2)),
]


def attempt(*messages: Reply, heard_ns: int = 0) -> Attempt:
    made = Attempt(limits=LIMITS, heard_ns=heard_ns)
    for message in messages:
        made.hear(message, heard_ns)
    return made


def failure_of(made: Attempt, **end: Any) -> tuple[Outcome, Failure]:
    outcome, failure = made.conclude(Exit(**end))
    assert failure is not None
    return outcome, failure


# --- what is collected ------------------------------------------------------------------------------------------------


def test_a_whole_conversation_is_collected_and_is_ok():
    made = attempt(*WHOLE)
    assert made.conclude(Exit(status=0)) == ("ok", None)
    assert made.loaded == LOADED
    assert made.about == ABOUT
    assert made.blocks == [block()]
    assert [mark.name for mark in made.marks] == ["load", "tg8", "end"]
    assert [phase.phase for phase in made.memory] == ["load"]
    assert made.finished == Finished(greedy=(1, 2))


def test_what_was_measured_before_a_death_is_kept():
    made = attempt(*WHOLE[:-2])
    outcome, failure = failure_of(made, signal=signal.SIGKILL)
    assert outcome == "killed"
    assert made.blocks == [block()]
    assert "'tg8'" in failure.says


def test_messages_in_an_odd_order_are_taken_as_they_come():
    made = attempt(*reversed(WHOLE))
    assert made.blocks == [block()]
    assert made.conclude(Exit(status=0)) == ("ok", None)


# --- how it ended -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "oom_kills", "outcome", "kind"),
    [
        (signal.SIGKILL, 1, "oom", "oom-killed"),
        (signal.SIGKILL, 0, "killed", "sigkill"),
        (signal.SIGTERM, 0, "killed", "sigterm"),
        (signal.SIGINT, 0, "killed", "sigint"),
        (signal.SIGHUP, 0, "killed", "sighup"),
        (signal.SIGILL, 0, "failed", "illegal-instruction"),
        (signal.SIGSEGV, 0, "failed", "native-abort"),
        (signal.SIGABRT, 0, "failed", "native-abort"),
        (signal.SIGBUS, 0, "failed", "native-abort"),
        (signal.SIGFPE, 0, "failed", "native-abort"),
        (signal.SIGSEGV, 1, "failed", "native-abort"),
    ],
)
def test_a_signal_tells_how_it_died(number: signal.Signals, oom_kills: int, outcome: str, kind: str):
    made = attempt(*WHOLE[:2])
    judged, failure = failure_of(made, signal=number, oom_kills=oom_kills, stderr_tail="the end of its log")
    assert (judged, failure.kind, failure.signal) == (outcome, kind, number)
    assert failure.phase == "load"
    assert failure.log_tail == "the end of its log"
    assert number.name in failure.says or outcome == "oom"


def test_a_signal_without_a_name_is_told_by_its_number():
    _, failure = failure_of(attempt(), signal=63 if 63 not in signal.valid_signals() else 999)
    assert "signal 63" in failure.says or "signal 999" in failure.says


def test_a_real_time_signal_is_told_by_its_number():
    _, failure = failure_of(attempt(), signal=int(signal.SIGRTMIN) + 1)
    assert str(int(signal.SIGRTMIN) + 1) in failure.says


@pytest.mark.parametrize(
    "said",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1099511627776",
    ],
)
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_after_a_refused_allocation_is_out_of_memory(said: str, number: signal.Signals):
    outcome, failure = failure_of(attempt(*WHOLE[:2]), signal=number, stderr_tail=said)
    assert (outcome, failure.kind) == ("oom", "alloc-failed")


def test_an_abort_quotes_the_last_thing_that_was_said():
    said = "load: reading\n/builds/llama.cpp/src/llama-hparams.cpp:42: GGML_ASSERT(il < n_layer) failed\n"
    _, failure = failure_of(attempt(*WHOLE[:2]), signal=signal.SIGABRT, stderr_tail=said)
    assert failure.says.endswith("in phase 'load': llama-hparams.cpp:42: GGML_ASSERT(il < n_layer) failed")


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("python-error", "failed"), ("bad-artifact", "failed"), ("engine-error", "failed"), ("alloc-failed", "oom")],
)
def test_an_error_that_python_caught_is_told_in_its_own_words(kind: Any, outcome: str):
    said = Failed(kind=kind, says="it went wrong", next_step="do it right.", detail="Traceback...")
    judged, failure = failure_of(attempt(*WHOLE[:2], said), status=1, stderr_tail="noise")
    assert judged == outcome
    assert (failure.kind, failure.says, failure.next_step) == (kind, "it went wrong", "do it right.")
    assert failure.log_tail == "Traceback..."


def test_without_a_traceback_the_end_of_the_log_is_kept():
    said = Failed(kind="bad-artifact", says="no", next_step="yes.")
    _, failure = failure_of(attempt(said), status=1, stderr_tail="what the engine said")
    assert failure.log_tail == "what the engine said"


def test_an_error_before_a_crash_at_exit_is_the_error():
    said = Failed(kind="bad-artifact", says="no", next_step="yes.")
    outcome, failure = failure_of(attempt(said), signal=signal.SIGSEGV)
    assert (outcome, failure.kind) == ("failed", "bad-artifact")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_an_end_without_an_explanation_is_a_failure(status: int):
    outcome, failure = failure_of(attempt(*WHOLE[:-1]), status=status)
    assert (outcome, failure.kind) == ("failed", "protocol")
    assert f"status {status}" in failure.says


@pytest.mark.parametrize("end", [{"status": 1}, {"signal": signal.SIGSEGV}, {"signal": signal.SIGKILL}])
def test_a_child_that_finished_and_then_died_is_not_ok(end: dict[str, int]):
    outcome, _ = failure_of(attempt(*WHOLE), **end)
    assert outcome != "ok"


def test_nonsense_is_a_failure_even_after_the_end():
    made = attempt(*WHOLE)
    made.nonsense = "JSON is malformed"
    outcome, failure = failure_of(made, status=0)
    assert (outcome, failure.kind) == ("failed", "protocol")
    assert "JSON is malformed" in failure.says


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "allowed_s"),
    [
        ([], 10),
        ([Phase(name="load", t_ns=0)], 10),
        ([Phase(name="quantize", t_ns=0)], 10),
        ([Phase(name="tg8", t_ns=0)], 100),
        ([Ready(workload="tg8", index=1)], 100),
        ([Phase(name="end", t_ns=0)], 100),
    ],
)
def test_silence_is_allowed_for_as_long_as_the_phase_may_take(messages: list[Reply], allowed_s: int):
    made = attempt(*messages, heard_ns=5)
    assert made.deadline_ns() == 5 + allowed_s * SECOND
    assert not made.expire(4 + allowed_s * SECOND)
    assert made.expire(5 + allowed_s * SECOND)
    outcome, failure = failure_of(made, signal=signal.SIGKILL, oom_kills=1)
    assert (outcome, failure.kind) == ("timeout", "timeout")
    assert f"{allowed_s} s in phase" in failure.says


def test_every_message_is_a_sign_of_life():
    made = attempt()
    for second in range(0, 50, 9):
        assert not made.expire(second * SECOND)
        made.hear(ABOUT, second * SECOND)
    assert made.deadline_ns() == 55 * SECOND


def test_a_time_out_is_not_taken_back():
    made = attempt()
    assert made.expire(11 * SECOND)
    made.hear(WHOLE[-1], 11 * SECOND)
    assert made.expire(11 * SECOND)
    assert failure_of(made, status=0)[0] == "timeout"


# --- all of it --------------------------------------------------------------------------------------------------------

texts = st.text(max_size=8)
messages = st.one_of(
    st.sampled_from(WHOLE),
    st.builds(Phase, name=texts, t_ns=st.integers(0, 9)),
    st.builds(Ready, workload=texts, index=st.integers(0, 3)),
    st.builds(
        Failed,
        kind=st.sampled_from(["python-error", "bad-artifact", "alloc-failed", "engine-error"]),
        says=texts,
        next_step=texts,
        detail=texts,
    ),
)
ends = st.builds(
    Exit,
    status=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 70),
    oom_kills=st.integers(0, 2),
    stderr_tail=texts,
)


@given(heard=st.lists(st.tuples(messages, st.integers(0, 200)), max_size=12), end=ends, nonsense=st.just("") | texts)
def test_whatever_a_child_does_it_has_one_outcome_and_a_failure_unless_ok(
    heard: list[tuple[Reply, int]], end: Exit, nonsense: str
):
    made, now = Attempt(limits=LIMITS, heard_ns=0), 0
    for message, seconds in heard:
        now += seconds * SECOND
        if made.expire(now):
            break
        made.hear(message, now)
    made.nonsense = nonsense
    outcome, failure = made.conclude(end)
    assert outcome in get_args(Outcome)
    assert (outcome == "ok") == (failure is None)
    assert (outcome, failure) == made.conclude(end)
    if outcome == "ok":
        assert made.finished is not None
        assert end.status == 0
    if failure is not None:
        assert failure.kind
        assert failure.phase == made.phase
