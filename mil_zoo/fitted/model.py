"""A trained aggregator with all that predicting takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, as_bags, each_bag, targets_for
from mil_zoo.data.labelled import Standardiser
from mil_zoo.diagnostics.recorder import attention_of
from mil_zoo.errors import InputError, as_path
from mil_zoo.tasks import Task
from mil_zoo.train.predict import predict


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one trained aggregator, or several together, say of one slide.

    Attributes:
        bag: the slide; its features as they were given.
        values: float64 ``[P]``, a number for each of the task's prediction columns, the mean over members.
        spread: float64 ``[P]``, the standard deviation over members (0 for a single one).
        unpredicted: int ``[P]``, how many members predict no such number; its mean is NaN then.
        words: the prediction in words, of classes the name of the most probable one.
        attention: float64 ``[N]``, of the predicted class where there is one for each, the mean over members (it sums
            to 1); None for an aggregator without attention.
        trained_on: how many members had the slide among their training or validation slides: such a prediction says
            nothing of new slides.
    """

    bag: Bag
    values: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    unpredicted: npt.NDArray[np.int64]
    words: str
    attention: npt.NDArray[np.float64] | None
    trained_on: int

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """The values, of classification the probabilities ``[C]`` of the classes."""
        return self.values

    @property
    def predicted(self) -> int:
        """Index of the largest value, of classification the most probable class."""
        return int(self.values.argmax())


@dataclass(frozen=True)
class Facts:
    """Where a trained aggregator comes from: what its model card says.

    Attributes:
        data: title of the dataset; "" where the bags came from nowhere that has a name.
        simulated: whether the slides were made by a program.
        features: the set of features (the encoder); None where unknown.
        train: slides that the weights were fitted on.
        val: slides that the checkpoint was chosen on.
        training: optimiser, schedule, budget; the fields of ``mil_zoo.train.config.TrainingConfig``.
        selection: how the checkpoint was chosen, in words.
        val_scores: metrics on the validation slides.
        test_scores: metrics on slides that are in neither part; {} where none were scored.
        warnings: sentences that every table of the dataset carries.
        trial: run and trial that it was exported from; "" for one that was fitted in Python.
    """

    data: str = ""
    simulated: bool = False
    features: str | None = None
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    selection: str = ""
    val_scores: dict[str, float | None] = field(default_factory=dict)
    test_scores: dict[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    trial: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained aggregator: it predicts bags, and saves itself.

    Attributes:
        aggregator: with the weights of the chosen epoch; its ``task`` says what is predicted.
        name: registry key of the aggregator.
        options: of its constructor.
        graph: graph spec, or None.
        precision: of matrix products, "float32" or "bfloat16".
        standardiser: what features are scaled with first; None where they are used as they are.
        facts: data, splits, scores.
        history: a row an epoch, see :func:`mil_zoo.train.loop.fit`; empty for one that was loaded.
        device: where the aggregator lies.

    Example:
        >>> fitted = mil_zoo.fit("abmil", train_bags, val_bags, epochs=20)
        >>> fitted.predict(test_bags)[0].probabilities
        >>> fitted.save("my_model")
    """

    aggregator: Aggregator
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    graph: str | None = None
    precision: str = "float32"
    standardiser: Standardiser | None = None
    facts: Facts = field(default_factory=Facts)
    history: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    device: str = "cpu"

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.aggregator.task

    @property
    def in_dim(self) -> int:
        """Features that it takes of a patch, before they are standardised or projected."""
        return self.aggregator.in_dim if self.standardiser is None else len(self.standardiser.mean)

    def predict(self, bags: Iterable[Bag]) -> list[Prediction]:
        """Predicts whole bags, one after the other.

        Args:
            bags: with a label or not; a list, or whatever yields bags.

        Raises:
            InputError: a bag of another feature dimension, without what the graph needs, or in no list.
        """
        return [predict_together([self], bag) for bag in (bags if isinstance(bags, Bags) else each_bag(bags))]

    def score(self, bags: Sequence[Bag]) -> dict[str, float]:
        """Every metric of the task on bags with targets; NaN where one is undefined.

        Slides are scored as they are, also where a patient has several.

        Raises:
            InputError: as :meth:`predict`, or there are no bags, or one has no label or target of this task.
        """
        bags = as_bags(bags)
        targets = targets_for(bags, self.task)
        predictions = np.stack([prediction.probabilities for prediction in self.predict(bags)])
        return self.task.score(targets, predictions)

    def save(self, path: Path | str) -> Path:
        """Writes the folder that :func:`mil_zoo.load` reads, see :mod:`mil_zoo.fitted.saved`.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        from mil_zoo.fitted.saved import save

        return save(self, as_path(path, "path", "the folder to write"))

    def to_onnx(self, path: Path | str, tolerance: float = 1e-5) -> Path:
        """Writes the aggregator as an ONNX model of one bag, see :func:`mil_zoo.fitted.onnx.export_onnx`."""
        from mil_zoo.fitted.onnx import export_onnx

        return export_onnx(self, path, tolerance)


def predict_together(members: Sequence[Fitted], bag: Bag) -> Prediction:
    """What trained aggregators of one task say of a bag: the mean of their predictions and of their attention.

    Raises:
        InputError: a bag of another feature dimension, or without what the graph needs.
    """
    outputs, scores = [], []
    for member in members:
        if bag.features.shape[1] != member.in_dim:
            raise InputError(
                f"slide {bag.slide_id!r} has {bag.features.shape[1]} features a patch and the aggregator was trained "
                f"on {member.in_dim}; use the encoder that it was trained with"
            )
        given = bag if member.standardiser is None else member.standardiser(bag)
        scored = predict(member.aggregator, [given], member.graph, member.device, member.precision)
        ((_, output, prediction),) = scored
        outputs.append(output)
        scores.append(prediction.double().numpy())
    stacked, task = np.stack(scores), members[0].task
    mean = task.ensemble(stacked)
    attention = None
    if outputs[0].attention is not None:
        shown = task.shown_output(mean)
        maps: list[Any] = [attention_of(output, shown) for output in outputs]
        attention = np.mean(maps, axis=0)
    trained_on = sum(bag.slide_id in (*member.facts.train, *member.facts.val) for member in members)
    return Prediction(
        bag=bag,
        values=mean,
        spread=stacked.std(0),
        unpredicted=np.isnan(stacked).sum(0),
        words=task.describe(mean),
        attention=attention,
        trained_on=trained_on,
    )
