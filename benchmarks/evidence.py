"""Writes ``mil_zoo/bench/evidence.csv`` from the result pages: parity with the authors' code, and a score on real data.

Run it after ``make parity`` and after ``benchmarks/results/zoo_crchisto`` was made anew::

    python benchmarks/evidence.py
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import mil_zoo

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OWN_NAMES = {"smabmil": "sm_abmil", "smtransformer": "sm_transformer", "stamp_vit": "vit", "mhim2": "mhim"}


def parity_errors() -> dict[str, float]:
    """The worst error of each aggregator over all of its golden files."""
    worst: dict[str, float] = {}
    for row in (RESULTS / "parity.md").read_text(encoding="utf-8").splitlines():
        if cells := re.fullmatch(r"\| `(\w+)` \| .* \| ([0-9.e+-]+) \|", row):
            name = aggregator_of(cells[1])
            worst[name] = max(worst.get(name, 0.0), float(cells[2]))
    return worst


def aggregator_of(golden: str) -> str:
    """The aggregator of a golden file ("abmil_gated"): the longest name that it begins with."""
    for theirs, ours in OWN_NAMES.items():
        golden = ours if golden == theirs or golden.startswith(f"{theirs}_") else golden
    names = [name for name in mil_zoo.list_aggregators() if golden == name or golden.startswith(f"{name}_")]
    if not names:
        raise SystemExit(f"no aggregator belongs to the golden values {golden!r}")
    return max(names, key=len)


def main() -> None:
    errors = parity_errors()
    with (RESULTS / "zoo_crchisto" / "table.csv").open(encoding="utf-8", newline="") as file:
        scores = {row["aggregator"]: float(row["auc_mean"]) for row in csv.DictReader(file)}
    with (ROOT / "mil_zoo" / "bench" / "evidence.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "parity_error", "auc"])
        for name in mil_zoo.list_aggregators():
            error, score = errors.get(name), scores.get(name)
            writer.writerow([name, "" if error is None else f"{error:.1e}", "" if score is None else f"{score:.4f}"])


if __name__ == "__main__":
    main()
