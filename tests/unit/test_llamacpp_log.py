"""The memory split and the failures that llama.cpp tells in its log only."""

from __future__ import annotations

import pytest

from edgebench.records import EngineMemory
from edgebench.runtimes._llamacpp_log import EngineLog

MIB = 1024 * 1024
DEBUG, INFO, WARN, ERROR, CONTINUED = 1, 2, 3, 4, 5

LOAD = """\
load_tensors: loading model tensors, this can take a while... (mmap = true)
load_tensors:   CPU_Mapped model buffer size =   136.40 MiB
load_tensors:   CPU_REPACK model buffer size =    81.00 MiB
"""
CONTEXT = """\
llama_context: n_ctx                 = 512
llama_context:        CPU  output buffer size =     0.19 MiB
llama_kv_cache:        CPU KV buffer size =    11.25 MiB
llama_kv_cache: size =   11.25 MiB (   512 cells,  30 layers,  1/1 seqs), K (f16):    5.62 MiB, V (f16):    5.62 MiB
sched_reserve:        CPU compute buffer size =    14.01 MiB
"""


def log_of(*texts: str, level: int = INFO) -> EngineLog:
    log = EngineLog(lambda _line: None)
    for text in texts:
        log.new_context()
        for line in text.splitlines(keepends=True):
            log.write(level, line)
    return log


def test_memory_is_split_by_what_the_buffers_are_for():
    assert log_of(LOAD, CONTEXT).memory() == EngineMemory(
        weights={"CPU_Mapped": round(136.40 * MIB), "CPU_REPACK": round(81 * MIB)},
        kv=round(11.25 * MIB),
        compute=round(14.01 * MIB),
        output=round(0.19 * MIB),
    )


def test_before_a_context_there_are_weights_only():
    memory = log_of(LOAD).memory()
    assert memory is not None
    assert (memory.kv, memory.compute, memory.output) == (0, 0, 0)


def test_without_a_buffer_line_nothing_is_claimed():
    assert log_of("llama_model_loader: loaded meta data\n").memory() is None


@pytest.mark.parametrize("reverse", [False, True])
def test_the_largest_context_counts_whenever_it_came(reverse: bool):  # noqa: FBT001
    small = CONTEXT.replace("11.25", "5.62").replace("14.01", "7.00")
    contexts = [CONTEXT, small] if not reverse else [small, CONTEXT]
    memory = log_of(LOAD, *contexts).memory()
    assert memory is not None
    assert (memory.kv, memory.compute) == (round(11.25 * MIB), round(14.01 * MIB))


def test_a_cache_in_several_buffers_is_added_up():
    """Sliding-window models have two caches, recurrent ones a state beside it."""
    memory = log_of(LOAD, "kv: CPU KV buffer size = 2.00 MiB\nkv: CPU KV buffer size = 1.00 MiB\n").memory()
    assert memory is not None
    assert memory.kv == 3 * MIB
    memory = log_of(LOAD, "rs: CPU RS buffer size = 0.50 MiB\nkv: CPU KV buffer size = 1.00 MiB\n").memory()
    assert memory is not None
    assert memory.kv == 3 * MIB // 2


def test_the_parts_of_the_account_sum_up():
    memory = log_of(LOAD, CONTEXT).memory()
    assert memory is not None
    assert memory.total == sum(memory.weights.values()) + memory.kv + memory.compute + memory.output


def test_debug_lines_and_what_continues_them_are_dropped():
    heard: list[str] = []
    log = EngineLog(heard.append)
    log.write(DEBUG, "debug: CPU model buffer size = 9.00 MiB")
    log.write(CONTINUED, " and 8.00 MiB\n")
    log.write(INFO, "info\n")
    log.write(CONTINUED, ".....")
    log.write(CONTINUED, "done\n")
    assert heard == ["info", "done"]
    assert log.memory() is None


@pytest.mark.parametrize(
    "line",
    [
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1099511627776",
        "alloc_tensor_range: failed to allocate CPU buffer of size 5",
        "llama_model_load: error loading model: std::bad_alloc",
        "llama_init_from_model: failed to initialize the context: unable to allocate CPU buffer",
        "mmap failed: Cannot allocate memory",
    ],
)
def test_a_refused_allocation_is_recognised_by_its_words(line: str):
    assert log_of(line, level=ERROR).said_out_of_memory()
    assert not log_of(line, level=INFO).said_out_of_memory()


def test_other_errors_are_kept_and_are_no_lack_of_memory():
    log = log_of("llama_model_load: error loading model: unknown model architecture: 'x'\n", level=ERROR)
    assert log.errors == ["llama_model_load: error loading model: unknown model architecture: 'x'"]
    assert not log.said_out_of_memory()
