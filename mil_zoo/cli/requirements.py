"""What the installed package requires, and what of it is not met here. Imports nothing of what it looks for."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement

PACKAGE = "mil-zoo"
OPTIONAL = {"dgl": "only layers of dgl.nn need it"}  # required where it has wheels, and not needed for anything else
EXTRAS = {
    "openslide": "slides below the attention maps of a page",
    "lazyslide": "features in LazySlide's stores",
    "ray": "trials on a Ray cluster",
    "onnx": "exporting trained aggregators as ONNX",
    "tune": "tuning",
}
DEVELOPERS = {  # extras that nobody needs who uses it
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
        reason: "not installed", or the version that is installed and which way it misses.
    """

    name: str
    requirement: str
    reason: str

    def __str__(self) -> str:
        return f"{self.requirement} ({self.reason})"


def missing(extra: str = "") -> list[Missing]:
    """The requirements of the package itself, or those that ``extra`` adds, that are not met here."""
    found = []
    for text in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        own = marker is None or marker.evaluate({"extra": ""})
        if (own if not extra else not own and marker is not None and marker.evaluate({"extra": extra})) is False:
            continue
        if reason := _unmet(requirement):
            found.append(Missing(requirement.name, f"{requirement.name}{requirement.specifier}", reason))
    return found


def command(requirements: Sequence[str]) -> str:
    """The one command that installs them into the Python that runs this."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def _unmet(requirement: Requirement) -> str:
    """Why what is installed does not meet it; "" where it does."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    for bound in requirement.specifier:
        if not bound.contains(version, prereleases=True):
            return f"{version} is installed, which is too {'old' if bound.operator == '>=' else 'new'}"
    return ""
