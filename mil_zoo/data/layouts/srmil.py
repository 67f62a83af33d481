"""SRMIL: a pickled list of graphs, one a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.pickles import as_array, attributes, load_pickle
from mil_zoo.data.layouts.base import Claim, Sure, TableLayout, make_bag, register_layout
from mil_zoo.data.layouts.geometry import grid_step
from mil_zoo.errors import InputError


@register_layout("srmil")
class SRMIL(TableLayout):
    """Objects with ``x [N, D]``, ``pos [N, 2]``, ``y [N]`` (optional), ``graph_y [1, C]`` one-hot and ``slide_index``.

    They are ``torch_geometric`` ``Data``; their attributes are read, none of their code is run.
    """

    about = "a pickled list of objects with x, pos, y (optional), graph_y (one-hot) and slide_index"
    suffixes = (".pkl", ".pickle")

    def claim(self, path: Path) -> Claim | None:
        """Every pickle."""
        return Claim(Sure.SUFFIX, "a pickle")

    def read_all(self, path: Path, allow_pickle: bool = False) -> list[Bag]:
        """The bags of a file, with labels; see :func:`load_pickle` for what is refused."""
        content = load_pickle(path, allow_pickle)
        items = list(content.values()) if isinstance(content, dict) and "x" not in content else content
        items = list(items) if isinstance(items, list | tuple) else [items]
        if not items:
            raise InputError(f"{path} holds no slides; write it again")
        return [self._bag(path, attributes(item), number, len(items)) for number, item in enumerate(items)]

    def _bag(self, path: Path, item: dict[str, Any], number: int, count: int) -> Bag:
        features, coords = as_array(item.get("x")), as_array(item.get("pos"))
        if features is None or not np.issubdtype(features.dtype, np.number):
            raise InputError(f"{path}: object {number} has no x of numbers (it has {', '.join(item) or 'nothing'})")
        index = as_array(item.get("slide_index"))
        slide = path.stem if index is None and count == 1 else f"{number:04d}" if index is None else str(index.item())
        instances, step = as_array(item.get("y")), None if coords is None else grid_step(coords)
        known = instances is not None and instances.size == len(features) and (instances >= 0).all()
        return make_bag(
            path, slide, self.name, np.array(features, dtype=np.float32),
            None if coords is None else np.array(coords, dtype=np.float64), step,
            "the coordinates' own step: a pickle states no patch size",
            unit="tile" if step is not None and abs(step - 1) < 0.05 else "px",
            label=_label(as_array(item.get("graph_y"))),
            instance_labels=instances.reshape(-1).astype(np.int64) if known else None,
        )  # fmt: skip


def _label(graph_y: Any) -> int | None:
    if graph_y is None:
        return None
    return int(graph_y.reshape(-1).argmax()) if graph_y.size > 1 else int(graph_y.item())
