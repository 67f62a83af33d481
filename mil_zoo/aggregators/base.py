"""The contract of an aggregator, and what registers and creates those that keep it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mil_zoo.aggregators.checkpoints import read_checkpoint, renamed_parameters
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import create_aggregator, list_aggregators, register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.tasks import Classification, Task

__all__ = ["Aggregator", "Paper", "Preparation", "create_aggregator", "list_aggregators", "register_aggregator"]


@dataclass(frozen=True)
class Paper:
    """Says where an aggregator comes from.

    Attributes:
        title: of the paper.
        year: of publication.
        url: of the paper.
        code: the authors' repository, or None.
        licence: of that repository, in SPDX's short form; None where it states none. No line of it is copied here.
    """

    title: str
    year: int
    url: str
    code: str | None = None
    licence: str | None = None


class Progress(NamedTuple):
    """Says where a training stands, for losses that change on the way.

    Attributes:
        step: optimiser steps taken.
        steps_per_epoch: of them in an epoch.
        epochs: of the training.
    """

    step: int = 0
    steps_per_epoch: int = 1
    epochs: int = 1

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 1."""
        return 1 + self.step // self.steps_per_epoch

    @property
    def share(self) -> float:
        """Share of the steps that are taken, in [0, 1]."""
        return self.step / (self.steps_per_epoch * self.epochs)


@dataclass(frozen=True)
class Preparation:
    """Offers an aggregator the training bags before its own training, and nothing of any other slide.

    Attributes:
        train: trains another aggregator on these bags, with the settings of the run; its last epoch is kept.
        outputs: yields what an aggregator gives for each of these bags, whole, in eval mode and without gradients.
        seed: of what is drawn besides.
    """

    train: Callable[[Aggregator], None]
    outputs: Callable[[Aggregator], Iterator[AggregatorOutput]]
    seed: int


class Aggregator(nn.Module):
    """Turns packed bags into one row of logits a bag; the base class of all aggregators.

    A subclass implements ``forward``; one whose paper trains with more than cross-entropy overrides ``losses``.

    Class attributes:
        family: how it sees a bag, for lists: pooling, attention, transformer, state space or spatial.
        needs_coords: whether every bag needs coordinates although no graph is built of them; an option may change it.
        without_coords: what a user whose bags have none can do about it.
        graph: the graph spec it needs ("window:2"), or None.
        paper: where it comes from.
        permutation_invariant: whether the order of instances (with their coordinates) is without effect.
        replayable: whether a GPU may replay its steps (``mil_zoo.train.replay``); a subclass has to say it anew.
        not_in_onnx: why no ONNX model can compute it; "" where one may.
        published_renames: regular expressions and replacements that turn the authors' parameter names into those here.
        published_unused: regular expressions of the names that the authors carry and do not use.

    Args:
        in_dim: feature dimension D.
        num_classes: number of logits C: 2 or more classes, or 1 for one logit with binary cross-entropy; of another
            task its width.

    Attributes:
        task: what is predicted, with its loss; classification until ``create_aggregator`` sets another.
        needs_graph: whether it needs the graph of a batch.
        left_out: the term of the paper's loss that the task has no place for, in words; "" for none.
        progress: where the training stands; the trainer sets it before every step.
    """

    family: ClassVar[str] = "other"
    needs_coords: bool = False
    without_coords: ClassVar[str] = "extract them"
    graph: ClassVar[str | None] = None
    paper: ClassVar[Paper | None] = None
    permutation_invariant: ClassVar[bool] = True
    replayable: ClassVar[bool] = False
    not_in_onnx: ClassVar[str] = ""
    published_renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    published_unused: tuple[str, ...] = ()

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__()
        if in_dim < 1 or num_classes < 1:
            raise InputError(f"in_dim and num_classes must be positive, not {in_dim} and {num_classes}")
        self.in_dim, self.num_classes = in_dim, num_classes
        self.task: Task = Classification(num_classes)
        self.task_biases: nn.Parameter | None = None
        self.needs_graph = type(self).graph is not None
        self.left_out = ""
        self.progress = Progress()
        self.created_with: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets ``forward`` and ``losses`` of every subclass read features of any float type, in that of its weights."""
        super().__init_subclass__(**kwargs)
        for name in {"forward", "losses"} & set(vars(cls)):
            method = vars(cls)[name]
            setattr(cls, name, _in_own_dtype(_checked(method) if name == "forward" else method))

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """Scores every bag of ``batch``; a bag gives the same answer alone as in a batch (in eval mode)."""
        raise TypeError(f"{type(self).__name__} does not implement forward(batch)")

    def losses(self, batch: BagBatch) -> dict[str, Tensor]:
        """Training losses of a batch with targets, each a scalar, the mean over bags; ``"loss"`` is the total."""
        return {"loss": self.bag_loss(self(batch).logits, batch.targets, batch.weights)}

    def without_each(self, batch: BagBatch) -> Tensor | None:
        """Logits ``[N, C]`` of the one bag of ``batch`` without each of its N instances in turn, in eval mode.

        Where an aggregator is linear enough to tell them all from one pass it overrides this; None where it is not.
        """
        return None

    def prepare(self, preparation: Preparation) -> None:
        """Learns what the training starts from, where a paper has a stage before it; the trainer calls it once."""

    def after_step(self) -> None:
        """Follows a step of the optimiser, where a paper moves more than its gradients do; the trainer calls it."""

    def start_epoch(self) -> None:
        """Training calls this before each epoch; most aggregators keep nothing from one step to the next."""

    def set_task(self, task: Task) -> None:
        """Makes ``task`` what is predicted.

        An aggregator with a term that needs classes overrides this, leaves the term out in other tasks and says so in
        ``left_out``; one that can do nothing without refuses them.

        Raises:
            InputError: the task has another number of outputs, or a term of the loss needs classes and it has none.
        """
        if task.outputs != self.num_classes:
            raise InputError(f"the task {task.name} has {task.outputs} outputs, the aggregator {self.num_classes}")
        self.task = task
        self.task_biases = nn.Parameter(torch.tensor(task.biases)) if task.biases else None

    def predict(self, logits: Tensor) -> Tensor:
        """Predictions ``[B, P]`` of ``logits`` ``[B, C]`` as the task names them; of classes their probabilities."""
        predicted = self.task.predict(self.task_logits(logits))
        if predicted.ndim != 2 or predicted.shape[1] != len(self.task.prediction_columns):
            columns = ", ".join(self.task.prediction_columns)
            raise InputError(
                f"predict of the task {self.task.name} must return a column for each of {columns}, [{len(logits)}, "
                f"{len(self.task.prediction_columns)}], not {[*predicted.shape]}"
            )
        return predicted

    def task_logits(self, logits: Tensor) -> Tensor:
        """Returns the logits ``[B, C]`` as the task reads them: the same, save where a paper trains by another loss."""
        return self._with_biases(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities, float64 ``[B, max(C, 2)]``, of ``logits`` ``[B, C]``; only of classification."""
        if not isinstance(self.task, Classification):
            raise InputError(f"the task {self.task.name} has no classes; use predict(logits)")
        return self.predict(logits)

    def bag_loss(self, logits: Tensor, targets: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The task's loss of ``logits`` ``[B, C]``, of classification the cross-entropy; the mean over bags.

        Args:
            logits: ``[B, C]``.
            targets: ``[B, T]``, or labels ``[B]``.
            weights: ``[B]``, or None for one each.
        """
        if targets is None:
            raise InputError(f"training needs a {self.task.target_columns[0]} for every bag of the batch")
        targets = targets[:, None] if targets.ndim == 1 else targets
        loss = self.task.loss(self._with_biases(logits), targets, weights)
        if loss.ndim != 1 or (len(loss) != len(logits) and not self.task.risk_sets):  # which remember patients
            raise InputError(
                f"loss of the task {self.task.name} must return one number a bag, [{len(logits)}], not {[*loss.shape]}"
            )
        return loss.mean()

    def _with_biases(self, logits: Tensor) -> Tensor:
        """The outputs, ``[B, 1]`` plus the task's biases where it has some."""
        return logits if self.task_biases is None else logits + self.task_biases

    @classmethod
    def loads_published(cls) -> bool:
        """Says whether there is an authors' implementation, whose weights then load."""
        return cls.paper is not None and cls.paper.code is not None

    def load_published(self, path: str | Path) -> None:
        """Loads a checkpoint file of the authors' own implementation.

        Args:
            path: a ``.safetensors`` file, or one that ``torch.save`` wrote (read with ``weights_only=True``).

        Raises:
            InputError: the file cannot be read, or as :meth:`load_published_state_dict`.
        """
        checkpoint = read_checkpoint(path)
        try:
            self.load_published_state_dict(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def load_published_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the ``state_dict`` of the authors' own implementation (tensors or arrays by the authors' names).

        Names are mapped, those the authors carry but do not use are dropped; :func:`.published.flat_state_dict` says
        which wrappings are undone first. It assigns tensors only, so gradients keyed by the same names can be loaded
        in the same way.

        Raises:
            InputError: a name without a place here, a place without a name, a shape that differs, or two different
                tensors for one place.
        """
        if not self.loads_published():
            raise InputError(f"no authors' implementation is known for {type(self).__name__}; use load_state_dict")
        renamed = renamed_parameters(
            state_dict,
            mine=self.state_dict(),
            renames=self.published_renames,
            unused=self.published_unused,
            name=type(self).__name__,
        )
        self.load_state_dict(renamed)

    def _needs_graph(self, batch: BagBatch) -> BagBatch:
        """Returns ``batch``; an ``InputError`` says what to do where it came without a graph."""
        if batch.graph is None:
            raise InputError(
                f"{type(self).__name__} needs a graph: BagBatch.from_bags(bags, graph={type(self).graph!r})"
            )
        return batch


def _in_own_dtype(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an aggregator and a batch that gets the features in the type of the aggregator's weights.

    Features are stored in half precision (TRIDENT) or double (numpy's default); products need one type.
    """

    @functools.wraps(method)
    def converted(self: Aggregator, batch: BagBatch, *args: Any, **kwargs: Any) -> Any:
        for parameter in self.parameters():
            if parameter.is_floating_point():
                if batch.features.dtype != parameter.dtype:
                    batch = replace(batch, features=batch.features.to(parameter.dtype))
                break  # the rest are of one type with the first
        return method(self, batch, *args, **kwargs)

    return converted


def _checked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` that says what it should have returned."""

    @functools.wraps(forward)
    def checked(self: Aggregator, batch: BagBatch, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, batch, *args, **kwargs)
        if torch.compiler.is_compiling():
            return output
        if not isinstance(output, AggregatorOutput):
            problem = f"an AggregatorOutput, not {type(output).__name__}"
        else:
            problem = output.problem(len(batch), self.num_classes, batch.num_instances)
        if problem:
            raise InputError(f"forward of {type(self).__name__} must return {problem}")
        return output

    return checked
