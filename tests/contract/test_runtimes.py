"""What every runtime keeps, whoever adds it: parametrised over the registry, on a model of a few kilobytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgebench.artifacts.cache import size_of
from edgebench.errors import ArtifactError
from edgebench.records import Fact
from edgebench.registry import load, names
from edgebench.runtimes.base import Context, Model, Runtime
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload

CAPACITY = 256
SETTINGS = Settings(threads=1, threads_batch=1)
RUNTIMES: dict[str, Runtime] = {name: load("runtimes", name).RUNTIME for name in names("runtimes")}
WITH_FILES = [name for name, runtime in RUNTIMES.items() if runtime.formats != ("fake",)]


def trial_of(runtime: Runtime, path: Path, form: str) -> TrialSpec:
    size = size_of(path) if path.exists() else 2000
    artifact = Artifact(model="tiny", precision="f32", format=form, path=str(path), bytes=size, sha256="0" * 64)
    return TrialSpec(
        artifact=artifact, runtime=runtime.name, settings=SETTINGS, workloads=(parse_workload(f"tg{CAPACITY}"),)
    )


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    chosen = RUNTIMES[request.param]
    if not chosen.installed():
        pytest.skip(f"{chosen.name} is not installed: pip install {chosen.package}")
    return chosen


@pytest.fixture
def trial(runtime: Runtime, tiny_gguf: Path, tiny_onnx: Path) -> TrialSpec:
    """A trial on a tiny artifact of a format that the runtime reads."""
    files = {"gguf": tiny_gguf, "onnx": tiny_onnx, "fake": Path("scripted")}
    form = next((form for form in runtime.formats if form in files), None)
    assert form is not None, f"teach this fixture to make a tiny file for {runtime.name}: {runtime.formats}"
    return trial_of(runtime, files[form], form)


@pytest.fixture
def model(runtime: Runtime, trial: TrialSpec) -> Iterator[Model]:
    with closing(runtime.open(trial, lambda _text: None)) as opened:
        yield opened


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with closing(model.context(CAPACITY, SETTINGS)) as made:
        yield made


def some_tokens(model: Model, n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(model.loaded.vocabulary, size=n).tolist()


def assert_same(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
    """Equal up to the rounding of another order of sums and of a cache in half precision."""
    assert np.abs(one - other).max() <= 0.02 * one.std()
    assert one.argmax() == other.argmax()


def greedy(context: Context, prompt: list[int], n: int) -> list[int]:
    context.clear()
    chosen, following = [], prompt
    for _ in range(n):
        context.prefill(following)
        following = [int(context.logits().argmax())]
        chosen += following
    return chosen


# --- what it says about itself ----------------------------------------------------------------------------------------


def test_it_is_called_like_its_file(runtime: Runtime):
    assert RUNTIMES[runtime.name] is runtime
    assert runtime.formats


def test_it_knows_its_version_and_build_or_why_not(runtime: Runtime):
    assert isinstance(runtime.version(), Fact)
    assert isinstance(runtime.build(), Fact)


def test_listing_runtimes_imports_no_engine():
    probe = (
        "import sys; from edgebench.registry import load, names\n"
        "all_of_them = [load('runtimes', name).RUNTIME.installed() for name in names('runtimes')]\n"
        "print(*sorted({'llama_cpp', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_it_says_what_it_loaded(runtime: Runtime, model: Model, trial: TrialSpec):
    loaded = model.loaded
    assert loaded.load_s >= 0
    assert loaded.parameters > 0
    assert 0 < loaded.weight_bytes <= trial.artifact.bytes
    assert 1 <= loaded.bits_per_weight <= 32
    assert loaded.context_trained > 0
    assert loaded.vocabulary > 1
    assert loaded.architecture
    assert loaded.description
    assert model.first_token is None or 0 <= model.first_token < loaded.vocabulary


# --- tokens and logits ------------------------------------------------------------------------------------------------


def test_a_prompt_in_two_parts_is_the_same_prompt(model: Model, context: Context):
    tokens = some_tokens(model, 40)
    context.prefill(tokens)
    whole = context.logits()
    for cut in (1, 17, 39):
        context.clear()
        context.prefill(tokens[:cut])
        context.prefill(tokens[cut:])
        assert_same(whole, context.logits())


def test_tokens_one_by_one_are_the_same_prompt(model: Model, context: Context):
    tokens = some_tokens(model, 20)
    context.prefill(tokens)
    whole = context.logits()
    context.clear()
    context.time_decode(tokens)
    assert_same(whole, context.logits())


def test_another_prompt_gives_other_logits(model: Model, context: Context):
    context.prefill(some_tokens(model, 20, seed=1))
    one = context.logits()
    context.clear()
    context.prefill(some_tokens(model, 20, seed=2))
    assert np.abs(one - context.logits()).max() > 0.1 * one.std()


def test_logits_are_finite_one_for_each_word_and_a_copy(model: Model, context: Context):
    context.prefill(some_tokens(model, 8))
    logits = context.logits()
    kept = logits.copy()
    assert logits.shape == (model.loaded.vocabulary,)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    context.prefill(some_tokens(model, 8, seed=3))
    assert (logits == kept).all()


def test_greedy_twice_gives_the_same_tokens(model: Model, context: Context):
    prompt = some_tokens(model, 12)
    assert greedy(context, prompt, 16) == greedy(context, prompt, 16)


def test_greedy_gives_the_same_tokens_in_a_model_loaded_again(runtime: Runtime, trial: TrialSpec):
    chosen = []
    for _ in range(2):
        with (
            closing(runtime.open(trial, lambda _text: None)) as model,
            closing(model.context(CAPACITY, SETTINGS)) as context,
        ):
            chosen.append(greedy(context, some_tokens(model, 12), 16))
    assert chosen[0] == chosen[1]


def test_clear_forgets_everything(model: Model, context: Context):
    tokens = some_tokens(model, 30)
    context.prefill(tokens)
    fresh = context.logits()
    context.prefill(some_tokens(model, 100, seed=2))
    context.clear()
    context.prefill(tokens)
    assert_same(fresh, context.logits())


def test_a_saved_cache_comes_back(model: Model, context: Context):
    context.prefill(some_tokens(model, 50))
    filled = context.save()
    context.prefill(some_tokens(model, 10, seed=2))
    once = context.logits()
    for _ in range(2):
        context.clear()
        context.prefill(some_tokens(model, 70, seed=9))
        context.clear()
        context.restore(filled)
        context.prefill(some_tokens(model, 10, seed=2))
        assert_same(once, context.logits())


def test_a_restored_cache_takes_the_room_that_it_took(model: Model, context: Context):
    context.prefill(some_tokens(model, CAPACITY - 8))
    filled = context.save()
    context.clear()
    context.restore(filled)
    context.prefill(some_tokens(model, 8))
    with pytest.raises(RuntimeError):
        context.prefill(some_tokens(model, 1))


def test_threads_change_the_speed_at_most(model: Model, context: Context):
    tokens = some_tokens(model, 40)
    context.prefill(tokens)
    alone = context.logits()
    context.set_threads(2, 2)
    context.clear()
    context.prefill(tokens)
    assert_same(alone, context.logits())
    context.set_threads(1, 1)
    context.clear()
    context.prefill(tokens)
    assert_same(alone, context.logits())


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 33])
def test_decode_has_one_step_for_each_token(model: Model, context: Context, n: int):
    start, end, steps = context.time_decode(some_tokens(model, n))
    assert len(steps) == n
    assert all(step > 0 for step in steps)
    assert sum(steps) == end - start


@pytest.mark.parametrize("n", [1, 64, CAPACITY])
def test_prefill_is_timed_from_start_to_the_last_batch_and_the_first_token_comes_after(
    model: Model, context: Context, n: int
):
    start, end, steps, first_token_ns = context.time_prefill(some_tokens(model, n))
    assert 1 <= len(steps) <= n
    assert all(step > 0 for step in steps)
    assert sum(steps) == end - start
    assert first_token_ns >= end - start


def test_a_timed_prefill_leaves_the_same_cache_as_an_untimed_one(model: Model, context: Context):
    tokens = some_tokens(model, 64)
    context.prefill(tokens)
    untimed = context.logits()
    context.clear()
    context.time_prefill(tokens)
    assert_same(untimed, context.logits())


# --- limits and ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["prefill", "time_prefill", "time_decode"])
def test_more_tokens_than_the_context_holds_are_an_error_and_no_crash(model: Model, context: Context, call: str):
    with pytest.raises(RuntimeError):
        getattr(context, call)(some_tokens(model, CAPACITY + 1))
    context.clear()
    context.prefill(some_tokens(model, 8))
    assert np.isfinite(context.logits()).all()


def test_a_full_context_takes_no_more(model: Model, context: Context):
    context.prefill(some_tokens(model, CAPACITY))
    with pytest.raises(RuntimeError):
        context.time_decode(some_tokens(model, 1))


def test_two_contexts_of_one_model_do_not_mix(model: Model):
    tokens = some_tokens(model, 20)
    with closing(model.context(CAPACITY, SETTINGS)) as one, closing(model.context(2 * CAPACITY, SETTINGS)) as other:
        one.prefill(tokens)
        alone = one.logits()
        other.prefill(some_tokens(model, 50, seed=4))
        one.clear()
        one.prefill(tokens)
        assert_same(alone, one.logits())


def test_its_own_account_of_memory_is_plausible(model: Model, trial: TrialSpec):
    with closing(model.context(CAPACITY, SETTINGS)):
        small = model.memory()
    with closing(model.context(8 * CAPACITY, SETTINGS)):
        large = model.memory()
    if small is None or large is None:
        return  # an engine that does not tell says so
    assert min(*small.weights.values(), small.kv, small.compute, small.output) >= 0
    assert small.total == sum(small.weights.values()) + small.kv + small.compute + small.output
    assert 0 < small.total < 2**30
    assert large.weights == small.weights
    assert large.kv >= small.kv


def test_closing_twice_is_fine(runtime: Runtime, trial: TrialSpec):
    model = runtime.open(trial, lambda _text: None)
    context = model.context(CAPACITY, SETTINGS)
    for _ in range(2):
        context.close()
    for _ in range(2):
        model.close()


@pytest.mark.parametrize("name", WITH_FILES)
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "text", "truncated"])
def test_a_file_that_is_no_model_is_an_artifact_error_that_names_it(
    name: str, what: str, tmp_path: Path, tiny_gguf: Path
):
    path = tmp_path / "no-model.gguf"
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        whole = tiny_gguf.read_bytes()
        path.write_bytes({"empty": b"", "text": b"no model", "truncated": whole[: len(whole) // 2]}[what])
    runtime = RUNTIMES[name]
    with pytest.raises(ArtifactError) as refused:
        runtime.open(trial_of(runtime, path, runtime.formats[0]), lambda _text: None)
    assert str(path) in refused.value.what
    assert refused.value.next_step
