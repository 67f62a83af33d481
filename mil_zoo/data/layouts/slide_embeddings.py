"""Embeddings of whole slides, one vector each, as slide encoders (TITAN, PRISM, GigaPath, CHIEF, FEATHER) are exported.

A slide is then a bag of one instance, so that probes on a slide encoder stand in the table of the aggregators, on the
same folds and under the same tests.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary, numbers
from mil_zoo.data.formats.h5 import FEATURES, checked_dataset, features_of, head, opened, read_names
from mil_zoo.data.formats.tensors import load_tensor
from mil_zoo.data.labels.columns import COLUMNS, column_of
from mil_zoo.data.layouts.base import Claim, Layout, Sure, TableLayout, make_bag, register_layout, slide_name
from mil_zoo.errors import InputError

_TRIDENT, _SLIDE2VEC = "slide_features_", "slide_embeddings"
_NAMES = ("slide_id", "slide_ids", "slide_name", "slide_names", "filename", "filenames", "id", "ids", "name", "names")
_LEAST = 32  # numbered columns that make a table of embeddings: folds and covariates are numbered too
_NUMBERED = re.compile(r"(.*?)([0-9]{1,5})")
_LONGEST = 2**20  # bytes of a header that is looked at


@register_layout("slide_embeddings")
class SlideEmbeddings(Layout):
    """A file a slide with one vector, ``[E]`` or ``[1, E]``.

    Sources: ``extract_slide_features`` of the TRIDENT repository (``features`` in an ``.h5``); the output layout of
    slide2vec (a tensor in a ``.pt``); STAMP, whose files say so in the attribute ``feat_type``.
    """

    about = "slide_features_<encoder>/<slide>.h5 or slide_embeddings/<slide>.pt: one vector a slide"
    suffixes = (".h5", ".pt")
    of_slides = True

    def claim(self, path: Path) -> Claim | None:
        """By the folder's name, or STAMP's attribute."""
        folder = path.parent.name
        if folder.startswith(_TRIDENT) or folder == _SLIDE2VEC:
            return Claim(Sure.STATED, f"the folder {folder}: one vector a slide")
        found = head(path) if path.suffix.lower() == ".h5" else None
        if found is not None and found.attrs.get("feat_type") in ("slide", "patient"):
            return Claim(Sure.STATED, f"feat_type is {found.attrs['feat_type']!r}: one vector a slide")
        return None

    def encoder(self, path: Path) -> str:
        """The ``<encoder>`` of ``slide_features_<encoder>``, or the folder's name."""
        return path.parent.name.removeprefix(_TRIDENT)

    def source(self, path: Path) -> str | None:
        """The names of both folders, as for features of patches."""
        return f"{path.parent.parent.name}/{path.parent.name}"

    def read(self, path: Path) -> Bag:
        """A bag of one instance."""
        return make_bag(path, self.slide_id(path), self.name, _vector(path)[None])

    def shape(self, path: Path) -> tuple[int, int]:
        """``(1, E)``."""
        return 1, len(_vector(path))


@register_layout("embedding_table")
class EmbeddingTable(TableLayout):
    """All slides in one file: a csv with a column of slides and numbered columns, or an ``.h5`` with both as datasets.

    The ``.h5`` holds ``embeddings`` (or ``features``, ``feats``) ``[S, E]`` and the names of the slides ``[S]`` as
    text, called ``slide_id``, ``filenames``, ``ids`` or the like. Other columns of the csv are no features.
    """

    about = "one csv (slide_id, 0, 1, ...) or .h5 (embeddings [S, E], slide_id [S]) of all slides: one vector a slide"
    suffixes = (".csv", ".h5")
    of_slides = True

    def claim(self, path: Path) -> Claim | None:
        """By a header of slides and at least 32 numbered columns, or by both datasets."""
        if path.suffix.lower() == ".csv":
            _, columns = _columns(path)
            return Claim(Sure.CONTENT, "slides and numbered columns") if len(columns) >= _LEAST else None
        found = head(path)
        known = set() if found is None else found.datasets
        if not known & {"embeddings", *FEATURES} or not known & set(_NAMES):
            return None
        return Claim(Sure.STATED, "embeddings beside the names of slides")

    def group(self, path: Path) -> Path:
        """The file itself."""
        return path

    def encoder(self, path: Path) -> str:
        """The name of the file."""
        return path.stem

    def read_all(self, path: Path, allow_pickle: bool = False) -> list[Bag]:
        """One bag of one instance a slide.

        Raises:
            InputError: no slides or no numbered columns, other lengths, a slide twice, or what is no number.
        """
        with boundary(path, "a readable table of slide embeddings"):
            names, vectors = (_read_csv if path.suffix.lower() == ".csv" else _read_h5)(path)
        slides = [slide_name(Path(name).name) for name in names]
        doubled = pd.Series(slides, dtype=object).duplicated()
        if doubled.any():
            raise InputError(f"{path}: slide {slides[int(doubled.argmax())]!r} has two rows; keep one of them")
        return [
            make_bag(path, slide, self.name, np.ascontiguousarray(row[None]))
            for slide, row in zip(slides, vectors, strict=True)
        ]


def _vector(path: Path) -> npt.NDArray[np.float32]:
    """The embedding in a file of one slide, float32 ``[E]``."""
    if path.suffix.lower() == ".pt":
        values = load_tensor(path).numpy()
    else:
        with opened(path) as file:
            values = np.asarray(features_of(file, path), dtype=np.float32)
    if not values.size or max(values.shape) != values.size:
        raise InputError(
            f"{path} should hold one vector, the slide's embedding, and holds {list(values.shape)}; features of "
            "patches belong in another folder"
        )
    return values.reshape(-1)


def _columns(path: Path) -> tuple[str | None, list[str]]:
    """The column of slides of a csv and its numbered columns in order; none where they do not count from 0 or 1."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(_LONGEST)
    header = next(csv.reader([first], delimiter=_separator(first)), [""])
    by_prefix: dict[str, dict[int, str]] = {}
    for name in header:
        if found := _NUMBERED.fullmatch(name.strip()):
            by_prefix.setdefault(found[1], {})[int(found[2])] = name
    columns = max(by_prefix.values(), key=len, default={})
    slides = column_of(pd.DataFrame(columns=header), COLUMNS["slide_id"])
    if slides is None and not header[0].strip():
        slides = header[0]  # the index that pandas writes has no name
    counted = sorted(columns) in (list(range(len(columns))), list(range(1, len(columns) + 1)))
    return (slides, [columns[i] for i in sorted(columns)]) if slides is not None and counted else (None, [])


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _read_csv(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    slides, columns = _columns(path)
    if slides is None or not columns:
        raise InputError(
            f"{path}: a table of slide embeddings has a column slide_id and numbered columns (0, 1, ... or dim_0, "
            "dim_1, ...); name its columns so"
        )
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = _separator(file.readline(_LONGEST))
    unnamed = "Unnamed: 0" if not slides.strip() else slides
    table = pd.read_csv(
        path,
        sep=separator,
        encoding="utf-8-sig",
        usecols=[unnamed, *columns],
        dtype={unnamed: str, **dict.fromkeys(columns, np.float32)},
        keep_default_na=False,
        na_values={column: ["", "NA", "nan", "NaN"] for column in columns},
    )
    return [name.strip() for name in table[unnamed]], table[columns].to_numpy(np.float32)


def _read_h5(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    with opened(path) as file:
        embeddings = checked_dataset(file, "embeddings", path) if "embeddings" in file else features_of(file, path)
        if embeddings.ndim != 2:
            raise InputError(f"{path}: embeddings must be [slides, dimensions], not {list(embeddings.shape)}")
        name = next((name for name in _NAMES if name in file), None)
        if name is None:
            raise InputError(f"{path}: no dataset slide_id names the slides (it holds {', '.join(sorted(file))})")
        names = read_names(file, name, path, len(embeddings))
        return names, numbers(path, embeddings[()], "embeddings")
