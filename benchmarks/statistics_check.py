"""Type-I error and coverage, by simulation, of every test and interval that a table shows.

    python benchmarks/statistics_check.py [--replicates 400] [--out benchmarks/results]

Small test sets (20 slides), CAMELYON16's 129, patients of four slides, test parts that overlap, repeats, one test set
trained for five times; bands of ROC and precision-recall curves at fixed places; survival times with a third censored.
Two aggregators of equal quality are compared (type-I error, 5 % promised), and intervals are held against the value in
a population of 100 000 (coverage, 95 % promised). Writes ``statistics.md`` and its figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from mil_zoo.metrics import find_metric
from mil_zoo.stats import (
    Scored,
    TestSet,
    bootstrap,
    bootstrap_difference,
    bootstrap_patients,
    concordance,
    corrected_t_test,
    could_be_best,
    delong_test,
    estimate,
    friedman_nemenyi,
    hazard_ratio,
    kaplan_meier,
    logrank,
    mean_curve,
    patient_interval,
    patient_test,
    permutation_test,
    summarise,
    wilcoxon_test,
)

METRICS = ("accuracy", "balanced_accuracy", "auc", "f1")
DESIGNS = {  # patients, slides a patient, shift between classes, test parts (share of patients, number)
    "20 slides": (20, 1, 1.5, None),
    "129 slides, AUC .98": (129, 1, 2.9, None),
    "25 patients x 4 slides": (25, 4, 1.5, None),
    "60 slides, 5 Monte-Carlo parts of 30 %": (60, 1, 1.5, (0.3, 5)),
    "60 slides, 5 trainings on one set": (60, 1, 1.5, (1.0, 5)),
}
RESAMPLED = {  # folds, repeats, whether test parts are drawn anew each time
    "5 folds": (5, 1, False),
    "5 x 5 folds": (5, 5, False),
    "10 Monte-Carlo draws": (10, 1, True),
}
PLACES = {"roc": (0.02, 0.05, 0.1, 0.2, 0.5, 0.8), "pr": (0.1, 0.3, 0.5, 0.8, 0.95)}  # false-positive rates, recalls
SEEDS = {"type_one": 0, "coverage": 1, "curve_coverage": 2, "survival_coverage": 3, "survival_type_one": 4}
FOLLOWED = (40, 150)  # patients of a survival test set


def cohort(rng: np.random.Generator, patients: int, per: int, shift: float, models: int = 2):
    """Labels ``[n]``, patients ``[n]`` and scores ``[models, n]`` that are correlated within slides and patients."""
    labels = np.repeat(np.arange(patients) % 2, per)
    names = np.repeat(np.arange(patients), per)
    patient = rng.normal(size=(models, patients))[:, names] * np.sqrt(0.5 if per > 1 else 0)
    shared, own = rng.normal(size=len(labels)), rng.normal(size=(models, len(labels)))
    noise = np.sqrt(0.5) * shared + np.sqrt(0.5) * own
    scores = shift * (labels - 0.5) + patient + noise * np.sqrt(0.5 if per > 1 else 1)
    return labels, names.astype(str), scores


def test_sets(rng, labels, names, scores, parts) -> list[list[TestSet]]:
    """The test sets of each model; training changes scores a little from split to split."""
    found: list[list[TestSet]] = [[] for _ in scores]
    for _ in range(1 if parts is None else parts[1]):
        order = rng.permutation(len(labels))
        kept = (
            np.sort(np.argsort(np.argsort(order)))
            if parts is None or parts[0] == 1
            else _stratified(rng, labels, parts[0])
        )
        for model, own in zip(found, scores, strict=True):
            logit = own[kept] + (0 if parts is None else 0.3 * rng.normal(size=len(kept)))
            p = 1 / (1 + np.exp(-2 * logit))
            model.append(TestSet(labels[kept], np.stack([1 - p, p], -1)[None], names[kept]))
    return found


def _stratified(rng, labels, share):
    return np.sort(
        np.concatenate(
            [rng.permutation(np.flatnonzero(labels == c))[: round(share * (labels == c).sum())] for c in (0, 1)]
        )
    )


def type_one(rng: np.random.Generator, replicates: int) -> list[tuple[str, str, float]]:
    """Rows of test, design, share of p < .05 between equals."""
    rows = []
    for design, (patients, per, shift, parts) in DESIGNS.items():
        p: dict[str, list[float]] = {}
        for _ in range(replicates):
            a, b = test_sets(rng, *cohort(rng, patients, per, shift), parts)
            p.setdefault("DeLong by patient (AUC)", []).append(delong_test(a, b).p)
            p.setdefault("jackknife by patient (balanced accuracy)", []).append(
                patient_test(a, b, find_metric("balanced_accuracy")).p
            )
            for metric in ("auc", "accuracy", "f1"):
                p.setdefault(f"permutation by patient ({metric})", []).append(permutation_test(a, b, metric, 99))
        rows += [(test, design, rejected(values)) for test, values in p.items()]
    for design, of in RESAMPLED.items():
        found = []
        for _ in range(replicates):
            scores, sizes = learnt(rng, *of)
            found.append(corrected_t_test((scores[:, 0] - scores[:, 1]).tolist(), *sizes).p)
        rows.append(("corrected t over test sets (accuracy)", design, rejected(found)))
    ranked = [friedman_nemenyi(pd.DataFrame(rng.normal(size=(10, 5)))) for _ in range(replicates)]
    rows.append(("Iman and Davenport's F over datasets", "10 datasets, 5 equals", rejected([r.p_f for r in ranked])))
    apart = [np.ptp(result.ranks) > result.critical_difference for result in ranked]
    rows.append(("Nemenyi: any pair differs", "10 datasets, 5 equals", float(np.mean(apart))))
    zeros = [np.where(rng.random(8) < 0.2, 0, np.round(rng.normal(0, 0.02, 8), 2)).tolist() for _ in range(replicates)]
    rows.append(
        ("Wilcoxon, exact signs", "8 datasets with ties and zeros", rejected([wilcoxon_test(d) for d in zeros]))
    )
    wrong = 0
    for _ in range(replicates):
        sets = test_sets(rng, *cohort(rng, 60, 1, 1.5, models=5), None)
        worse = np.array([[delong_test(a, b).p_worse if a is not b else np.nan for b in sets] for a in sets])
        wrong += 0 not in could_be_best(worse).members
    return [*rows, ("the best of 5 equals is left out", "60 slides", wrong / replicates)]


def learnt(rng: np.random.Generator, folds: int, repeats: int, overlap: bool):
    """Accuracies ``[splits, 2]`` of two classifiers by nearest mean, each trained on five of ten features; sizes."""
    labels = np.arange(100) % 2
    x = rng.normal(size=(100, 10)) + 0.35 * labels[:, None]
    scores = []
    for _ in range(repeats):
        place = (rng.permutation(50)[:, None] * 2 + np.arange(2)).reshape(-1)  # balanced pairs
        for fold in range(folds):
            if overlap:
                place = (rng.permutation(50)[:, None] * 2 + np.arange(2)).reshape(-1)
            size = 20 if overlap else 100 // folds
            test = place[:size] if overlap else place[fold * size : (fold + 1) * size]
            train = np.setdiff1d(place, test)
            right = []
            for features in (slice(0, 5), slice(5, 10)):
                means = [x[train][labels[train] == c, features].mean(0) for c in (0, 1)]
                near = [((x[test][:, features] - mean) ** 2).sum(1) for mean in means]
                right.append(((near[1] < near[0]) == labels[test]).mean())
            scores.append(right)
    return np.array(scores), (100 - size, size)


def coverage(rng: np.random.Generator, replicates: int) -> list[tuple[str, str, float]]:
    """Rows of interval, design, share that hold the value in the population."""
    rows = []
    for design, (patients, per, shift, parts) in DESIGNS.items():
        noisy = None if parts is None else (1.0, 1)
        (population,), held = test_sets(rng, *cohort(rng, 100_000 // per, per, shift, models=1), noisy), {}
        for name in METRICS:
            metric = find_metric(name)
            truth = metric(population[0].labels, population[0].probabilities[0])
            held[name] = metric, truth
        inside: dict[str, list[bool]] = {}
        for _ in range(replicates):
            (sets,) = test_sets(rng, *cohort(rng, patients, per, shift, models=1), parts)
            drawn = bootstrap(sets, 200)
            for name, (metric, truth) in held.items():
                found = patient_interval(sets, metric)
                inside.setdefault(f"by patient ({name})", []).append(found.low <= truth <= found.high)
                inside.setdefault(f"bootstrap ({name})", []).append(drawn[name][0] <= truth <= drawn[name][1])
            if parts is not None and parts[0] == 1:
                metric, truth = held["auc"]
                values = {(i, 0): [metric(one.labels, one.probabilities[0])] for i, one in enumerate(sets)}
                table = estimate(values, {(i, 0): one for i, one in enumerate(sets)}, metric, 60, 60)
                inside.setdefault("in the table (auc)", []).append(table.low <= truth <= table.high)
                wrong = summarise([value for (value,) in values.values()], 60, 60)
                inside.setdefault("as five folds, for contrast (auc)", []).append(wrong.low <= truth <= wrong.high)
        rows += [(name, design, float(np.mean(values))) for name, values in inside.items()]
    for design, of in RESAMPLED.items():
        found = []
        for _ in range(replicates):
            scores, sizes = learnt(rng, *of)
            found.append((scores, sizes))
        # What the procedure reaches on average over data, which is what the interval of a procedure is of.
        truth = float(np.mean([scores[:, 0].mean() for scores, _ in found]))
        held = [summarise(scores[:, 0].tolist(), *sizes) for scores, sizes in found]
        rows.append(
            ("corrected t (accuracy)", design, float(np.mean([each.low <= truth <= each.high for each in held])))
        )
        pairs = [corrected_t_test((s[:, 0] - s[:, 1]).tolist(), *sizes).difference for s, sizes in found]
        rows.append(
            ("corrected t of a difference", design, float(np.mean([each.low <= 0 <= each.high for each in pairs])))
        )
    return rows


def curve_coverage(rng: np.random.Generator, replicates: int) -> list[tuple[str, str, float]]:
    """Rows of a curve's band at a place, design, share (of those drawn) that hold the population there."""
    rows = []
    for design, (patients, per, shift, parts) in DESIGNS.items():
        noisy = None if parts is None else (1.0, 1)
        ((population,),) = test_sets(rng, *cohort(rng, 100_000 // per, per, shift, models=1), noisy)
        middle = len(population.labels) // 2
        halves = [_slides(population, half) for half in (slice(middle), slice(middle, None))]  # two: nothing is drawn
        whole = {kind: mean_curve(halves, kind, 1, 1) for kind in PLACES}
        inside: dict[str, list[float]] = {}
        for _ in range(replicates):
            (sets,) = test_sets(rng, *cohort(rng, patients, per, shift, models=1), parts)
            n_test = len(sets[0].labels)
            for kind, places in PLACES.items():
                found = mean_curve(sets, kind, max(patients * per - n_test, n_test), n_test)
                for place in places:
                    i = int(np.argmin(np.abs(found.x - place)))
                    name = f"band of the {kind.upper()} curve at {place:g}"
                    held = found.low[i] <= whole[kind].y[i] <= found.high[i]
                    inside.setdefault(name, []).append(np.nan if np.isnan(found.low[i]) else float(held))
        rows += [(name, design, float(np.nanmean(values))) for name, values in inside.items()]
    return rows


def _slides(part: TestSet, rows: slice) -> TestSet:
    return TestSet(part.labels[rows], part.probabilities[:, rows], part.patients[rows])


def followed(rng: np.random.Generator, n: int, models: int = 1):
    """Times, events and risks ``[models, n]`` of equal quality; a third of the patients is censored."""
    hazard = rng.normal(size=n)
    time, censored = rng.exponential(np.exp(-hazard)), rng.exponential(2.2 * np.ones(n))
    risk = hazard + rng.normal(size=(models, n))
    return np.minimum(time, censored), (time <= censored).astype(np.int64), risk


def scored(time, event, risk) -> Scored:
    """One test set of survival predictions, a row a patient."""
    return Scored((time, event, risk), np.arange(len(time)).astype(str), event)


def survival_coverage(rng: np.random.Generator, replicates: int) -> list[tuple[str, str, float]]:
    """Rows of a survival interval, design, share that hold the population's value."""
    time, event, (risk,) = followed(rng, 100_000)
    everybody = kaplan_meier(time, event)
    middle = everybody.median
    few = slice(0, 20_000)
    truth = {
        "C-index, bootstrap over patients": float(concordance(time[few], event[few], risk[few])),
        "hazard ratio of risk groups": hazard_ratio(time, event, risk > 0).value,
        "Kaplan-Meier band at the median": float(everybody.at(middle)),
    }
    rows = []
    for n in FOLLOWED:
        inside: dict[str, list[bool]] = {name: [] for name in truth}
        for _ in range(replicates):
            time, event, (risk,) = followed(rng, n)
            drawn = bootstrap_patients([scored(time, event, risk)], replicates=500)
            ratio = hazard_ratio(time, event, risk > 0)
            found = [(drawn.low, drawn.high), (ratio.low, ratio.high), kaplan_meier(time, event).band(middle)]
            for (name, value), (low, high) in zip(truth.items(), found, strict=True):
                inside[name].append(bool(low <= value <= high))
        rows += [(name, f"{n} patients, a third censored", float(np.mean(values))) for name, values in inside.items()]
    return rows


def survival_type_one(rng: np.random.Generator, replicates: int) -> list[tuple[str, str, float]]:
    """Rows of a survival test, design, share of p < .05 between equals."""
    rows = []
    for n in FOLLOWED:
        p: dict[str, list[float]] = {}
        for _ in range(replicates):
            time, event, risks = followed(rng, n, models=2)
            group = rng.random(n) < 0.5
            p.setdefault("log-rank of two groups", []).append(logrank(time, event, group).p)
            p.setdefault("Cox regression, one group", []).append(hazard_ratio(time, event, group).p)
            a, b = (scored(time, event, risk) for risk in risks)
            p.setdefault("difference of two C-indices, bootstrap", []).append(
                bootstrap_difference([a], [b], replicates=500).p
            )
        rows += [(test, f"{n} patients, a third censored", rejected(values)) for test, values in p.items()]
    return rows


def rejected(p: Sequence[float]) -> float:
    """Share below .05; no p rejects nothing."""
    return float(np.mean(np.nan_to_num(np.asarray(p, dtype=float), nan=1.0) < 0.05))


def draw(rows: list[tuple[str, str, str, float]], replicates: int) -> Figure:
    """A dot a row, beside what is promised and its spread at this number of replicates."""
    figure = Figure(figsize=(9, 0.16 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1]})
    for axes, kind, promised in zip(panels, ("type-I error", "coverage"), (0.05, 0.95), strict=True):
        part = [row for row in rows if row[0] == kind]
        low, high = scipy_stats.binom.interval(0.95, replicates, promised)
        axes.axvspan(low / replicates, high / replicates, color="0.9")
        axes.axvline(promised, color="0.5", linewidth=0.8)
        axes.scatter([row[3] for row in part], range(len(part)), s=12, color="#0173b2")
        axes.set_yticks(range(len(part)), [f"{row[1]}, {row[2]}" for row in part], fontsize=5)
        axes.invert_yaxis()
        axes.set_title(f"{kind} ({promised:.0%} promised)", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
    return figure


def main() -> None:
    """Simulates, writes the page and its figure, and prints the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    start = time.perf_counter()
    rows: list[tuple[str, str, str, float]] = []
    simulations = (type_one, survival_type_one), (coverage, curve_coverage, survival_coverage)
    for kind, of_kind in zip(("type-I error", "coverage"), simulations, strict=True):
        for simulate in of_kind:
            seed = SEEDS[simulate.__name__]  # each its own, so that one can be run alone
            rows += [(kind, *row) for row in simulate(np.random.default_rng(seed), given.replicates)]
    error = 1.96 * np.sqrt(0.05 * 0.95 / given.replicates)
    lines = [
        "# Type-I error and coverage of what the tables show\n",
        f"{given.replicates} replicates a row: 5 % and 95 % are known to ± {error:.1%}. `python "
        "benchmarks/statistics_check.py` makes this page and the figure `statistics.png`.\n",
        "| Kind | Test or interval | Design | Share |",
        "| --- | --- | --- | ---: |",
        *(f"| {kind} | {name} | {design} | {share:.3f} |" for kind, name, design, share in rows),
        "\nPermutation and DeLong speak of these trained models, the corrected t of the procedures. The bootstrap is "
        "in `table.csv` only: near the ends of a metric's range it is too short, as its rows show. The interval of a "
        "difference on a single test set (DeLong's, the jackknife's) is its test turned round: it covers what the test "
        "does not reject. The band of a curve on a single test set is Jeffreys' with an effective number of "
        "patients: it has a width where the curve is 1, and is wide (and covers more than 95 %) where a few patients "
        "make the curve, as at small recalls. Of several test sets it is the corrected t, and there is none where all "
        "of them have the same value (those are not counted).\n",
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "statistics.md").write_text("\n".join(lines), encoding="utf-8")
    draw(rows, given.replicates).savefig(given.out / "statistics.png", dpi=150)
    print("\n".join(lines), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
