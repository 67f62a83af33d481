"""Whether the prediction rests on what the attention points at: slides without their top instances, or those alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mil_zoo.data.bag import Bag

DRAWS = 3  # random sets that the top instances are compared with


def faithfulness(
    bag: Bag,
    attention: ArrayLike,
    prediction: Tensor,
    column: int,
    predict: Callable[[list[Bag]], list[Tensor]],
    tops: Sequence[int],
    seed: int = 0,
) -> dict[str, float]:
    """Change of the prediction, of classes of the predicted one's probability, when instances are taken away.

    Removal that changes much and keeping that changes little speak for attention that the prediction rests on, where
    random instances do the opposite. The graph of what is left is built anew.

    Args:
        bag: the whole slide, N instances.
        attention: float ``[N]``.
        prediction: ``[P]`` of the whole slide.
        column: which of its numbers is meant, of classes the predicted one.
        predict: gives the prediction ``[P]`` of each of some bags, in eval mode.
        tops: numbers of instances k; those with k >= N are left out.
        seed: of the random instances.

    Returns:
        for each k ``remove_top<k>`` (without the k most attended) and ``keep_top<k>`` (with them alone), and for as
        many random instances, mean of ``DRAWS`` draws, ``remove_random<k>`` and ``keep_random<k>``: each the number of
        the whole slide minus that of the changed one.
    """
    n, order = len(bag), np.argsort(-np.asarray(attention), kind="stable")
    rng = np.random.default_rng([seed, n])
    chosen = [("top", k, order[:k]) for k in tops if k < n]
    chosen += [("random", k, rng.choice(n, k, replace=False)) for k in tops if k < n for _ in range(DRAWS)]
    if not chosen:
        return {}
    changed, names = [], []
    for kind, k, rows in chosen:
        held = np.zeros(n, dtype=bool)
        held[rows] = True
        changed += [bag.subset(torch.from_numpy(~held)), bag.subset(torch.from_numpy(held))]
        names += [f"remove_{kind}{k}", f"keep_{kind}{k}"]
    drops: dict[str, list[float]] = {}
    for name, after in zip(names, predict(changed), strict=True):
        drops.setdefault(name, []).append(float(prediction[column] - after[column]))
    return {name: float(np.mean(values)) for name, values in drops.items()}
