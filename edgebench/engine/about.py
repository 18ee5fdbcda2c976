"""Ask a runtime for its version and build without loading its native library here."""

from __future__ import annotations

import sys

import msgspec

from edgebench.engine.child import run_job
from edgebench.engine.messages import About, AboutJob
from edgebench.engine.protocol import Limits
from edgebench.host import Host
from edgebench.records import Fact


def about(runtime: str, host: Host) -> About:
    """Version and build of a runtime, each with the reason when unknown."""
    ended = run_job(AboutJob(runtime=runtime), host, Limits(load_s=60))
    if ended.attempt.about is not None:
        return ended.attempt.about
    reason = ended.failure.says if ended.failure else "it gave no answer"
    return About(version=Fact(unknown_because=reason), build=Fact(unknown_because=reason))


if __name__ == "__main__":
    answer = about(sys.argv[1], Host())
    sys.stdout.write(msgspec.json.encode({"version": answer.version, "build": answer.build}).decode() + "\n")
