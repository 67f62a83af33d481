"""The table of survival: pooled concordance, risk groups, and what the slides tell beyond the clinical covariates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.errors import InputError
from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.survival_folds import ClinicalFolds, Fold, clinical_folds, folds_of, groups_of
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import fixed, interval, p_value
from mil_zoo.report.test_parts import mean_sizes
from mil_zoo.stats import (
    Covariates,
    Scored,
    adds_to_clinical,
    bootstrap_difference,
    bootstrap_patients,
    concordance,
    corrected_t_test,
    holm,
)

CLINICAL = "clinical"
_OTHERS = "other patients"  # where a model was scored on others than the clinical one
_PAIRED = ["beats_clinical", "beats_clinical_low", "beats_clinical_high", "test", "p_beats_clinical"]
_BESIDE = [*_PAIRED, "p_beats_clinical_holm", "p_adds_to_clinical"]
_HEADER = ["Aggregator", "C, pooled", "C, mean of folds", "High-risk hazard ratio", "Log-rank p"]
_NOTES = [
    "C, pooled: concordant over comparable pairs within folds, each summed, with the interval over the choice of test "
    "patients (2000 draws within those with the event and those without; the models as they are). Risks of different "
    "folds are never compared. The mean of folds weighs a fold of few pairs like one of many.",
    "Risk is the log hazard, or of discrete hazards minus the sum of S_k over bins; other reductions rank otherwise "
    "(Sonabend 2022).",
    "High risk: above the median risk of the fold's training patients; joined over folds, hazard ratio and log-rank "
    "test stratified by fold. No cut-point was chosen by test patients.",
    "The intervals of pooled C and hazard ratio, and the log-rank p, leave out the spread over trainings: they are of "
    "these trained models (of the first repetition and seed), and another training would give others. Differences "
    "between models are tested in comparisons.md.",
]


def survival_numbers(results: Results) -> pd.DataFrame:
    """One row an ``aggregator[@grid]``, the clinical model first where the card names covariates.

    Columns: ``aggregator``; ``c_pooled`` with ``c_pooled_low``, ``c_pooled_high``; ``c_mean`` over ``folds``, those
    where it is defined, and the ``reason`` why pooled C has no interval; ``hazard_ratio`` with ``hazard_ratio_low``,
    ``hazard_ratio_high``; ``p_log_rank``; beside a clinical model ``beats_clinical`` (difference of the mean C) with
    ``beats_clinical_low``, ``beats_clinical_high``, the ``test`` that gives ``p_beats_clinical`` (corrected t over
    folds; on a single test set the bootstrap over its patients), ``p_beats_clinical_holm`` (adjusted over the models),
    and ``p_adds_to_clinical``. NaN where undefined.
    """
    return results.once(_numbers)


def survival_document(results: Results) -> Document:
    """Of every aggregator, and of the clinical model where the card names covariates."""
    frame, clinical = survival_numbers(results), clinical_folds(results)
    header, notes = [*_HEADER], [*_NOTES]
    beside = isinstance(clinical, ClinicalFolds)
    if isinstance(clinical, ClinicalFolds):
        header += ["Beats clinical by [95 %]", "p (test)", "Adjusted p", "Adds to clinical, p"]
        notes.append(
            f"clinical: Cox regression (Efron) on {', '.join(clinical.models[0].names)}, fitted to the training "
            "patients of each fold. Beats clinical by: difference of the mean C on the same patients, below 0 where "
            "the clinical model is better; two-sided p by the corrected resampled t-test over folds (Nadeau & Bengio "
            "2003; fewer than five folds decide nothing), on a single test set by draws of its patients, one for both; "
            "adjusted by Holm over the models. Adds to clinical: likelihood-ratio test of the risk beside the "
            "covariates, stratified by fold."
        )
    else:
        notes.append(f"No clinical row: {clinical}.")
    rows = [
        [row["aggregator"], *_shown(row, _folds(results, row["aggregator"])), *(_shown_beside(row) if beside else ())]
        for row in frame.to_dict("records")
    ]
    for (defined, reason), of in frame[frame["reason"] != ""].groupby([frame["folds"] > 0, "reason"], sort=False):
        labels = ", ".join(of["aggregator"])
        notes.append(f"The pooled C of {labels} {'has no interval' if defined else 'is undefined'}: {reason}.")
    for label in results.groups:
        groups, parts = groups_of(results, label), folds_of(results, label)
        if groups is not None and groups.note:
            notes.append(f"{label}: risk groups: {groups.note}.")
        if groups is not None and groups.collapsed:
            notes.append(
                f"{label}: in {len(groups.collapsed)} of {len(parts)} folds all test patients lie on one side of the "
                "training median: the model may have collapsed."
            )
    return Document("survival", "Survival", [Table(header, rows, notes)])


def _numbers(results: Results) -> pd.DataFrame:
    clinical, rows = clinical_folds(results), []
    known = clinical if isinstance(clinical, ClinicalFolds) else None
    if known is not None:
        rows.append({"aggregator": CLINICAL, **_concordance(known.scored)})
    for label in results.groups:
        parts = folds_of(results, label)
        if not parts:
            continue
        row: dict[str, Any] = {"aggregator": label, **_concordance([part.scored for part in parts])}
        if (groups := groups_of(results, label)) is not None:
            ratio = groups.ratio
            row |= {"hazard_ratio": ratio.value, "hazard_ratio_low": ratio.low, "hazard_ratio_high": ratio.high}
            row["p_log_rank"] = groups.test.p
        rows.append(row | ({} if known is None else _beside_clinical(results, parts, known)))
    columns = ["hazard_ratio", "hazard_ratio_low", "hazard_ratio_high", "p_log_rank"]
    frame = pd.DataFrame(rows)
    names = [name for name in frame if name not in [*columns, *_BESIDE]]
    frame = frame.reindex(columns=[*names, *columns, *(_BESIDE if known is not None else ())])
    if known is not None:
        frame["test"] = frame["test"].fillna("")
        frame["p_beats_clinical_holm"] = holm(frame["p_beats_clinical"].tolist())
    return frame


def _concordance(parts: list[Scored]) -> dict[str, Any]:
    pooled, values = bootstrap_patients(parts), _values(parts)
    defined = values[~np.isnan(values)]
    mean = float(np.mean(defined)) if len(defined) else np.nan
    ends = {"c_pooled_low": pooled.low, "c_pooled_high": pooled.high}
    return {"c_pooled": pooled.value, **ends, "c_mean": mean, "folds": len(defined), "reason": note_of(pooled.low)}


def _values(parts: list[Scored]) -> np.ndarray:
    return np.array([float(concordance(*part.arguments[:3])) for part in parts])


def _beside_clinical(results: Results, parts: list[Fold], clinical: ClinicalFolds) -> dict[str, Any]:
    scored = [part.scored for part in parts]
    if [list(part.patients) for part in scored] != [list(part.patients) for part in clinical.scored]:
        return {"test": _OTHERS}
    if len(parts) > 1:
        differences = _values(scored) - _values(clinical.scored)
        found = corrected_t_test(differences.tolist(), *mean_sizes([part.trial for part in parts]))
        value, test, p = found.difference, "corrected t", found.p
        numbers = value.mean, value.low, value.high
    else:
        drawn = bootstrap_difference(scored, clinical.scored, results.metric("c_index"))
        numbers, test, p = (drawn.value, drawn.low, drawn.high), "bootstrap", drawn.p
    time, event, risk = (np.concatenate([part.arguments[i] for part in parts]) for i in range(3))
    fold = np.repeat(np.arange(len(parts)), [len(part.patients) for part in parts])
    together = Covariates(clinical.covariates[0].names, np.concatenate([each.matrix for each in clinical.covariates]))
    try:
        adds = adds_to_clinical(time, event, together, risk, fold).p
    except InputError:  # covariates that vary among training patients and not among those of all test parts
        adds = float("nan")
    return dict(zip(_PAIRED, (*numbers, test, p), strict=True)) | {"p_adds_to_clinical": adds}


def _folds(results: Results, label: str) -> int:
    clinical = clinical_folds(results)
    return len(
        clinical.scored if label == CLINICAL and isinstance(clinical, ClinicalFolds) else folds_of(results, label)
    )


def _shown(row: Mapping[Any, Any], folds: int) -> list[Cell | str]:
    low, high = row["c_pooled_low"], row["c_pooled_high"]
    ratio_low, ratio_high = row["hazard_ratio_low"], row["hazard_ratio_high"]
    return [
        Cell(fixed(row["c_pooled"]), below=(interval(low, high, ".3f"),) * (row["folds"] > 0)),
        Cell(fixed(row["c_mean"]), below=(f"(n = {row['folds']})",) * (0 < row["folds"] < folds)),
        "-"
        if np.isnan(row["hazard_ratio"])
        else Cell(f"{row['hazard_ratio']:.2f}", below=(interval(ratio_low, ratio_high),)),
        p_value(row["p_log_rank"]),
    ]


def _shown_beside(row: Mapping[Any, Any]) -> list[Cell | str]:
    value, ends = row["beats_clinical"], (row["beats_clinical_low"], row["beats_clinical_high"])
    if np.isnan(value):
        return [_OTHERS if row["test"] == _OTHERS else "-", "-", "-", "-"]
    return [
        Cell(fixed(value, "+.3f"), below=(interval(*ends, ".3f"),)),
        Cell(p_value(row["p_beats_clinical"]), below=(f"({row['test']})",)),
        p_value(row["p_beats_clinical_holm"]),
        p_value(row["p_adds_to_clinical"]),
    ]
