"""Any run that the types allow is read back as it was stored, whatever its numbers and texts are."""

from __future__ import annotations

import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebench.cli import _runs_export, _runs_text
from edgebench.errors import StoreError
from edgebench.records import SCHEMA, Block, Energy, Fact, Run
from edgebench.specs import Plan, Protocol
from edgebench.store import Session, Store, decode_run, encode_run
from edgebench.store.encoding import sha256

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(-(2**63), 2**63 - 1)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    int: COUNTS,
    float: NUMBERS | COUNTS.map(float),
    bool: st.booleans(),
    type(None): st.none(),
}


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one exit for each kind of annotation
    """Values of an annotation: scalars, literals, unions, tuples, mappings and structs of them."""
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is Fact:
        known = st.builds(Fact, value=values(str) | values(int) | values(float))
        return known | st.builds(Fact, unknown_because=st.text(min_size=1, max_size=20))
    if kind is Energy:
        return energies()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    return structs(kind)


def structs(kind: type[msgspec.Struct], **given_fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {name: values(hints[name]) for name in kind.__struct_fields__}
    return st.builds(kind, **{**fields, **given_fields})


def energies() -> st.SearchStrategy[Energy]:
    unmeasured = structs(Energy, energy_j=st.none(), reason=st.text(min_size=1, max_size=20))
    return structs(Energy, energy_j=NUMBERS, reason=st.just("")) | unmeasured


RUNS = structs(Run, schema=st.just(SCHEMA))
SOME = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=30
)


@SOME
@given(RUNS)
def test_load_of_dump_is_the_run(run: Run):
    assert decode_run(encode_run(run)) == run


@SOME
@given(RUNS)
def test_equal_runs_have_equal_digests_whatever_the_order_of_their_mappings(run: Run):
    environment = dict(reversed(run.provenance.environment.items()))
    turned = msgspec.structs.replace(run, provenance=msgspec.structs.replace(run.provenance, environment=environment))
    assert turned == run
    assert sha256(encode_run(turned)) == sha256(encode_run(run))


@SOME
@given(RUNS)
def test_the_published_schema_accepts_every_run(run: Run):
    document = msgspec.json.decode(encode_run(run))
    jsonschema.Draft202012Validator(_runs_export.run_schema()).validate(document)


@SOME
@given(RUNS, st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.sampled_from(["sampler", "evidence"]))
def test_no_number_that_json_cannot_carry_gets_in(run: Run, number: float, place: str):
    if place == "sampler":
        broken = msgspec.structs.replace(run, sampler_cost_s=number)
    else:
        energy = msgspec.structs.replace(run.energy, j_per_token={"tg128": number})
        broken = msgspec.structs.replace(run, energy=energy)
    with pytest.raises(StoreError):
        encode_run(broken)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> typing.Iterator[Store]:
    path: Path = tmp_path_factory.mktemp("store") / "results.db"
    with Store.open(str(path)) as opened:
        opened.begin_session(
            Session(
                session_id="s",
                created_utc="now",
                command=(),
                plan=Plan(trials=(), protocol=Protocol()),
                device_profile="generic",
            )
        )
        yield opened


@SOME
@given(RUNS)
def test_a_store_gives_back_what_it_was_given(store: Store, run: Run):
    known = len(list(store.runs()))
    run = msgspec.structs.replace(run, session_id="s", run_id=f"{known}-{run.run_id}")
    store.record(run)
    assert store.run(run.run_id) == run
    assert list(store.runs())[-1] == run


@SOME
@given(structs(Block, t0_ns=st.integers(0, 2**40), t1_ns=st.integers(2**41, 2**42)), RUNS)
def test_every_run_can_be_exported_as_rows(block: Block, run: Run):
    run = msgspec.structs.replace(run, blocks=(block, block))
    assert len(_runs_text.block_figures(run)) == 2
    lines = list(_runs_export.csv_lines([run, msgspec.structs.replace(run, blocks=())]))
    assert len(lines) == 4


@SOME
@given(structs(Block, t0_ns=st.integers(0, 2**40), t1_ns=st.integers(2**41, 2**42)), RUNS)
def test_every_run_can_be_shown(block: Block, run: Run):
    run = msgspec.structs.replace(run, blocks=(block,))
    _runs_text.print_run(run)
    _runs_text.print_runs([_runs_text.summary(run)], "none")
