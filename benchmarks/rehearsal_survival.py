"""Dress rehearsal of survival: stand-ins of five TCGA cohorts of full size on disk, laid out as TRIDENT writes them.

    python benchmarks/rehearsal_survival.py --data DATA --out DIR

Slides, patients, times, events, covariates, sites and published folds are real (``DATA/survival/tcga_*.csv.gz``).
PATCHES, FEATURES AND LESIONS ARE SIMULATED, and ``card.yaml`` in each folder makes every table and figure say so.

So that something can be learned, the hazard depends on a lesion's extent: a patient has a standard normal number x, and
the hazard ``h(t) = h_0(t) exp(SLOPE x)``. The outcomes being real, x is drawn given them, from

    p(x | t, event) ~ exp(-x^2 / 2) exp(SLOPE x)^event exp(-H_0(t) exp(SLOPE x)),

where ``H_0`` is such that the survival of all patients is their Kaplan-Meier curve: ``E exp(-H_0(t) exp(SLOPE x)) =
S(t)``. The share of a patient's patches that is lesion is ``1 / (1 + exp(1.7 - x))``, a median of 15 %. No covariate
enters, so that age and stage tell what they really tell, and the lesions add to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from rehearsal import Features, field, write, write_card
from rich.progress import track
from scipy.special import expit

from mil_zoo.stats import kaplan_meier

COHORTS = ("blca", "brca", "gbmlgg", "luad", "ucec")
SLOPE, SIDE = 1.2, 512  # of the log hazard in x; of a patch, level-0 px
SIZES = (100, 200)  # patches of a slide, between these
GRID = np.linspace(-5, 5, 401)  # of x
NOTE = (
    "SIMULATED PATCHES AND FEATURES on real patients, times, events, sites and folds: the lesion's extent was drawn to "
    "fit each patient's real outcome, so the numbers say nothing about any aggregator or patient."
)


def baseline(survival: np.ndarray) -> np.ndarray:
    """``H_0`` where all patients' survival is ``survival`` ``[n]``."""
    weights = np.exp(-(GRID**2) / 2)
    tried = np.linspace(-12, 6, 2001)  # log H_0
    known = np.exp(-np.exp(tried[:, None] + SLOPE * GRID)) @ (weights / weights.sum())
    return np.exp(np.interp(-np.maximum(survival, known.min()), -known, tried))


def extents(time: np.ndarray, event: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The number x of each patient, drawn given the real outcome, ``[n]``."""
    curve = kaplan_meier(time, event)
    survival = np.array([curve.at(t) for t in time])
    hazard = baseline(np.nan_to_num(survival, nan=float(np.nanmin(survival))))
    log = -(GRID**2) / 2 + event[:, None] * SLOPE * GRID - hazard[:, None] * np.exp(SLOPE * GRID)
    share = np.exp(log - log.max(1, keepdims=True)).cumsum(1)
    return np.array([np.interp(rng.random() * row[-1], row, GRID) for row in share])


def cohort(name: str, number: int, table: pd.DataFrame, out: Path, make: Features, seed: int) -> None:
    """Writes ``labels.csv``, ``card.yaml`` and ``20x_256px_0px_overlap/features_sim/<slide>.h5`` of a cohort."""
    patients = table.drop_duplicates("patient_id")
    rng = np.random.default_rng([seed, number])
    time, event = (patients[column].astype(float).to_numpy() for column in ("time_months", "event"))
    share_of = dict(zip(patients["patient_id"], expit(extents(time, event, rng) - 1.7), strict=True))
    stains = {site: make.stain(rng) for site in sorted(set(table["site"]))}
    folder = out / "20x_256px_0px_overlap" / "features_sim"
    for row, slide in enumerate(track(table.to_dict("records"), name)):
        rng = np.random.default_rng([seed, number, row])
        size = int(rng.integers(*SIZES))
        width = int(np.ceil(np.sqrt(size)))
        cells = np.stack(np.divmod(np.arange(size), width), axis=1)
        smooth = field(cells, 2, rng)
        lesion = (smooth >= np.quantile(smooth, 1 - share_of[slide["patient_id"]])).astype(float)
        features = make(cells, lesion, 0.5 * stains[slide["site"]] + 0.5 * make.stain(rng), rng)
        attributes = {"patch_size": 256, "patch_size_level0": SIDE, "level0_magnification": 40}
        attributes |= {"target_magnification": 20, "overlap": 0, "name": slide["slide_id"], "savetodir": ""}
        attributes |= {"level0_width": SIDE * width, "level0_height": SIDE * width}
        write(folder / f"{slide['slide_id']}.h5", attributes, features=features, coords=(cells * SIDE).astype(np.int64))
    table.to_csv(out / "labels.csv", index=False)
    write_card(out, f"TCGA {name.upper()} (overall survival, simulated features)", [], NOTE)


def main() -> None:
    """Parses the command line and writes the stand-ins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data that the tests use")
    parser.add_argument("--out", type=Path, required=True, help="written: a folder a cohort")
    parser.add_argument("--dim", type=int, default=32, help="numbers a patch")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make = Features(given.dim, given.seed)
    for number, name in enumerate(COHORTS):
        path = given.data / "survival" / f"tcga_{name}.csv.gz"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        cohort(name, number, table, given.out / f"tcga_{name}", make, given.seed)


if __name__ == "__main__":
    main()
