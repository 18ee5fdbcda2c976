"""The registry, against real packages on a path of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgebench import registry
from edgebench.errors import MissingDependency, UnknownNameError, UsageError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution that offers one runtime: entry point text and the module's source."""

    def install(entry: str, source: str, dist: str = "other", module: str = "other_runtime") -> None:
        metadata = tmp_path / f"{dist}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[edgebench.runtimes]\n{entry}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_a_family_is_its_folder_without_base():
    assert {"memory", "thermal"} <= set(registry.names("sensors"))
    assert not {"base", "__init__"} & set(registry.names("sensors"))


def test_a_member_is_loaded_by_its_file_name():
    assert registry.load("sensors", "memory").__name__ == "edgebench.sensors.memory"


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(UnknownNameError, match=r"There is no sensor 'memroy'.*did you mean 'memory'"):
        registry.load("sensors", "memroy")


def test_listing_names_imports_no_member():
    code = (
        "import sys; from edgebench import registry; registry.names('sensors'); registry.names('runtimes');"
        "print([m for m in sys.modules if m.startswith(('edgebench.sensors.', 'edgebench.runtimes.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_package_adds_a_member(installed):
    installed("other = other_runtime", "RUNTIME = 'theirs'")
    assert "other" in registry.names("runtimes")
    assert registry.load("runtimes", "other").RUNTIME == "theirs"


def test_a_member_that_cannot_be_imported_names_its_package(installed):
    installed("other = other_runtime", "import not_installed_anywhere")
    with pytest.raises(MissingDependency, match="package other cannot be imported: No module named 'not_installed"):
        registry.load("runtimes", "other")


def test_a_member_that_is_no_module_is_refused(installed):
    installed("other = other_runtime:RUNTIME", "RUNTIME = 'theirs'")
    with pytest.raises(UsageError, match="is str, not a module"):
        registry.load("runtimes", "other")


def test_a_name_that_is_taken_is_refused_and_not_replaced(installed):
    taken = registry.names("runtimes")[0]
    installed(f"{taken} = other_runtime", "RUNTIME = 'theirs'")
    with pytest.raises(UsageError, match="claimed more than once: edgebench, other_runtime"):
        registry.load("runtimes", taken)
    assert registry.names("runtimes").count(taken) == 1
