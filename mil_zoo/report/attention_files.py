"""Attention and explanations of one slide as files for other programs: CSV, PNG maps, and GeoJSON for QuPath."""

from __future__ import annotations

import json
import textwrap
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mil_zoo.files import replacing, write_text
from mil_zoo.report.figures.attention_maps import SPAN, draw_patches, nearly_uniform
from mil_zoo.report.figures.explanation_maps import draw_ranks, rank_bar
from mil_zoo.report.figures.look import drawing, grid_shape
from mil_zoo.report.tables.explanations_table import TITLES
from mil_zoo.report.tables.text import short

# Upper ends of the classes of N x attention, which is 1 for uniform attention.
_STEPS = (0.1, 0.3, 1.0, 3.0, 10.0, np.inf)
_LETTERS = 13  # of a title's line, in an inch
_NAMES = ("below 0.1", "0.1 to 0.3", "0.3 to 1", "1 to 3", "3 to 10", "10 and more")


def write_csv(path: Path, attention: np.ndarray, coords: np.ndarray | None) -> None:
    """One row a patch: x and y (where known), attention, and N x attention.

    Args:
        path: file to write.
        attention: float ``[N]``, sums to 1.
        coords: float ``[N, 2]`` in the bag's unit, or None.
    """
    columns = {} if coords is None else {"x": coords[:, 0], "y": coords[:, 1]}
    table = pd.DataFrame(columns | {"attention": attention, "n_x_attention": len(attention) * attention})
    write_text(path, table.to_csv(index_label="patch", float_format="%.6g", lineterminator="\n"))


def write_png(path: Path, attention: np.ndarray, coords: np.ndarray, patch_size: float | None, title: str) -> None:
    """A map of N x attention on the logarithmic scale that the maps of a run have, blue below and red above uniform.

    Args:
        path: file to write.
        attention: float ``[N]``.
        coords: float ``[N, 2]``, top-left corners.
        patch_size: in the unit of the coordinates; None draws dots.
        title: plain text.
    """
    with drawing():
        width, height = np.ptp(coords, axis=0) + (patch_size or 0)
        figure = Figure(figsize=(6, 5 * float(np.clip(height / max(width, 1), 0.4, 1.8)) + 0.7), layout="constrained")
        axes = figure.add_subplot()
        norm, cmap = LogNorm(1 / SPAN, SPAN), mpl.colormaps["coolwarm"]
        relative = len(attention) * attention
        colours = cmap(norm(np.clip(relative, 1 / SPAN, SPAN)))
        draw_patches(
            axes, coords, np.nan if patch_size is None else float(patch_size), colours, relative, figure.get_figwidth()
        )
        axes.set_title(_broken(title, 5), fontsize=9, parse_math=False)
        label = "N x attention (1 = uniform)"
        if nearly_uniform(relative):  # grey all over
            label = f"N x attention: nearly uniform, at most {short(relative.max())} x uniform"
        figure.colorbar(ScalarMappable(norm, cmap), ax=axes, extend="both", label=label)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png")


def write_explanations_csv(path: Path, scores: Mapping[str, np.ndarray], coords: np.ndarray | None) -> None:
    """One row a patch: x and y (where known), and the score of every explainer.

    Args:
        path: file to write.
        scores: float ``[N]`` by explainer; higher speaks more for the prediction.
        coords: as in :func:`write_csv`.
    """
    columns = {} if coords is None else {"x": coords[:, 0], "y": coords[:, 1]}
    table = pd.DataFrame(columns | dict(scores))
    write_text(path, table.to_csv(index_label="patch", float_format="%.6g", lineterminator="\n"))


def write_explanations_png(
    path: Path, scores: Mapping[str, np.ndarray], coords: np.ndarray, patch_size: float | None, title: str
) -> None:
    """Maps of the explainers beside each other, coloured by the rank of a score within the slide.

    Arguments as in :func:`write_explanations_csv` and :func:`write_png`.
    """
    with drawing():
        width, height = np.ptp(coords, axis=0) + (patch_size or 0)
        panel = 2.8 * float(np.clip(height / max(width, 1), 0.4, 1.8))
        rows, columns = grid_shape(len(scores), 3)
        figure = Figure(figsize=(2.8 * columns + 0.8, rows * (panel + 0.4) + 0.5), layout="constrained")
        side = np.nan if patch_size is None else float(patch_size)
        panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for axes, (name, values) in zip(panels, scores.items(), strict=False):
            draw_ranks(axes, coords, side, values, 2.8)
            axes.set_title(textwrap.fill(TITLES.get(name, name), 24), fontsize=8, parse_math=False)
        for axes in panels[len(scores) :]:
            axes.set_axis_off()
        rank_bar(figure, panels)
        figure.suptitle(_broken(title, figure.get_figwidth()), fontsize=9, parse_math=False)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png")


def write_geojson(
    path: Path,
    attention: np.ndarray,
    coords: np.ndarray,
    patch_size: float | None,
    slide: str,
    warning: str = "",
) -> None:
    """Patches as tile objects that QuPath (0.4 and later) opens on the slide: File, Import objects from file.

    Each is classified by its N x attention, in six steps with a colour each, and carries attention and N x attention
    as measurements, for QuPath's measurement maps. A patch without a size is a point.

    Args:
        path: file to write.
        attention: float ``[N]``.
        coords: float ``[N, 2]``, top-left corners in level-0 pixels.
        patch_size: in level-0 pixels, or None.
        slide: its id: object ids depend on it and the patch, so that writing again gives the same file.
        warning: a sentence on the model, which the collection holds beside its features; "" for none.

    Source:
        RFC 7946, which lets a collection hold other members; the properties are those that QuPath's own export writes.
    """
    relative = len(attention) * attention
    steps = np.searchsorted(_STEPS, relative, side="right").clip(max=len(_STEPS) - 1)
    colours = (255 * mpl.colormaps["coolwarm"](np.linspace(0, 1, len(_STEPS)))[:, :3]).round().astype(int).tolist()
    classes = [{"name": f"N x attention {n}", "color": c} for n, c in zip(_NAMES, colours, strict=True)]
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"mil-zoo:{slide}")
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        said = f'"warning": {json.dumps(warning)}, ' if warning else ""
        file.write(f'{{"type": "FeatureCollection", {said}"features": [')
        for i, (x, y) in enumerate(coords.tolist()):
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(space, str(i))),
                "geometry": _geometry(x, y, patch_size),
                "properties": {
                    "objectType": "tile" if patch_size else "detection",
                    "classification": classes[steps[i]],
                    "measurements": {
                        "attention": float(f"{attention[i]:.6g}"),
                        "N x attention": float(f"{relative[i]:.6g}"),
                    },
                },
            }
            file.write((",\n" if i else "\n") + json.dumps(feature))
        file.write("\n]}\n")


def _broken(title: str, inches: float) -> str:
    """The title in lines of at most so many inches, in the size of letters of a map's title."""
    return textwrap.fill(title, int(_LETTERS * inches))


def _geometry(x: float, y: float, side: float | None) -> dict[str, Any]:
    if not side:
        return {"type": "Point", "coordinates": [x, y]}
    # Counter-clockwise where y points up, as RFC 7946 asks of an outer ring.
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}
