"""What matrix products in bfloat16 change in scores and attention: prints ``precision.md``.

    mil-zoo bench --models abmil,srmil --dataset crchisto --folds 4 --epochs 10 \\
        --grid precision=float32,bfloat16 --out RUN
    python benchmarks/precision.py RUN > benchmarks/results/precision.md

Both aggregators of a fold, each in the precision that it was trained in, attend to every test slide of the fold.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil_zoo.bench.predictor import Predictor
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.data.dataset import open_dataset

COMMAND = "--models abmil,srmil --dataset crchisto --folds 4 --epochs 10 --grid precision=float32,bfloat16"
COLUMNS = ["aggregator", "fold", "AUC float32", "AUC bfloat16", "accuracy float32", "accuracy bfloat16"]
COLUMNS += ["correlation of attention, median (least)", "total variation, median (largest)"]
COLUMNS += ["change of the largest attention, median"]
HEAD = f"""# What bfloat16 changes in the results

`mil-zoo bench {COMMAND}`, then
`python benchmarks/precision.py RUN` (one seed, on a CPU). Attention: the trained aggregators of both precisions on
every test slide; total variation is half the sum of absolute differences (0 = the same, 1 = disjoint).

| {" | ".join(COLUMNS)} |
|---|{"---:|" * (len(COLUMNS) - 1)}"""


def attentions(run: RunDirectory, trial: dict, bags: list) -> list[np.ndarray]:
    """Of the trial's aggregator on each bag."""
    model = f"{trial['aggregator']}@{trial['grid']}"
    with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in trial["grid"]):
        return [prediction.attention for prediction in Predictor(run, model, trial["trial"], "cpu")(bags)]


def main() -> None:
    """Prints the page for the run that is named."""
    run = RunDirectory.open(Path(sys.argv[1]))
    splits = pd.read_csv(run.path / "splits.csv", dtype=str).set_index("slide_id")
    bags = {bag.slide_id: bag for bag in open_dataset("crchisto").bags}
    pairs = defaultdict(dict)
    for trial in run.trials():
        if trial["status"] == "ok":
            pairs[trial["aggregator"], trial["fold"]][trial["grid"].partition("=")[2]] = trial
    print(HEAD)
    for (name, fold), pair in sorted(pairs.items()):
        if len(pair) < 2:
            continue
        full, half = pair["float32"], pair["bfloat16"]
        tested = [bags[slide] for slide in splits.index[splits[f"r0-f{fold}"] == "test"]]
        maps = list(zip(*(attentions(run, trial, tested) for trial in (full, half)), strict=True))
        correlation = [np.corrcoef(a, b)[0, 1] for a, b in maps if len(a) > 2]
        variation = [np.abs(a - b).sum() / 2 for a, b in maps]
        change = [abs(b.max() / a.max() - 1) for a, b in maps]
        cells = [f"{trial['metrics'][metric]:.3f}" for metric in ("auc", "accuracy") for trial in (full, half)]
        cells += [f"{np.median(correlation):.4f} ({min(correlation):.4f})"]
        cells += [f"{np.median(variation):.3f} ({max(variation):.3f})", f"{100 * np.median(change):.1f} %"]
        print(f"| {name} | {fold} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
