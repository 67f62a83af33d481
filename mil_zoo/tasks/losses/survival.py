"""Losses of censored times: discrete hazards, Cox's partial likelihood, ranking.

Each gives one value a bag ``[B]`` whose mean is the loss of the step. Where the loss is a mean over events or pairs, a
bag's value is what it adds times B over their number (of weight), so that the mean over bags is the mean over those;
without any of them all values are 0, and so is the gradient. In float32 also where the logits come in half precision.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Ties = Literal["efron", "breslow"]


def discrete_nll(
    logits: Tensor, bins: Tensor, event: Tensor, alpha: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of discrete hazards ``h = sigmoid(logits)``.

    With ``S_k = prod_{j <= k} (1 - h_j)`` and y the bag's bin: ``-log S_{y-1} - log h_y`` of an event, ``-(1 - alpha)
    log S_y`` of a censored bag. Through the log of the sigmoid, so that loss and gradient stay where hazards saturate.

    Args:
        logits: ``[B, K]``.
        bins: y, ``[B]``, from 0.
        event: ``[B]``, 1 or 0.
        alpha: by how much censored bags count less (MCAT's ``alpha_surv``).
        weights: ``[B]``, or None for one each.

    Source: Zadeh & Schmid, IEEE TPAMI 43 (2020); mahmoodlab/MCAT.
    """
    z = _full(logits)
    place, own = torch.arange(z.shape[1], device=z.device), bins.long()[:, None]
    happened = event.bool()[:, None]
    lived = (place < own) | ((place == own) & ~happened)  # the bins that the bag outlived
    died = (place == own) & happened
    loss = -(F.logsigmoid(-z) * lived + F.logsigmoid(z) * died).sum(1)
    loss = torch.where(event.bool(), loss, (1 - alpha) * loss)
    return loss if weights is None else loss * weights


def discrete_hazards(logits: Tensor) -> Tensor:
    """Hazards, float64 ``[B, K]``."""
    return logits.double().sigmoid()


def discrete_risk(logits: Tensor) -> Tensor:
    """Risk ``-sum_k S_k``, float64 ``[B]``: less expected life is more risk. Other reductions rank otherwise.

    Source: mahmoodlab/MCAT; on the choice Sonabend, Bender & Vollmer, Bioinformatics 38 (2022).
    """
    return -F.logsigmoid(-logits.double()).cumsum(1).exp().sum(1)


def cox(
    risk: Tensor,
    time: Tensor,
    event: Tensor,
    ties: Ties = "efron",
    weights: Tensor | None = None,
    remembered: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Negative log partial likelihood over the events of the batch, divided by their number.

    ``-sum_i [z_i - log sum_{t_j >= t_i} exp z_j] / events`` over events i (Breslow); Efron takes at a time with m
    events, of total T in the risk set's R, the mean over l < m of ``log(R - l / m T)``. By log-sum-exp over the sorted
    times; the order of the rows has no effect.

    Args:
        risk: log hazards z, ``[B]`` or ``[B, 1]``.
        time: ``[B]``.
        event: ``[B]``, 1 or 0.
        ties: how events at one time are treated.
        weights: ``[B]``, of a bag's event and of its place in risk sets; None for one each.
        remembered: risks, times and events of earlier bags, each ``[M]``: constants in the risk sets, whose events
            count too; what they add is spread over the B bags.

    Returns:
        ``[B]``: bag i has ``B / events`` times its own term.

    Source: Cox 1972; Breslow 1974; Efron, JASA 72 (1977); Katzman et al., BMC Medical Research Methodology 18 (2018).
    """
    z, own = _column(risk), len(risk)
    w = torch.ones_like(z) if weights is None else weights.to(z)
    time, happened = time.to(z.device), event.bool()
    if remembered is not None:
        past = [part.detach().to(z.device) for part in remembered]
        z, time = torch.cat([z, past[0].to(z)]), torch.cat([time, past[1].to(time)])
        happened, w = torch.cat([happened, past[2].bool()]), torch.cat([w, torch.ones_like(past[0]).to(w)])
    terms = w * happened * (_log_risk_set(z, time, happened, w, ties) - z)
    terms = terms * own / (w * happened).sum().clamp(min=torch.finfo(z.dtype).tiny)
    return terms[:own] + terms[own:].sum() / own


def _log_risk_set(z: Tensor, time: Tensor, happened: Tensor, w: Tensor, ties: Ties) -> Tensor:
    """The logarithm ``[n]`` that is taken off each event's risk; of other bags something finite."""
    _, group, size = time.unique(return_inverse=True, return_counts=True)  # ascending
    weighed = z + w.clamp(min=torch.finfo(w.dtype).tiny).log()
    at_risk = len(z) - (size.cumsum(0) - size)  # of each time, how many have it or a longer one
    among = weighed[group.argsort(descending=True, stable=True)].logcumsumexp(0)[at_risk - 1]  # log R
    if ties == "breslow":
        return among[group]
    deaths = torch.zeros_like(size).index_add(0, group, happened.long())
    share = (weighed - among[group]).exp() * happened  # at most 1, as each is in its own risk set
    total = torch.zeros_like(among).index_add(0, group, share)  # T / R
    m, turn = deaths.clamp(min=1)[:, None].to(z), torch.arange(max(1, int(deaths.max())), device=z.device).to(z)
    fraction = torch.where(turn < m, turn / m, 0)  # l / m; beyond m the logarithm of 1
    return (among + torch.log1p(-fraction * total[:, None]).sum(1) / m[:, 0])[group]


def ranking(risk: Tensor, time: Tensor, event: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over pairs of an event a and a longer time b of ``softplus(z_b - z_a)``.

    Args:
        risk: z, ``[B]`` or ``[B, 1]``.
        time: ``[B]``.
        event: ``[B]``, 1 or 0.
        weights: ``[B]``; a pair weighs the product of its two; None for one each.

    Returns:
        ``[B]``: bag a has ``B / pairs`` times the sum of the pairs of its event.

    Source: Luck et al., arXiv 1806.01984.
    """
    z = _column(risk)
    first = event.bool().nonzero()[:, 0]
    w = torch.ones_like(z) if weights is None else weights.to(z)
    pairs = (time[first, None] < time[None, :]) * w[first, None] * w[None, :]  # [E, B]
    sums = (pairs * F.softplus(z[None, :] - z[first, None])).sum(1)
    sums = sums * len(z) / pairs.sum().clamp(min=torch.finfo(z.dtype).tiny)
    return torch.zeros_like(z).index_add(0, first, sums)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _column(values: Tensor) -> Tensor:
    return _full(values).flatten()
