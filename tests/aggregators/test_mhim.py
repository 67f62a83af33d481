"""MHIM-MIL against values computed with its authors' code, its draws, its teacher, and what its first stage sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Golden, assert_close, assert_gradients, make_bag, make_batch

from mil_zoo import BagBatch, InputError, create_aggregator
from mil_zoo.aggregators.base import Progress
from mil_zoo.aggregators.mhim import masking
from mil_zoo.aggregators.mhim.masking import Ratios, draw_kept
from mil_zoo.data.bags import as_bags
from mil_zoo.tasks import Classification
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.protocols import TrialContext, run_protocol

NAMES = ["mhim_abmil", "mhim_transmil", "mhim2_abmil", "mhim2_transmil"]


def options_of(golden):
    number = {name: golden[name].item() for name in golden.arrays if golden.arrays[name].ndim == 0}
    options = {
        "baseline": golden.name.split("_")[1],
        "version": 2 if "mhim2" in golden.name else 1,
        "embed_dim": 32,
        "attention_dim": 16,
        "mask_ratio": number.get("mask_ratio", 0.0),
        "mask_ratio_low": number.get("mask_ratio_l", 0.0),
        "mask_ratio_high": number["mask_ratio_h"],
        "high_share": number["mask_ratio_hr"],
        "temperature": number["temp_t"],
        "consistency_weight": number["consistency_weight"],
        "momentum": 0.9,
        "dropout": 0.0,
        "attn_out_drop": 0.0,
    }
    if options["version"] == 2:
        keys = {"class_scores": "attn2score", "merge_k": "merge_k", "merge_ratio": "merge_ratio"}
        options |= {ours: number[theirs] for ours, theirs in (keys | {"merge_momentum": "merge_mm"}).items()}
        options["act"] = "gelu"
    return options


def create(name):
    golden = Golden(name)
    aggregator = create_aggregator("mhim", golden["feat"].shape[1], **options_of(golden))
    teacher = {k.removeprefix("teacher/"): v for k, v in golden.arrays.items() if k.startswith("teacher/")}
    aggregator.load_published_state_dict({"model": golden.parameters, "teacher": teacher})
    return golden, aggregator.eval()


def replay(golden, monkeypatch):
    """torch's draws become the golden ones, in their order."""
    permutations = [
        torch.from_numpy(golden.arrays[f"randperm/{j}"]) for j in range(3) if f"randperm/{j}" in golden.arrays
    ]
    drawn = iter(permutations)
    monkeypatch.setattr(masking.torch, "randperm", lambda n: check_length(next(drawn), n))
    return drawn


def check_length(permutation, n):
    assert len(permutation) == n, f"a permutation of {n} where {len(permutation)} are drawn"
    return permutation


def order_of(golden):
    return torch.from_numpy(golden["merge_noise"]).argsort() if "merge_noise" in golden.arrays else None


def kept_of(golden):
    return torch.from_numpy(golden["mask_ids"][: int(golden["len_keep"])])


@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_plain_student_s(name):
    golden, aggregator = create(name)
    batch = BagBatch.from_bags([golden.bag()])
    with torch.no_grad():
        output = aggregator(batch)
        assert_close(aggregator.teacher(batch).logits, golden["teacher_logits_eval"], "logits of the teacher")
        first = aggregator(BagBatch.from_bags(golden.first_bags()))
        others = [make_bag(n, aggregator.in_dim, seed=n) for n in (11, 40)]
        together = aggregator(BagBatch.from_bags([others[0], golden.bag(), others[1]]))
    assert_close(output.logits, golden["logits_eval"], "logits")
    assert_close(together.logits[1:2], golden["logits_eval"], "logits in a batch")
    assert_close(first.logits, golden["logits_first"], "logits of the first instances")
    attention = torch.from_numpy(golden["attention_eval"])
    if len(attention) == 1:
        assert_close(output.attention, attention[0], "attention")
    else:
        positive = attention.mean(0).clamp(min=0)
        assert_close(output.attention, positive / positive.sum(), "attention")


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_scores_and_the_draws_are_replayed(name, monkeypatch):
    golden, aggregator = create(name)
    batch, drawn = BagBatch.from_bags([golden.bag()]), replay(golden, monkeypatch)
    with torch.no_grad():
        h = aggregator.teacher.embed_rows(batch.features)
        embedding, (scores,) = aggregator._score(h, batch)
    assert_close(embedding, golden["teacher_embedding"], "embedding of the teacher")
    expected = golden["teacher_score" if "teacher_score" in golden.arrays else "teacher_attention"]
    expected = expected[aggregator.attention_layer] if expected.ndim == 3 else expected
    assert_close(scores, expected.reshape(scores.shape), "what instances are masked by")
    kept, expected = draw_kept(scores, aggregator.current_ratios()), kept_of(golden)
    if scores.ndim == 2:  # the order of instances with as many votes is arbitrary in the authors' code
        low, high = votes(scores, 27), votes(-scores, 18)
        certain = {i for i in range(90) if low[i] > low.sort(descending=True).values[26]}
        assert set(kept.tolist()) ^ set(expected.tolist()) <= at_least(high, 18) | (at_least(low, 27) - certain)
        assert 50 < len(kept) < 60
        assert certain
        assert not certain & set(kept.tolist())
    else:
        assert kept.tolist() == sorted(expected.tolist())
    assert next(drawn, None) is None, "every draw of the authors is one here"


def votes(scores, count):
    """How many heads have each instance among their ``count`` lowest."""
    return torch.bincount(scores.argsort(1)[:, :count].flatten(), minlength=scores.shape[1])


def at_least(number, count):
    """The instances with as many votes as the ``count``-th or more."""
    return set((number >= number.sort(descending=True).values[count - 1]).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_term_every_gradient_and_the_teacher_s_step(name):
    golden, aggregator = create(name)
    aggregator.train()
    losses = aggregator.losses(BagBatch.from_bags([golden.bag()]), keep=kept_of(golden), merge_order=order_of(golden))
    losses["loss"].backward()
    assert_close(losses["classification"].detach(), golden["loss_cls"], "classification")
    assert_close(losses["consistency"].detach(), golden["loss_consistency"], "consistency")
    assert_close(losses["loss"].detach(), golden["loss"], "loss")
    assert_gradients(aggregator, golden, "mhim", **options_of(golden))
    queries = aggregator.new_queries
    aggregator.new_queries = None  # the golden average is that of the weights before
    aggregator.after_step()
    average = {k: 0.9 * golden.arrays[f"teacher/{k}"] + 0.1 * v for k, v in golden.parameters.items()}
    stated = {k.removeprefix("ema/"): v for k, v in golden.arrays.items() if k.startswith("ema/")}
    assert stated or aggregator.version == 2
    average |= stated
    twin = create_aggregator("mhim", aggregator.in_dim, **options_of(golden))
    twin.load_published_state_dict(average)
    for key, value in twin.student.state_dict().items():
        assert_close(aggregator.teacher.state_dict()[key], value, f"teacher's {key}")
    if queries is not None:
        aggregator.new_queries = queries
        aggregator.after_step()
        assert_close(aggregator.student.merge.queries, golden["global_q_after"], "queries after the step")


@pytest.mark.parametrize("name", ["mhim2_abmil", "mhim2_transmil"])
def test_merging(name):
    golden, aggregator = create(name)
    with torch.no_grad():
        h = aggregator.student.embed_rows(torch.from_numpy(golden["feat"]))[kept_of(golden)]
        merged, tokens = aggregator._merge(h, order_of(golden))
        assert_close(merged, golden["merged"], "what the student reads")
        whole = torch.cat([torch.zeros(0, 32), aggregator.student.embed_rows(torch.from_numpy(golden["feat"]))])
        tested = torch.cat([whole, aggregator.student.merge(whole)])
        logits = aggregator.student.predictor(aggregator.student.encode([tested])[0])
    assert_close(logits, golden["logits_eval_merge_test"], "with the tokens of all instances appended")
    assert len(tokens) == golden["merge_k"]
    aggregator.merge_ratio = 1.0
    assert aggregator._merge(h, None)[1] is None, "no rest, nothing merged"


@pytest.mark.parametrize("case", range(9))
def test_masks_of_the_authors(case, monkeypatch):
    golden = Golden("mhim_abmil")
    assert golden["mask_cases"] == 9
    names = [str(name) for name in golden["mask_ratio_names"]]
    ratios = dict(zip(names, golden[f"mask{case}/ratios"].tolist(), strict=True))
    values = [ratios[name] for name in ("mask_ratio", "mask_ratio_l", "mask_ratio_h", "mask_ratio_hr")]
    keys = [f"mask{case}/randperm{j}" for j in range(2) if f"mask{case}/randperm{j}" in golden.arrays]
    drawn = iter([torch.from_numpy(golden.arrays[key]) for key in keys])
    monkeypatch.setattr(masking.torch, "randperm", lambda n: check_length(next(drawn), n))
    attention = torch.from_numpy(golden[f"mask{case}/attention"])
    kept = draw_kept(attention.squeeze(0), Ratios(*values))
    expected = golden[f"mask{case}/mask_ids"][: int(golden[f"mask{case}/len_keep"])]
    assert kept.tolist() == sorted(expected.tolist())


def test_schedules():
    golden = Golden("mhim_abmil")
    aggregator = create_aggregator(
        "mhim", 8, mask_ratio_high=0.03, momentum=0.9, momentum_schedule="cosine", embed_dim=16
    )
    seen = []
    for step in range(20):
        aggregator.progress = Progress(step, steps_per_epoch=4, epochs=5)
        seen.append((aggregator.current_ratios().high, aggregator.current_momentum()))
    high, momentum = np.array(seen).T
    assert_close(high, golden["schedule"], "ratio of the highest")
    assert_close(momentum, golden["schedule_mm"], "momentum")


def test_a_bag_is_never_masked_whole():
    for n in (1, 2, 5):
        for scores in (torch.randn(n), torch.randn(8, n)):
            assert draw_kept(scores, Ratios(1.0, 0.5, 0.5, 0.5)).tolist() == list(range(n))
    assert draw_kept(torch.randn(9), Ratios(0.0, 0.0, 0.0, 0.5)).tolist() == list(range(9)), "nothing masked"


@pytest.mark.parametrize("options", [{}, {"version": 2, "class_scores": True, "mask_ratio": 0.0, "merge_ratio": 0.5}])
def test_losses_of_a_batch_are_the_mean_over_its_bags(options, monkeypatch):
    monkeypatch.setattr(masking.torch, "randperm", torch.arange)
    monkeypatch.setattr(masking.torch, "rand", lambda n: torch.linspace(0, 1, n))
    torch.manual_seed(0)
    aggregator = create_aggregator("mhim", 8, embed_dim=16, **options).eval()
    bags = [make_bag(n, 8, label=n % 2, seed=n) for n in (1, 20, 33)]
    alone = [aggregator.losses(BagBatch.from_bags([bag])) for bag in bags]
    for name, value in aggregator.losses(BagBatch.from_bags(bags)).items():
        assert_close(value.detach(), sum(losses[name] for losses in alone).detach() / 3, name)


def test_the_teacher_is_no_parameter_and_follows_the_student():
    torch.manual_seed(0)
    aggregator = create_aggregator("mhim", 8, embed_dim=16, momentum=0.75).train()
    assert not any(name.startswith("teacher") for name, _ in aggregator.named_parameters())
    before = {name: value.clone() for name, value in aggregator.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter += 1
    aggregator.losses(make_batch([30, 7], 8, None))["loss"].backward()
    aggregator.after_step()
    for name, value in aggregator.teacher.state_dict().items():
        assert_close(value, 0.75 * before[name] + 0.25 * aggregator.student.state_dict()[name], name)


def test_the_first_stage_sees_training_slides_alone():
    def some(part, count, factor=1.0):
        bags = [make_bag(5 + i, 6, label=i % 2, seed=i, name=f"{part}_{i}") for i in range(count)]
        return [bag.with_features(factor * bag.features) for bag in bags]

    runs = []
    for factor, flip in ((1.0, 0), (1e4, 1)):  # the second time validation and test slides are poisoned
        others = {
            part: [replace(bag, label=bag.label ^ flip) for bag in some(part, 4, factor)] for part in ("val", "test")
        }
        context = TrialContext(
            name="mhim",
            options={"embed_dim": 16},
            graph=None,
            training=TrainingConfig(epochs=2, learning_rate=0.01, select="last"),
            in_dim=6,
            task=Classification(2),
            bags={part: as_bags(bags) for part, bags in {"train": some("train", 8), **others}.items()},
            seed=3,
            device="cpu",
        )
        runs.append(run_protocol(context))
    clean, poisoned = runs
    for name, value in clean.weights.items():
        assert torch.equal(value, poisoned.weights[name]), f"{name} has seen more than the training slides"
    assert [stage["slides"] for stage in clean.stages] == [[f"train_{i}" for i in range(8)]]
    assert clean.stages[0]["aggregator"] == "Network"


def test_options_are_checked():
    for options, message in [
        ({"baseline": "dsmil"}, "baseline must be one of 'abmil', 'transmil'"),
        ({"mask_ratio": 1.1}, "mask_ratio must lie"),
        ({"high_share": 0.0}, "high_share"),
        ({"baseline": "transmil", "embed_dim": 20}, "multiple of 8"),
        ({"dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(InputError, match=message):
            create_aggregator("mhim", 8, **options)
