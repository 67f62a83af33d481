"""Where the test slides lie in what an aggregator's classifier reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mil_zoo.bench.results import Trial
from mil_zoo.report.figures.look import WIDTH, below, grid_shape, palette, plain, title, wrapped
from mil_zoo.report.figures.registry import Captioned, register_figure
from mil_zoo.report.load import Results
from mil_zoo.report.subgroups import sites_of

_CAPTION = "The embeddings of the test slides of one trial an aggregator, their first two principal components."
_BY_SITE = "Slides that lie by site and not by label show that a model can tell hospitals apart."
_MOST = 9  # groups with a colour of their own; the others are grey together
_FEWEST = 3  # slides that a plane is fitted to


@register_figure(
    "embeddings",
    place=115,
    page=66,
    caption=_CAPTION,
)
def draw(results: Results) -> dict[str, Figure | Captioned]:
    """``embeddings`` by label or event, and ``embeddings-site`` where several sites are known.

    Sites are those of ``--by site`` (or centre, scanner, hospital), else those of TCGA barcodes.
    """
    first = {label: trials[0] for label, trials in results.finished.items() if trials}
    shown = {
        label: found for label, trial in first.items() if (found := _of(results, trial)) is not None and len(found)
    }
    if not shown:
        return {}
    groups = next(iter(shown.values())).attrs["groups"]
    figures: dict[str, Figure | Captioned] = {
        "embeddings": _figure(results, shown, "label", f" by {groups}" if groups else "")
    }
    sites = {site for part in shown.values() for site in part["site"]}
    if len(sites - {""}) > 1:
        by_site = _figure(results, shown, "site", " by site")
        figures["embeddings-site"] = Captioned(by_site, f"{_CAPTION} {_BY_SITE}")
    return figures


def components(embeddings: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first two principal components ``[n, 2]`` and the shares of variance ``[2]`` that they hold."""
    centred = embeddings.astype(np.float64) - embeddings.astype(np.float64).mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(centred), 2))
    places[:, : min(2, len(s))] = u[:, :2] * s[:2]
    total = float((s**2).sum())
    shares = np.zeros(2)
    shares[: min(2, len(s))] = s[:2] ** 2 / total if total else 0.0
    return places, shares


def colours_of(values: Sequence[str]) -> dict[str, Any]:
    """The colour of every value, of many the most frequent ones'; the others are grey together, the last entry."""
    sizes = pd.Series(values).value_counts()
    most = sorted(sizes.index[:_MOST] if len(sizes) > _MOST + 1 else sizes.index)
    rest = len(sizes) - len(most)
    return palette(most) | ({f"{rest} others": "0.8"} if rest else {})


def _of(results: Results, trial: Trial) -> pd.DataFrame | None:
    """x, y, label, site of the test slides of a trial; None where it kept no embeddings, or too few."""
    if "embeddings.npy" not in trial.files:
        return None
    values = np.load(io.BytesIO(results.run.read(trial.trial, "embeddings.npy")), allow_pickle=False)
    rows = results.predictions(trial)
    rows = rows[rows["split"] == "test"]
    if values.ndim != 2 or len(values) != len(rows) or len(rows) < _FEWEST or not np.isfinite(values).all():
        return None
    places, shares = components(values)
    classes = results.config.dataset.classes
    names, groups = "slide", ""
    if classes and "label" in rows:
        names, groups = rows["label"].map(lambda label: classes[int(label)]), "label"
    elif "event" in rows:
        names, groups = rows["event"].map({1: "event", 0: "censored"}), "event"
    table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "label": names, "site": sites_of(results, rows)})
    table.attrs |= {"shares": shares, "groups": groups}
    return table


def _figure(results: Results, shown: dict[str, pd.DataFrame], by: str, what: str) -> Figure:
    rows, columns = grid_shape(len(shown), 4)
    figure = Figure(figsize=(WIDTH, 1.8 * rows + 0.9), layout="constrained")
    colours = colours_of([value for part in shown.values() for value in part[by].astype(str)])
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, (label, part) in zip(panels, shown.items(), strict=False):
        group, (*_, last) = part[by].astype(str), colours
        group = group.where(group.isin(colours), last)
        for value in reversed(colours):  # those of no colour of their own lie below
            members = part[group == value]
            axes.scatter(members["x"], members["y"], s=9, color=colours[value], linewidths=0)
        first, second = part.attrs["shares"]
        axes.set(title=f"{wrapped(label)}\n{first:.0%} and {second:.0%} of the variance", xticks=[], yticks=[])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if len(colours) > 1:
        handles = [
            Line2D([], [], linestyle="", marker="o", markersize=3, color=colour, label=plain(group or "unknown"))
            for group, colour in colours.items()
        ]
        below(figure, handles, "", 8)
    figure.suptitle(title(results, f"Embeddings of test slides{what}, principal components of one trial"))
    return figure
