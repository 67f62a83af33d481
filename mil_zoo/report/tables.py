"""The comparison table of a run, as a data frame, files and for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape as escape_markup
from rich.table import Table

from mil_zoo.report.ablation import ablation_table
from mil_zoo.report.comparisons import ENOUGH, LEVEL, best, comparisons, write_comparisons
from mil_zoo.report.encoders import PATIENTS, without_encoder, write_encoders
from mil_zoo.report.results import (
    METRICS,
    dataset_title,
    finished,
    notes,
    test_sets,
    trials_by_aggregator,
    values_by_split,
)
from mil_zoo.report.skew_table import write_skew
from mil_zoo.report.text import bold, bullets, csv, escape_latex, markdown, short
from mil_zoo.stats import TestSet, bootstrap, calibration, summarise

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

COSTS = {"parameters": "Parameters", "seconds_per_epoch": "s / epoch", "peak_mem_mib": "Peak memory (MiB)"}
MEASURED = ["seconds_per_epoch", "peak_mem_mib"]


def comparison_table(run: RunDirectory) -> pd.DataFrame:
    """One row an ``aggregator[@grid]``.

    Columns: ``aggregator``; ``encoder`` where several sets of features are compared; ``splits``; for each metric on the
    test slides ``<metric>_mean``, ``_sd``, ``_low``, ``_high`` and ``_n`` as :func:`mil_zoo.stats.summarise`
    gives them (one value a split, its seeds averaged first; of a single split, one value a seed), and ``_boot_low`` and
    ``_boot_high`` (bootstrap over test patients); ``brier`` and ``ece`` (calibration of all test predictions together);
    ``trials_ok``, ``trials_failed``; ``parameters``, ``seconds_per_epoch`` (median) and ``peak_mem_mib`` (largest). NaN
    where undefined.
    """
    return pd.DataFrame([_comparison_row(run, label, trials) for label, trials in trials_by_aggregator(run).items()])


def patient_table(run: RunDirectory) -> pd.DataFrame:
    """As :func:`comparison_table`, of patients; empty where slides are not combined into patients."""
    rule = run.config["dataset"].get("patient_rule")
    if rule not in ("mean", "max"):  # packed: the bags are patients
        return pd.DataFrame()
    groups = trials_by_aggregator(run).items()
    return pd.DataFrame([_comparison_row(run, label, trials, rule) for label, trials in groups])


def _all_levels(run: RunDirectory) -> pd.DataFrame:
    """The comparison table, and below it the rows of the patients where there are any."""
    slides, patients = comparison_table(run), patient_table(run)
    if patients.empty:
        return slides
    patients["aggregator"] += PATIENTS
    return pd.concat([slides, patients], ignore_index=True)


def rich_table(run: RunDirectory) -> Table:
    """The comparison table for the terminal (80 columns hold it), with the notes as its caption."""
    table = _all_levels(run).drop(columns="encoder", errors="ignore")  # its name is in the aggregator's
    _, rows = _cells(table, {}, "±", "\n")
    caption = "\n" + "\n".join(escape_markup(note) for note in notes(run))
    shown = Table(box=box.SIMPLE, padding=0, show_edge=False, caption=caption, caption_justify="left", caption_style="")
    shown.add_column("Aggregator", overflow="fold", min_width=10)
    for name in ("Accuracy", "Balanced\naccuracy", "AUC", "F1", "Trials\nparams", "s/epoch\nMiB"):
        shown.add_column(name, justify="right")
    for name, *metrics, trials, parameters, seconds, memory in rows:
        ran = trials.replace(" (", "\n").rstrip(")")
        shown.add_row(*map(escape_markup, [name, *metrics, f"{ran}\n{parameters}", f"{seconds}\n{memory}"]))
    return shown


def write_tables(run: RunDirectory) -> list[Path]:
    """Writes ``table.csv|md|tex``, ``comparisons.csv|md``, ``cost.csv``; with attention, ``diagnostics.csv`` and
    ``skew.csv|md``; with a grid, ``ablation.csv``.

    Where several sets of features are compared, ``encoders.csv|md`` sets aggregators against encoders.

    ``table.csv`` holds no measured time or memory (they are in ``cost.csv``): repeating a run gives it byte by byte.
    """
    slides, table, pairs, lines = comparison_table(run), _all_levels(run), comparisons(run), notes(run)
    marked = best(slides, pairs)
    if len(pairs):
        few = bool(pairs["splits"].between(2, ENOUGH - 1).all())
        lines.append(_BOLD_NOTE if marked else _FEW_SPLITS_NOTE if few else _NO_BOLD_NOTE)
    written = {
        "table.csv": csv(table.drop(columns=MEASURED)),
        "cost.csv": csv(slides[["aggregator", *COSTS]]),
        "table.md": markdown(*_cells(table, marked, " ± ", " ")) + "\n" + bullets(lines),
        "table.tex": _latex(run, table, marked, lines),
    }
    if len(pairs):
        written |= write_comparisons(run, pairs)
    written |= write_encoders(slides, notes(run))
    written |= write_skew(run, notes(run))
    ablation = ablation_table(run)
    if len(ablation):
        written["ablation.csv"] = csv(ablation)
    for name, text in written.items():
        (Path(run.path) / name).write_text(text, encoding="utf-8", newline="\n")
    return [Path(run.path) / name for name in written]


_BOLD_NOTE = (
    f"Bold: the best mean, and those that do not differ from it (p >= {LEVEL} adjusted over all pairs, comparisons.md)."
)
_NO_BOLD_NOTE = (
    f"Nothing is bold: no aggregator differs from the best (p < {LEVEL} adjusted over all pairs, comparisons.md)."
)
_FEW_SPLITS_NOTE = f"Nothing is bold: fewer than {ENOUGH} splits cannot tell aggregators apart (comparisons.md)."


def _comparison_row(
    run: RunDirectory, label: str, trials: list[dict[str, Any]], patient_rule: str | None = None
) -> dict[str, Any]:
    ok = finished(trials)
    if patient_rule is not None:
        ok = [trial | {"metrics": trial["patient_metrics"]} for trial in ok]
    row: dict[str, Any] = {"aggregator": label}
    if isinstance(run.config["dataset"].get("features"), list):
        row["encoder"] = trials[0]["features"] if trials else ""
    sets = list(test_sets(run, ok, patient_rule).values())
    intervals = bootstrap(sets) if sets else {}
    row["splits"] = len({(trial["repeat"], trial["fold"]) for trial in ok})
    for metric in METRICS:
        values = values_by_split(ok, metric)
        of_seeds = [trial["metrics"][metric] for trial in ok] if row["splits"] == 1 else list(values.values())
        summary = summarise(
            of_seeds,
            n_train=np.mean([trial["n_train"] for trial in ok]) if ok else 1,
            n_test=np.mean([trial["n_test"] for trial in ok]) if ok else 1,
        )
        row |= {f"{metric}_{name}": getattr(summary, name) for name in ("mean", "sd", "low", "high", "n")}
        row[f"{metric}_boot_low"], row[f"{metric}_boot_high"] = intervals.get(metric, (np.nan, np.nan))
    row |= _calibration(sets)
    row["trials_ok"], row["trials_failed"] = len(ok), len(trials) - len(ok)
    costs = pd.DataFrame(ok, columns=list(COSTS), dtype=float)
    row["parameters"] = costs["parameters"].max()
    row["seconds_per_epoch"] = costs["seconds_per_epoch"].median()
    row["peak_mem_mib"] = costs["peak_mem_mib"].max()
    return row


def _calibration(sets: list[TestSet]) -> dict[str, float]:
    """Brier score and expected calibration error of all test predictions, splits and seeds together."""
    if not sets:
        return {"brier": np.nan, "ece": np.nan}
    labels = np.concatenate([part.labels for part in sets for _ in part.probabilities])
    result = calibration(labels, np.concatenate([seed for part in sets for seed in part.probabilities]))
    return {"brier": result.brier, "ece": result.ece}


def _cells(
    table: pd.DataFrame, marked: dict[str, set[str]], plus_minus: str, between: str
) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of the comparison table; ``between`` stands between a value and its interval.

    Intervals are cut to [0, 1], where all metrics lie: that takes nothing from their coverage. Of a single split the
    bootstrap's are shown.
    """
    rows = []
    for _, row in table.iterrows():
        encoder = [row["encoder"]] if "encoder" in table else []
        cells = [without_encoder(row["aggregator"], *encoder) if encoder else row["aggregator"], *encoder]
        for metric in METRICS:
            mean, sd, n = (row[f"{metric}_{part}"] for part in ("mean", "sd", "n"))
            prefix = "boot_" if row["splits"] == 1 else ""
            low, high = (np.clip(row[f"{metric}_{prefix}{part}"], 0, 1) for part in ("low", "high"))
            cell = "-" if n == 0 else f"{mean:.3f}"
            if row["aggregator"] in marked.get(metric, ()):
                cell = bold(cell)
            if n > 1:
                cell += f"{plus_minus}{sd:.3f}"
            if not np.isnan(low):
                cell += f"{between}[{low:.2f}, {high:.2f}]"
            fullest = max(row[f"{other}_n"] for other in METRICS)
            cells.append(cell + (f"{between}(n = {n})" if 0 < n < fullest else ""))
        failed = row["trials_failed"]
        cells.append(f"{row['trials_ok']}" + (f" ({failed} FAILED)" if failed else ""))
        cells.append("-" if np.isnan(row["parameters"]) else f"{row['parameters']:,.0f}")
        cells += [short(row["seconds_per_epoch"]), short(row["peak_mem_mib"])]
        rows.append(cells)
    encoder = ["Encoder"] if "encoder" in table else []
    return ["Aggregator", *encoder, *METRICS.values(), "Trials", *COSTS.values()], rows


def _latex(run: RunDirectory, table: pd.DataFrame, marked: dict[str, set[str]], lines: list[str]) -> str:
    header, rows = _cells(table, marked, " ± ", "\n")
    body = []
    for row in rows:
        # A value and its interval stand in two lines of the row: side by side, four metrics are wider than a page.
        first, *below = zip(*([*cell.split("\n"), "", ""][:3] for cell in row), strict=True)
        for line in [first, *(line for line in below if any(line))]:
            body.append(" & ".join(escape_latex(cell) for cell in line) + r" \\")
        body.append(r"\addlinespace")
    text = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape_latex(f'Test metrics on {dataset_title(run)}')}.}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape_latex, header)) + r" \\",
        r"\midrule",
        *body[:-1],
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\medskip\raggedright",
        *(escape_latex(line) + r"\par" for line in lines),
        r"\end{table}",
    ]
    return "\n".join(text) + "\n"
