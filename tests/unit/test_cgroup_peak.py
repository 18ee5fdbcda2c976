"""The peak of a control group: version 1 is reset, version 2 is polled, none at all is said."""

from __future__ import annotations

from pathlib import Path

from edgebench.engine.cgroup_peak import CgroupPeak
from edgebench.host import Host


def tree(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


def test_version_1_is_reset_before_and_read_after(tmp_path):
    group = "sys/fs/cgroup/memory/box/memory.max_usage_in_bytes"
    host = tree(tmp_path, {"proc/self/cgroup": "4:memory:/box\n", group: "999999"})
    peak = CgroupPeak(host)
    assert (tmp_path / group).read_text() == "0"
    (tmp_path / group).write_text("4096\n")
    assert peak.read(polled=1) == 4096
    assert "control group" in peak.note


def test_version_2_takes_the_polled_peak_and_says_so(tmp_path):
    group = "sys/fs/cgroup/box/"
    files = {
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        group + "memory.peak": "999999\n",
        group + "memory.current": "1\n",
    }
    peak = CgroupPeak(tree(tmp_path, files))
    assert peak.read(polled=2048) == 2048
    assert "polled" in peak.note
    assert (tmp_path / group / "memory.peak").read_text() == "999999\n"


def test_without_a_group_there_is_no_peak_but_a_reason(tmp_path):
    peak = CgroupPeak(Host(tmp_path))
    assert peak.read(polled=None) is None
    assert peak.note == "no memory control group is visible"
