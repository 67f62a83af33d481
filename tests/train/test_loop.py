"""Training: selection on validation only, determinism, weighting, subsampling, divergence."""

import numpy as np
import pytest
import torch
from helpers import make_bag
from torch import nn

from mil_zoo import Bag, InputError, create_aggregator, register_metric
from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bags import as_bags
from mil_zoo.metrics import registry
from mil_zoo.tasks import Classification, Task
from mil_zoo.train import predict as prediction
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.optim import LookaheadRAdam, make_optimizer
from mil_zoo.train.predict import predict
from mil_zoo.train.sampling import epoch_order, subsample
from mil_zoo.train.steps import Diverged


def shifted(n, label, seed):
    """A bag that a linear model can tell apart: positives are shifted by one."""
    bag = make_bag(n, 4, label=label, seed=seed)
    return bag.with_features(bag.features + label)


TRAIN = [shifted(5 + i, i % 2, i) for i in range(12)]
VAL = [shifted(6, i % 2, 100 + i) for i in range(6)]


def train(config, name="abmil", seed=0, **options):
    torch.manual_seed(seed)
    aggregator = create_aggregator(name, in_dim=4, **options)
    return aggregator, fit(aggregator, TRAIN, VAL, config, graph=aggregator.graph, seed=seed)


def test_it_learns_and_reports_every_epoch():
    _, rows = train(TrainingConfig(epochs=20, learning_rate=0.05, weight_decay=0.0))
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    assert rows[-1]["train_accuracy"] == 1
    assert {"val_accuracy", "val_auc", "val_loss", "learning_rate", "seconds", "selected"} <= set(rows[0])
    assert rows[0]["learning_rate"] == 0.05
    assert rows[-1]["learning_rate"] == pytest.approx(0.025 * (1 + np.cos(np.pi * 19 / 20)))
    assert sum(row["selected"] for row in rows) == 1


@pytest.mark.parametrize(
    ("record", "epochs"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6, 7]), ("end", [7]), ("off", [])]
)
def test_training_slides_are_looked_at_when_asked_and_it_changes_nothing(record, epochs):
    seen = []
    torch.manual_seed(0)
    aggregator = create_aggregator("clam_sb", in_dim=4)
    config = TrainingConfig(epochs=7, record=record)
    rows = fit(aggregator, TRAIN, VAL, config, after_epoch=lambda epoch, bag, *_: seen.append((epoch, bag.slide_id)))
    assert seen == [(epoch, bag.slide_id) for epoch in epochs for bag in TRAIN]
    assert [row["epoch"] for row in rows if not np.isnan(row["train_accuracy"])] == epochs
    torch.manual_seed(0)
    again = create_aggregator("clam_sb", in_dim=4)
    unseen = fit(again, TRAIN, VAL, TrainingConfig(epochs=7, record="off"))
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in unseen]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in aggregator.state_dict().items())


def test_what_is_no_number_of_epochs_is_refused():
    with pytest.raises(InputError, match=r"training.record must be 1 or more epochs, 'end' or 'off', not 0"):
        TrainingConfig(record=0)


@pytest.mark.parametrize("name", ["abmil", "srmil"])
def test_the_same_seed_gives_the_same_bits(name):
    options = {"hidden": 8, "heads": 2} if name == "srmil" else {}
    runs = [train(TrainingConfig(epochs=2), name, seed, **options)[0].state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not all(torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


class Scripted(Aggregator):
    """Its state counts training steps; its prediction of slide i in epoch e is scripted."""

    script: dict = {}  # noqa: RUF012

    def __init__(self, in_dim, num_classes):
        super().__init__(in_dim, num_classes)
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, batch):
        if self.training:
            self.steps += 1
        epoch = int(self.steps) // len(TRAIN)
        logits = [self.script[epoch].get(name, 0.0) for name in batch.slide_ids]
        logits = torch.tensor(logits)[:, None] * torch.tensor([[-1.0, 1.0]]) + 0 * self.weight
        return AggregatorOutput(logits, logits)


def selected_epoch(val_logits, **config):
    """The epoch chosen when the validation slides get these logits for class 1, epoch by epoch."""
    aggregator = Scripted(4, 2)
    aggregator.script = {0: {}} | {
        epoch: dict(zip([bag.slide_id for bag in VAL], logits, strict=True))
        for epoch, logits in enumerate(val_logits, 1)
    }
    rows = fit(aggregator, TRAIN, VAL, TrainingConfig(epochs=len(val_logits), **config))
    (epoch,) = [row["epoch"] for row in rows if row["selected"]]
    assert int(aggregator.steps) == epoch * len(TRAIN)  # the weights left in it are that epoch's
    return epoch


RIGHT, BETTER, WRONG = [-1, 1] * 3, [-2, 2] * 3, [1, -1] * 3


def test_the_checkpoint_is_the_best_validation_score_and_ties_fall_as_stated():
    assert selected_epoch([WRONG, RIGHT, WRONG], select="accuracy") == 2
    assert selected_epoch([RIGHT, BETTER, WRONG], select="accuracy", tie="loss") == 2
    assert selected_epoch([RIGHT, RIGHT, WRONG], select="accuracy", tie="loss") == 1
    assert selected_epoch([RIGHT, BETTER, RIGHT], select="loss") == 2
    assert selected_epoch([RIGHT, WRONG, WRONG, WRONG, RIGHT], select="accuracy", select_after=0.6) == 5
    assert selected_epoch([BETTER, WRONG, WRONG, WRONG, RIGHT], select="accuracy", select_after=0.8) == 5


def test_balanced_weights_reach_the_loss_of_each_slide(monkeypatch):
    bags = [shifted(4, label, i) for i, label in enumerate((0, 0, 0, 1))]
    seen = {}

    def spy(self, logits, targets, weights=None):
        seen.update(zip(targets[:, 0].tolist(), weights.tolist(), strict=True))
        return (logits.sum(1) * 0 + weights).mean()

    monkeypatch.setattr(Aggregator, "bag_loss", spy)
    fit(create_aggregator("mean", in_dim=4), bags, bags, TrainingConfig(epochs=1, class_weights="balanced"))
    assert seen == pytest.approx({0: 4 / 6, 1: 2.0})
    assert sum(seen[label] for label in as_bags(bags).labels) == pytest.approx(4)


def test_balanced_sampling_shows_every_class_as_often():
    labels = [0] * 90 + [2] * 10
    drawn = epoch_order(np.array(labels), "balanced", np.random.default_rng(0))
    assert len(drawn) == 100
    assert 35 < sum(labels[i] == 2 for i in drawn) < 65
    assert len({i for i in drawn if labels[i] == 2}) > 7, "of a class, every slide may come"
    plain, balanced = (
        train(TrainingConfig(epochs=1, sampling=way))[0].state_dict() for way in ("shuffled", "balanced")
    )
    assert not torch.equal(plain["classifier.weight"], balanced["classifier.weight"])


def test_gradients_are_clipped_to_a_norm(monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def spy(self, *args):
        norms.append(float(torch.stack([p.grad.norm() for p in self.param_groups[0]["params"]]).norm()))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    config = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-3, "weight_decay": 0.0}
    train(TrainingConfig(**config))
    free, norms = norms, []
    train(TrainingConfig(**config, clip_norm=0.1))
    assert max(free) > 0.3, "there is something to clip"
    assert max(norms) == pytest.approx(0.1, rel=1e-3)


def test_the_step_schedule_falls_to_a_fifth_after_half_of_the_epochs():
    _, rows = train(TrainingConfig(epochs=4, learning_rate=0.5, schedule="step", optimizer="adamw"))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.5, 0.5, 0.1, 0.1])


def test_the_betas_reach_the_optimizer():
    aggregator = create_aggregator("mean", in_dim=4)
    for name in ("adam", "adamw", "lookahead_radam"):
        optimizer = make_optimizer(aggregator.parameters(), TrainingConfig(optimizer=name, betas=(0.5, 0.9)))
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_transmil_s_optimiser_decays_no_biases_and_norms():
    layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = make_optimizer(layers.parameters(), TrainingConfig(optimizer="lookahead_radam", weight_decay=0.1))
    decayed = {group["weight_decay"]: [p.ndim for p in group["params"]] for group in optimizer.param_groups}
    assert decayed == {0.1: [2], 0.0: [1, 1, 1]}


def test_lookahead_goes_half_the_way_back_every_six_steps():
    def weights(cls, steps):
        weight = nn.Parameter(torch.ones(3))
        optimizer = cls([weight], lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)
        path = [weight.detach().clone()]
        for i in range(steps):
            weight.grad = torch.linspace(-1, 1, 3) + 0.1 * i
            optimizer.step()
            path.append(weight.detach().clone())
        return path

    plain, lookahead = weights(torch.optim.RAdam, 12), weights(LookaheadRAdam, 13)
    assert all(torch.equal(a, b) for a, b in zip(plain[:12], lookahead[:12], strict=True)), "the 6th only remembers"
    torch.testing.assert_close(lookahead[12], (plain[6] + plain[12]) / 2)
    assert not torch.equal(lookahead[13], lookahead[12])
    _, rows = train(TrainingConfig(epochs=20, learning_rate=0.05, weight_decay=0.0, optimizer="lookahead_radam"))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_subsampling_is_of_training_steps_only(monkeypatch):
    seen = {"train": set(), "eval": set()}
    forward = create_aggregator("mean", in_dim=4).__class__.forward

    def spy(self, batch):
        seen["train" if self.training else "eval"].update(batch.sizes.tolist())
        return forward(self, batch)

    monkeypatch.setattr("mil_zoo.aggregators.mean_max._Pooling.forward", spy)
    train(TrainingConfig(epochs=1, max_instances=7), "mean")
    assert seen["train"] == {5, 6, 7}
    assert max(seen["eval"]) == 16
    part = subsample(make_bag(30, 4, seed=1), 7, np.random.default_rng(0))
    assert len(part) == len(part.coords) == len(part.instance_labels) == 7
    assert part.graph("window:2").num_dst == 7


def test_divergence_names_the_slide_and_what_to_do():
    with pytest.raises(
        Diverged, match=r"the loss became .* in epoch \d+ at slide 'slide_.*lower training.learning_rate"
    ):
        train(TrainingConfig(epochs=30, optimizer="sgd", learning_rate=1e30, schedule="constant"))


def test_prediction_changes_nothing_and_packs_small_bags(monkeypatch):
    aggregator, _ = train(TrainingConfig(epochs=1), "srmil", hidden=8, heads=2)
    aggregator.train()
    state = {key: value.clone() for key, value in aggregator.state_dict().items()}
    packed = {bag.slide_id: (output, p) for bag, output, p in predict(aggregator, TRAIN, "window:2")}
    monkeypatch.setattr(prediction, "PACK", 1)
    for bag, output, probabilities in predict(aggregator, TRAIN[::-1], "window:2"):
        other, p = packed[bag.slide_id]
        torch.testing.assert_close(probabilities, p, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.attention, other.attention, rtol=1e-4, atol=1e-6)
        assert output.attention.shape == (len(bag),)
        assert output.head_attention.shape == (len(bag), 2)
        assert output.logits.shape == (1, 2)
    assert aggregator.training
    assert all(torch.equal(state[key], value) for key, value in aggregator.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"learning_rate": float("nan")},
        {"weight_decay": -1e-4},
        {"weight_decay": float("nan")},
        {"labelled": 0.0},
        {"select_after": 1.0},
        {"max_instances": 0},
        {"bags_per_step": 0},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(change):
    with pytest.raises(InputError, match=f"training.{next(iter(change))}"):
        TrainingConfig(**change)


def test_any_metric_selects_in_its_direction():
    assert selected_epoch([RIGHT, WRONG, RIGHT], select="f1") == 1
    register_metric("inverted", title="Inverted share", higher_is_better=False)(
        lambda labels, p: np.mean(p.argmax(1) == labels)
    )
    try:
        assert selected_epoch([RIGHT, WRONG, RIGHT], select="inverted") == 2
        rule = TrainingConfig(select="inverted").selection_rule(Classification(2))
        assert rule == "lowest validation inverted share (ties: loss, then the earlier epoch)"
        rule = TrainingConfig(select="loss", tie="loss").selection_rule(Classification(2))
        assert rule == "lowest validation loss (ties: the earlier epoch)"
    finally:
        registry._METRICS["classification"].pop("inverted")
    with pytest.raises(InputError, match=r"training\.select must be one of accuracy, .*, loss, last, not 'acuracy'"):
        TrainingConfig(select="acuracy").check_criteria(Classification(2))
    with pytest.raises(InputError, match=r"training\.tie must be one of"):
        TrainingConfig(tie="last").check_criteria(Classification(2))


def test_a_task_of_its_own_trains():
    """Counts from a Poisson loss: the loop asks the task for loss, predictions and scores."""

    class Counting(Task):
        name, target_columns, width, prediction_columns = "counting", ("count",), 1, ("expected",)

        def loss(self, logits, targets, weights=None):
            return nn.functional.poisson_nll_loss(logits[:, 0], targets[:, 0].to(logits.dtype), reduction="none")

        def predict(self, logits):
            return logits.exp()

    bags = [Bag(features=torch.full((3, 4), i / 4), target=i, slide_id=f"s{i}") for i in range(8)]
    aggregator = create_aggregator("mean", in_dim=4, task=Counting(), embed_dim=8)
    rows = fit(aggregator, bags, bags, TrainingConfig(epochs=60, learning_rate=0.05, select="loss"))
    assert {"loss", "val_loss", "selected"} <= set(rows[0])
    assert not any(name.startswith("train_") for name in rows[0])
    expected = [float(p) for _, _, p in predict(aggregator, bags)]
    assert np.corrcoef(expected, range(8))[0, 1] > 0.95
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]


class Staged(Aggregator):
    """Has a stage before its training, and something that follows every step."""

    def __init__(self, in_dim, num_classes):
        super().__init__(in_dim, num_classes)
        self.classifier = nn.Linear(in_dim, num_classes)
        self.register_buffer("steps", torch.zeros(()))
        self.seen, self.baseline, self.read = [], None, []

    def prepare(self, preparation):
        self.baseline = create_aggregator("mean", self.in_dim, self.num_classes)
        preparation.train(self.baseline)
        self.read = [output.logits for output in preparation.outputs(self.baseline)]

    def forward(self, batch):
        if self.training:
            self.seen.append(self.progress)
        embedding = torch.stack([bag.mean(0) for bag in batch.features.split(batch.lengths)])
        return AggregatorOutput(self.classifier(embedding), embedding)

    def after_step(self):
        self.steps += 1


def test_a_stage_before_the_training_sees_training_bags_and_is_told():
    torch.manual_seed(0)
    aggregator, stages = Staged(4, 2), []
    config = TrainingConfig(epochs=3, bags_per_step=5, select="last")
    rows = fit(aggregator, TRAIN, VAL, config, on_stage=stages.append)
    slides = [bag.slide_id for bag in TRAIN]
    assert [stage["stage"] for stage in stages] == ["trained", "read"]
    assert all(stage["slides"] == slides and stage["aggregator"] == "MeanPooling" for stage in stages)
    assert (stages[0]["epochs"], len(aggregator.read), len(rows)) == (3, len(TRAIN), 3)
    assert stages[0]["loss"] < np.log(2) + 0.2


def test_an_aggregator_knows_where_its_training_stands_and_follows_every_step():
    torch.manual_seed(0)
    aggregator = Staged(4, 2)
    fit(aggregator, TRAIN, VAL, TrainingConfig(epochs=2, bags_per_step=5, select="last"))
    assert [(p.step, p.epoch) for p in aggregator.seen] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert [p.share for p in aggregator.seen] == [step / 6 for step in range(6)]
    assert aggregator.steps == 6


def test_a_stage_does_not_change_the_training_of_other_aggregators():
    stages = []
    torch.manual_seed(0)
    fit(create_aggregator("mean", 4), TRAIN, VAL, TrainingConfig(epochs=1), on_stage=stages.append)
    assert stages == []


@pytest.mark.parametrize("epochs", [1, 2, 7, 10])
@pytest.mark.parametrize("record", [1, 2, 5, 20, "end"])
def test_how_often_training_slides_are_looked_at(epochs, record):
    config = TrainingConfig(epochs=epochs, record=record)
    assert config.times_recorded == sum(map(config.records, range(1, epochs + 1)))
