"""DSMIL: one csv of features a bag, and an index csv of paths and labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.data.layouts.base import Claim, FeatureSet, Layout, Sure, make_bag, register_layout, slide_name
from mil_zoo.errors import InputError

_LEVELS = 3  # folders above a bag in which its index is looked for


@register_layout("dsmil")
class DSMIL(Layout):
    """A bag is a csv with a header of column numbers and a row a patch; there are no coordinates."""

    about = "<slide>.csv, one row of features a patch under a header 0,1,2,...; an index csv of paths and labels"
    suffixes = (".csv",)
    uniform = False

    def claim(self, path: Path) -> Claim | None:
        """By its first two lines: column numbers, then numbers."""
        try:
            with path.open(encoding="utf-8") as file:
                names, values = (file.readline().strip().split(",") for _ in range(2))
                numbers = [float(value) for value in values]
        except (OSError, ValueError):
            return None
        if not len(names) == len(numbers) > 1 or not all(name.strip('"').isdigit() for name in names):
            return None
        return Claim(Sure.CONTENT, "a header of column numbers above rows of numbers")

    def group(self, path: Path) -> Path:
        """The folder of the index, which lists bags of one folder a class."""
        index = _index_above(path.parent)
        return path.parent if index is None else index.parent

    def shape(self, path: Path) -> tuple[int, int]:
        """``(N, D)``; lines are counted, not parsed."""
        try:
            with path.open("rb") as file:
                width = file.readline().count(b",") + 1
                return sum(bool(line.strip()) for line in file), width
        except OSError as error:
            raise InputError(f"{path} is not a readable csv of features ({error}); write it again") from error

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone; the others are not parsed where that can be told."""
        wanted, lines = set(places), []
        try:
            with path.open(encoding="utf-8") as file:
                next(file)
                for place, line in enumerate(line for line in file if line.strip()):
                    if place in wanted:
                        lines.append([float(value) for value in line.split(",")])
            return np.array(lines, dtype=np.float32)
        except (OSError, ValueError, StopIteration):
            return super().rows(path, places)

    def read(self, path: Path) -> Bag:
        """The bag, without coordinates."""
        try:
            values = pd.read_csv(path, dtype=np.float32).to_numpy()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable csv of features ({error}); write it again") from error
        return make_bag(path, self.slide_id(path), self.name, np.ascontiguousarray(values))

    def labels(self, features: FeatureSet) -> pd.DataFrame | None:
        """The labels in the index."""
        index = _index_above(features.folder)
        if index is None:
            return None
        table: pd.DataFrame = read_csv(index).iloc[:, :2].dropna()
        table.columns = ["slide_id", "label"]
        table["slide_id"] = [slide_name(Path(path).stem) for path in table["slide_id"]]
        return table


@lru_cache(maxsize=1024)
def _index_above(folder: Path) -> Path | None:
    """The csv, here or above, whose first column holds paths of other csv files and whose second holds labels."""
    for above in [folder, *folder.parents][:_LEVELS]:
        for path in sorted(above.glob("*.csv"))[:50]:
            if not path.is_file():
                continue
            try:
                row = pd.read_csv(path, dtype=str, nrows=1, keep_default_na=False)
            except (OSError, ValueError):
                continue
            if row.shape[1] >= 2 and len(row) and str(row.iloc[0, 0]).endswith(".csv"):
                return path
    return None
