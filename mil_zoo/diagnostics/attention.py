"""Attention skew and alignment of one slide, as named numbers.

Throughout, ``a`` is the attention of the N instances of a bag (it sums to 1) and ``a_(1) >= a_(2) >= ...`` are its
values in decreasing order. A uniform bag has ``max_attention`` 1/N, so bags of different size compare by ``n_x_max``
and ``effective_fraction``, and aggregators with different numbers of heads by ``head_max_*``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from mil_zoo.errors import InputError

HIGH = 0.5
"""An instance with at least this attention is highly attended; a bag holds two at most."""


def attention_curve(attention: ArrayLike, instance_labels: ArrayLike | None = None) -> dict[str, float]:
    """The numbers cheap enough for every training slide at every epoch.

    Args:
        attention: float ``[N]``, non-negative, sum 1.
        instance_labels: 0/1 ``[N]``, or None. Give them for positive slides only: a negative slide holds no positive
            instance, and its zeros would say nothing about the attention.

    Returns:
        - ``max_attention``: a_(1)
        - ``n_x_max``: N a_(1); 1 for uniform attention
        - ``high_count``: number of instances with a >= 0.5

        and with instance labels

        - ``top1_positive``, ``top5_positive``: share of positives among the k most attended instances (all of them in
          a smaller bag; equal attention: the earlier instance first)
        - ``high_positive``: share of positives among the instances with a >= 0.5; absent where there is none

    Raises:
        InputError: attention that is negative or does not sum to 1 within 1e-3, or arrays of different length.
    """
    weights = _checked_attention(attention)
    high = weights >= HIGH
    numbers = {
        "max_attention": float(weights.max()),
        "n_x_max": float(len(weights) * weights.max()),
        "high_count": float(high.sum()),
    }
    if instance_labels is not None:
        positive = _checked_labels(instance_labels, len(weights))
        order = np.argsort(-weights, kind="stable")
        numbers["top1_positive"] = float(positive[order[:1]].mean())
        numbers["top5_positive"] = float(positive[order[:5]].mean())
        if high.any():
            numbers["high_positive"] = float(positive[high].mean())
    return numbers


def attention_skew(
    attention: ArrayLike,
    head_attention: ArrayLike | None = None,
    instance_labels: ArrayLike | None = None,
    instance_scores: ArrayLike | None = None,
) -> dict[str, float]:
    """Every number about the attention of one slide.

    Args:
        attention: float ``[N]``, non-negative, sum 1.
        head_attention: float ``[N, H]``, the attention of each head before heads are averaged, or None.
        instance_labels: 0/1 ``[N]``, or None; as in :func:`attention_curve`.
        instance_scores: float ``[N]``, larger is more positive (an instance logit), or None.

    Returns:
        The numbers of :func:`attention_curve` and

        - ``n_instances``: N
        - ``entropy``: -sum a log a / log N; 1 for uniform attention and for N = 1
        - ``effective_instances``: 1 / sum a^2; ``effective_fraction``: that over N
        - ``gini``: sum_i (N + 1 - 2 i) a_(i) / (N sum a); 0 uniform, (N - 1) / N for one instance with all
        - ``mass_top1pct``: sum of the ceil(0.01 N) largest a; ``mass_top10``: of the 10 largest
        - ``head_max_0``, ``head_max_1``, ...: the largest attention of each head

        with at least one positive instance

        - ``positive_share``: positives / N, their share of the area, patches being of one size
        - ``mass_on_positives``: sum of a over positives
        - ``mass_ratio``: mass_on_positives / positive_share; 1 for attention blind to the label

        and with both positive and negative instances

        - ``attention_auroc``, ``attention_ap``: area under the ROC curve and average precision of a as a detector of
          positives; ``instance_auroc``, ``instance_ap``: of the instance scores

    Raises:
        InputError: as in :func:`attention_curve`, or head attention or scores of another shape or not finite.
    """
    weights = _checked_attention(attention)
    n = len(weights)
    falling = np.sort(weights)[::-1]
    numbers = attention_curve(weights, instance_labels)
    numbers["n_instances"] = float(n)
    numbers["entropy"] = _entropy(weights)
    numbers["effective_instances"] = float(1 / np.square(weights).sum())
    numbers["effective_fraction"] = numbers["effective_instances"] / n
    numbers["gini"] = float((n + 1 - 2 * np.arange(1, n + 1)) @ falling / (n * weights.sum()))
    numbers["mass_top1pct"] = float(falling[: -(-n // 100)].sum())
    numbers["mass_top10"] = float(falling[:10].sum())
    if head_attention is not None:
        heads = np.asarray(head_attention, dtype=np.float64)
        if heads.ndim != 2 or len(heads) != n or not np.isfinite(heads).all():
            raise InputError(f"head_attention must be finite and [{n}, heads], not {heads.shape}")
        numbers |= {f"head_max_{head}": float(value) for head, value in enumerate(heads.max(axis=0))}
    if instance_labels is not None:
        positive = _checked_labels(instance_labels, n)
        numbers |= _alignment(weights, positive, instance_scores)
    return numbers


def _alignment(
    weights: NDArray[np.float64], positive: NDArray[np.bool_], instance_scores: ArrayLike | None
) -> dict[str, float]:
    if not positive.any():
        return {}
    share, mass = float(positive.mean()), float(weights[positive].sum())
    numbers = {"positive_share": share, "mass_on_positives": mass, "mass_ratio": mass / share}
    if positive.all():
        return numbers
    numbers["attention_auroc"] = float(roc_auc_score(positive, weights))
    numbers["attention_ap"] = float(average_precision_score(positive, weights))
    if instance_scores is not None:
        scores = np.asarray(instance_scores, dtype=np.float64)
        if scores.shape != weights.shape or not np.isfinite(scores).all():
            raise InputError(f"instance_scores must be finite and [{len(weights)}], not {scores.shape}")
        numbers["instance_auroc"] = float(roc_auc_score(positive, scores))
        numbers["instance_ap"] = float(average_precision_score(positive, scores))
    return numbers


def _entropy(weights: NDArray[np.float64]) -> float:
    if len(weights) == 1:
        return 1.0
    held = weights[weights > 0]
    return float(-(held * np.log(held)).sum() / np.log(len(weights)))


def _checked_attention(attention: ArrayLike) -> NDArray[np.float64]:
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim != 1 or len(weights) == 0:
        raise InputError(f"attention must be one number an instance, [N] with N >= 1, not {weights.shape}")
    if not (weights >= 0).all():
        raise InputError(f"attention must be non-negative and not NaN; its smallest value is {weights.min()}")
    if not abs(weights.sum() - 1) <= 1e-3:
        raise InputError(f"attention sums to {weights.sum():.6g}; normalise it within the bag, to 1")
    return weights


def _checked_labels(instance_labels: ArrayLike, n: int) -> NDArray[np.bool_]:
    labels = np.asarray(instance_labels)
    if labels.shape != (n,) or not np.isin(labels, (0, 1)).all():
        raise InputError(f"instance_labels must be 0 or 1, one for each of the {n} instances, not {labels.shape}")
    return labels.astype(bool)
