"""What llama.cpp says while it loads: the only place where it tells how its memory is split.

``llama_state_get_size`` counts used cells only and the memory breakdown is C++, so the buffer lines of the log are the
reliable source. Debug lines are dropped on arrival: a context writes thousands of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from edgebench.records import EngineMemory

_INFO, _ERROR, _CONTINUED = 2, 4, 5

_BUFFER = re.compile(
    r"(?P<buffer>\S+)\s+(?P<what>model|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[0-9]+(?:\.[0-9]+)?)\s*MiB"
)
_OFFLOADED = re.compile(r"offloaded (?P<done>[0-9]+)/(?P<all>[0-9]+) layers to GPU")
_ALLOCATION = re.compile(
    r"failed to allocate|unable to allocate|out of memory|bad_alloc|cannot allocate", re.IGNORECASE
)


class EngineLog:
    """Keeps what matters: the buffer sizes of the model and of the latest context, and errors.

    Args:
        note: given every line but debug lines, as it comes.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.errors: list[str] = []
        self.offloaded: tuple[int, int] | None = None
        """Layers on a GPU, and of how many; None when it did not say."""
        self._note = note
        self._weights: dict[str, int] = {}
        self._context: dict[str, int] = {}
        self._largest: dict[str, int] = {}
        self._keep = True

    def write(self, level: int, text: str) -> None:
        """Take one message of llama.cpp's log callback; a continuation has the level of the line it continues."""
        if level != _CONTINUED:
            self._keep = level >= _INFO
        if not self._keep or not text.strip(" .\n"):
            return
        if level == _ERROR:
            self.errors.append(text.strip())
        for match in _BUFFER.finditer(text):
            self._count(match["buffer"], match["what"], round(float(match["mib"]) * 1024 * 1024))
        if moved := _OFFLOADED.search(text):
            self.offloaded = int(moved["done"]), int(moved["all"])
        self._note(text.rstrip("\n"))

    def _count(self, buffer: str, what: str, size: int) -> None:
        if what == "model":
            self._weights[buffer] = self._weights.get(buffer, 0) + size
        else:
            key = "KV" if what == "RS" else what
            self._context[key] = self._context.get(key, 0) + size

    def new_context(self) -> None:
        """Buffer lines from now on belong to another context."""
        self._remember()
        self._context = {}

    def _remember(self) -> None:
        if sum(self._context.values()) > sum(self._largest.values()):
            self._largest = self._context

    def memory(self) -> EngineMemory | None:
        """Bytes by purpose, with the largest context so far; None when no buffer line was seen."""
        self._remember()
        if not self._weights:
            return None
        return EngineMemory(
            weights=dict(self._weights),
            kv=self._largest.get("KV", 0),
            compute=self._largest.get("compute", 0),
            output=self._largest.get("output", 0),
        )

    def said_out_of_memory(self) -> bool:
        """Whether an allocation failed, by its own words."""
        return any(_ALLOCATION.search(line) for line in self.errors)
