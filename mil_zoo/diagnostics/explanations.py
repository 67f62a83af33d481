"""Which instances a prediction rests on, by attention and by what else a model can be asked; and how far that is true.

An explainer gives every instance of a slide a score: the higher, the more it speaks for the prediction. What is
explained is a number f of the slide: of classes the log-odds of the predicted one, of several labels the logit of the
most probable, of other tasks the mean of the outputs (of survival it rises with the risk).

Two things judge the scores, and neither asks whether they look right:

- *patch flipping* (Hense et al., xMIL, NeurIPS 2024): instances are removed, the most relevant first (MoRF) and the
  least relevant first (LeRF), and the slide is predicted again. The area is the mean over the removed shares of
  ``p_LeRF - p_MoRF``, of the predicted class's probability: above 0 where the scores say what the prediction needs,
  0 for random ones.
- instance labels, where there are some: AUROC and average precision on positive slides.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.registry import Registry
from mil_zoo.tasks import Classification

Floats = npt.NDArray[np.float64]
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the instances that are removed
STEPS = 32  # of the integral of integrated gradients
REGIONS = 100  # that occlusion removes one at a time from a slide of more instances


@dataclass(frozen=True)
class Question:
    """A slide, the model that predicted it, and the number that is explained.

    Attributes:
        bag: the slide, N instances.
        aggregator: on ``device``, in eval mode.
        output: of the whole slide, tensors on the CPU.
        prediction: ``[P]`` of the whole slide.
        shown: the output that is meant, of classes the predicted one; None for the task's ``explained_logit``.
        graph: graph spec, or None.
        device: where to compute.
        outputs: gives the output and the prediction ``[P]`` of each of some bags, in eval mode.
        seed: of what is drawn.
    """

    bag: Bag
    aggregator: Aggregator
    output: AggregatorOutput
    prediction: Tensor
    shown: int | None
    graph: str | None
    device: str
    outputs: Callable[[list[Bag]], Sequence[tuple[AggregatorOutput, Tensor]]]
    seed: int = 0

    def number(self, output: AggregatorOutput) -> float:
        """The number f of the output of one bag."""
        with torch.inference_mode():
            return float(self.value(output.logits)[0])

    def value(self, logits: Tensor) -> Tensor:
        """The number f that is explained, ``[B]``, of ``logits`` ``[B, C]``."""
        z = self.aggregator.task_logits(logits.to(self.device))
        if self.shown is None:
            return self.aggregator.task.explained_logit(z)
        if not isinstance(self.aggregator.task, Classification):
            return z[:, self.shown]
        if z.shape[1] == 1:
            return z[:, 0] if self.shown else -z[:, 0]
        others = torch.cat([z[:, : self.shown], z[:, self.shown + 1 :]], dim=1)
        return z[:, self.shown] - others.logsumexp(1)

    def batch(self) -> BagBatch:
        """The slide alone, on the device, with its graph."""
        return BagBatch.from_bags([self.bag], graph=self.graph).to(self.device)


@dataclass(frozen=True)
class Scores:
    """What an explainer says of a slide.

    Attributes:
        values: float64 ``[N]``; higher speaks more for the prediction.
        numbers: what it says of itself (the error of an integral), by name.
    """

    values: Floats
    numbers: dict[str, float]


Explainer = Callable[[Question], "Scores | None"]
EXPLAINERS: Registry[Explainer] = Registry("explainer")


@EXPLAINERS.register("attention")
def by_attention(question: Question) -> Scores | None:
    """The attention itself; None for an aggregator without."""
    attention = question.output.attention
    if attention is None:
        return None
    if attention.ndim == 2:
        shown = question.shown
        attention = attention.mean(1) if shown is None else attention[:, min(shown, attention.shape[1] - 1)]
    return Scores(attention.double().numpy(), {})


@EXPLAINERS.register("gradient")
def by_gradient(question: Question) -> Scores:
    """Gradient times input, ``sum_d x_id df/dx_id``."""
    batch = question.batch()
    gradient, _ = _gradient(question, batch, batch.features)
    return Scores(_per_instance(batch.features, gradient), {})


@EXPLAINERS.register("integrated_gradients")
def by_integrated_gradients(question: Question) -> Scores:
    """Integrated gradients from a slide of zeros (Sundararajan et al., ICML 2017): see :func:`integrated_gradients`."""
    batch = question.batch()
    return integrated_gradients(question, batch, torch.zeros_like(batch.features))


@EXPLAINERS.register("integrated_gradients_mean")
def by_integrated_gradients_from_the_mean(question: Question) -> Scores:
    """Integrated gradients from a slide whose every instance is the mean of this one's."""
    batch = question.batch()
    return integrated_gradients(question, batch, batch.features.mean(0).expand_as(batch.features))


def integrated_gradients(question: Question, batch: BagBatch, baseline: Tensor) -> Scores:
    """``sum_d (x - b)_id * mean over alpha of df/dx_id at b + alpha (x - b)``, at the middles of ``STEPS`` intervals.

    The scores should add up to ``f(x) - f(b)``. What they miss, over that difference, is the number
    ``completeness_error``.

    Args:
        question: what is explained.
        batch: the slide.
        baseline: b, ``[N, D]``.
    """
    difference = batch.features - baseline
    total = torch.zeros_like(difference)
    for step in range(STEPS):
        total += _gradient(question, batch, baseline + (step + 0.5) / STEPS * difference)[0]
    values = _per_instance(difference, total / STEPS)
    ends = [float(_gradient(question, batch, features)[1]) for features in (batch.features, baseline)]
    change = ends[0] - ends[1]
    error = abs(values.sum() - change) / abs(change) if change else np.nan
    return Scores(values, {"completeness_error": float(error)})


@EXPLAINERS.register("occlusion")
def by_occlusion(question: Question) -> Scores:
    """How much f falls without an instance, or without the region that it belongs to, see :func:`regions`.

    An aggregator that can tell for every instance from one pass (``without_each``) is asked for that.
    """
    bag = question.bag
    whole = question.number(question.output)
    with torch.inference_mode():
        exact = question.aggregator.without_each(question.batch())
        if exact is not None:
            return Scores(whole - question.value(exact).double().cpu().numpy(), {})
    of = regions(None if bag.coords is None else bag.coords.double().numpy(), len(bag), REGIONS)
    held = [bag.subset(torch.from_numpy(of != region)) for region in range(of.max() + 1)]
    fall = np.array([whole - question.number(output) for output, _ in question.outputs(held)])
    return Scores(fall[of], {})


@EXPLAINERS.register("random")
def by_chance(question: Question) -> Scores:
    """Random numbers: what the others have to beat."""
    return Scores(np.random.default_rng([question.seed, len(question.bag)]).random(len(question.bag)), {})


def regions(coords: Floats | None, n: int, number: int) -> npt.NDArray[np.int64]:
    """Parts of a slide of near instances and nearly equal size: int64 ``[n]``, numbers from 0.

    The slide is halved along its longer side, its halves likewise. Without coordinates instances that follow each
    other are a region.

    Args:
        coords: ``[n, 2]``, or None.
        n: instances.
        number: of regions; every instance is one of its own where there are no more.
    """
    of = np.empty(n, dtype=np.int64)
    number = min(number, n)

    def halve(rows: npt.NDArray[np.int64], first: int, count: int) -> None:
        if count == 1:
            of[rows] = first
            return
        if coords is not None:
            extent = np.ptp(coords[rows], axis=0)
            rows = rows[np.argsort(coords[rows, int(extent.argmax())], kind="stable")]
        half = count // 2
        cut = len(rows) * half // count
        halve(rows[:cut], first, half)
        halve(rows[cut:], first + half, count - half)

    halve(np.arange(n), 0, number)
    return of


def explain(question: Question, names: Sequence[str]) -> tuple[dict[str, Floats], list[tuple[str, str, float]]]:
    """Scores a slide's instances by every explainer, and judges them.

    Args:
        question: what is explained.
        names: of explainers.

    Returns:
        the scores ``[N]`` by explainer, those left out that the aggregator does not offer; and rows of explainer, name
        and value: ``flip_most_<share>`` and ``flip_least_<share>`` (the prediction of the whole slide minus that
        without this share), ``area``, ``auroc``, ``ap``, and what an explainer says of itself. A slide of one instance
        has no rows.
    """
    scores: dict[str, Floats] = {}
    rows: list[tuple[str, str, float]] = []
    if len(question.bag) < 2:
        return scores, rows
    labels = question.bag.instance_labels
    for name in names:
        found = EXPLAINERS.get(name)(question)
        if found is None:
            continue
        scores[name] = found.values
        numbers = flip(question, found.values) | found.numbers
        if labels is not None and 0 < int((labels == 1).sum()) < int((labels >= 0).sum()):
            known = (labels >= 0).numpy()
            truth, values = labels.numpy()[known] == 1, found.values[known]
            numbers["auroc"] = float(roc_auc_score(truth, values))
            numbers["ap"] = float(average_precision_score(truth, values))
        rows += [(name, number, value) for number, value in numbers.items()]
    return scores, rows


def flip(question: Question, values: Floats) -> dict[str, float]:
    """How the prediction changes as instances are removed by their scores ``[N]``, see :func:`explain`."""
    n, column = len(values), question.aggregator.task.explained_column(question.prediction.numpy())
    order = np.argsort(-values, kind="stable")
    whole = float(question.prediction[column])
    counts = {share: min(max(round(share * n), 1), n - 1) for share in SHARES}
    wanted = sorted(set(counts.values()))
    held = [bag for k in wanted for bag in (_without(question.bag, order[:k]), _without(question.bag, order[n - k :]))]
    after = [whole - float(prediction[column]) for _, prediction in question.outputs(held)]
    most, least = dict(zip(wanted, after[::2], strict=True)), dict(zip(wanted, after[1::2], strict=True))
    numbers = {f"flip_most_{share:g}": most[k] for share, k in counts.items()}
    numbers |= {f"flip_least_{share:g}": least[k] for share, k in counts.items()}
    shares = np.array([0.0, *counts])
    between = np.array([0.0, *(most[k] - least[k] for k in counts.values())])
    numbers["area"] = float(trapezoid(between, shares) / shares[-1])
    return numbers


class Explanations:
    """Collects what explainers say of the test slides of a trial."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, float]] = []
        self._scores: list[tuple[Bag, dict[str, Floats]]] = []

    def add(self, question: Question, names: Sequence[str]) -> None:
        """Explains a slide, see :func:`explain`."""
        scores, rows = explain(question, names)
        self._rows += [(question.bag.slide_id, *row) for row in rows]
        self._scores.append((question.bag, scores))

    def write(self, folder: Path) -> None:
        """Writes ``explanations.csv`` (a row a number) and ``explanations.h5`` (a group a slide).

        A group holds ``scores/<explainer>`` ``[N]``, ``coords`` ``[N, 2]`` and ``instance_labels`` ``[N]`` where they
        are known, and the attributes ``slide_id``, ``label`` (-1: unknown) and ``patch_size`` (NaN: unknown).
        """
        with open(folder / "explanations.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["slide_id", "explainer", "name", "value"])
            writer.writerows((*row[:3], f"{row[3]:.6g}") for row in self._rows)
        with h5py.File(folder / "explanations.h5", "w") as file:
            for bag, scores in self._scores:
                group = file.create_group(quote(bag.slide_id, safe=""))
                group.attrs["slide_id"] = bag.slide_id
                group.attrs["label"] = -1 if bag.label is None else bag.label
                group.attrs["patch_size"] = np.nan if bag.patch_size is None else float(bag.patch_size)
                arrays: dict[str, npt.NDArray[Any]] = {
                    f"scores/{name}": values.astype(np.float32) for name, values in scores.items()
                }
                if bag.coords is not None:
                    arrays["coords"] = bag.coords.numpy().astype(np.float32)
                if bag.instance_labels is not None:
                    arrays["instance_labels"] = bag.instance_labels.numpy().astype(np.int8)
                for name, values in arrays.items():
                    group.create_dataset(name, data=values, compression="gzip", shuffle=True)


def _without(bag: Bag, rows: npt.NDArray[np.int64]) -> Bag:
    held = np.ones(len(bag), dtype=bool)
    held[rows] = False
    return bag.subset(torch.from_numpy(held))


def _gradient(question: Question, batch: BagBatch, features: Tensor) -> tuple[Tensor, Tensor]:
    """df/dx ``[N, D]`` at ``features``, in their type, and f; the graph is that of the slide."""
    features = features.detach().float().requires_grad_()
    with torch.enable_grad():
        value = question.value(question.aggregator(replace(batch, features=features)).logits).sum()
        (gradient,) = torch.autograd.grad(value, features, allow_unused=True)
    return torch.zeros_like(features) if gradient is None else gradient, value.detach()


def _per_instance(factor: Tensor, gradient: Tensor) -> Floats:
    values: Any = (factor.double() * gradient.double()).sum(1).cpu().numpy()
    found: Floats = values
    return found
