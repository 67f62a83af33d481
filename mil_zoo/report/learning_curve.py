"""How scores rise with the number of labelled slides, from a run whose grid varies ``labelled``."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mil_zoo.report.results import finished, notes, trials_by_aggregator
from mil_zoo.report.style import STYLE, WIDTH, palette, save, title
from mil_zoo.stats import summarise

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

BASELINE = "abmil"
_LABELLED = re.compile(r"(^|,)labelled=([^,]+)")


def learning_curve(run: RunDirectory, metric: str = "auc") -> pd.DataFrame:
    """One row an aggregator and number of labels; empty where the run's grid does not vary ``labelled``.

    Columns: ``aggregator`` (with what else its grid varies), ``labelled`` as in the grid, ``slides`` (labelled
    training slides, mean over splits), the test score's ``mean``, ``sd``, ``low``, ``high`` and ``n`` (see
    :func:`mil_zoo.stats.summarise`), and with ``gain_`` in front the same of its paired difference to ABMIL.
    """
    series: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for label, trials in trials_by_aggregator(run).items():
        name, _, grid = label.partition("@")
        found = _LABELLED.search(grid)
        if found and (ok := finished(trials)):
            rest = _LABELLED.sub("", grid).lstrip(",")
            series.setdefault(f"{name}@{rest}" if rest else name, {})[found.group(2)] = ok
    rows = []
    for name, budgets in series.items():
        for labelled, trials in sorted(budgets.items(), key=lambda item: float(item[0])):
            scores = _by_split(trials, metric)
            # How much two splits overlap, which the interval corrects for, goes by whole training sides.
            sizes = [float(np.mean([trial[side] for trial in trials])) for side in ("n_train", "n_test")]
            slides = float(np.mean([trial["n_labelled"] for trial in trials]))
            row: dict[str, Any] = {"aggregator": name, "labelled": labelled, "slides": slides}
            row |= vars(summarise(list(scores.values()), *sizes))
            baseline = _by_split(series.get(BASELINE, {}).get(labelled, []), metric)
            gains = [scores[split] - baseline[split] for split in scores if split in baseline]
            if name != BASELINE:
                row |= {f"gain_{key}": value for key, value in vars(summarise(gains, *sizes)).items()}
            rows.append(row)
    return pd.DataFrame(rows)


def write_learning_curve(run: RunDirectory, metric: str = "auc") -> list[Path]:
    """Writes ``learning_curve.csv|md`` and ``figures/learning_curve.png``; nothing where there is no such grid."""
    table = learning_curve(run, metric)
    if table.empty:
        return []
    folder = Path(run.path)
    table.to_csv(folder / "learning_curve.csv", index=False, float_format="%.10g", lineterminator="\n")
    lines = ["| Aggregator | Labels | Labelled slides | AUC | Gain over ABMIL |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in table.to_dict("records"):
        gain = _cell(row, "gain_", "+.3f") if row.get("gain_n", 0) > 0 else "-"
        cells = [row["aggregator"], _share(row["labelled"]), f"{row['slides']:.0f}", _cell(row, "", ".3f"), gain]
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n\n" + "".join(f"- {note}\n" for note in [_NOTE, *notes(run)])
    (folder / "learning_curve.md").write_text(text, encoding="utf-8")
    with mpl.rc_context(STYLE):
        figure = save(run, "learning_curve", _figure(run, table))
    return [folder / "learning_curve.csv", folder / "learning_curve.md", figure]


_NOTE = (
    "Labelled slides: training slides whose labels are used; of the validation slides, on which supervised aggregators "
    "choose their checkpoint, the same share. Test slides are always the same. Mean ± standard deviation "
    "[95 % interval, corrected resampled t] over splits; gain: of the paired difference. Giga-SSL also sees, without "
    "labels, every slide whose patient is not tested."
)


def _by_split(trials: list[dict[str, Any]], metric: str) -> dict[tuple[int, int], float]:
    """Score of each split, its seeds averaged; undefined scores are left out."""
    found: dict[tuple[int, int], list[float]] = {}
    for trial in trials:
        if trial["metrics"][metric] is not None:
            found.setdefault((trial["repeat"], trial["fold"]), []).append(trial["metrics"][metric])
    return {split: float(np.mean(values)) for split, values in found.items()}


def _figure(run: RunDirectory, table: pd.DataFrame) -> Figure:
    names = list(dict.fromkeys(table["aggregator"]))
    colours = palette(names)
    figure = Figure(figsize=(0.7 * WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        part = table[table["aggregator"] == name]
        # Side by side, so that intervals at one number of labels do not cover each other.
        x = part["slides"] * 1.03 ** (i - (len(names) - 1) / 2)
        axes.plot(x, part["mean"], color=colours[name], marker="o", markersize=4, label=name)
        axes.vlines(x, part["low"].clip(0, 1), part["high"].clip(0, 1), color=colours[name], linewidth=1.2, alpha=0.6)
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    ticks = sorted({round(n) for n in table["slides"]})
    axes.set(xscale="log", xlabel="labelled training slides", ylabel="test AUC")
    axes.set_ylim(max(0, min(0.4, table["low"].min())) - 0.02, 1.02)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick}" for tick in ticks])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title(run, "Test AUC against labels"))
    note = "Mean and 95 % interval over splits (corrected resampled t, cut to [0, 1]); dashed: chance."
    figure.supxlabel(textwrap.fill(note, 90), fontsize=7)
    return figure


def _share(labelled: str) -> str:
    value = float(labelled)
    return f"{value:.0%}" if value <= 1 else f"{value:.0f}"


def _cell(row: dict[str, Any], prefix: str, form: str) -> str:
    mean, sd, low, high = (row[prefix + name] for name in ("mean", "sd", "low", "high"))
    if np.isnan(sd):
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {sd:.3f} [{low:{form[:-2]}2f}, {high:{form[:-2]}2f}]"
