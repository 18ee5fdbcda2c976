"""What is shipped: a wheel built from this checkout, and the distribution that these tests run against."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted(path.relative_to(ROOT).as_posix() for kind in ("models", "profiles") for path in ROOT.glob(f"{kind}/*"))
BUILD = "import sys; from scikit_build_core import build; build.build_{kind}(sys.argv[1])"


def build(kind: str, folder: Path) -> Path:
    """Call the build backend as pip does, but in this environment: nothing is downloaded."""
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("no build backend here: pip install '.[test]'")
    if kind == "wheel" and not (shutil.which("cmake") and (shutil.which("make") or shutil.which("ninja"))):
        pytest.skip("no cmake, or neither make nor ninja, on PATH: apt install cmake make")
    argv = [sys.executable, "-c", BUILD.format(kind=kind), str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in the wheel."""
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Names of the files in the source distribution, without the leading folder."""
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        return [name.split("/", 1)[1] for name in archive.getnames()]


def test_the_wheel_has_every_card_and_profile(wheel):
    assert CARDS
    assert sorted(name for name in wheel if "/_data/" in name) == [f"edgebench/_data/{card}" for card in CARDS]


def test_the_wheel_has_every_module_and_nothing_that_users_do_not_need(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgebench").rglob("*.py")}
    others = {name for name in wheel if "/_data/" not in name and ".dist-info/" not in name}
    assert others == modules


def test_the_wheel_has_the_licence_and_the_command(wheel):
    assert [name for name in wheel if name.endswith("/licenses/LICENSE")]
    assert [name for name in wheel if name.endswith("/entry_points.txt")]


def test_the_source_distribution_has_all_that_a_build_and_the_tests_need(sdist):
    needed = {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", *CARDS}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert needed <= set(sdist)


def test_the_installed_package_reads_cards_of_its_own():
    """The installed files, not those of the checkout, unless it is installed in editable mode."""
    distribution = importlib.metadata.distribution("edgebench")
    assert distribution.version == importlib.import_module("edgebench").__version__
    files = [str(file) for file in distribution.files or ()]
    if not any(name.startswith("edgebench/") and name.endswith("errors.py") for name in files):
        assert any("editable" in name for name in files)
        return
    shipped = sorted(name for name in files if "/_data/" in name)
    assert shipped == [f"edgebench/_data/{card}" for card in CARDS]
    assert not [name for name in files if name.startswith(("tests/", "scripts/", "kernels/"))]
