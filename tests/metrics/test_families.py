"""The metrics of survival, ordinal, multi-label and regression tasks: golden values, weights, what is undefined."""

import numpy as np
import pandas as pd
import pytest
from helpers import GOLDEN
from scipy import stats
from sklearn import metrics as sk

from mil_zoo import InputError
from mil_zoo.metrics import find_metric, metrics_of, register_metric, score
from mil_zoo.metrics.survival import survival_times
from mil_zoo.noted import note_of
from mil_zoo.survival import bin_edges, discrete_survival
from mil_zoo.tasks.losses import survival as losses

FILE = np.load(GOLDEN / "survival" / "losses.npz", allow_pickle=False)
EXACT = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}
RNG = np.random.default_rng(7)
HORIZONS = {"12": 12.0, "24": 24.0, "36": 36.0}


def cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    time, lost = rng.exponential(25, n).round(1), rng.exponential(40, n).round(1)
    return np.minimum(time, lost), (time <= lost).astype(float)


def survival_case(n: int = 80) -> tuple[tuple[np.ndarray, ...], dict]:
    """Arguments and context of a model with discrete hazards that knows a little."""
    train, test = cohort(150, 0), cohort(n, 1)
    edges, last = bin_edges(*train), float(train[0].max())
    logits = RNG.normal(-1, 1, (n, 4)) - 0.03 * test[0][:, None]
    hazard = 1 / (1 + np.exp(-logits))
    risk = -np.cumprod(1 - hazard, axis=1).sum(1)
    known = discrete_survival(hazard, edges, last, survival_times(HORIZONS))
    own = discrete_survival(hazard, edges, last, np.minimum(test[0], last)[:, None])[:, 0]
    context = {"train_time": train[0], "train_event": train[1], "horizons": HORIZONS, "edges": edges, "ties": "efron"}
    return (*test, risk, known, own, hazard), context


ARGUMENTS, CONTEXT = survival_case()


def families():
    """Each family with arguments and a context that define all of its metrics."""
    truth = RNG.integers(0, 2, (60, 3)).astype(float)
    truth[RNG.random(truth.shape) < 0.2] = np.nan
    grades = RNG.integers(0, 4, 60)
    target = RNG.normal(size=60).round(1)
    return {
        "survival": (ARGUMENTS, CONTEXT),
        "multilabel": ((truth, RNG.random((60, 3)).round(1)), {"labels": {"a": 0, "b": 1, "c": 2}}),
        "ordinal": ((grades, np.clip(grades + RNG.integers(-1, 2, 60), 0, 3)), {}),
        "regression": ((target, target + RNG.normal(size=60).round(1)), {}),
    }


FAMILIES = families()
ALL = [(task, metric) for task, (_, context) in FAMILIES.items() for metric in metrics_of(task, context)]


@pytest.mark.parametrize(("task", "metric"), ALL, ids=[f"{task}-{metric.name}" for task, metric in ALL])
def test_weights_are_rows_drawn_again(task, metric):
    arguments, context = FAMILIES[task]
    n = len(arguments[0])
    value = metric(*arguments, **context)
    assert np.isfinite(value)
    assert metric.bounds[0] <= value <= metric.bounds[1]
    drawn = np.random.default_rng(3).integers(0, n, (4, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in drawn])
    expected = [metric(*(array[row] for array in arguments), **context) for row in drawn]
    assert metric.weighted(*arguments, weights=weights, **context) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert metric(*arguments, weights=weights[0], **context) == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("task", "metric"), ALL, ids=[f"{task}-{metric.name}" for task, metric in ALL])
def test_a_draw_without_any_bag_is_undefined_and_warns_of_nothing(task, metric):
    """Of a bootstrap over several test parts a draw may miss one."""
    arguments, context = FAMILIES[task]
    n = len(arguments[0])
    one, none = metric.weighted(*arguments, weights=np.stack([np.ones(n), np.zeros(n)]), **context)
    assert one == pytest.approx(metric(*arguments, **context))
    assert np.isnan(none) or metric.name == "labels_defined"  # which counts them


def test_names_of_survival_metrics():
    names = [metric.name for metric in metrics_of("survival", CONTEXT)]
    assert names == [
        *("c_index", "c_uno", "auc_12", "auc_24", "auc_36", "auc_mean", "brier_12", "brier_24", "brier_36"),
        *("brier_km_12", "brier_km_24", "brier_km_36", "ibs", "ibs_km", "d_calibration", "oe_12", "oe_24", "oe_36"),
        *("nll", "partial_likelihood"),
    ]
    assert find_metric("auc_24", "survival", CONTEXT).title == "AUC at 24"
    assert find_metric("oe_12", "survival", CONTEXT).higher_is_better is None
    with pytest.raises(InputError, match="did you mean 'auc_24'"):
        find_metric("auc_25", "survival", CONTEXT)
    assert [m.name for m in metrics_of("survival")][:3] == ["c_index", "c_uno", "auc_mean"]


def test_what_the_context_lacks_is_said():
    value = find_metric("c_uno", "survival")(*ARGUMENTS)
    assert np.isnan(value)
    assert note_of(value) == "train_time, train_event, horizons not known"


def test_a_curve_of_nothing_is_as_good_as_kaplan_meier():
    """A model that predicts the training curve for everybody has its Brier scores, C of one half and O/E near 1."""
    from mil_zoo.survival import kaplan_meier

    curve = kaplan_meier(CONTEXT["train_time"], CONTEXT["train_event"])
    time, event = ARGUMENTS[:2]
    same = np.tile(curve.at(survival_times(HORIZONS)), (len(time), 1))
    own = curve.at(np.minimum(time, curve.last))
    hazard = np.full((len(time), 4), 0.3)
    got = score(time, event, np.zeros(len(time)), same, own, hazard, task="survival", **CONTEXT)
    assert got["c_index"] == 0.5
    assert note_of(got["c_index"]) == "constant risk"
    assert got["auc_24"] == 0.5
    for name in ("12", "24", "36"):
        assert got[f"brier_{name}"] == pytest.approx(got[f"brier_km_{name}"])
    assert got["ibs"] == pytest.approx(got["ibs_km"])
    assert 0.6 < got["oe_24"] < 1.6


def test_likelihoods_are_the_losses():
    time, event, risk, _, _, hazard = ARGUMENTS
    import torch

    logits, bins = torch.tensor(np.log(hazard / (1 - hazard))), np.searchsorted(CONTEXT["edges"], time, side="right")
    expected = losses.discrete_nll(logits, torch.tensor(bins), torch.tensor(event)).mean().item()
    assert find_metric("nll", "survival")(*ARGUMENTS, edges=CONTEXT["edges"]) == pytest.approx(expected)
    for ties in ("efron", "breslow"):
        expected = losses.cox(*map(torch.tensor, (risk, time, event)), ties).mean().item()
        value = find_metric("partial_likelihood", "survival")(time, event, risk, ties=ties)
        assert value == pytest.approx(expected)
    sure = np.where(np.arange(4) == 1, 1.0, 0.0) * np.ones((len(time), 1))
    assert np.isfinite(find_metric("nll", "survival")(*ARGUMENTS[:5], sure, edges=CONTEXT["edges"]))


def test_a_task_without_curves_has_reasons():
    """A ranking task predicts no survival: its Brier scores are NaN, and say why."""
    time, event, risk = ARGUMENTS[:3]
    nothing = np.full((len(time), 3 + 100), np.nan)
    got = score(time, event, risk, nothing, np.full(len(time), np.nan), nothing[:, :0], task="survival", **CONTEXT)
    assert got["c_index"] > 0.5
    for name in ("brier_24", "oe_24"):
        assert note_of(got[name]).startswith("no survival is predicted there: a task that ranks predicts none"), name
    assert np.isnan(got["ibs"])
    assert note_of(got["d_calibration"]).startswith("80 of 80 patients")


# Ordinal --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted({key.split("/")[0] for key in FILE.files if key.startswith("qwk_")}))
def test_weighted_kappa(case):
    truth, predicted, expected = (FILE[f"{case}/{name}"] for name in ("truth", "prediction", "value"))
    value = find_metric("qwk", "ordinal")(truth, predicted)
    assert value == pytest.approx(float(expected), **EXACT)
    if np.isnan(expected):
        assert note_of(value) == "truth and prediction are one and the same class"
    if case == "qwk_constant_prediction":
        assert note_of(value) == "constant prediction"


def test_weighted_kappa_of_scikit_learn():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth, predicted = rng.integers(0, 5, (2, 30))
        expected = sk.cohen_kappa_score(truth, predicted, weights="quadratic")
        assert find_metric("qwk", "ordinal")(truth, predicted) == pytest.approx(expected)
        assert find_metric("mae_class", "ordinal")(truth, predicted) == pytest.approx(np.abs(truth - predicted).mean())


# Multi-label ----------------------------------------------------------------------------------------------------------


def test_golden_labels_with_gaps():
    x, labels = FILE["multilabel_missing/x"], FILE["multilabel_missing/label"]
    context = {"labels": {name: i for i, name in enumerate("abcd")}}
    got = score(labels, x, task="multilabel", **context)
    assert [got[f"auc_{name}"] for name in "abcd"] == pytest.approx(FILE["multilabel_missing/auc"], **EXACT)
    assert got["auc_macro"] == pytest.approx(float(FILE["multilabel_missing/auc_macro_defined"]), **EXACT)
    assert got["labels_defined"] == int(FILE["multilabel_missing/labels_defined"])
    lost = [name for name in "abcd" if np.isnan(got[f"auc_{name}"])]
    assert all(note_of(got[f"auc_{name}"]) == "all known bags are of one class" for name in lost)
    one = score(np.ones((3, 2)), x[:3, :2], task="multilabel")
    assert note_of(one["auc_macro"]) == "no label is defined: all known bags are of one class"


def test_labels_as_scikit_learn_scores_them():
    (labels, probabilities), context = FAMILIES["multilabel"]
    got = score(labels, probabilities, task="multilabel", **context)
    known = [~np.isnan(column) for column in labels.T]
    columns = [(labels[k, i], probabilities[k, i]) for i, k in enumerate(known)]
    assert got["auc_b"] == pytest.approx(sk.roc_auc_score(*columns[1]))
    assert got["auc_macro"] == pytest.approx(np.mean([sk.roc_auc_score(*column) for column in columns]))
    assert got["ap_macro"] == pytest.approx(np.mean([sk.average_precision_score(*column) for column in columns]))
    wrong = [(truth != (p > 0.5)) for truth, p in columns]
    assert got["hamming"] == pytest.approx(np.concatenate(wrong).mean())


def test_what_stands_beside_an_unknown_label_has_no_effect():
    (labels, probabilities), context = FAMILIES["multilabel"]
    poisoned = np.where(np.isnan(labels), 1 - probabilities, probabilities)
    assert score(labels, poisoned, task="multilabel", **context) == score(
        labels, probabilities, task="multilabel", **context
    )


# Regression -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["metrics", "constant_target", "constant_prediction", "one_case"])
def test_golden_numbers(case):
    arrays = [FILE[f"regression_{case}/{name}"] for name in ("target", "prediction")]
    got = score(*arrays, task="regression")
    for name in ("r2", "pearson", "ccc", "mae", "rmse"):
        assert got[name] == pytest.approx(float(FILE[f"regression_{case}/{name}"]), **EXACT), name
    for name, value in got.items():
        assert bool(note_of(value)) == bool(np.isnan(value)), name
    if case == "constant_target":
        assert note_of(got["r2"]) == "constant target"
    if case == "constant_prediction":
        assert (got["ccc"], note_of(got["spearman"])) == (0, "constant prediction")


def test_numbers_as_scipy_has_them():
    (target, predicted), _ = FAMILIES["regression"]
    got = score(target, predicted, task="regression")
    assert got["spearman"] == pytest.approx(stats.spearmanr(target, predicted).statistic)
    assert got["pearson"] == pytest.approx(stats.pearsonr(target, predicted).statistic)
    assert got["r2"] == pytest.approx(sk.r2_score(target, predicted))


# The registry ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def forget(monkeypatch):
    from mil_zoo.metrics import registry

    monkeypatch.setattr(registry, "_METRICS", {task: dict(known) for task, known in registry._METRICS.items()})


def test_a_metric_may_take_fewer_arguments_than_its_task_offers(forget):
    @register_metric("events", title="Events", higher_is_better=None, task="survival")
    def events(time, event):
        return event.sum()

    assert score(*ARGUMENTS, task="survival", **CONTEXT)["events"] == ARGUMENTS[1].sum()
    twice = find_metric("events", "survival").weighted(*ARGUMENTS, weights=np.full((2, 80), 2))
    assert twice == pytest.approx(2 * ARGUMENTS[1].sum() * np.ones(2))


def test_values_keep_their_note_when_copied():
    import copy
    import pickle

    value = find_metric("c_index", "survival")([1.0, 2.0], [0, 0], [1.0, 2.0])
    for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert np.isnan(twin)
        assert note_of(twin) == "no event"
    assert pd.Series([value]).isna().all()


def test_the_metric_of_the_guide_runs_as_it_stands(forget):
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "extend" / "metric.md").read_text(encoding="utf-8")
    (block,) = [part for part in text.split("```python\n")[1:] if "early_events" in part]
    exec(block.partition("```")[0], {})
    got = score(*ARGUMENTS, task="survival", **CONTEXT)
    time, event = ARGUMENTS[:2]
    assert got["early_events"] == pytest.approx(((event == 1) & (time < 12)).mean())
    time, event, risk, _, own, hazard = ARGUMENTS
    nowhere = np.full((80, 100), np.nan)
    empty = score(time, event, risk, nowhere, own, hazard, task="survival", **CONTEXT | {"horizons": {}})
    assert note_of(empty["early_events"]) == "no horizon"
    assert note_of(empty["auc_mean"]).startswith("no horizon, as too few patients are followed beyond one; earlier")
    assert note_of(empty["ibs"]) == note_of(empty["ibs_km"])
    assert note_of(empty["ibs"]) == "fewer than two times, which are no span to integrate over"
    assert np.isfinite(empty["c_uno"])
