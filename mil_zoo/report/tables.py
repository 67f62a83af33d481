"""The comparison table and the attention-skew table of a run, as data frames, files and for the terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape as escape_markup
from rich.table import Table

from mil_zoo.bench.stats import summarise
from mil_zoo.report.results import dataset_title, finished, notes, skew_of_test_slides, trials_by_aggregator

if TYPE_CHECKING:
    from mil_zoo.bench.store import RunDirectory

METRICS = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC", "f1": "F1"}
COSTS = {"parameters": "Parameters", "seconds_per_epoch": "s / epoch", "peak_mem_mib": "Peak memory (MiB)"}
MEASURED = ["seconds_per_epoch", "peak_mem_mib"]
SKEW = {
    "n_instances": "Instances",
    "max_attention": "Maximum",
    "n_x_max": "N x maximum",
    "head_max": "Maximum of a head",
    "entropy": "Entropy",
    "effective_instances": "Effective instances",
    "mass_ratio": "Mass ratio",
    "attention_auroc": "Attention AUROC",
}


def comparison_table(run: RunDirectory) -> pd.DataFrame:
    """One row an ``aggregator[@grid]``.

    Columns: ``aggregator``; for each metric on the test slides ``<metric>_mean``, ``_sd``, ``_low``, ``_high`` and
    ``_n`` as :func:`mil_zoo.bench.stats.summarise` gives them (one value a split, its seeds averaged first; of a
    single split, one value a seed); ``trials_ok``, ``trials_failed``; ``parameters``, ``seconds_per_epoch`` (median)
    and ``peak_mem_mib`` (largest). NaN where undefined.
    """
    return pd.DataFrame([_comparison_row(label, trials) for label, trials in trials_by_aggregator(run).items()])


def table_skew(run: RunDirectory) -> pd.DataFrame:
    """One row an ``aggregator[@grid]`` with attention, over the test slides of all its trials.

    Columns: ``aggregator``, ``slides`` (slides times trials), ``heads`` (1 where a model records no separate heads),
    and for each number of ``SKEW`` its ``_median``, ``_q1`` and ``_q3``; ``positive_slides`` counts the slides behind
    ``mass_ratio``. ``head_max`` is the mean over heads of a slide's per-head maxima.
    """
    rows = []
    for label, trials in trials_by_aggregator(run).items():
        parts = [skew_of_test_slides(run.skew(trial["trial"])) for trial in finished(trials)]
        parts = [part for part in parts if len(part)]
        if not parts:
            continue
        slides = pd.concat(parts)
        row: dict[str, Any] = {"aggregator": label, "slides": len(slides)}
        row["heads"] = int(slides["heads"].max())
        row["positive_slides"] = int(slides["mass_ratio"].notna().sum()) if "mass_ratio" in slides else 0
        for name in SKEW:
            values = slides[name] if name in slides else pd.Series(dtype=float)
            row[f"{name}_median"] = values.median()
            row[f"{name}_q1"], row[f"{name}_q3"] = values.quantile(0.25), values.quantile(0.75)
        rows.append(row)
    return pd.DataFrame(rows)


def rich_table(run: RunDirectory) -> Table:
    """The comparison table for the terminal (80 columns hold it), with the notes as its caption."""
    _, rows = _cells(comparison_table(run), "±", "\n")
    caption = "\n" + "\n".join(escape_markup(note) for note in notes(run))
    table = Table(box=box.SIMPLE, padding=0, show_edge=False, caption=caption, caption_justify="left", caption_style="")
    table.add_column("Aggregator", overflow="fold", min_width=10)
    for name in ("Accuracy", "Balanced\naccuracy", "AUC", "F1", "Trials\nparams", "s/epoch\nMiB"):
        table.add_column(name, justify="right")
    for name, *metrics, trials, parameters, seconds, memory in rows:
        ran = trials.replace(" (", "\n").rstrip(")")
        table.add_row(*map(escape_markup, [name, *metrics, f"{ran}\n{parameters}", f"{seconds}\n{memory}"]))
    return table


def write_tables(run: RunDirectory) -> list[Path]:
    """Writes ``table.csv|md|tex``, ``cost.csv`` and, where a model has attention, ``skew.csv|md``.

    ``table.csv`` holds no measured time or memory (they are in ``cost.csv``): repeating a run gives it byte by byte.
    """
    table, skew, lines = comparison_table(run), table_skew(run), notes(run)
    under = "\n" + "".join(f"- {_escape_markdown(line)}\n" for line in lines)
    written = {
        "table.csv": _csv(table.drop(columns=MEASURED)),
        "cost.csv": _csv(table[["aggregator", *COSTS]]),
        "table.md": _markdown(*_cells(table, " ± ", " ")) + under,
        "table.tex": _latex(run, table, lines),
    }
    if len(skew):
        written["skew.csv"] = _csv(skew)
        written["skew.md"] = _markdown(*_skew_cells(skew)) + f"\n- {_SKEW_NOTE}\n" + under.lstrip("\n")
    for name, text in written.items():
        (Path(run.path) / name).write_text(text, encoding="utf-8", newline="\n")
    return [Path(run.path) / name for name in written]


_SKEW_NOTE = (
    "Median [first, third quartile] over the test slides of all trials. N x maximum is 1 for uniform attention. "
    "Averaging heads lowers the maximum: compare the maximum of a head (mean over heads). Mass ratio (attention on "
    "positive instances over their share) and attention AUROC: positive slides with instance labels only."
)


def _comparison_row(label: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    ok = finished(trials)
    row: dict[str, Any] = {"aggregator": label}
    for metric in METRICS:
        summary = summarise(
            _values(ok, metric),
            n_train=np.mean([trial["n_train"] for trial in ok]) if ok else 1,
            n_test=np.mean([trial["n_test"] for trial in ok]) if ok else 1,
        )
        row |= {f"{metric}_{name}": getattr(summary, name) for name in ("mean", "sd", "low", "high", "n")}
    row["trials_ok"], row["trials_failed"] = len(ok), len(trials) - len(ok)
    costs = pd.DataFrame(ok, columns=list(COSTS), dtype=float)
    row["parameters"] = costs["parameters"].max()
    row["seconds_per_epoch"] = costs["seconds_per_epoch"].median()
    row["peak_mem_mib"] = costs["peak_mem_mib"].max()
    return row


def _values(ok: list[dict[str, Any]], metric: str) -> list[float | None]:
    """One value a split; of a single split, one a seed."""
    by_split = defaultdict(list)
    for trial in ok:
        by_split[trial["repeat"], trial["fold"]].append(trial["metrics"][metric])
    if len(by_split) == 1:
        return next(iter(by_split.values()))
    # Seeds of a split share its test set: counted as further splits they would make the interval too narrow.
    defined = [[value for value in values if value is not None] for values in by_split.values()]
    return [float(np.mean(values)) if values else None for values in defined]


def _cells(table: pd.DataFrame, plus_minus: str, between: str) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of the comparison table; ``between`` stands between a value and its interval."""
    rows = []
    for _, row in table.iterrows():
        cells = [row["aggregator"]]
        for metric in METRICS:
            mean, sd, low, high, n = (row[f"{metric}_{part}"] for part in ("mean", "sd", "low", "high", "n"))
            cell = "-" if n == 0 else f"{mean:.3f}"
            if n > 1:
                cell += f"{plus_minus}{sd:.3f}{between}[{low:.2f}, {high:.2f}]"
            fullest = max(row[f"{other}_n"] for other in METRICS)
            cells.append(cell + (f"{between}(n = {n})" if 0 < n < fullest else ""))
        failed = row["trials_failed"]
        cells.append(f"{row['trials_ok']}" + (f" ({failed} FAILED)" if failed else ""))
        cells.append("-" if np.isnan(row["parameters"]) else f"{row['parameters']:,.0f}")
        cells += [short(row["seconds_per_epoch"]), short(row["peak_mem_mib"])]
        rows.append(cells)
    return ["Aggregator", *METRICS.values(), "Trials", *COSTS.values()], rows


def _skew_cells(skew: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    rows = []
    for _, row in skew.iterrows():
        cells = [row["aggregator"], str(row["slides"]), str(row["positive_slides"]), str(row["heads"])]
        for name in SKEW:
            middle, low, high = (row[f"{name}_{part}"] for part in ("median", "q1", "q3"))
            cells.append("-" if np.isnan(middle) else f"{short(middle)} [{short(low)}, {short(high)}]")
        rows.append(cells)
    return ["Aggregator", "Slides", "Positive slides", "Heads", *SKEW.values()], rows


def short(value: float) -> str:
    """Three significant digits, thousands with a comma, "-" for NaN."""
    return "-" if np.isnan(value) else f"{float(f'{value:.3g}'):,.10g}"


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[_escape_markdown(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(run: RunDirectory, table: pd.DataFrame, lines: list[str]) -> str:
    header, rows = _cells(table, " ± ", "\n")
    body = []
    for row in rows:
        # A value and its interval stand in two lines of the row: side by side, four metrics are wider than a page.
        first, *below = zip(*([*cell.split("\n"), "", ""][:3] for cell in row), strict=True)
        for line in [first, *(line for line in below if any(line))]:
            body.append(" & ".join(_escape_latex(cell) for cell in line) + r" \\")
        body.append(r"\addlinespace")
    text = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_escape_latex(f'Test metrics on {dataset_title(run)}')}.}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escape_latex, header)) + r" \\",
        r"\midrule",
        *body[:-1],
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\medskip\raggedright",
        *(_escape_latex(line) + r"\par" for line in lines),
        r"\end{table}",
    ]
    return "\n".join(text) + "\n"


_LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([|<*`\\])", r"\\\1", text)
