"""Ask a runtime for its version and build without loading its native library here."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edgebench.engine.child import run_job
from edgebench.engine.messages import About, AboutJob
from edgebench.engine.protocol import Limits
from edgebench.host import Host
from edgebench.records import Fact

_TOLD: dict[tuple[str, Path], About] = {}
"""By runtime and root: a session wants an answer several times, and on a slow board a child takes a second to start."""


def about(runtime: str, host: Host) -> About:
    """Version and build of a runtime, each with the reason when unknown. It is asked once; a failure is no answer."""
    if (runtime, host.root) in _TOLD:
        return _TOLD[runtime, host.root]
    ended = run_job(AboutJob(runtime=runtime), host, Limits(load_s=60))
    if ended.attempt.about is not None:
        return _TOLD.setdefault((runtime, host.root), ended.attempt.about)
    reason = ended.failure.says if ended.failure else "it gave no answer"
    return About(version=Fact(unknown_because=reason), build=Fact(unknown_because=reason))


if __name__ == "__main__":
    answer = about(sys.argv[1], Host())
    sys.stdout.write(msgspec.json.encode({"version": answer.version, "build": answer.build}).decode() + "\n")
