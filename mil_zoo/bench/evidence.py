"""What was found of each aggregator: how near it comes to its authors' code, and its score on one real data set.

``evidence.csv`` is written by ``benchmarks/evidence.py`` from the pages under ``benchmarks/results``.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

PARITY = (
    "largest relative error of logits, attention, losses and gradients against values computed with the authors' code."
)
SCORE = (
    "mean test AUC over 10 folds of CRCHistoPhenotypes nuclei (real; 20 epochs of each recipe; folds share patients)."
)


@dataclass(frozen=True)
class Evidence:
    """Holds what the lists show of an aggregator beside its cost.

    Attributes:
        parity_error: largest absolute difference from the authors' code over the largest absolute entry; None where
            there is no code to compare with.
        auc: mean test AUC, see ``SCORE``; None where it was not benchmarked.
    """

    parity_error: float | None
    auc: float | None


@functools.cache
def read_evidence() -> dict[str, Evidence]:
    """Reads what the package ships, by aggregator."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    text = (resources.files("mil_zoo.bench") / "evidence.csv").read_text(encoding="utf-8")
    return {
        row["name"]: Evidence(number(row["parity_error"]), number(row["auc"]))
        for row in csv.DictReader(text.splitlines())
    }
