"""What the attention of each aggregator is like: skew, alignment with labels, stability, faithfulness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mil_zoo.report.load import Results
from mil_zoo.report.tables.diagnostics_table import diagnostics_table
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import short

SKEW = {
    "n_instances": "Instances",
    "max_attention": "Maximum",
    "n_x_max": "N x maximum",
    "head_max": "Maximum of a head",
    "entropy": "Entropy",
    "effective_instances": "Effective instances",
    "effective_fraction": "Effective share",
    "gini": "Gini",
    "mass_top1pct": "Mass of top 1 %",
    "mass_top10": "Mass of top 10",
}
ALIGNMENT = {
    "positive_share": "Positive share",
    "mass_on_positives": "Mass on positives",
    "mass_ratio": "Mass ratio",
    "attention_auroc": "Attention AUROC",
    "attention_ap": "Attention AP",
    "instance_auroc": "Instance AUROC",
    "instance_ap": "Instance AP",
    "attention_froc": "Attention FROC",
    "instance_froc": "Instance FROC",
}
STABILITY = {
    "seed_spearman": "Spearman across seeds",
    "seed_top10_overlap": "Top-10 overlap",
    "seed_top1pct_overlap": "Top-1 % overlap",
}
_FAITHFUL = re.compile(r"(remove|keep)_(top|random)(\d+)")


def skew_table(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]`` with attention, over the test slides of all its trials.

    Columns: ``aggregator``, ``slides`` (slides times trials), ``heads`` (1 where a model records no separate heads),
    ``positive_slides`` (those behind ``mass_ratio``), and for each number recorded its ``_median``, ``_q1`` and
    ``_q3``: over slides; of FROC over trials; of stability over slides and folds. ``head_max`` is the mean over heads
    of a slide's per-head maxima.
    """
    return results.once(_skew_table)


def shown_skew(results: Results, notes: Sequence[str]) -> Document:
    """The same as it is read: skew, alignment with instance labels, stability, faithfulness."""
    table = skew_table(results)
    medians = [column.removesuffix("_median") for column in map(str, table) if column.endswith("_median")]
    faithful = {name: " ".join(known.groups()) for name in medians if (known := _FAITHFUL.fullmatch(name))}
    alignment = _ALIGNMENT_NOTE + _FROC_NOTE * bool(table.filter(regex="_froc_median").notna().to_numpy().any())
    parts = [
        _part(table, {"slides": "Slides", "heads": "Heads"}, SKEW, _SKEW_NOTE),
        _part(table, {"positive_slides": "Positive slides"}, ALIGNMENT, alignment),
        _part(table, {}, STABILITY, _STABILITY_NOTE),
        _part(table, {}, faithful, _FAITHFUL_NOTE),
    ]
    absent = [label for label, trials in results.finished.items() if trials and label not in set(table["aggregator"])]
    left_out = [f"Not here, since they have no attention: {', '.join(absent)}."] * bool(absent)
    return Document("skew", "Attention on the test slides", [part for part in parts if part], [*left_out, *notes])


def _skew_table(results: Results) -> pd.DataFrame:
    numbers = diagnostics_table(results)
    faithful = sorted((name for name in numbers["name"].unique() if _FAITHFUL.fullmatch(name)), key=_faithful_place)
    of_heads = [name for name in numbers["name"].unique() if name.startswith("head_max_")]
    rows = []
    for label, part in numbers.groupby("aggregator", sort=False):
        heads = part[part["name"].isin(of_heads)]
        of_slide = ["repeat", "fold", "seed", "slide_id"]
        values = {name: group["value"] for name, group in part.groupby("name")}
        values["head_max"] = heads.groupby(of_slide)["value"].mean() if len(heads) else values["max_attention"]
        row = {
            "aggregator": label,
            "slides": len(values["max_attention"]),
            "heads": max(heads["name"].nunique(), 1),
            "positive_slides": len(values.get("mass_ratio", ())),
        }
        for name in [*SKEW, *ALIGNMENT, *STABILITY, *faithful]:
            column = values.get(name, pd.Series(dtype=float))
            row[f"{name}_median"] = column.median()
            row[f"{name}_q1"], row[f"{name}_q3"] = column.quantile(0.25), column.quantile(0.75)
        rows.append(row)
    return pd.DataFrame(rows)


_SKEW_NOTE = (
    "Median [first, third quartile] over the test slides of all trials. N x maximum is 1 for uniform attention. "
    "Averaging heads lowers the maximum: compare the maximum of a head (mean over heads). Entropy is over log N; "
    "effective instances are 1 / sum a^2, their share is of N."
)
_ALIGNMENT_NOTE = (
    "Positive slides with instance labels only. Mass ratio: attention on positive instances over their share. AUROC "
    "and average precision (AP) of attention and of instance scores as detectors of positive instances."
)
_FROC_NOTE = (
    " FROC by the rules of CAMELYON16 on patches, per trial, over all test slides; lesions are positive patches that "
    "touch, and isolated cells are left out where micrometres are known."
)
_STABILITY_NOTE = "Agreement of a slide's attention across seeds of the same fold, mean over pairs of seeds."
_FAITHFUL_NOTE = (
    "Probability of the predicted class minus that after the k most attended (top) or as many random instances were "
    "removed, or alone were kept. Faithful attention: removing top changes more, keeping top less, than random."
)


def _part(table: pd.DataFrame, counts: Mapping[str, str], names: Mapping[str, str], note: str) -> Table | None:
    """A table of those numbers that were recorded; None where none was."""
    names = {name: title for name, title in names.items() if table[f"{name}_median"].notna().any()}
    if not names:
        return None
    rows = []
    for row in table.to_dict("records"):
        cells: list[str | Cell] = [row["aggregator"], *(str(row[name]) for name in counts)]
        for name in names:
            middle, low, high = (row[f"{name}_{part}"] for part in ("median", "q1", "q3"))
            cells.append(Cell("-" if np.isnan(middle) else short(middle), below=_quartiles(low, high)))
        rows.append(cells)
    return Table(["Aggregator", *counts.values(), *names.values()], rows, [note])


def _quartiles(low: float, high: float) -> tuple[str, ...]:
    return () if np.isnan(low) else (f"[{short(low)}, {short(high)}]",)


def _faithful_place(name: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", name)), name
