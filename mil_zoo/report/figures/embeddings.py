"""Where the test slides lie in what an aggregator's classifier reads."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mil_zoo.bench.results import Trial
from mil_zoo.report.figures.look import WIDTH, grid_shape, palette, plain, title, wrapped
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.load import Results

_SITE = re.compile(r"TCGA-([A-Z0-9]{2})-", re.IGNORECASE)
_MOST_SITES = 20  # colours that can be told apart; more have panels without a legend
_FEWEST = 3  # slides that a plane is fitted to


@register_figure(
    "embeddings",
    place=115,
    page=66,
    caption="The embeddings of the test slides of one trial an aggregator, their first two principal components. "
    "Slides that lie by site and not by label show that a model can tell hospitals apart.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``embeddings`` by label or event, and ``embeddings-site`` where the ids are TCGA barcodes of several sites."""
    first = {label: trials[0] for label, trials in results.finished.items() if trials}
    shown = {
        label: found for label, trial in first.items() if (found := _of(results, trial)) is not None and len(found)
    }
    if not shown:
        return {}
    groups = next(iter(shown.values())).attrs["groups"]
    figures = {"embeddings": _figure(results, shown, "label", f" by {groups}" if groups else "")}
    sites = {site for part in shown.values() for site in part["site"]}
    if len(sites - {""}) > 1:
        figures["embeddings-site"] = _figure(results, shown, "site", " by site")
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


def site_of(names: Sequence[str]) -> str:
    """The tissue source site of a TCGA barcode in one of ``names``; "" for others."""
    for name in names:
        if found := _SITE.search(str(name)):
            return found.group(1).upper()
    return ""


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
    sites = [site_of(ids) for ids in zip(rows["patient_id"].fillna(""), rows["slide_id"], strict=True)]
    table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "label": names, "site": sites})
    table.attrs |= {"shares": shares, "groups": groups}
    return table


def _figure(results: Results, shown: dict[str, pd.DataFrame], by: str, what: str) -> Figure:
    rows, columns = grid_shape(len(shown), 4)
    figure = Figure(figsize=(WIDTH, 1.8 * rows + 0.9), layout="constrained")
    groups = sorted({str(value) for part in shown.values() for value in part[by]})
    colours = palette(groups)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, (label, part) in zip(panels, shown.items(), strict=False):
        for value, members in part.groupby(by, sort=True):
            axes.scatter(members["x"], members["y"], s=9, color=colours[str(value)], linewidths=0)
        first, second = part.attrs["shares"]
        axes.set(title=f"{wrapped(label)}\n{first:.0%} and {second:.0%} of the variance", xticks=[], yticks=[])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    if 1 < len(groups) <= _MOST_SITES:
        handles = [axes.scatter([], [], s=9, color=colours[group], label=plain(group or "unknown")) for group in groups]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(groups), 8), frameon=False)
    figure.suptitle(title(results, f"Embeddings of test slides{what}, principal components of one trial"))
    return figure
