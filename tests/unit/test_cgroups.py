"""Limits of control groups, version 1, version 2 and the hybrid of the two."""

from __future__ import annotations

from pathlib import Path

from edgebench import cgroups
from edgebench.host import Host


def tree(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


UNIFIED = {
    "proc/self/cgroup": "0::/user.slice/job.scope\n",
    "proc/9/cgroup": "0::/other\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "sys/fs/cgroup/user.slice/memory.max": "1073741824\n",
    "sys/fs/cgroup/user.slice/job.scope/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/job.scope/memory.current": "5000\n",
    "sys/fs/cgroup/other/memory.current": "7\n",
}
HYBRID = {
    "proc/self/cgroup": "4:memory:/a/b\n1:cpu:/\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2147483648\n",
    "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": "123\n",
    "sys/fs/cgroup/unified/cgroup.controllers": "\n",
}


def test_the_smallest_limit_on_the_way_up_is_the_limit(tmp_path):
    assert cgroups.memory_limit(tree(tmp_path, UNIFIED)) == 2**30


def test_the_hybrid_takes_the_version_1_hierarchy_and_its_largest_number_is_no_limit(tmp_path):
    host = tree(tmp_path, HYBRID)
    group = cgroups.find(host, "memory")
    assert group is not None
    assert group.version == 1
    assert [d.name for d in group.directories] == ["b", "a", "memory"]
    assert cgroups.memory_limit(host) == 2**31
    (tmp_path / "sys/fs/cgroup/memory/a/memory.limit_in_bytes").unlink()
    assert cgroups.memory_limit(host) is None


def test_usage_is_that_of_the_innermost_group(tmp_path):
    path = cgroups.memory_usage_file(tree(tmp_path, HYBRID))
    assert path is not None
    assert path.read_text() == "123\n"


def test_usage_of_another_process_is_that_of_its_own_group(tmp_path):
    path = cgroups.memory_usage_file(tree(tmp_path, UNIFIED), pid=9)
    assert path is not None
    assert path.read_text() == "7\n"


def test_a_path_that_does_not_exist_inside_the_container_means_the_mount_point(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/docker/0123\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n",
    }
    assert cgroups.memory_limit(tree(tmp_path, files)) == 4096


def test_a_path_that_leaves_the_hierarchy_means_the_mount_point(tmp_path):
    files = {"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cgroup.controllers": "memory\n"}
    group = cgroups.find(tree(tmp_path, files), "memory")
    assert group is not None
    assert group.directories == (tmp_path / "sys/fs/cgroup",)


def test_without_control_groups_nothing_is_limited(tmp_path):
    host = Host(tmp_path)
    assert cgroups.find(host, "memory") is None
    assert cgroups.memory_limit(host) is None
    assert cgroups.cpu_quota(host) is None
    assert cgroups.cpuset(host) is None
    assert cgroups.memory_usage_file(host) is None


def test_max_and_minus_one_are_no_quota(tmp_path):
    unified = UNIFIED | {"sys/fs/cgroup/user.slice/cpu.max": "max 100000\n"}
    assert cgroups.cpu_quota(tree(tmp_path / "v2", unified)) is None
    first = HYBRID | {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert cgroups.cpu_quota(tree(tmp_path / "v1", first)) is None


def test_this_machine_answers_without_an_error():
    host = Host()
    limit = cgroups.memory_limit(host)
    assert limit is None or limit > 0
    quota = cgroups.cpu_quota(host)
    assert quota is None or quota > 0
