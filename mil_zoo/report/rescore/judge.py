"""What cannot be right in prediction files and in the numbers published of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import pandas as pd

from mil_zoo.data.labels.dialects import folded
from mil_zoo.metrics import Metric
from mil_zoo.noted import note_of
from mil_zoo.report.rescore.parts import Cohort, Part, named
from mil_zoo.report.rescore.read import Predictions
from mil_zoo.stats.possible import fits

_EQUAL = 1e-12  # predictions that differ by no more are constant
_SAME = 6  # decimals in which labels agree


def judge(
    parts: Sequence[Part], predictions: Predictions, cohort: Cohort | None, metric: Metric, by: Sequence[str] = ()
) -> None:
    """Adds to the remarks of every part what cannot be right there.

    Args:
        parts: as ``parts_of`` made them, with remarks on rows that were left out.
        predictions: all files.
        cohort: who should be there; None where nobody says.
        metric: the one that is shown.
        by: the grouping columns.
    """
    what = "slides" if predictions.of_slides else "patients"
    for part in parts:
        _judge_rows(part, metric, what, cohort)
    _groupwise(parts, lambda part: (part.group,), _folds)
    _groupwise(parts, lambda part: (part.group,), lambda own: _labels(own, predictions, cohort, what))
    _groupwise(parts, lambda part: (part.group, part.model), lambda own: _absent(own, cohort, by, what))
    _groupwise(parts, lambda part: (part.group, part.model), _orientation)
    _groupwise(parts, lambda part: (part.group, part.model), lambda own: _sides(own, predictions, cohort))


def _groupwise(parts: Sequence[Part], key: Callable[[Part], Hashable], act: Callable[[list[Part]], None]) -> None:
    groups = defaultdict(list)
    for part in parts:
        groups[key(part)].append(part)
    for own in groups.values():
        act(own)


def _folds(parts: list[Part]) -> None:
    """Models of which no fold bears the name of another one's fold: nothing of theirs is paired."""
    of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for part in parts:
        of[part.model].add(part.split[:2])
    for part in parts:
        others = set().union(*(splits for model, splits in of.items() if model != part.model))
        if others and not of[part.model] & others:
            mine, theirs = (named(fold for _, fold in splits) for splits in (of[part.model], others))
            part.remarks.append(f"folds are called {mine} here and {theirs} of other models: nothing is paired")


def _judge_rows(part: Part, metric: Metric, what: str, cohort: Cohort | None) -> None:
    if part.missing:
        where = "the cohort names" if cohort is not None else "other models predict"
        part.remarks.append(f"{len(part.missing)} {what} that {where} are missing ({named(part.missing)})")
        spelled = _spelled_otherwise(part.missing, part.rows[part.key])
        if spelled:
            ours, theirs = next(iter(spelled.items()))
            part.remarks.append(
                f"{len(spelled)} of them are there under another spelling ({ours!r} as {theirs!r}); write ids alike"
            )
    if cohort is not None and cohort.folds:
        there = cohort.rows
        known = set(there.loc[there["fold"] == part.split[1], cohort.key])
        if strange := set(part.rows[cohort.key]) - known:
            part.remarks.append(f"{len(strange)} {what} are not in this fold of the cohort ({named(strange)})")
    elif cohort is not None and (strange := set(part.rows[cohort.key]) - set(cohort.rows[cohort.key])):
        part.remarks.append(f"{len(strange)} {what} are not in the cohort ({named(strange)})")
    predicted = part.rows[list(part.task.prediction_columns)].to_numpy(dtype=float)
    if len(predicted) > 1 and np.ptp(predicted, axis=0).max() <= _EQUAL:
        part.remarks.append("constant predictions: every one is the same")
    if len(part.rows) and (why := note_of(value := part.value(metric))) and np.isnan(value):
        part.remarks.append(f"{metric.title} is undefined: {why}")
    filed = part.filed.dropna(subset=[*part.task.prediction_columns, *part.task.target_columns])
    if len(filed) != len(part.rows):
        with_all = part.value(metric, filed)
        if not np.isnan(with_all) and abs(with_all - part.value(metric)) > 1e-12:
            part.remarks.append(f"with all rows as they are filed {metric.title} would be {with_all:.6f}")


def _spelled_otherwise(missing: Sequence[str], there: Iterable[str]) -> dict[str, str]:
    """Missing ids by how they are written there: in another case, or as a spreadsheet writes numbers."""
    known = {_alike(name): name for name in map(str, there)}
    return {name: known[_alike(name)] for name in missing if _alike(name) in known and name not in known.values()}


def _alike(name: str) -> str:
    return re.sub(r"^0+(?=\d+$)", "", re.sub(r"^(\d+)\.0+$", r"\1", folded(name)))


def _labels(parts: list[Part], predictions: Predictions, cohort: Cohort | None, what: str) -> None:
    """Labels that differ from the cohort's, or from those that most files of the group have."""
    names = predictions.targets
    key = "slide_id" if predictions.of_slides and not predictions.task.of_patients else "patient_id"
    said: dict[str, Counter[tuple[float, ...]]] = defaultdict(Counter)
    for part in parts:
        for name, truth in _truths(part.rows, key, names):
            said[name][truth] += 1
    right = {name: counts.most_common(1)[0][0] for name, counts in said.items()}
    against = "most files"
    if cohort is not None and cohort.targets and key == cohort.key:
        right, against = dict(_truths(cohort.rows, key, names)), "the cohort"
    for part in parts:
        wrong = {name: truth for name, truth in _truths(part.rows, key, names) if right.get(name, truth) != truth}
        if wrong:
            name, truth = next(iter(sorted(wrong.items())))
            here, there = (_written(names, values) for values in (truth, right[name]))
            part.remarks.append(
                f"labels of {len(wrong)} {what} differ from {against} ({name}: {here} here, {there} there)"
            )


def _truths(rows: pd.DataFrame, key: str, names: Sequence[str]) -> list[tuple[str, tuple[float, ...]]]:
    known = rows[rows[key] != ""].dropna(subset=list(names))
    values = known[list(names)].to_numpy(dtype=float).round(_SAME)
    return [(str(name), tuple(truth)) for name, truth in zip(known[key], values.tolist(), strict=True)]


def _written(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))


def _absent(parts: list[Part], cohort: Cohort | None, by: Sequence[str], what: str) -> None:
    """Who is in no fold, where the cohort does not say in which one to look."""
    if cohort is None or cohort.folds or len({part.split[:2] for part in parts}) == 1:
        return
    there = cohort.rows[cohort.rows["split"].isin(["", "test"])]
    for name, value in zip(by, parts[0].group, strict=True):
        there = there[there[name] == value]
    tested = set().union(*(set(part.rows[cohort.key]) for part in parts))
    if absent := set(there[cohort.key]) - tested:
        for part in parts:
            part.remarks.append(f"{len(absent)} {what} of the cohort are in no fold ({named(absent)})")


def _orientation(parts: list[Part]) -> None:
    """The rank metric of the task, whichever is shown, below one half on every fold."""
    metric = next((one for one in parts[0].task.metrics if one.name in ("c_index", "auc")), None)
    if metric is None:
        return
    values = [part.value(metric) for part in parts]
    known = [value for value in values if not np.isnan(value)]
    if known and max(known) < 0.5:
        shown = ", ".join(f"{value:.3f}" for value in known[:10])
        every = "its only fold" if len(known) == 1 else f"every fold ({shown})"
        turned = "a higher risk may mean a later event there" if metric.name == "c_index" else "classes may be swapped"
        for part in parts:
            part.remarks.append(f"{metric.title} is below 0.5 on {every}: {turned}; nothing was turned round")


def _sides(parts: list[Part], predictions: Predictions, cohort: Cohort | None) -> None:
    """Patients in train and test: named on both sides, or with slides in several test folds of a cross-validation."""
    rows = predictions.rows
    trained = rows[(rows["split"] == "train") & (rows["model"] == parts[0].model)]
    for part in parts:
        own = trained[(trained["repeat"] == part.split[0]) & (trained["fold"] == part.split[1])]
        train = set(_owners(own))
        if cohort is not None and (cohort.rows["split"] != "").any():
            named_there = cohort.rows[cohort.rows["split"] == "train"]
            if cohort.folds:
                named_there = named_there[named_there["fold"] == part.split[1]]
            train |= set(_owners(named_there))
        if both := train & set(_owners(part.rows)):
            part.remarks.append(f"{len(both)} patients are in train and test ({named(both)})")
    if not predictions.of_slides:
        return
    for repeat in dict.fromkeys(part.split[0] for part in parts):
        folds = {part.split[1]: part for part in parts if part.split[0] == repeat}
        slides = Counter(slide for part in folds.values() for slide in set(part.rows["slide_id"]))
        if len(folds) < 2 or max(slides.values(), default=0) > 1:  # drawn anew each time: no slide is trained for sure
            continue
        tested = defaultdict(set)
        for fold, part in folds.items():
            for patient in _owners(part.rows):
                tested[patient].add(fold)
        for fold, part in folds.items():
            if both := {patient for patient, places in tested.items() if fold in places and len(places) > 1}:
                part.remarks.append(
                    f"{len(both)} patients are in train and test: their slides lie in several folds ({named(both)})"
                )


def _owners(rows: pd.DataFrame) -> list[str]:
    return rows["patient_id"].where(rows["patient_id"] != "", rows["slide_id"]).tolist()


def impossible_share(value: float, error: float, n: int) -> str:
    """Why a published share of ``n`` is none, as a sentence part; "" where it is one."""
    if not n or fits(value, error, n):
        return ""
    k = int(np.floor(value * n))
    near = " or ".join(f"{i} / {n} = {i / n:.4f}" for i in (k, k + 1) if 0 <= i <= n)
    return f"no share of {n} is {value:g} (near it: {near})"
