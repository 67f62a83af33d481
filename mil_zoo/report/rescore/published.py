"""Published numbers: beside those that are recomputed, and alone, as far as arithmetic tells that one cannot be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.metrics import Metric
from mil_zoo.report.rescore.cells import numbers, plain
from mil_zoo.report.rescore.judge import impossible_share
from mil_zoo.report.rescore.parts import Part, named
from mil_zoo.report.rescore.read import Columns, canonical, read_table
from mil_zoo.report.tables.table import Table
from mil_zoo.stats.possible import fits, half_unit, possible_positives, possible_sizes

_LARGEST = 1e9  # of slides and runs: more is no number of them
MOST = 2000  # slides that a test set can have, where nobody says how many
_METRICS = {
    "accuracy": "accuracy", "acc": "accuracy", "auc": "auc", "auroc": "auc", "balanced_accuracy": "balanced_accuracy",
    "balanced_acc": "balanced_accuracy", "bacc": "balanced_accuracy", "f1": "f1", "c": "c_index", "c_index": "c_index",
    "cindex": "c_index", "concordance": "c_index",
}  # fmt: skip
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-|\+-|\\pm)\s*")
_WRITE = "; write the mean, or mean ± spread"


def metric_name(text: str) -> str:
    """Our name of a metric that a table names; "" where it is unknown."""
    return _METRICS.get(re.sub(r"[^a-z0-9]+", "_", text.strip().lower()).strip("_"), "")


@dataclass(frozen=True, eq=False)
class Published:
    """Published numbers of predictions that are at hand.

    Attributes:
        rows: ``model``, the grouping columns, ``fold`` ("" for the mean over folds), ``value``, ``error`` (half a unit
            in the last digit).
    """

    rows: pd.DataFrame


def read_published(path: Path, columns: Columns, metric: Metric) -> Published:
    """The numbers of one metric: a column ``value`` (of those rows that ``metric`` names), or a column of its name.

    Above 1 they are percentages, where the metric lies in [0, 1].

    Raises:
        InputError: a column is missing, or a value is no number.
    """
    table = canonical(read_table(path), columns, path)
    for name in ("model", *columns.by):
        if name not in table:
            near = did_you_mean(name, map(str, table.columns))
            raise InputError(f"{path}: the column {name!r} is missing{near}; published numbers need model and value")
    if "value" not in table:
        own = [name for name in map(str, table.columns) if metric_name(name) == metric.name or name == metric.name]
        if not own:
            raise InputError(f"{path}: there is no column value, nor one of {metric.title}; map one with --columns")
        table = table.rename(columns={own[0]: "value"})
    elif "metric" in table:
        said = named(set(table["metric"].dropna()))
        table = table[[metric.name in (metric_name(str(text)), text) for text in table["metric"]]]
        if not len(table):
            raise InputError(f"{path}: no row is of {metric.title} (metric: {said}); pass --metric for another one")
    table = plain(_apart(table, path), ["value"], path)
    table = table[table["value"].notna()]
    if not len(table):
        raise InputError(f"{path} holds no published number; leave it out")
    rows = table[["model", *columns.by]].copy()
    rows["fold"] = table["fold"].fillna("").str.replace(r"\.0+$", "", regex=True) if "fold" in table else ""
    if metric.bounds == (0, 1):
        rows["value"], rows["error"] = _read(table, "value", path)
    else:
        rows["value"] = numbers(table, "value", path, _WRITE)
        rows["error"] = [half_unit(str(text)) for text in table["value"]]
    if (twice := rows.duplicated(["model", *columns.by, "fold"])).any():
        row = rows[twice].iloc[0]
        raise InputError(f"{path}: {row['model']!r}, fold {row['fold'] or '-'}, has two values; keep one, or pass --by")
    return Published(rows.reset_index(drop=True))


def compare(
    parts: Sequence[Part], published: Published, metric: Metric, by: Sequence[str]
) -> tuple[dict[int, float], list[str]]:
    """Sets every published number beside the recomputed one, and adds to the remarks of its part where they differ.

    Returns:
        the published value by the place of its part, and sentences on what has no part.
    """
    numbers_of = zip(published.rows["value"], published.rows["error"], strict=True)
    keys = published.rows[["model", *by, "fold"]].itertuples(index=False, name=None)
    of = {
        tuple(map(str, key)): (float(value), float(error)) for key, (value, error) in zip(keys, numbers_of, strict=True)
    }
    found: dict[int, float] = {}
    used = set()
    for place, part in enumerate(parts):
        key = part.model, *part.group, part.split[1]
        if key not in of:
            continue
        used.add(key)
        value, error = of[key]
        found[place] = value
        if metric.name == "accuracy" and (why := impossible_share(value, error, len(part.rows))):
            part.remarks.append(f"the published {metric.title.lower()} cannot be: {why}")
        if metric.bounds == (0, 1) and not 0 <= value <= 1:
            part.remarks.append(f"the published {metric.title} cannot be: {value:g} lies outside [0, 1]")
            continue
        ours = part.value(metric)
        if np.isnan(ours) or abs(ours - value) <= max(error, 1e-9) * (1 + 1e-9):
            continue
        filed = part.value(metric, part.filed.dropna(subset=list(part.task.prediction_columns)))
        whence = ", which all rows as they are filed give" if abs(filed - value) <= max(error, 1e-9) else ""
        part.remarks.append(f"published is {value:.4f}{whence}")
    alone = [key for key in of if key not in used and key[-1] != ""]
    names = sorted({str(key[0]) for key in alone} - {part.model for part in parts})
    sentences = []
    if names:
        sentences.append(f"Published models that no file has: {named(names)}.")
    if rest := [key for key in alone if key[0] not in names]:
        shown = ["/".join(map(str, key)) for key in rest]
        sentences.append(f"{len(rest)} published numbers are of folds that no file has ({named(shown)}).")
    return found, sentences


def of_means(
    parts: Sequence[Part], published: Published, by: Sequence[str]
) -> dict[tuple[str, ...], tuple[float, float]]:
    """Published means over folds and half a unit in their last digit, by model and group."""
    rows = published.rows[published.rows["fold"] == ""]
    known = {(part.model, *part.group) for part in parts}
    keys = [(row["model"], *(row[name] for name in by)) for _, row in rows.iterrows()]
    values = zip(keys, rows["value"], rows["error"], strict=True)
    return {key: (float(value), float(error)) for key, value, error in values if key in known}


# Numbers without predictions -----------------------------------------------------------------------------------------


def holds_numbers(table: pd.DataFrame) -> bool:
    """Whether a table holds published numbers and no predictions."""
    if {"slide_id", "patient_id", "risk", "score", "prob_0"} & set(table):
        return False
    return {"metric", "value"} <= set(table) or any(_kind(str(name))[1] for name in table)


def check_numbers(table: pd.DataFrame, columns: Columns, path: Path) -> Table:
    """Looks for published accuracies that no number of slides gives, and values and spreads that cannot be.

    Of a row a number (``metric``, ``value``, perhaps ``std``, ``n_runs`` and ``n``, the slides) each is judged alone;
    of columns of numbers (``acc`` or ``test_acc``, ``auc``) with ``--by`` the rows of one group and fold are taken to
    be of the same test slides, whose number then follows from all of them.

    Args:
        table: as :func:`canonical` gives it.
        columns: with the grouping columns.
        path: for messages.
    """
    for name in columns.by:
        if name not in table:
            raise InputError(f"{path}: the grouping column {name!r} is missing{did_you_mean(name, table.columns)}")
    if not len(table):
        raise InputError(f"{path} holds no row of numbers; leave it out")
    return _of_rows(table, columns, path) if {"metric", "value"} <= set(table) else _of_columns(table, columns, path)


def _of_columns(table: pd.DataFrame, columns: Columns, path: Path) -> Table:
    if not columns.by:
        table = table.assign(row=[str(i) for i in range(2, len(table) + 2)])
    group = [*columns.by, *(["fold"] if "fold" in table else [])] if columns.by else ["row"]
    parts = dict.fromkeys(part for part, kind in map(_kind, map(str, table.columns)) if kind == "accuracy")
    rows = []
    for key, own in table.groupby(group, sort=False):
        for part in parts:
            names = {
                kind: name for name in map(str, table.columns) if _kind(name)[0] == part and (kind := _kind(name)[1])
            }
            shares = own[own[names["accuracy"]].notna()]
            if not len(shares):
                continue
            texts = shares[names["accuracy"]]
            if (means := texts.str.contains(_PLUS_MINUS)).any():
                raise InputError(
                    f"{path}: {names['accuracy']} is {texts[means].iloc[0]!r}, a mean over runs, of which no number of "
                    "slides follows; write it in columns metric, value, n and n_runs"
                )
            values, errors = _read(shares, names["accuracy"], path)
            outside = any(not 0 <= value <= 1 for value in values)
            sizes = np.empty(0, dtype=int) if outside else possible_sizes(values, errors, MOST)
            n = int(sizes[0]) if len(sizes) else 0
            positives = "-"
            if n and "auc" in names:
                areas = own[own[names["auc"]].notna()]
                found = possible_positives(*_read(areas, names["auc"], path), n)
                positives = str(int(found[-1])) if len(found) else "-"
            models = shares["model"].tolist() if "model" in shares else ["the row"] * len(shares)
            why = "" if n else _culprits(models, values, errors)
            rows.append([*key, part or "-", len(shares), _sizes(sizes), positives, why])
    header = [*group, "part", "accuracies", "slides", "of the rarer class", "remark"]
    bad = sum(bool(row[-1]) for row in rows)
    return Table(header, rows, [_verdict(bad, len(rows)), _NOTE], path.name)


def _sizes(sizes: Any) -> str:
    """The sizes, briefly: most often one and its multiples."""
    if not len(sizes):
        return "-"
    if len(sizes) > 1 and not (sizes % sizes[0]).any():
        return f"{sizes[0]} or a multiple"
    return ", ".join(map(str, sizes[:4])) + " ..." * (len(sizes) > 4)


_NOTE = (
    f"slides: the numbers of test slides, up to {MOST}, of which every accuracy of the row is a share; of the rarer "
    "class: the size of one of two classes of which every AUC then is a share of pairs (-: none, as with more than two "
    "classes, whose AUCs are means)."
)


def _of_rows(table: pd.DataFrame, columns: Columns, path: Path) -> Table:
    table = plain(_apart(table, path), ["value", "std", "n_runs", "n"], path)
    values, errors = _read(table, "value", path)
    spreads = numbers(table, "std", path) if "std" in table else np.full(len(table), np.nan)
    runs = numbers(table, "n_runs", path) if "n_runs" in table else np.full(len(table), np.nan)
    slides = numbers(table, "n", path) if "n" in table else np.full(len(table), np.nan)
    for name, counts in (("n_runs", runs), ("n", slides)):
        if (odd := (counts < 1) | (counts % 1 > 0) | (counts > _LARGEST)).any():
            row = int(odd.argmax())
            raise InputError(f"{path}: row {row + 2} has {name} {counts[row]:g}; write a whole number from 1 to 1e9")
    percent = np.array(values) < numbers(table.assign(value=table["value"].str.removesuffix("%")), "value", path)
    spreads = np.where(percent, spreads / 100, spreads)
    context = [name for name in (*columns.by, "model") if name in table]
    rows = []
    for i in range(len(table)):
        kind = metric_name(str(table["metric"].iloc[i]))
        why = _cannot_be(kind, values[i], errors[i], spreads[i], runs[i], slides[i])
        if why:
            rows.append(
                [*(table[name].iloc[i] for name in context), table["metric"].iloc[i], table["value"].iloc[i], why]
            )
    note = "A value lies in [0, 1] (or is a percentage), a spread is no larger than values in [0, 1] can have."
    return Table([*context, "metric", "value", "remark"], rows, [_verdict(len(rows), len(table)), note], path.name)


def _cannot_be(kind: str, value: float, error: float, sd: float, runs: float, n: float) -> str:
    if not 0 <= value <= 1:
        return f"{value:g} lies outside [0, 1]"
    if sd < 0:
        return f"a spread of {sd:g} is negative"
    times = runs if runs == runs and runs >= 1 else 1.0
    if times == 1 and sd > 0 and runs == runs:
        return "one run has no spread"
    most = np.sqrt(value * (1 - value) * (times / (times - 1) if times > 1 else 1)) if runs == runs else np.inf
    if sd > most + 1e-4:
        return f"a spread of {sd:g} is larger than values in [0, 1] of this mean can have ({most:.4f})"
    of_runs = runs == runs or not sd > 0  # else the mean of nobody knows how many runs
    if kind == "accuracy" and n == n and of_runs and not fits(value, error, round(n * times)):
        return impossible_share(value, error, round(n * times))
    return ""


def _culprits(models: Sequence[str], values: Sequence[float], errors: Sequence[float]) -> str:
    """Which accuracies no number of slides gives, alone or with the others."""
    if outside := [i for i in range(len(values)) if not 0 <= values[i] <= 1]:
        return ", ".join(f"{models[i]} {values[i]:.10g}" for i in outside) + ": outside [0, 1]"
    alone = [i for i in range(len(values)) if not len(possible_sizes([values[i]], [errors[i]], MOST))]
    if alone:
        shown = ", ".join(f"{models[i]} {values[i]:.10g}" for i in alone)
        return f"no k / n with n up to {MOST} is {shown}"
    for i in range(len(values)):
        rest = [j for j in range(len(values)) if j != i]
        if len(rest) > 1 and len(possible_sizes([values[j] for j in rest], [errors[j] for j in rest], MOST)):
            return f"{models[i]} {values[i]:.10g} does not fit the others: no n up to {MOST} gives all"
    return f"no n up to {MOST} gives all of them: they are of different slides"


def _apart(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with means in ``value`` and spreads in ``std``, where a text holds both: "73.1 ± 2.0 %".

    Raises:
        InputError: a row has another spread in ``std``.
    """
    parts = table["value"].str.strip("$ ").str.split(_PLUS_MINUS, n=1, expand=True, regex=True)
    if 1 not in parts:
        return table
    means, spreads = parts[0], parts[1].str.removesuffix("%").str.strip()
    percent = parts[1].str.endswith("%").fillna(False).to_numpy(dtype=bool)
    means = means.where(~percent, means.str.removesuffix("%").str.strip() + "%")
    own = table["std"] if "std" in table else pd.Series(None, index=table.index, dtype=object)
    if (twice := own.notna() & spreads.notna()).any():
        row = int(twice.to_numpy().argmax()) + 2
        raise InputError(f"{path}: row {row} has a spread in value and one in std; write it once")
    return table.assign(value=means, std=own.where(own.notna(), spreads))


def _read(table: pd.DataFrame, name: str, path: Path) -> tuple[list[float], list[float]]:
    """Values and half units; of percentages the shares."""
    table = plain(table, [name], path)
    signed = table[name].str.endswith("%").fillna(False).to_numpy(dtype=bool)
    table = table.assign(**{name: table[name].str.removesuffix("%")})
    values, errors = numbers(table, name, path, _WRITE), np.array([half_unit(str(text)) for text in table[name]])
    percent = signed | (values > 1) & (values <= 100)
    return np.where(percent, values / 100, values).tolist(), np.where(percent, errors / 100, errors).tolist()


def _kind(name: str) -> tuple[str, str]:
    """``test_acc`` as ("test", "accuracy"); ("", "") for other columns."""
    part, _, last = name.rpartition("_")
    for prefix, metric in ((part, last), ("", name)):
        if (known := metric_name(metric)) in ("accuracy", "auc") and prefix.lower() in ("", "test", "val", "train"):
            return prefix.lower(), known
    return "", ""


def _verdict(bad: int, judged: int) -> str:
    return f"{bad} of {judged} cannot be." if bad else f"None of {judged} is impossible."
