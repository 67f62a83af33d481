"""What the Makefile and the interpreter see of the package before anything of it runs."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fit_python import unfit

import mil_zoo

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("version", [(3, 10), (3, 12), (3, 14)])
def test_a_python_that_fits(version):
    assert unfit(version, ">=3.10,<3.15") == ""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 15), (4, 0)])
def test_a_python_that_does_not_fit_is_one_sentence(version):
    text = unfit(version, ">=3.10,<3.15")
    assert text.startswith(f"mil-zoo runs on Python 3.10 to 3.14 and this is {version[0]}.{version[1]};")
    assert "make bench PYTHON=" in text


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mil_zoo", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:7]) == (0, "mil-zoo")


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom mil_zoo.cli import main\ntry:\n    main()\nfinally:\n    print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("torch", "numpy", "pandas", "dgl", "numba", "matplotlib", "pydantic"):
        assert f"'{name}'" not in done.stdout, name


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_pages_name_the_versions_that_the_package_takes(page):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    (torch,) = (line for line in parser["options"]["install_requires"].split("\n") if line.startswith("torch>"))
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, bounds in (("Python", parser["options"]["python_requires"]), ("PyTorch", torch)):
        lowest, above = (tuple(map(int, number.split("."))) for number in re.findall(r"[\d.]+", bounds))
        assert f"{name} {lowest[0]}.{lowest[1]} to {above[0]}.{above[1] - 1}" in text


def test_the_version_stands_in_one_place():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["metadata"]["version"] == "attr: mil_zoo.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == mil_zoo.__version__
