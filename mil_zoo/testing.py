"""The contract of an aggregator as checks: run on every registered one, and offered to authors of new ones.

from mil_zoo.testing import check_aggregator
check_aggregator(MyMIL)
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.errors import InputError

DIM = 16
TOLERANCE = 1e-4  # relative to the largest entry, everywhere
Options = Mapping[str, Any]


def check_aggregator(cls: type[Aggregator], **options: Any) -> None:
    """Runs every check of the contract on an aggregator class, and prints a sentence of what it passed.

    Args:
        cls: the class; it need not be registered.
        **options: its constructor's options.

    Raises:
        AssertionError: the first check that fails, named and explained; an error of the aggregator's own is its cause.
    """
    why_not: dict[str, str | None] = {}
    for check in CHECKS:
        try:
            why_not[check.__name__.replace("_", " ")] = check(cls, options)
        except Exception as error:
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise AssertionError(f"{cls.__name__} fails {check.__name__}: {what}{error}") from error
    passed = [what for what, why in why_not.items() if why is None]
    others = ", ".join(f"{what} ({why})" for what, why in why_not.items() if why is not None)
    left_out = f"; not checked: {others}" if others else ""
    print(f"{cls.__name__} passes {len(passed)} checks of an aggregator: {', '.join(passed)}{left_out}.")


def gives_one_row_of_finite_logits_a_bag(cls: type[Aggregator], options: Options) -> None:
    """Logits ``[B, C]`` and probabilities that sum to 1, for one, two and four classes."""
    for num_classes in (1, 2, 4):
        aggregator = _create(cls, options, num_classes)
        output = _run(aggregator, _batch(cls, (30, 12, 5)))
        assert output.logits.shape == (3, num_classes), (
            f"logits are {list(output.logits.shape)}, not [3, {num_classes}]"
        )
        assert output.embedding.shape[0] == 3, f"embedding has {output.embedding.shape[0]} rows for 3 bags"
        for name, value in vars(output).items():
            assert value is None or value.isfinite().all(), f"{name} is not finite"
        total = aggregator.predict(output.logits).sum(1)
        assert torch.allclose(total, torch.ones_like(total)), f"probabilities sum to {total.tolist()}"


def a_bag_gives_the_same_answer_alone_as_in_a_batch(cls: type[Aggregator], options: Options) -> None:
    """In eval mode, every output of a bag is unchanged by the bags packed beside it."""
    aggregator, bags = _create(cls, options), _bags((30, 1, 77))
    together = _run(aggregator, BagBatch.from_bags(bags, graph=cls.graph))
    offsets = np.cumsum([0, *map(len, bags)])
    for i, bag in enumerate(bags):
        alone = _run(aggregator, BagBatch.from_bags([bag], graph=cls.graph))
        for name, value in vars(alone).items():
            other = getattr(together, name)
            assert (value is None) == (other is None), f"{name} is there for one bag and not for several"
            if value is not None:
                rows = slice(i, i + 1) if name in ("logits", "embedding") else slice(offsets[i], offsets[i + 1])
                _same(value, other[rows], f"{name} of a bag of {len(bag)}")


def losses_of_a_batch_are_the_mean_over_its_bags(cls: type[Aggregator], options: Options) -> str | None:
    """Every loss term, and every gradient of their total, is the mean of those of the bags alone, without dropout.

    An aggregator whose loss draws at random in eval mode too (masked patches, say) is not checked.
    """
    aggregator, bags = _create(cls, options, num_classes=3), _bags((30, 4, 41), labels=(0, 1, 2))
    aggregator.eval()

    def losses_and_gradients(bags: list[Bag]) -> dict[str, Tensor]:
        aggregator.zero_grad()
        losses = aggregator.losses(BagBatch.from_bags(bags, graph=cls.graph))
        losses["loss"].backward()
        gradients = {f"the gradient of {n}": p.grad for n, p in aggregator.named_parameters() if p.grad is not None}
        return {name: value.detach() for name, value in losses.items()} | gradients

    together = losses_and_gradients(bags)
    if not torch.equal(together["loss"], losses_and_gradients(bags)["loss"]):
        return "its loss draws at random"
    alone = [losses_and_gradients([bag]) for bag in bags]
    for name, value in together.items():
        mean = torch.stack([one.get(name, torch.zeros_like(value)) for one in alone]).sum(0) / 3
        if mean.abs().max() > 1e-7:  # else it vanishes (the bias before a softmax), up to rounding
            _same(value, mean, name)
    return None


def the_order_of_instances_is_without_effect(cls: type[Aggregator], options: Options) -> str | None:
    """A permuted bag gives the same logits and permuted attention, unless ``permutation_invariant`` is False."""
    if not cls.permutation_invariant:
        return "permutation_invariant is False"
    aggregator, bag = _create(cls, options), _bags((60,))[0]
    order = torch.from_numpy(np.random.default_rng(1).permutation(60))
    assert bag.coords is not None
    permuted = replace(bag, features=bag.features[order], coords=bag.coords[order], instance_labels=None)
    one, other = (_run(aggregator, BagBatch.from_bags([b], graph=cls.graph)) for b in (bag, permuted))
    _same(other.logits, one.logits, "logits")
    for name in ("attention", "attention_logits", "head_attention", "instance_logits"):
        if getattr(one, name) is not None:
            _same(getattr(other, name), getattr(one, name)[order], name)
    return None


def a_bag_of_one_instance_works(cls: type[Aggregator], options: Options) -> None:
    """Prediction and a training step on a single instance are finite, or the step is refused and names the slide."""
    aggregator, batch = _create(cls, options), _batch(cls, (1,))
    output = _run(aggregator, batch)
    assert output.logits.isfinite().all(), "logits are not finite"
    if output.attention is not None:
        _same(output.attention, torch.ones_like(output.attention), "attention of the only instance")
    aggregator.train()
    try:
        loss = aggregator.losses(batch)["loss"]
    except InputError as error:  # some normalise over the instances of a step
        refusal = str(error)
    else:
        loss.backward()
        assert loss.isfinite(), "the loss is not finite"
        _finite_gradients(aggregator)
        return
    assert "check_0" in refusal, f"the refusal does not name the slide: {refusal}"


def a_bag_of_equal_instances_works(cls: type[Aggregator], options: Options) -> None:
    """Where nothing tells instances apart (ties, no spread), prediction and a training step are finite."""
    aggregator, bag = _create(cls, options), _bags((90,))[0]
    batch = BagBatch.from_bags([bag.with_features(torch.zeros_like(bag.features))], graph=cls.graph)
    output = _run(aggregator, batch)
    for name, value in vars(output).items():
        assert value is None or value.isfinite().all(), f"{name} is not finite"
    aggregator.train()
    loss = aggregator.losses(batch)["loss"]
    loss.backward()
    assert loss.isfinite(), "the loss is not finite"
    _finite_gradients(aggregator)


def every_parameter_gets_a_gradient(cls: type[Aggregator], options: Options) -> None:
    """Over a batch that holds all classes every parameter takes part in the loss, with three classes and with one."""
    for num_classes, labels in ((3, (0, 1, 2)), (1, (0, 1, 1))):
        aggregator = _create(cls, options, num_classes)
        aggregator.train()
        losses = aggregator.losses(_batch(cls, (40, 30, 50), labels=labels))
        assert "loss" in losses, f"losses() gives {sorted(losses)} without 'loss'"
        for name, value in losses.items():
            assert value.ndim == 0, f"{name} has shape {list(value.shape)}; losses are scalars"
            assert value.isfinite(), f"{name} is not finite"
        losses["loss"].backward()
        _finite_gradients(aggregator)
        unused = [name for name, parameter in aggregator.named_parameters() if parameter.grad is None]
        assert not unused, f"no gradient for {', '.join(unused)} with num_classes={num_classes}"


def unlabelled_bags_are_scored_and_not_trained_on(cls: type[Aggregator], options: Options) -> None:
    """Prediction needs no label; a loss without one is an ``InputError``."""
    aggregator = _create(cls, options)
    bags = [replace(bag, label=None) for bag in _bags((30, 12))]
    batch = BagBatch.from_bags(bags, graph=cls.graph)
    assert torch.equal(_run(aggregator, batch).logits, _run(aggregator, _batch(cls, (30, 12))).logits), (
        "logits depend on the labels"
    )
    try:
        aggregator.losses(batch)
    except InputError:
        return
    raise AssertionError("losses() of bags without labels is no InputError")


def single_precision_is_enough(cls: type[Aggregator], options: Options) -> None:
    """Logits in float32 are those in float64, where instances are many and features far from zero mean."""
    aggregator, bag = _create(cls, options), _bags((400,))[0]
    bag = bag.with_features(3 + 2 * bag.features)
    single = _run(aggregator, BagBatch.from_bags([bag], graph=cls.graph)).logits
    double = _run(
        aggregator.double(), BagBatch.from_bags([bag.with_features(bag.features.double())], graph=cls.graph)
    ).logits
    assert double.dtype == torch.float64, f"float64 features and weights give {double.dtype} logits"
    _same(single.double(), double, "float32")


def features_of_any_precision_are_read(cls: type[Aggregator], options: Options) -> None:
    """Features in float64, float16 or bfloat16 give the logits of the same numbers in float32, and gradients."""
    aggregator, bag = _create(cls, options), _bags((60,))[0]
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        stored = bag.with_features(bag.features.to(dtype))
        batch = BagBatch.from_bags([stored], graph=cls.graph)
        single = BagBatch.from_bags([bag.with_features(stored.features.float())], graph=cls.graph)
        assert torch.equal(_run(aggregator, batch).logits, _run(aggregator, single).logits), f"{dtype} differs"
        aggregator.losses(batch)["loss"].backward()
        _finite_gradients(aggregator)


def dropout_can_be_switched_off(cls: type[Aggregator], options: Options) -> str | None:
    """Options ``*_drop`` and ``dropout`` of 0, ``nn.Dropout.p`` or an attribute of that name set to 0: all the same."""
    names = [name for name in inspect.signature(cls).parameters if name.endswith("_drop") or name == "dropout"]
    if not names:
        return "it has no option *_drop or dropout"
    without = _create(cls, {**options, **dict.fromkeys(names, 0.0)})
    switched = _create(cls, {**options, **dict.fromkeys(names, 0.5)})
    switched.load_state_dict(without.state_dict())
    for module in switched.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in names:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    results = []
    for aggregator in (without, switched):
        aggregator.train()
        torch.manual_seed(7)
        results.append(aggregator.losses(_batch(cls, (40, 30)))["loss"].detach())
    assert torch.equal(*results), "something is still dropped"
    return None


def attention_sums_to_one_in_each_bag(cls: type[Aggregator], options: Options) -> str | None:
    """Attention is non-negative and sums to 1 over the instances of each bag (of each class, of each head)."""
    sizes = (30, 1, 77)
    output = _run(_create(cls, options), _batch(cls, sizes))
    there = {name: value for name in ("attention", "head_attention") if (value := getattr(output, name)) is not None}
    for name, attention in there.items():
        assert attention.shape[0] == sum(sizes), f"{name} has {attention.shape[0]} rows for {sum(sizes)} instances"
        assert (attention >= 0).all(), f"{name} is negative"
        for part in attention.split(sizes):
            total = part.sum(0)
            assert torch.allclose(total, torch.ones_like(total), atol=1e-5), f"{name} sums to {total.tolist()}"
    return None if there else "it gives no attention"


def evaluation_changes_no_state(cls: type[Aggregator], options: Options) -> None:
    """Scoring twice in eval mode gives the same bits and leaves the state as it was."""
    aggregator, batch = _create(cls, options), _batch(cls, (30, 12))
    before = copy.deepcopy(aggregator.state_dict())
    first, second = _run(aggregator, batch), _run(aggregator, batch)
    assert torch.equal(first.logits, second.logits), "the second evaluation differs from the first"
    after = aggregator.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"evaluation changed {', '.join(changed)}"


def weights_survive_saving_and_loading(cls: type[Aggregator], options: Options) -> None:
    """The state written with safetensors and loaded into a new object gives the same logits."""
    aggregator, batch = _create(cls, options), _batch(cls, (30, 12))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: value.clone() for name, value in aggregator.state_dict().items()}, path)  # shared ones apart
        torch.manual_seed(99)
        fresh = cls(DIM, 2, **options)
        fresh.load_state_dict(load_file(path))
    assert torch.equal(_run(fresh, batch).logits, _run(aggregator, batch).logits), "the loaded aggregator differs"


def training_is_repeatable(cls: type[Aggregator], options: Options) -> None:
    """The same seed gives the same loss and the same gradients, bit by bit, on a CPU."""
    results = []
    for _ in range(2):
        aggregator = _create(cls, options)
        aggregator.train()
        torch.manual_seed(7)
        loss = aggregator.losses(_batch(cls, (40, 30)))["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in aggregator.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "two runs with one seed differ"


# Each raises an AssertionError, or says why it does not apply.
CHECKS: tuple[Callable[[type[Aggregator], Options], str | None], ...] = (
    gives_one_row_of_finite_logits_a_bag,
    a_bag_gives_the_same_answer_alone_as_in_a_batch,
    losses_of_a_batch_are_the_mean_over_its_bags,
    the_order_of_instances_is_without_effect,
    a_bag_of_one_instance_works,
    a_bag_of_equal_instances_works,
    every_parameter_gets_a_gradient,
    unlabelled_bags_are_scored_and_not_trained_on,
    single_precision_is_enough,
    features_of_any_precision_are_read,
    dropout_can_be_switched_off,
    attention_sums_to_one_in_each_bag,
    evaluation_changes_no_state,
    weights_survive_saving_and_loading,
    training_is_repeatable,
)


def _create(cls: type[Aggregator], options: Options, num_classes: int = 2) -> Aggregator:
    torch.manual_seed(0)
    return cls(DIM, num_classes, **options)


def _bags(sizes: tuple[int, ...], labels: tuple[int, ...] | None = None) -> list[Bag]:
    bags = []
    for i, n in enumerate(sizes):
        rng = np.random.default_rng(i)
        side = int(np.ceil(np.sqrt(1.25 * n)))
        site = rng.choice(side * side, n, replace=False)
        bags.append(
            Bag(
                features=torch.from_numpy(rng.normal(size=(n, DIM)).astype(np.float32)),
                coords=torch.from_numpy(np.stack([site % side, site // side], axis=1) * 256.0),
                patch_size=256.0,
                label=labels[i] if labels else i % 2,
                slide_id=f"check_{i}",
            )
        )
    return bags


def _batch(cls: type[Aggregator], sizes: tuple[int, ...], labels: tuple[int, ...] | None = None) -> BagBatch:
    return BagBatch.from_bags(_bags(sizes, labels), graph=cls.graph)


def _run(aggregator: Aggregator, batch: BagBatch) -> AggregatorOutput:
    aggregator.eval()
    with torch.no_grad():
        return aggregator(batch)


def _same(got: Tensor, expected: Tensor, what: str) -> None:
    assert got.shape == expected.shape, f"{what} is {list(got.shape)} where {list(expected.shape)} was expected"
    error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert error < TOLERANCE, f"{what} differs by {error:.2g} of its largest entry"


def _finite_gradients(aggregator: Aggregator) -> None:
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
