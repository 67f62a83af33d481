"""The one rule by which names in tables and split files are matched to slides that have features.

Names meet as they are written, else by the first of these that finds a slide: without folders and suffixes, blanks and
composed accents aside (``/data/A 1.ome.tif`` is ``A 1``); as a number that a spreadsheet made a float (``2015.0``);
upper and lower case alike; a barcode without the UUID of its file (``TCGA-05-4244-01Z-00-DX1.d4ff32cd-...``).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from mil_zoo.data.layouts.base import SLIDE_SUFFIXES
from mil_zoo.errors import InputError

_FEATURES = re.compile(r"\.(h5|hdf5|pt|pth|npy|npz|pkl|pickle|csv|zarr)$", re.IGNORECASE)
_OME = re.compile(r"\.ome$", re.IGNORECASE)
_FLOAT = re.compile(r"(\d+)\.0+")
_UUID = re.compile(r"\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", re.IGNORECASE)
_SHOWN = 3


def bare(name: str) -> str:
    """A name without folders, the suffixes of features and images, and blanks; accents composed."""
    name = re.split(r"[/\\]", unicodedata.normalize("NFC", name).strip())[-1]
    while shorter := _OME.sub("", SLIDE_SUFFIXES.sub("", _FEATURES.sub("", name))).strip():
        if shorter == name:
            break
        name = shorter
    return name


def _as_number(name: str) -> str:
    return _FLOAT.sub(r"\1", bare(name)) if _FLOAT.fullmatch(bare(name)) else bare(name)


def _any_case(name: str) -> str:
    return " ".join(_as_number(name).casefold().split())


def _barcode(name: str) -> str:
    return _UUID.sub("", _any_case(name))


RULES: tuple[Callable[[str], str], ...] = (bare, _as_number, _any_case, _barcode)


def match_names(given: Iterable[str], known: Sequence[str], where: object = "the table") -> dict[str, str]:
    """The slide that each name means; names that mean none are left out.

    Args:
        given: names in a table or a split file.
        known: ids of slides.
        where: what the names come from, for messages.

    Raises:
        InputError: a name could mean several slides.
    """
    exact = set(known)
    found = {name: name for name in given if name in exact}
    rest = [name for name in dict.fromkeys(given) if name not in found]
    for rule in RULES if rest else ():
        slides = defaultdict(list)
        for slide in known:
            slides[rule(slide)].append(slide)
        for name in list(rest):
            meant = slides.get(rule(name), [])
            if len(meant) > 1:
                raise InputError(
                    f"{where}: {name!r} could be any of {len(meant)} slides, {', '.join(map(repr, meant[:_SHOWN]))}; "
                    "write the name of one of them"
                )
            if meant:
                found[name] = meant[0]
                rest.remove(name)
    return found


def both_sides(given: Iterable[str], known: Iterable[str], what: str = "the table says") -> str:
    """Three names of each side, for a message about names that do not meet."""
    names = [", ".join(map(repr, sorted(side)[:_SHOWN])) or "nothing" for side in (set(given), set(known))]
    return f"{what} {names[0]}; the features are called {names[1]}"


def alike(known: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of slides whose names differ in case, blanks or accents only."""
    groups = defaultdict(list)
    for slide in known:
        groups[_any_case(slide)].append(slide)
    return [tuple(group) for group in groups.values() if len(group) > 1]
