"""A training that is stopped anywhere and started again gives the same weights, rows and random numbers."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import make_bag

from mil_zoo import InputError, create_aggregator
from mil_zoo.config import read_shipped
from mil_zoo.data.bags import as_bags
from mil_zoo.tasks import Survival
from mil_zoo.train.checkpoint import Checkpoint, CheckpointPlace
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit

TRAIN = [make_bag(9 + i, 4, label=i % 2, seed=i) for i in range(7)]
VAL = [make_bag(8, 4, label=i % 2, seed=100 + i) for i in range(4)]


class Stopped(BaseException):
    """Stands for a kill: nothing catches it. Real ones are in ``tests/bench/test_runner.py``."""


class StoppedCheckpoint(Checkpoint):
    """Ends the training once it has written so many files."""

    left = 0

    def save(self, state, device):
        super().save(state, device)
        type(self).left -= 1
        if not self.left:
            raise Stopped


def trained(name, config, place=None, stop_after=0, task=None, bags=(TRAIN, VAL), on_stage=None, **options):
    torch.manual_seed(3)
    aggregator = create_aggregator(name, in_dim=4, task=task, **options)
    checkpoint = None
    if place is not None:
        StoppedCheckpoint.left = stop_after
        checkpoint = StoppedCheckpoint(place)
    given = {"graph": aggregator.graph, "seed": 3, "checkpoint": checkpoint, "on_stage": on_stage}
    rows = fit(aggregator, *bags, config, **given)
    return aggregator.state_dict(), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def written(rows):
    """As ``epochs.csv`` holds them."""
    return pd.DataFrame(rows).to_csv()


CASES = [
    ("abmil", TrainingConfig(epochs=3, max_instances=6, sampling="balanced", bags_per_step=2), {}),
    ("transmil", TrainingConfig(epochs=2, optimizer="lookahead_radam"), {"embed_dim": 16, "heads": 2}),
    ("attrimil", TrainingConfig(epochs=2, optimizer="sgd", schedule="step"), {}),
    ("mhim", TrainingConfig(epochs=2), {"embed_dim": 8, "attention_dim": 4, "momentum": 0.5}),
    ("clam_sb", TrainingConfig(epochs=9, patience=1, learning_rate=0.01, optimizer="adam"), {"embed_dim": 8}),
]


@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=[case[0] for case in CASES])
def test_a_training_stopped_after_any_number_of_checkpoints_ends_the_same(name, config, options, tmp_path):
    weights, rows = trained(name, config, **options)
    for stop_after in (1, 6):
        place = CheckpointPlace(tmp_path / str(stop_after), seconds=0.0)
        with pytest.raises(Stopped):
            trained(name, config, place, stop_after, **options)
        with pytest.raises(Stopped):  # and once more on the way
            trained(name, config, place, 2, **options)
        again, repeated = trained(name, config, place, **options)
        assert written(repeated) == written(rows)
        assert all(torch.equal(value, again[key]) for key, value in weights.items())


@pytest.mark.parametrize("stage", ["trained", "read"])
def test_a_training_stopped_in_a_stage_before_it_does_that_stage_again(stage, tmp_path):
    """IBMIL trains an aggregator on the training bags, reads their embeddings, and only then trains itself."""
    config, options = TrainingConfig(epochs=2), {"embed_dim": 8, "joint_dim": 4, "num_confounders": 2}
    seen = []
    weights, rows = trained("ibmil", config, on_stage=seen.append, **options)
    assert [row["stage"] for row in seen] == ["trained", "read"]

    def stopping(row):
        if row["stage"] == stage:
            raise Stopped

    place, again = CheckpointPlace(tmp_path, seconds=0.0), []
    with pytest.raises(Stopped):
        trained("ibmil", config, place, on_stage=stopping, **options)
    continued, repeated = trained("ibmil", config, place, on_stage=again.append, **options)
    assert [row["stage"] for row in again] == ["trained", "read"]
    assert written(repeated) == written(rows)
    assert all(torch.equal(value, continued[key]) for key, value in weights.items())

    finished = []
    with pytest.raises(Stopped):  # within the training: the stage is at its end
        trained("ibmil", config, CheckpointPlace(tmp_path / "later", seconds=0.0), 3, **options)
    continued, _ = trained(
        "ibmil", config, CheckpointPlace(tmp_path / "later", seconds=0.0), on_stage=finished.append, **options
    )
    assert finished == []
    assert all(torch.equal(value, continued[key]) for key, value in weights.items())


def test_patients_that_the_loss_remembers_are_kept_too(tmp_path):
    bags = [
        replace(bag, label=None, target=[10.0 + i, float(i % 3 > 0)]) for i, bag in enumerate([*TRAIN, *VAL], start=1)
    ]
    task = Survival("cox").fit(as_bags(bags).targets)
    config = TrainingConfig(epochs=3, risk_set="memory:4", select="c_index", tie="loss")
    parts = {"task": task, "bags": (bags[: len(TRAIN)], bags[len(TRAIN) :])}
    weights, rows = trained("abmil", config, **parts)
    place = CheckpointPlace(tmp_path, seconds=0.0)
    with pytest.raises(Stopped):
        trained("abmil", config, place, 5, **parts)
    again, repeated = trained("abmil", config, place, **parts)
    assert written(repeated) == written(rows)
    assert all(torch.equal(value, again[key]) for key, value in weights.items())


def test_a_finished_training_is_taken_up_and_a_damaged_file_begins_anew(tmp_path, caplog):
    config = TrainingConfig(epochs=2)
    place = CheckpointPlace(tmp_path, seconds=1e6, keep_finished=True)
    weights, rows = trained("abmil", config, place)
    (file,) = tmp_path.iterdir()
    assert written(trained("abmil", config, place)[1]) == written(rows)
    file.write_bytes(file.read_bytes()[:-200])
    again, repeated = trained("abmil", config, place)
    assert "cannot be read" in caplog.text
    assert written(repeated) == written(rows)
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    assert trained("abmil", config, CheckpointPlace(tmp_path / "short", seconds=1e6))[1][0]["loss"] == rows[0]["loss"]
    assert not (tmp_path / "short").exists()  # a short training writes nothing


def test_a_recipe_ends_when_its_patience_does():
    config = TrainingConfig(epochs=30, patience=2, select="loss", tie="auc", record=7, learning_rate=0.05)
    _, rows = trained("abmil", config)
    losses = [row["val_loss"] for row in rows]
    best = losses.index(min(losses))
    assert len(rows) == best + 3 < 30
    assert rows[best]["selected"] == 1
    looked_at = [row["epoch"] for row in rows if row["train_accuracy"] == row["train_accuracy"]]
    assert looked_at[-1] == len(rows)  # the last one is looked at also where it comes before its time
    _, later = trained("abmil", replace(config, patience_after=len(rows) + 3))
    assert len(later) == len(rows) + 4 or later[len(rows)]["val_loss"] < min(losses)
    assert [row["val_loss"] for row in later[: len(rows)]] == losses
    assert len(trained("abmil", replace(config, epochs=12, select="last", tie="loss"))[1]) == 12


@pytest.mark.parametrize(
    ("name", "patience", "first"), [("transmil", 10, 11), ("clam_sb", 20, 52), ("clam_mb", 20, 52)]
)
def test_recipes_end_where_their_authors_do(name, patience, first):
    """TransMIL after 10 epochs without a lower loss, CLAM after 20 and not before its epoch 51, counted from 0."""
    training = read_shipped("aggregators", name)["training"]
    assert (training["patience"], training["select"]) == (patience, "loss")
    config = TrainingConfig(**training)
    worse = [1.0, *range(2, 100)]
    ends = next(epoch for epoch in range(1, 100) if config.out_of_patience([-value for value in worse[:epoch]], epoch))
    assert ends == first


def test_patience_counts_epochs_that_are_not_better():
    config = TrainingConfig(patience=2, patience_after=3)
    assert not config.out_of_patience([3.0, 2.0, 1.0], 3)  # not yet
    assert config.out_of_patience([3.0, 3.0, 1.0, 2.0], 4)  # an equal value is not better
    assert not config.out_of_patience([1.0, 2.0, 3.0, 2.0], 4)
    assert not config.out_of_patience([-float("inf")] * 9, 9)  # nothing is known of any
    with pytest.raises(InputError, match=r"training\.patience must be positive"):
        TrainingConfig(patience=0)
    with pytest.raises(InputError, match=r"training\.patience_after must be 0 or more"):
        TrainingConfig(patience_after=-1)
