"""Metrics by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mil_zoo import InputError
from mil_zoo.metrics import find_metric, metrics_of, register_metric, score
from mil_zoo.noted import note_of

LABELS = np.array([0, 0, 0, 1, 1])
POSITIVE = np.array([0.1, 0.6, 0.3, 0.4, 0.9])  # predicted: 0 1 0 0 1
PROBABILITIES = np.stack([1 - POSITIVE, POSITIVE], axis=1)


def test_two_classes():
    got = score(LABELS, PROBABILITIES)
    assert got["accuracy"] == pytest.approx(3 / 5)
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["auc"] == pytest.approx(5 / 6)  # of 6 pairs only (.6, .4) is in the wrong order
    assert got["f1"] == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))


def test_three_classes():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    got = score(labels, probabilities)
    assert got["accuracy"] == pytest.approx(3 / 4)
    assert got["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    # One against rest: class 0 3/3, class 1 2/3, class 2 (.3 and .7 against .1 and .3) 3.5/4.
    assert got["auc"] == pytest.approx((1 + 2 / 3 + 3.5 / 4) / 3)
    assert got["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_auc_needs_every_class():
    for classes in (2, 3):
        area = find_metric("auc")(np.zeros(3, int), np.eye(3)[:, :classes])
        assert np.isnan(area)
        assert note_of(area) == "a class is absent"
    assert find_metric("f1")(np.zeros(3, int), np.array([[1.0, 0.0]] * 3)) == 0


@pytest.fixture
def forget(monkeypatch):
    """Metrics registered in a test are gone after it."""
    from mil_zoo.metrics import registry

    monkeypatch.setattr(registry, "_METRICS", {task: dict(known) for task, known in registry._METRICS.items()})


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_as_scikit_learn_has_them(num_classes):
    rng = np.random.default_rng(num_classes)
    for _ in range(20):
        labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, 40)])
        probabilities = rng.dirichlet(np.ones(num_classes), len(labels)).round(1)  # many ties
        predicted, two = probabilities.argmax(1), num_classes == 2
        areas = [sk.roc_auc_score(labels == label, probabilities[:, label]) for label in range(num_classes)]
        assert score(labels, probabilities) == pytest.approx(
            {
                "accuracy": sk.accuracy_score(labels, predicted),
                "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
                "auc": sk.roc_auc_score(labels, probabilities[:, 1]) if two else np.mean(areas),
                "f1": sk.f1_score(labels, predicted, average="binary" if two else "macro", zero_division=0),
            },
            abs=1e-12,
        )


@pytest.mark.parametrize("num_classes", [2, 3])
def test_weights_are_rows_drawn_again(num_classes):
    rng = np.random.default_rng(0)
    labels, probabilities = np.arange(40) % num_classes, rng.dirichlet(np.ones(num_classes), 40)
    drawn = rng.integers(0, 40, (5, 60))
    weights = np.stack([np.bincount(row, minlength=40) for row in drawn])
    for metric in metrics_of("classification"):
        expected = [metric(labels[row], probabilities[row]) for row in drawn]
        assert metric.weighted(labels, probabilities, weights=weights) == pytest.approx(expected, rel=1e-12)
        assert metric(labels, probabilities, weights=weights[0]) == pytest.approx(expected[0], rel=1e-12)
        assert metric(labels, probabilities, weights=weights[0] / 3) == pytest.approx(expected[0], rel=1e-12)


def test_a_metric_that_takes_no_weights_is_given_the_rows_again(forget):
    @register_metric("npv", title="NPV", higher_is_better=True)
    def npv(labels, probabilities):
        return np.mean(labels[probabilities[:, 1] < 0.5] == 0)

    assert [metric.name for metric in metrics_of("classification")] == [
        "accuracy",
        "balanced_accuracy",
        "auc",
        "f1",
        "npv",
    ]
    assert score(LABELS, PROBABILITIES)["npv"] == pytest.approx(2 / 3)
    metric = find_metric("npv")
    assert metric(LABELS, PROBABILITIES, weights=[1, 1, 1, 2, 1]) == pytest.approx(2 / 4)
    assert metric.weighted(LABELS, PROBABILITIES, weights=[[1, 1, 1, 2, 1], [1, 0, 0, 0, 1]]) == pytest.approx([0.5, 1])
    with pytest.raises(InputError, match=r"takes no weights and cannot use 0\.5"):
        metric(LABELS, PROBABILITIES, weights=[0.5, 1, 1, 1, 1])


def test_needs_come_from_the_context_or_make_it_undefined(forget):
    @register_metric("gap", title="Gap", higher_is_better=False, task="other", needs=("threshold",))
    def gap(targets, predicted, *, threshold, weights=None):
        return float(np.average(predicted > threshold, weights=weights))

    assert [m.name for m in metrics_of("other")] == ["gap"]
    assert metrics_of("unheard_of") == []
    assert score([1, 2], [3, 4], task="other", threshold=3.5, unused=1) == {"gap": 0.5}
    assert np.isnan(score([1, 2], [3, 4], task="other")["gap"])
    assert find_metric("gap", "other")([1, 2], [3, 4], weights=[1, 3], threshold=3.5) == 0.75


def test_a_clash_is_an_error_that_names_who_has_the_name(forget):
    with pytest.raises(
        InputError, match=r"'auc' of classification is already registered by mil_zoo.metrics.classification.auc"
    ):
        register_metric("auc", title="Mine", higher_is_better=True)(lambda labels, probabilities: 1.0)
    for name in ("loss", "last"):
        with pytest.raises(InputError, match="selection rule"):
            register_metric(name, title="Loss", higher_is_better=False)
    with pytest.raises(InputError, match="lowercase"):
        register_metric("My AUC", title="Mine", higher_is_better=True)
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        find_metric("acuracy")


def test_a_metric_that_fails_is_named(forget):
    register_metric("broken", title="Broken", higher_is_better=True)(lambda labels, probabilities: labels["x"])
    with pytest.raises(InputError, match="metric 'broken' failed: IndexError"):
        score(LABELS, PROBABILITIES)


def test_a_metric_that_is_infinite_is_named(forget):
    register_metric("odds", title="Odds", higher_is_better=True)(lambda labels, probabilities: float("inf"))
    with pytest.raises(InputError, match="metric 'odds' is inf, which no table can hold; return NaN where it is"):
        score(LABELS, PROBABILITIES)


def test_a_metric_that_divides_by_nothing_is_undefined(forget):
    register_metric("share", title="Share", higher_is_better=True)(lambda labels, probabilities: 1 / 0)
    assert np.isnan(share := score(LABELS, PROBABILITIES)["share"])
    assert note_of(share) == "nothing to divide by"


def test_a_metric_without_a_reason_has_one(forget):
    register_metric("nothing", title="Nothing", higher_is_better=True)(lambda labels, probabilities: np.nan)
    assert note_of(score(LABELS, PROBABILITIES)["nothing"]) == "the metric does not say why"
