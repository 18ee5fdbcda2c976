"""What the documents claim: the README names every verb, option and file; histories know the present."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import edgebench
from edgebench import records
from edgebench.cli import cli

ROOT = Path(__file__).resolve().parent.parent
MAIN_JOB = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/edgebench profile --device cpu"
TESTS = "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest"


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(command: click.Command = cli, path: str = "edgebench") -> Iterator[tuple[str, click.Command]]:
    """Every verb and sub-verb with its full name, from click's own tree."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}")


COMMANDS = dict(commands())


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMANDS)
def test_the_readme_names_every_verb(path):
    assert re.search(rf"{re.escape(path)}(?![\w-])", read("README.md"))


@pytest.mark.parametrize("path", COMMANDS)
def test_the_readme_names_every_option(path):
    options = [parameter for parameter in COMMANDS[path].params if isinstance(parameter, click.Option)]
    longest = [max((*option.opts, *option.secondary_opts), key=len) for option in options if not option.hidden]
    missing = [name for name in longest if not re.search(rf"(?<![\w-]){name}(?![\w-])", read("README.md"))]
    assert not missing


@pytest.mark.parametrize("path", COMMANDS)
def test_every_verb_and_option_says_what_it_does(path):
    assert COMMANDS[path].help
    silent = [p.name for p in COMMANDS[path].params if isinstance(p, click.Option) and not p.help]
    assert not silent


def test_the_readme_names_no_option_that_does_not_exist():
    """Of edgebench: lines of other programs in it are told by their first word."""
    known = {name for command in COMMANDS.values() for p in command.params for name in (*p.opts, *p.secondary_opts)}
    calls = re.findall(r"edgebench (?:profile|models|devices|runs|doctor|completion)[^\n`&|]*", read("README.md"))
    named = {name for call in calls for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", call)}
    assert named - known - {"--help"} == set()


def test_the_readme_gives_the_two_commands():
    assert MAIN_JOB in read("README.md")
    assert TESTS in read("README.md")


# --- the tree ---------------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """One line of the tree in the README: ``edgebench/`` or ``edgebench/errors.py``, and what it is."""

    path: str
    comment: str


def listed() -> list[Listed]:
    """The tree: the fenced block that has a line ``edgebench/``; two blanks per level, ``name  comment``."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", read("README.md"), flags=re.DOTALL | re.MULTILINE)
    trees = [block for block in blocks if re.search(r"^edgebench/(\s|$)", block, flags=re.MULTILINE)]
    assert len(trees) == 1, "the README has no file tree"
    found, folders = [], []
    for line in filter(str.strip, trees[0].splitlines()):
        match = re.fullmatch(r"(?P<indent> *)(?P<names>\S+(?: \S+)*)(?:\s{2,}(?P<comment>\S.*))?", line)
        assert match is not None, line
        depth = len(match["indent"]) // 2
        for name in match["names"].split(" "):
            folders[depth:] = [name] if name.endswith("/") else []
            parents = folders[:depth]
            found.append(Listed("".join([*parents, name]), match["comment"] or ""))
    return found


def on_disk() -> list[str]:
    """Files of the project, as ``.gitignore`` sees them."""
    ignored = [line.rstrip("/") for line in read(".gitignore").splitlines()]
    found, folders = [], [ROOT]
    while folders:
        for path in folders.pop().iterdir():
            if path.name == ".git" or any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored):
                continue
            if path.is_dir():
                folders.append(path)
            else:
                found.append(path.relative_to(ROOT).as_posix())
    return found


def test_the_tree_in_the_readme_has_a_comment_per_line():
    assert not [entry.path for entry in listed() if not entry.comment]


def test_the_tree_in_the_readme_names_only_what_exists():
    assert not [entry.path for entry in listed() if not (ROOT / entry.path).exists()]


def test_the_tree_in_the_readme_names_everything():
    """A folder without lines of its own stands for all that is in it."""
    paths = {entry.path for entry in listed()}
    closed = {path for path in paths if path.endswith("/") and not any(p.startswith(path) for p in paths - {path})}
    dull = {"LICENSE", "README.md", ".gitignore"}
    missing = [
        path
        for path in on_disk()
        if path not in paths | dull
        and not path.endswith("/__init__.py")
        and not any(path.startswith(folder) for folder in closed)
    ]
    assert not missing


# --- histories --------------------------------------------------------------------------------------------------------


def test_the_changelog_begins_with_the_current_version():
    headings = re.findall(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == edgebench.__version__


def test_the_history_of_records_begins_with_the_current_schema():
    history = (records.__doc__ or "").split("SCHEMA history (newest first):", 1)[1]
    versions = [int(number) for number in re.findall(r"^    (\d+)  ", history, flags=re.MULTILINE)]
    assert versions == list(range(records.SCHEMA, 0, -1))


def test_the_changelog_tells_of_the_current_schema():
    assert f"SCHEMA {records.SCHEMA}" in read("CHANGELOG.md")


def test_every_past_schema_has_a_golden_record():
    golden = {int(path.stem.rsplit("-", 1)[1]) for path in (ROOT / "tests/golden").glob("run-schema-*.json")}
    assert golden == set(range(1, records.SCHEMA + 1))


def test_contributing_names_only_files_that_exist():
    named = re.findall(
        r"`((?:edgebench|tests|models|profiles|scripts|kernels|\.ci)/[\w./-]+)`", read("CONTRIBUTING.md")
    )
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_contributing_gives_the_same_test_command():
    assert TESTS in read("CONTRIBUTING.md")
