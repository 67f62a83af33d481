"""IBMIL against values computed with its authors' code, and what its dictionary may come from."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.ibmil import cluster_means
from mil_zoo.data.bags import as_bags
from mil_zoo.tasks import Classification
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import TrialContext, run_protocol

NAMES = ["ibmil_abmil", "ibmil_abmil_add", "ibmil_abmil_sub", "ibmil_dsmil", "ibmil_transmil"]


def options_of(golden):
    options = {
        "baseline": golden.name.split("_")[1],
        "joint_dim": 16,
        "confounder_drop": 0.0,
        "dropout": 0.0,
        "num_confounders": 4,
    }
    if "merge" in golden.arrays:
        options |= {"merge": str(golden["merge"]), "learn_confounder": bool(golden["confounder_learn"])}
    return options | ({"embed_dim": 32} if options["baseline"] == "transmil" else {})


def create(name):
    golden = Golden(name)
    return golden, golden.create("ibmil", **options_of(golden))


@pytest.mark.parametrize("name", NAMES)
def test_logits_attention_and_confounders(name):
    golden, aggregator = create(name)
    batch = BagBatch.from_bags([golden.bag()])
    with torch.no_grad():
        output, weights = aggregator(batch), aggregator.confounder_attention(batch)
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(output.embedding, golden["bag_embedding"].reshape(1, -1), "what the classifier reads")
    assert_close(weights.flatten(0, -2), golden["confounder_attention"], "weights of the confounders")
    if aggregator.baseline == "abmil":
        assert_close(output.attention, golden["attention_eval"][0], "attention")
    if aggregator.baseline == "dsmil":
        assert_close(output.attention, golden["attention_eval"].T, "attention")
        assert_close(output.instance_logits, golden["instance_logits"], "instance logits")


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_batch(name):
    golden, aggregator = create(name)
    others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
    with torch.no_grad():
        output = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
        first = aggregator(BagBatch.from_bags(golden.first_bags()))
    assert_close(output.logits[1:2], golden["logits_eval"], "logits")
    assert_close(first.logits, golden["logits_first"], "logits of the first instances")


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_every_gradient(name):
    golden, aggregator = create(name)
    losses = aggregator.train().losses(BagBatch.from_bags([golden.bag()]))
    losses["loss"].backward()
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "ibmil", **options_of(golden))


def same_rows(one, other):
    """Whether two dictionaries hold the same rows in any order."""
    distance = torch.cdist(torch.as_tensor(one).double(), torch.as_tensor(other).double())
    assert (distance.min(0).values < 1e-4).all()
    assert (distance.min(1).values < 1e-4).all()


@pytest.mark.parametrize("name", ["ibmil_abmil", "ibmil_dsmil"])
def test_the_dictionary_of_the_authors_embeddings(name):
    golden = Golden(name)
    embeddings = torch.from_numpy(golden["bag_embeddings"])
    found = cluster_means(embeddings, 4, seed=0)
    same_rows(found, golden["confounder"])
    expected = torch.stack([embeddings[golden["assignments"] == j].mean(0) for j in range(4)])
    same_rows(found, expected)


def test_the_baseline_embeds_bags_as_the_authors_do():
    golden = Golden("ibmil_abmil")
    stage = {k.removeprefix("stage1/"): v for k, v in golden.arrays.items() if k.startswith("stage1/")}
    baseline = create_aggregator("ibmil", 24, num_confounders=0).eval()
    baseline.load_published_state_dict(stage)
    bag = golden.bag().with_features(torch.from_numpy(golden["first_bag"]))
    with torch.no_grad():
        assert_close(baseline(BagBatch.from_bags([bag])).embedding[0], golden["bag_embeddings"][0], "embedding")
    bags = [make_bag(n, 24, seed=n) for n in (5, 6, 7, 8)]
    same_rows(baseline.fit_confounders(bags, 4), torch.cat([baseline(BagBatch.from_bags([b])).embedding for b in bags]))


def context(bags, **options):
    return TrialContext(
        name="ibmil",
        options={"num_confounders": 3} | options,
        graph=None,
        training=TrainingConfig(epochs=2, learning_rate=0.01, select="last"),
        in_dim=6,
        task=Classification(2),
        bags={part: as_bags(some) for part, some in bags.items()},
        seed=3,
        device="cpu",
    )


@pytest.mark.parametrize("baseline", ["abmil", "dsmil"])
def test_nothing_of_validation_and_test_slides_reaches_the_dictionary(baseline):
    def some(part, count, factor=1.0):
        bags = [make_bag(5 + i, 6, label=i % 2, seed=i, name=f"{part}_{i}") for i in range(count)]
        return [bag.with_features(factor * bag.features) for bag in bags]

    train = some("train", 8)
    runs = []
    for factor, flipped in ((1.0, False), (1e4, True)):  # poisoned: other features and the other label
        others = {part: some(part, 4, factor) for part in ("val", "test")}
        if flipped:
            others = {part: [replace(bag, label=1 - bag.label) for bag in bags] for part, bags in others.items()}
        runs.append(run_protocol(context({"train": train, **others}, baseline=baseline)))
    clean, poisoned = runs
    assert clean.weights["confounder"].abs().sum() > 0
    for name, value in clean.weights.items():
        assert torch.equal(value, poisoned.weights[name]), f"{name} has seen more than the training slides"
    assert [row["loss"] for row in clean.epochs] == [row["loss"] for row in poisoned.epochs]
    for stage in clean.stages:
        assert stage["slides"] == [f"train_{i}" for i in range(8)]
    assert [stage["stage"] for stage in clean.stages] == ["trained", "read"]
    json.dumps(list(clean.stages))


def test_a_dictionary_that_is_given_is_not_learned_again():
    given = torch.randn(5, 6)
    bags = {part: [make_bag(5 + i, 6, label=i % 2, seed=i) for i in range(4)] for part in ("train", "val", "test")}
    result = run_protocol(context(bags, confounder=given))
    assert torch.equal(result.weights["confounder"], given)
    assert list(result.stages) == []


def test_a_dictionary_of_zeros_changes_nothing():
    torch.manual_seed(0)
    aggregator, batch = create_aggregator("ibmil", 6).eval(), make_batch([5, 9], 6, None)
    baseline = create_aggregator("ibmil", 6, num_confounders=0).eval()
    baseline.body.load_state_dict(aggregator.body.state_dict())
    with torch.no_grad():
        baseline.classifier.weight.copy_(aggregator.classifier.weight[:, :6])
        baseline.classifier.bias.copy_(aggregator.classifier.bias)
        assert_close(aggregator(batch).logits, baseline(batch).logits)


def test_options_are_checked():
    for options, message in [
        ({"baseline": "clam"}, "baseline must be one of 'abmil'"),
        ({"confounder": torch.zeros(3, 5)}, r"shape \[k, 6\], not \[3, 5\]"),
        ({"confounder_drop": 1.0}, "confounder_drop"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("ibmil", 6, **options)
    with pytest.raises(InputError, match="3 training bags cannot make 4 confounders"):
        cluster_means(torch.randn(3, 2), 4, 0)
    with pytest.warns(match="distinct clusters"), pytest.raises(InputError, match="lower num_confounders to 1"):
        cluster_means(torch.ones(9, 2), 4, 0)
