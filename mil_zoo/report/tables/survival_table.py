"""The table of survival: pooled concordance, risk groups, and what the slides tell beyond the clinical covariates."""

from __future__ import annotations

import numpy as np

from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.survival_folds import ClinicalFolds, clinical_folds, folds_of, groups_of
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import p_value
from mil_zoo.stats import Covariates, Scored, adds_to_clinical, bootstrap_patients, concordance

HEADER = ["Aggregator", "C, pooled", "C, mean of folds", "High-risk hazard ratio", "Log-rank p"]
NOTES = [
    "C, pooled: concordant over comparable pairs within folds, each summed, with the interval over the choice of test "
    "patients (2000 draws within those with the event and those without; the models as they are). Risks of different "
    "folds are never compared. The mean of folds weighs a fold of few pairs like one of many.",
    "Risk is the log hazard, or of discrete hazards minus the sum of S_k over bins; other reductions rank otherwise "
    "(Sonabend 2022).",
    "High risk: above the median risk of the fold's training patients; joined over folds, hazard ratio and log-rank "
    "test stratified by fold. No cut-point was chosen by test patients.",
]


def survival_document(results: Results) -> Document:
    """Of every aggregator, and of the clinical model where the card names covariates."""
    clinical = clinical_folds(results)
    known = clinical if isinstance(clinical, ClinicalFolds) else None
    header, rows, notes = [*HEADER], [], [*NOTES]
    if known is not None:
        header += ["Beats clinical by", "Adds to clinical, p"]
        rows.append(["clinical", *_concordance(known.scored), "-", "-", "-", "-"])
        notes.append(
            f"clinical: Cox regression (Efron) on {', '.join(known.models[0].names)}, fitted to the training patients "
            "of each fold. Beats clinical by: difference of the mean C. Adds to clinical: likelihood-ratio test of the "
            "risk beside the covariates, stratified by fold."
        )
    else:
        notes.append(f"No clinical row: {clinical}.")
    for label in results.groups:
        parts = folds_of(results, label)
        if not parts:
            continue
        scored = [part.scored for part in parts]
        groups = groups_of(results, label)
        cells: list[Cell | str] = ["-", "-"]
        if groups is not None:
            ratio = groups.ratio
            value = "-" if np.isnan(ratio.value) else f"{ratio.value:.2f}"
            cells = [Cell(value, below=(f"[{ratio.low:.2f}, {ratio.high:.2f}]",)), p_value(groups.test.p)]
            if groups.note:
                notes.append(f"{label}: risk groups: {groups.note}.")
            if groups.collapsed:
                notes.append(
                    f"{label}: in {len(groups.collapsed)} of {len(parts)} folds all test patients lie on one side of "
                    "the training median: the model may have collapsed."
                )
        if known is not None:
            cells += _beside_clinical(scored, known)
        rows.append([label, *_concordance(scored), *cells])
    return Document("survival", "Survival", [Table(header, rows, notes)])


def _concordance(parts: list[Scored]) -> list[Cell]:
    pooled = bootstrap_patients(parts)
    below = () if np.isnan(pooled.low) else (f"[{pooled.low:.3f}, {pooled.high:.3f}]",)
    mean, known = _mean(parts)
    several = (f"(n = {known})",) if known < len(parts) else ()
    shown = "-" if np.isnan(pooled.value) else f"{pooled.value:.3f}"
    return [Cell(shown, below=below or (note_of(pooled.low),)), Cell(f"{mean:.3f}" if known else "-", below=several)]


def _mean(parts: list[Scored]) -> tuple[float, int]:
    values = [concordance(*part.arguments[:3]) for part in parts]
    found = [float(value) for value in values if not np.isnan(value)]
    return (float(np.mean(found)) if found else np.nan), len(found)


def _beside_clinical(parts: list[Scored], clinical: ClinicalFolds) -> list[str]:
    if [list(part.patients) for part in parts] != [list(part.patients) for part in clinical.scored]:
        return ["other patients", "-"]
    difference = _mean(parts)[0] - _mean(clinical.scored)[0]
    time, event, risk = (np.concatenate([part.arguments[i] for part in parts]) for i in range(3))
    fold = np.repeat(np.arange(len(parts)), [len(part.patients) for part in parts])
    together = Covariates(clinical.covariates[0].names, np.concatenate([each.matrix for each in clinical.covariates]))
    return [f"{difference:+.3f}", p_value(adds_to_clinical(time, event, together, risk, fold).p)]
