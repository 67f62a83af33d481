"""What the installed package requires, and which of it is missing here. Imports nothing of what it looks for."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

PACKAGE = "mil-zoo"
OPTIONAL = {"dgl": "only layers of dgl.nn need it"}  # required where it has wheels, and not needed for anything else
EXTRAS = {
    "openslide": "slides below the attention maps of a page",
    "lazyslide": "features in LazySlide's stores",
    "ray": "trials on a Ray cluster",
    "onnx": "exporting trained aggregators as ONNX",
    "tune": "tuning",
    "docs": "building the site",
    "test": "the tests",
    "benchmark": "the speed measurements",
}


@dataclass(frozen=True)
class Missing:
    """A requirement that is not met.

    Attributes:
        name: of the package.
        requirement: as pip takes it.
        found: the version that is installed and does not fit; None where none is.
    """

    name: str
    requirement: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.requirement} ({f'{self.found} is installed' if self.found else 'not installed'})"


def missing(extra: str = "") -> list[Missing]:
    """The requirements of the package itself, or those that ``extra`` adds, that are not met here."""
    from packaging.requirements import Requirement

    found = []
    for text in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        own = marker is None or marker.evaluate({"extra": ""})
        if (own if not extra else not own and marker is not None and marker.evaluate({"extra": extra})) is False:
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(Missing(requirement.name, f"{requirement.name}{requirement.specifier}", version))
    return found


def command(packages: Sequence[Missing]) -> str:
    """The one command that installs them into the Python that runs this."""
    return shlex.join([sys.executable, "-m", "pip", "install", *(one.requirement for one in packages)])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
