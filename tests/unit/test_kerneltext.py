"""Formats of kernel text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench.host import Host
from edgebench.kerneltext import (
    channel_part,
    cpuinfo_blocks,
    find_counts,
    natural,
    parse_count,
    parse_counts,
    parse_cpu_list,
    parse_size,
    parse_sizes,
    read_scaled,
)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("5\n", {5}), ("", set()), ("0-", None), ("a", None), ("1,,2", None)],
)
def test_cpu_lists(text, cpus):
    assert parse_cpu_list(text) == cpus


def test_sizes_are_bytes_and_lines_without_a_size_are_left_out():
    text = "Name:\tx\nVmRSS:\t    300 kB\nThreads:\t4\nHugePages_Total:       0\nMemFree: N/A kB\n"
    assert parse_sizes(text) == {"VmRSS": 300 * 1024}


def test_counts_that_are_no_numbers_are_left_out():
    assert parse_counts("pgmajfault 667\npswpin -1\nx y z\nbig " + "9" * 30) == {"pgmajfault": 667}


def test_counts_are_found_by_whole_names_and_none_where_they_are_no_numbers():
    text = "xpgmajfault 1\npgmajfault 667\npswpin -1\npgmajfault_file 2\nlast 5"
    assert find_counts(text, ("pgmajfault", "pswpin", "last", "absent")) == [667, None, 5, None]


@pytest.mark.parametrize(("text", "size"), [("2048K", 2**21), ("16M", 2**24), ("1G", 2**30), ("7", 7), ("K", None)])
def test_cache_sizes(text, size):
    assert parse_size(text) == size


def test_a_number_longer_than_64_bits_is_no_count():
    assert parse_count("18446744073709551615") == 2**64 - 1
    assert parse_count("9" * 5000) is None


def test_cpuinfo_is_split_at_empty_lines():
    blocks = cpuinfo_blocks("processor\t: 0\nmodel name\t: A: B\n\nprocessor\t: 1\n\nModel\t\t: Board\n\n")
    assert blocks == [{"processor": "0", "model name": "A: B"}, {"processor": "1"}, {"Model": "Board"}]


def test_a_scaled_file_is_a_float_or_none(tmp_path):
    (tmp_path / "temp").write_text("47500\n")
    (tmp_path / "bad").write_text("hot\n")
    host = Host(tmp_path)
    assert read_scaled(host, tmp_path / "temp", 1e-3) == pytest.approx(47.5)
    assert read_scaled(host, tmp_path / "bad") is None
    assert read_scaled(host, tmp_path / "none") is None


def test_numbered_names_sort_by_number():
    names = ["policy10", "policy2", "policy"]
    assert [p.name for p in sorted(map(Path, names), key=natural)] == ["policy", "policy2", "policy10"]


def test_labels_become_parts_of_channel_names():
    assert channel_part("Package id 0") == "Package_id_0"
    assert channel_part("  ") == "unnamed"
