"""``mil-zoo doctor`` names what is missing and what mends it; ``mil-zoo warm-up`` compiles ahead."""

import configparser
import importlib.metadata
import re
import shlex
import sys
from pathlib import Path

import pytest

from mil_zoo.cli.requirements import DEVELOPERS, EXTRAS

REQUIRES = [
    "numba>=0.59",
    "torch>=2.4,<2.14",
    'dgl>=2.1,<3; python_version < "4"',
    'tomli; python_version < "3"',
    'ray>=2.9; extra == "ray"',
    'pytest>=8; extra == "test"',
]


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages are installed, ``{name: version}``; all that is required, unless told."""
    versions = {"numba": "0.60", "torch": "2.5.1+cpu", "dgl": "2.1.0", "ray": "2.9", "pytest": "8.3"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_nothing_is_missing(installed, run_cli):
    code, out, _ = run_cli("doctor")
    assert code == 0
    assert "Nothing that mil-zoo needs is missing, too old or too new." in out
    assert "Optional" not in out


def test_what_is_missing_too_old_or_too_new_is_mended_by_one_command(installed, run_cli):
    del installed["numba"]
    installed |= {"torch": "2.1", "ray": "2.8.1", "dgl": "3.0"}
    code, out, _ = run_cli("doctor")
    assert code == 1
    assert "numba>=0.59 (not installed)" in out
    assert "torch<2.14,>=2.4 (2.1 is installed, which is too old)" in out
    assert "ray>=2.9 (2.8.1 is installed, which is too old)" in out
    assert "dgl<3,>=2.1 (3.0 is installed, which is too new)" in out
    commands = [shlex.split(line) for line in out.splitlines() if "-m pip install" in line]
    assert all(line[:4] == [sys.executable, "-m", "pip", "install"] for line in commands)
    assert sorted(commands[0][4:]) == ["numba>=0.59", "torch<2.14,>=2.4"]
    assert [line[4:] for line in commands[1:]] == [["dgl<3,>=2.1"], ["mil-zoo[ray]"]]


def test_what_is_optional_is_told_and_fails_nothing(installed, run_cli):
    del installed["dgl"], installed["ray"]
    code, out, _ = run_cli("doctor")
    assert code == 0
    assert "Optional: dgl<3,>=2.1 (not installed); only layers of dgl.nn need it." in out
    assert "Optional, for trials on a Ray cluster: ray>=2.9 (not installed)" in out


def test_the_extras_of_developers_are_told_where_they_are_asked_for(installed, run_cli):
    del installed["pytest"]
    assert "pytest" not in run_cli("doctor")[1]
    code, out, _ = run_cli("doctor", "--all")
    assert code == 0
    assert "Optional, for the tests: pytest>=8 (not installed). Add it with:" in out
    assert out.rstrip().endswith("-m pip install 'mil-zoo[test]'")


def test_extras_are_installed_by_one_form_everywhere():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "docs").glob("*/*.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*pages, *(root / "mil_zoo").rglob("*.py")]}
    named = {
        extra
        for text in texts.values()
        for each in re.findall(r"mil-zoo\[([\w,]+)\]", text)
        for extra in each.split(",")
    }
    assert {"ray", "tune", "onnx", "lazyslide", "openslide"} <= named <= set(EXTRAS | DEVELOPERS)
    assert not [path for path, text in texts.items() if re.search(r"install[^\n]*['\"]?\.\[\w", text)]


def test_doctor_speaks_where_torch_cannot_be_imported(installed, run_cli, monkeypatch):
    del installed["torch"]
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it is an error
    code, out, _ = run_cli("doctor")
    assert code == 1
    assert "torch<2.14,>=2.4 (not installed)" in out


def test_the_package_needs_neither_test_tools_nor_ray():
    from packaging.requirements import Requirement

    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    core = {Requirement(line).name for line in lines if line}
    assert {"torch", "numba", "click"} < core
    assert not core & {"ray", "pytest", "hypothesis", "ruff", "mypy", "torchmil", "seaborn", "sphinx", "build"}
    assert set(EXTRAS | DEVELOPERS) == set(parser["options.extras_require"])


def test_warm_up_says_what_is_ready(run_cli):
    code, out, _ = run_cli("warm-up", "abmil", "mean")
    assert code == 0
    assert "abmil: ready (1 of 2)" in out
    assert "mean: ready (2 of 2)" in out
    assert "The kernels of 2 aggregators are compiled" in out


def test_warm_up_refuses_an_unknown_name_before_it_compiles(run_cli):
    code, out, err = run_cli("warm-up", "mean", "abmli")
    assert (code, out) == (2, "")
    assert "abmil" in err
