"""Classes told apart one by one: a sigmoid and a binary cross-entropy for each, as several authors train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.tasks import Classification
from mil_zoo.tasks.losses.classification import one_hot


def one_vs_rest_loss(aggregator: Aggregator, logits: Tensor, batch: BagBatch) -> Tensor:
    """The binary cross-entropies of ``logits`` against the one-hot label, their mean over classes and bags.

    With one logit, and for tasks without classes, it is the task's own loss.

    Args:
        aggregator: whose task says what is predicted.
        logits: ``[B, C]``; or ``[K, B, C]``, K times what the bags are scored by.
        batch: of B labelled bags.

    Returns:
        a scalar, or ``[K]``.
    """
    if batch.labels is None or not _has_classes(aggregator):
        if logits.ndim == 3:
            return torch.stack([aggregator.bag_loss(part, batch.targets, batch.weights) for part in logits])
        return aggregator.bag_loss(logits, batch.targets, batch.weights)
    target = one_hot(batch.labels, aggregator.num_classes).to(logits.dtype).expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
    return (loss if batch.weights is None else loss * batch.weights).mean(-1)


def one_vs_rest_logits(aggregator: Aggregator, logits: Tensor) -> Tensor:
    """Log-sigmoids ``[B, C]`` of ``logits``, whose softmax are the sigmoids over their sum.

    Two logits that are trained to be x and -x have a softmax of sigmoid(2 x), which is too sure of itself. For tasks
    without classes they are what every aggregator's are.
    """
    return F.logsigmoid(logits.double()) if _has_classes(aggregator) else Aggregator.task_logits(aggregator, logits)


def _has_classes(aggregator: Aggregator) -> bool:
    return aggregator.num_classes > 1 and isinstance(aggregator.task, Classification)
