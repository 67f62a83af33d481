"""How scores rise with the number of labelled slides, from a run whose grid varies ``labelled``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.bench.results import Trial
from mil_zoo.report.load import Results
from mil_zoo.report.tables.pairs import corrected_t
from mil_zoo.report.tables.sentences import notes
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import fixed, interval

BASELINE = "abmil"
_LABELLED = re.compile(r"(^|,)labelled=([^,]+)")


def label_budget_table(results: Results) -> pd.DataFrame:
    """One row an aggregator and number of labels; empty where the run's grid does not vary ``labelled``.

    The score is the lead metric of the run. Columns: ``aggregator`` (with what else its grid varies),
    ``labelled`` as in the grid, ``slides`` (labelled training slides, mean over splits), the test score's ``mean``,
    ``sd``, ``low``, ``high`` and ``n`` (see :func:`mil_zoo.stats.estimate`), and with ``gain_`` in front the same of
    its paired difference to ABMIL.
    """
    return results.once(_label_budgets)


def shown_label_budgets(results: Results) -> Document:
    """The same as it is read."""
    bounds = results.lead.bounds
    span = bounds[1] - bounds[0]
    rows = [
        [
            row["aggregator"],
            _share(row["labelled"]),
            f"{row['slides']:.0f}",
            _cell(row, "", "", bounds),
            _cell(row, "gain_", "+", (-span, span)) if row.get("gain_n", 0) > 0 else "-",
        ]
        for row in label_budget_table(results).to_dict("records")
    ]
    header = ["Aggregator", "Labels", "Labelled slides", results.lead.title, "Gain over ABMIL"]
    return Document("learning_curve", "Few labels", [Table(header, rows, [_NOTE, *notes(results)])])


_NOTE = (
    "Labelled slides: training slides whose labels are used; of the validation slides, on which supervised aggregators "
    "choose their checkpoint, the same share. Test slides are always the same. Mean ± standard deviation "
    "[95 % interval, corrected resampled t] over splits; gain: of the paired difference. Giga-SSL also sees, without "
    "labels, every slide whose patient is not tested."
)


def _label_budgets(results: Results) -> pd.DataFrame:
    series: dict[str, dict[str, list[Trial]]] = {}
    for label, trials in results.finished.items():
        name, _, grid = label.partition("@")
        found = _LABELLED.search(grid)
        if found and trials:
            rest = _LABELLED.sub("", grid).lstrip(",")
            series.setdefault(f"{name}@{rest}" if rest else name, {})[found.group(2)] = trials
    rows: list[dict[str, Any]] = []
    if not series:
        return pd.DataFrame(rows)
    metric = results.lead.name
    for name, budgets in series.items():
        for labelled, trials in sorted(budgets.items(), key=lambda item: float(item[0])):
            label = trials[0].label
            slides = float(np.mean([trial.n_labelled for trial in trials]))
            row: dict[str, Any] = {"aggregator": name, "labelled": labelled, "slides": slides}
            row |= _summary(vars(results.estimate(label, metric)))
            if name != BASELINE:
                baseline = series.get(BASELINE, {}).get(labelled, [])
                gain = corrected_t(results, metric, label, baseline[0].label).difference if baseline else None
                gained = {"n": 0} if gain is None else _summary(vars(gain))
                row |= {f"gain_{key}": value for key, value in gained.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("mean", "sd", "low", "high", "n")}


def _share(labelled: str) -> str:
    value = float(labelled)
    return f"{value:.0%}" if value <= 1 else f"{value:.0f}"


def _cell(row: dict[Any, Any], prefix: str, sign: str, bounds: tuple[float, float]) -> Cell:
    mean, sd, low, high = (row[prefix + name] for name in ("mean", "sd", "low", "high"))
    if np.isnan(sd):
        return Cell(fixed(mean, f"{sign}.3f"))
    low, high = np.clip([low, high], *bounds)
    return Cell(fixed(mean, f"{sign}.3f"), f"{sd:.3f}", (interval(low, high, f"{sign}.2f"),))
