"""Training and prediction of one aggregator."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator, AggregatorOutput
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.bags import as_bags
from mil_zoo.data.prefetch import read_ahead
from mil_zoo.metrics import score
from mil_zoo.train.config import TrainingConfig

PACK = 16_384  # instances scored together: enough to hide the overhead of a call, little beside one large slide


class Diverged(RuntimeError):
    """Training produced a loss or a prediction that is not a number."""


def mixed(precision: str, device: str) -> torch.autocast:
    """The context in which matrix products are taken in ``precision``, "float32" or "bfloat16"."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def predict(
    aggregator: Aggregator,
    bags: Iterable[Bag],
    graph: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Iterator[tuple[Bag, AggregatorOutput, Tensor]]:
    """Scores whole bags in eval mode and without gradients. The aggregator's mode is restored.

    Small bags are packed together, up to ``PACK`` instances; a bag gives the same answer alone.

    Args:
        aggregator: on ``device``.
        bags: labelled or not; read as they are needed.
        graph: graph spec, or None.
        device: where the computation runs.
        precision: of matrix products, "float32" or "bfloat16".

    Yields:
        each bag, its own output (tensors on the CPU), and its class probabilities ``[C]``.
    """
    was_training = aggregator.training
    aggregator.eval()
    try:
        for packed in _packs(read_ahead(bags, graph=graph) if isinstance(bags, Sequence) else bags):
            with torch.inference_mode(), mixed(precision, device):
                output = aggregator(BagBatch.from_bags(packed, graph=graph).to(device))
                probabilities = aggregator.probabilities(output.logits).cpu()
            yield from zip(packed, _split(output, packed), probabilities, strict=True)
    finally:
        aggregator.train(was_training)


def _packs(bags: Iterable[Bag]) -> Iterator[list[Bag]]:
    pack: list[Bag] = []
    for bag in bags:
        if pack and sum(map(len, pack)) + len(bag) > PACK:
            yield pack
            pack = []
        pack.append(bag)
    if pack:
        yield pack


def _split(output: AggregatorOutput, bags: Sequence[Bag]) -> list[AggregatorOutput]:
    """The output of each bag of a batch, on the CPU."""
    sizes = [len(bag) for bag in bags]
    parts = {
        name: [None] * len(bags)
        if value is None
        else _full(value.cpu()).split(1 if name in ("logits", "embedding") else sizes)
        for name, value in vars(output).items()
    }
    return [AggregatorOutput(**{name: values[i] for name, values in parts.items()}) for i in range(len(bags))]


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype.itemsize < 4 else value


def fit(
    aggregator: Aggregator,
    train: Sequence[Bag],
    val: Sequence[Bag],
    config: TrainingConfig,
    *,
    graph: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    after_epoch: Callable[[int, Bag, AggregatorOutput, Tensor], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains an aggregator and leaves in it the weights of the epoch that the validation slides choose.

    Args:
        aggregator: freshly created; moved to ``device``.
        train: labelled bags to fit.
        val: labelled bags to choose the checkpoint on.
        config: optimiser, schedule, budget and selection rule.
        graph: graph spec, or None.
        seed: of the order of slides, dropout, masks and instance subsampling. Same seed, same weights on a CPU.
        device: where the computation runs.
        after_epoch: called at the end of each epoch (numbered from 1) with every training bag and its eval-mode output
            and probabilities.
        on_epoch: called with each row of the result as it comes.

    Returns:
        one row an epoch: "epoch", "loss" and each "loss_<term>" (means over training slides), "learning_rate",
        "train_accuracy", "val_<metric>" and "val_loss" (cross-entropy), "seconds", and "selected" (1 for the chosen
        epoch).

    Raises:
        Diverged: a loss or a prediction is not finite.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    aggregator.to(device)
    if config.class_weights == "balanced":
        aggregator.class_weights = _balanced_weights(train, max(2, aggregator.num_classes)).to(device)
    optimizer = _optimizer(aggregator, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: _decay(epoch, config))
    rows: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], dict[str, Tensor]] | None = None
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch, "learning_rate": optimizer.param_groups[0]["lr"]}
        row |= _train_epoch(aggregator, train, config, graph, device, optimizer, order, epoch)
        schedule.step()
        row["seconds"] = time.perf_counter() - start
        row["train_accuracy"] = _evaluate(aggregator, train, graph, device, epoch, config.precision, after_epoch)[
            "accuracy"
        ]
        scores = _evaluate(aggregator, val, graph, device, epoch, config.precision)
        row |= {f"val_{name}": value for name, value in scores.items()}
        rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
        if epoch > config.select_after * config.epochs:
            rank = (_rank(row, config.select), _rank(row, config.tie))
            if best is None or rank > best[0]:
                best = rank, {name: value.detach().clone() for name, value in aggregator.state_dict().items()}
                chosen = epoch
    assert best is not None
    aggregator.load_state_dict(best[1])
    for row in rows:
        row["selected"] = int(row["epoch"] == chosen)
    return rows


def _train_epoch(
    aggregator: Aggregator,
    train: Sequence[Bag],
    config: TrainingConfig,
    graph: str | None,
    device: str,
    optimizer: torch.optim.Optimizer,
    order: np.random.Generator,
    epoch: int,
) -> dict[str, float]:
    aggregator.train()
    totals: dict[str, float] = defaultdict(float)
    drawn = _balanced_draw(train, order) if config.sampling == "balanced" else order.permutation(len(train))
    reader = read_ahead(train, drawn, None if config.max_instances is not None else graph)
    while bags := list(islice(reader, config.bags_per_step)):
        if config.max_instances is not None:
            bags = [_subsample(bag, config.max_instances, order) for bag in bags]
        with mixed(config.precision, device):
            losses = aggregator.losses(BagBatch.from_bags(bags, graph=graph).to(device))
        if not torch.isfinite(losses["loss"]):
            raise Diverged(
                f"the loss became {losses['loss'].item()} in epoch {epoch} at slide {bags[0].slide_id!r}; "
                "lower training.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(aggregator.parameters(), config.clip_norm)
        optimizer.step()
        for name, value in losses.items():
            totals[name if name == "loss" else f"loss_{name}"] += value.item() * len(bags)
    return {name: total / len(train) for name, total in totals.items()}


def _evaluate(
    aggregator: Aggregator,
    bags: Sequence[Bag],
    graph: str | None,
    device: str,
    epoch: int,
    precision: str,
    after_epoch: Callable[[int, Bag, AggregatorOutput, Tensor], None] | None = None,
) -> dict[str, float]:
    probabilities = []
    for bag, output, probability in predict(aggregator, bags, graph, device, precision):
        if not probability.isfinite().all():
            raise Diverged(
                f"the prediction of slide {bag.slide_id!r} is not a number in epoch {epoch}; "
                "lower training.learning_rate"
            )
        probabilities.append(probability.double().numpy())
        if after_epoch is not None:
            after_epoch(epoch, bag, output, probability)
    labels, stacked = np.array(as_bags(bags).labels), np.stack(probabilities)
    true_class = stacked[np.arange(len(labels)), labels]
    return score(labels, stacked) | {"loss": float(-np.log(true_class.clip(min=1e-12)).mean())}


def _rank(row: dict[str, Any], criterion: str) -> float:
    if criterion == "last":
        return float(row["epoch"])
    value = row[f"val_{criterion}"]
    if criterion == "loss":
        value = -value
    return float("-inf") if np.isnan(value) else float(value)


class _LookaheadRAdam(torch.optim.RAdam):
    """RAdam that every 6th step goes half the way back to where the weights were after the last such step.

    Source: Zhang et al., Lookahead Optimizer, NeurIPS 2019; "lookahead_radam" of github szc19990412/TransMIL, with the
    defaults of timm.
    """

    EVERY, TOWARDS = 6, 0.5

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not hasattr(self, "slow"):
            self.slow, self.count = [p.clone() for p in parameters], 0
        loss = super().step(closure)
        self.count += 1
        if self.count % self.EVERY == 0:
            for slow, parameter in zip(self.slow, parameters, strict=True):
                slow.lerp_(parameter, self.TOWARDS)
                parameter.copy_(slow)
        return loss


def _optimizer(aggregator: Aggregator, config: TrainingConfig) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(aggregator.parameters(), momentum=0.9, **options)
    options["betas"] = config.betas
    if config.optimizer == "lookahead_radam":
        return _LookaheadRAdam(aggregator.parameters(), decoupled_weight_decay=True, **options)
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(aggregator.parameters(), fused=True, **options)


def _decay(epoch: int, config: TrainingConfig) -> float:
    if config.schedule == "step":
        return 1.0 if 2 * epoch < config.epochs else 0.2
    return 1.0 if config.schedule == "constant" else 0.5 * (1 + np.cos(np.pi * epoch / config.epochs))


def _balanced_draw(train: Sequence[Bag], order: np.random.Generator) -> np.ndarray:
    """As many slides as there are, with replacement, each class with the same probability."""
    labels = np.array(as_bags(train).labels)
    weights = 1 / np.bincount(labels)[labels]
    return order.choice(len(train), len(train), p=weights / weights.sum())


def _balanced_weights(train: Sequence[Bag], num_classes: int) -> Tensor:
    counts = torch.bincount(torch.tensor(as_bags(train).labels), minlength=num_classes)
    return len(train) / (counts.clamp(min=1) * (counts > 0).sum())


def _subsample(bag: Bag, max_instances: int, order: np.random.Generator) -> Bag:
    if len(bag) <= max_instances:
        return bag
    return bag.subset(torch.from_numpy(np.sort(order.choice(len(bag), max_instances, replace=False))))
