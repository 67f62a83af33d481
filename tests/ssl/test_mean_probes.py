"""Probes of a slide's mean features, as protocols of the benchmark."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mil_zoo import Bag
from mil_zoo.errors import InputError
from mil_zoo.tasks import Classification, Regression
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import TrialContext, check_protocol, run_protocol


def bags(n, seed, shift=3.0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        features = rng.normal(size=(rng.integers(1, 9), 5)) * [1, 10, 1, 1, 0] + shift * (i % 2) * np.eye(5)[2]
        made.append(Bag(features=torch.from_numpy(features).float(), label=i % 2, slide_id=f"s{seed}-{i}"))
    return made


def trial(name, task=None, seed=0, parts=None, **options):
    parts = parts or {"train": bags(40, 1), "val": bags(6, 2), "test": bags(30, 3)}
    seen = []
    context = TrialContext(
        name=name,
        options=options,
        graph=None,
        training=TrainingConfig(epochs=1, select="last"),
        in_dim=5,
        task=task or Classification(2),
        bags=parts,
        seed=seed,
        device="cpu",
        on_epoch=seen.append,
    )
    return run_protocol(context), parts, seen


def test_the_linear_probe_is_a_logistic_regression_on_standardised_means():
    result, parts, seen = trial("linear_probe", C=0.5)
    means = {part: np.stack([bag.features.double().numpy().mean(0) for bag in rows]) for part, rows in parts.items()}
    centre, spread = means["train"].mean(0), means["train"].std(0)
    spread[spread < 1e-9] = 1
    labels = [bag.label for bag in parts["train"]]
    theirs = LogisticRegression(C=0.5, class_weight="balanced").fit((means["train"] - centre) / spread, labels)
    expected = theirs.predict_proba((means["test"] - centre) / spread)
    assert result.predictions["test"].numpy() == pytest.approx(expected, abs=1e-4)
    assert result.parameters == 6
    assert [row["selected"] for row in result.epochs] == [1]
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["linear_probe", "knn_probe"])
def test_a_probe_tells_classes_apart_and_nothing_of_it_is_random(name):
    result, parts, _ = trial(name)
    again, _, _ = trial(name, seed=7)
    labels = torch.tensor([bag.label for bag in parts["test"]])
    assert (result.predictions["test"].argmax(1) == labels).double().mean() > 0.75
    assert torch.equal(result.predictions["test"], again.predictions["test"])
    assert result.predictions["val"].sum(1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("name", ["linear_probe", "knn_probe"])
def test_test_slides_reach_no_probe(name):
    first, parts, _ = trial(name)
    garbage = [Bag(features=bag.features * 0 + 99, label=bag.label, slide_id=bag.slide_id) for bag in parts["test"]]
    second, _, _ = trial(name, parts=parts | {"test": garbage})
    judged, _, _ = trial(name, parts={part: parts[part] for part in ("train", "val")})
    assert set(judged.predictions) == {"val"}, "a configuration is judged without test slides"
    assert torch.equal(first.predictions["val"], second.predictions["val"])
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


def test_the_nearest_slide_decides_where_one_votes():
    result, parts, _ = trial("knn_probe", k=1)
    assert set(result.predictions["test"].flatten().tolist()) == {0.0, 1.0}
    own, _, _ = trial("knn_probe", k=1, parts=parts | {"test": parts["train"]})
    assert own.predictions["test"].argmax(1).tolist() == [bag.label for bag in parts["train"]]


def test_what_a_probe_cannot_do():
    with pytest.raises(InputError, match="C must be positive"):
        trial("linear_probe", C=0)
    with pytest.raises(InputError, match="k and temperature must be positive"):
        trial("knn_probe", k=0)
    with pytest.raises(InputError, match="linear_probe does classification alone, not regression"):
        check_protocol("linear_probe", Regression())
    with pytest.raises(InputError, match="two classes"):
        trial("linear_probe", parts={part: bags(6, 1)[::2] for part in ("train", "val", "test")})
