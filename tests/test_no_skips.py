"""The plugin that .ci/run loads, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SKIPS = "import pytest\ndef test_it():\n    pytest.skip('no such thing here')\n"
MODULE_SKIPS = "import pytest\npytest.importorskip('not_installed_anywhere')\ndef test_it(): pass\n"
PASSES = "def test_it(): pass\n"


def run(folder, source, **environment):
    (folder / "test_sample.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_sample.py"],
        cwd=folder,
        env=os.environ | {"PYTEST_PLUGINS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def strictly(folder, source):
    return run(folder, source, PYTEST_PLUGINS="no_skips", PYTHONPATH=str(Path(__file__).parent))


def test_a_skipped_test_fails_and_says_why_it_was_skipped(tmp_path):
    code, out = strictly(tmp_path, SKIPS)
    assert code == 1
    assert "1 failed" in out
    assert "no such thing here" in out


def test_a_skipped_file_fails(tmp_path):
    code, out = strictly(tmp_path, MODULE_SKIPS)
    assert code != 0
    assert "not_installed_anywhere" in out


def test_a_passing_test_passes(tmp_path):
    assert strictly(tmp_path, PASSES)[0] == 0


def test_without_the_plugin_a_test_is_skipped(tmp_path):
    code, out = run(tmp_path, SKIPS)
    assert code == 0
    assert "1 skipped" in out
