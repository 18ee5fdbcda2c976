"""The exception tree. Each error says what happened, where, and the next step; each has an exit code.

    EdgebenchError                 exit
    ├── UsageError                  2    the request itself is wrong
    │   └── UnknownNameError        2    a name that nothing answers to ("did you mean")
    ├── NothingMeasured             3    every trial failed
    ├── SomeTrialsFailed            4    at least one trial failed, at least one did not
    ├── HostError                   5    this machine lacks something
    │   ├── MissingDependency       5    a package or program that is not installed
    │   ├── CacheError              5    the artifact cache cannot be used
    │   ├── StoreError              5    the result store cannot be used
    │   └── FetchError              5    an artifact cannot be obtained
    └── ArtifactError               3    a model file that is not what it should be

Only ``edgebench.cli`` turns an error into text and an exit code; library code neither prints nor exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgebenchError(Exception):
    """What happened and the next step, as two separate sentences.

    Args:
        what: one sentence: what happened and where.
        next_step: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.what} Next: {self.next_step}"


class UsageError(EdgebenchError):
    """The request is wrong: exit code 2."""

    exit_code = 2


class UnknownNameError(UsageError):
    """No model, precision, runtime, workload... has this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
        guess = f"did you mean {close[0]!r}? " if close else ""
        self.kind, self.name, self.known = kind, name, names
        super().__init__(
            f"There is no {kind} {name!r}.",
            f"{guess}known: {', '.join(names) or 'none'}{'; ' + hint if hint else ''}.",
        )


class NothingMeasured(EdgebenchError):
    """Every trial failed: exit code 3."""

    exit_code = 3


class SomeTrialsFailed(EdgebenchError):
    """Some trials failed and some did not: exit code 4."""

    exit_code = 4


class ArtifactError(EdgebenchError):
    """A model file that is truncated, damaged, or not a model at all."""

    exit_code = 3


class HostError(EdgebenchError):
    """This machine lacks something: exit code 5."""

    exit_code = 5


class MissingDependency(HostError):
    """A Python package or program that this step needs is not installed."""


class CacheError(HostError):
    """The artifact cache cannot be read or written."""


class StoreError(HostError):
    """The result store cannot be opened, is damaged, or was made by a newer version."""


class FetchError(HostError):
    """An artifact cannot be obtained from its source."""


class Terminated(BaseException):
    """SIGTERM arrived. Named like KeyboardInterrupt, and no `Exception` either: only cleaning up may delay it."""
