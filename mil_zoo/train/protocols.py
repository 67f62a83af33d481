"""What a trial does with its slides: a protocol. Training an aggregator on labelled bags is the usual one."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import AGGREGATORS, aggregator_options, create_aggregator
from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.diagnostics.explanations import Explanations, Question
from mil_zoo.diagnostics.faithfulness import faithfulness
from mil_zoo.diagnostics.recorder import AttentionRecorder, attention_of
from mil_zoo.errors import InputError, unknown
from mil_zoo.registry import Registry
from mil_zoo.tasks import Task
from mil_zoo.train.checkpoint import Checkpoint, CheckpointPlace
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.predict import predict
from mil_zoo.train.steps import of_patients

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrialContext:
    """What a protocol is given.

    Attributes:
        name: the model's registry key.
        options: its options.
        graph: graph spec, or None.
        training: optimiser, schedule, budget, selection rule.
        in_dim: feature dimension D.
        task: what is predicted; a protocol fits it to its training bags before it makes a model.
        bags: the slides of the parts "train", "val" and "test"; nothing of "test" may reach the training, and where a
            configuration is only judged on "val" it is not there at all. Besides, "unlabelled": every slide whose
            patient is not tested, to be used without its label.
        seed: of everything random; torch's own generator is seeded with it already.
        device: where to compute.
        on_epoch: to be called with the row of every finished epoch.
        patient_rule: how the slides of a patient are combined; None where they are not.
        faithfulness: numbers of most attended instances to remove from, and alone to keep of, every test slide.
        explain: explainers that score the instances of every test slide.
        kept: what protocols keep for the next trials of this process, by the protocol's name.
        place: where a training that is killed finds what it needs to continue; None for nowhere.
    """

    name: str
    options: Mapping[str, Any]
    graph: str | None
    training: TrainingConfig
    in_dim: int
    task: Task
    bags: Mapping[str, Sequence[Bag]]
    seed: int
    device: str
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    patient_rule: str | None = None
    faithfulness: Sequence[int] = ()
    explain: Sequence[str] = ()
    kept: MutableMapping[str, Any] = field(default_factory=dict)
    place: CheckpointPlace | None = None


@dataclass
class TrialResult:
    """What a protocol gives back.

    Attributes:
        task: the task as it was fitted to the training bags.
        predictions: for "val" and "test" (where it is there) each float ``[n, P]``, a column for each of the task's
            prediction columns, in the order of their bags.
        logits: of the same bags, each float ``[n, width]``; empty where there are none.
        last: predictions of the "test" bags by the last epoch's weights, float ``[n, P]``; None where that was chosen.
        epochs: rows of ``epochs.csv``; each has "epoch" (from 1), "seconds" and "selected", which is 1 in one row.
        weights: the ``state_dict`` behind the predictions.
        parameters: how many numbers were trained.
        recorder: the attention that was recorded; empty or None for a model without attention.
        embeddings: of the "test" bags, float ``[n, E]``; None where there are none.
        inference_seconds: that the predictions of the "test" bags were waited for; None where nobody measured.
        stages: what was learned before the training, and from which slides (see ``fit``); empty for most models.
        explanations: of the test slides; None where none were asked for.
    """

    task: Task
    predictions: Mapping[str, Tensor]
    epochs: list[dict[str, Any]]
    weights: Mapping[str, Tensor]
    parameters: int
    recorder: AttentionRecorder | None = None
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    embeddings: Tensor | None = None
    inference_seconds: float | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    explanations: Explanations | None = None


Protocol = Callable[..., TrialResult]
PROTOCOLS: Registry[Protocol] = Registry("protocol", package="mil_zoo.ssl")
_FAMILY: dict[str, str | None] = {}  # of each protocol, the only kind of task that it can do
_READS: dict[str, Collection[str] | None] = {}  # of each protocol, the training settings that it reads


def register_protocol(
    name: str, family: str | None = None, reads: Collection[str] | None = None
) -> Callable[[Protocol], Protocol]:
    """Decorator: trials of the model called ``name`` run this function instead of :func:`supervised`.

    It is called as ``f(context, **options)``; its keyword parameters are the model's options.

    Args:
        name: of the model.
        family: the only kind of task that it can do ("classification"); None for any.
        reads: the fields of :class:`TrainingConfig` that it reads, so that no other can be set for it and no table
            tells of another; None for all.
    """

    def decorate(protocol: Protocol) -> Protocol:
        _FAMILY[name], _READS[name] = family, reads
        return PROTOCOLS.register(name)(protocol)

    return decorate


def check_protocol(name: str, task: Task) -> None:
    """Raises an ``InputError`` where the protocol cannot do the task."""
    PROTOCOLS.get(name)
    family = _FAMILY.get(name)
    if family not in (None, task.family or task.name):
        raise InputError(f"{name} does {family} alone, not {task.name}; leave it out of --models")


def run_protocol(context: TrialContext) -> TrialResult:
    """Runs the protocol registered under the model's name, else :func:`supervised`."""
    torch.manual_seed(context.seed)
    if context.name in PROTOCOLS:
        return PROTOCOLS.get(context.name)(context, **context.options)
    return supervised(context)


def model_options(name: str) -> dict[str, Any]:
    """The options of an aggregator or protocol and their defaults; an ``InputError`` offers the near names of both."""
    if name not in PROTOCOLS:
        try:
            return aggregator_options(name)
        except InputError:
            if name in AGGREGATORS:
                raise
            raise unknown("aggregator", name, [*AGGREGATORS, *PROTOCOLS]) from None
    parameters = list(inspect.signature(PROTOCOLS.get(name)).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def training_settings(name: str) -> set[str]:
    """The training settings that a model reads; "labelled" is among them, since trials leave out the other labels."""
    fields = {field.name for field in dataclasses.fields(TrainingConfig)}
    if name in PROTOCOLS:
        PROTOCOLS.get(name)  # which imports it
    reads = _READS.get(name)
    return fields if reads is None else {*reads, "labelled"}


def supervised(context: TrialContext) -> TrialResult:
    """Trains an aggregator on the training bags, keeps its best checkpoint on the validation bags, and predicts."""
    task = context.task.fit(as_bags(context.bags["train"]).targets)
    recorder = AttentionRecorder(task)
    aggregator = create_aggregator(context.name, context.in_dim, task=task, **context.options)
    where = context.graph, context.device, context.training.precision
    last: list[Tensor] = []
    parts = [part for part in ("val", "test") if part in context.bags]

    def test_last() -> None:
        if "test" in parts:
            last.extend(prediction for _, _, prediction in predict(aggregator, context.bags["test"], *where))

    stages: list[dict[str, Any]] = []

    def restore(state: tuple[Any, Any]) -> None:
        recorder.restore(state[0])
        stages[:] = state[1]

    checkpoint = Checkpoint(context.place, (lambda: (recorder.state(), stages), restore))
    epochs = fit(
        aggregator,
        context.bags["train"],
        context.bags["val"],
        context.training,
        graph=context.graph,
        seed=context.seed,
        device=context.device,
        patient_rule=context.patient_rule,
        after_epoch=recorder.record_training,
        on_epoch=context.on_epoch,
        before_choice=test_last,
        on_stage=stages.append,
        checkpoint=checkpoint,
    )
    selected = next(row["epoch"] for row in epochs if row["selected"])
    if task.finishes:
        task = aggregator.task = finished_task(aggregator, context.bags["train"], context.patient_rule, where)
    found: dict[str, list[Tensor]] = {part: [] for part in parts}
    logits: dict[str, list[Tensor]] = {part: [] for part in parts}
    watch = _Watch()
    embeddings: list[Tensor] = []
    explanations = Explanations() if context.explain else None
    for part, rows in found.items():
        for bag, output, prediction in watch.timed(part, predict(aggregator, context.bags[part], *where)):
            rows.append(prediction)
            logits[part].append(output.logits)
            if part != "test":
                continue
            embeddings.append(output.embedding)
            recorder.record_test(selected, bag, output, prediction)
            if explanations is not None:
                explanations.add(_question(aggregator, bag, output, prediction, context), context.explain)
            if context.faithfulness and output.attention is not None:
                shown = task.shown_output(prediction.numpy())
                numbers = faithfulness(
                    bag=bag,
                    attention=attention_of(output, shown),
                    prediction=prediction,
                    column=task.explained_column(prediction.numpy()),
                    predict=lambda changed: [p for _, _, p in predict(aggregator, changed, *where)],
                    tops=context.faithfulness,
                )
                recorder.record_numbers(selected, bag, numbers)
    stacked = {part: torch.stack(rows) for part, rows in found.items()}
    parameters = sum(parameter.numel() for parameter in aggregator.parameters())
    of_parts = {part: torch.cat(rows) for part, rows in logits.items()}
    return TrialResult(
        task=task,
        predictions=stacked,
        epochs=epochs,
        weights=aggregator.state_dict(),
        parameters=parameters,
        recorder=recorder,
        logits=of_parts,
        stages=stages,
        explanations=explanations,
        last=torch.stack(last) if last else None,
        embeddings=torch.cat(embeddings) if embeddings else None,
        inference_seconds=watch.seconds.get("test"),
    )


class _Watch:
    """How long an iterator is waited for, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        """The same items."""
        while True:
            start = time.perf_counter()
            item = next(items, None)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if item is None:
                return
            yield item


def _question(
    aggregator: Aggregator, bag: Bag, output: AggregatorOutput, prediction: Tensor, context: TrialContext
) -> Question:
    where = context.graph, context.device, context.training.precision
    return Question(
        bag=bag,
        aggregator=aggregator.eval(),
        output=output,
        prediction=prediction,
        shown=aggregator.task.shown_output(prediction.numpy()),
        graph=context.graph,
        device=context.device,
        outputs=lambda bags: [(out, p) for _, out, p in predict(aggregator, bags, *where)],
        seed=context.seed,
    )


def finished_task(aggregator: Aggregator, bags: Sequence[Bag], patient_rule: str | None, where: Any) -> Task:
    """The task with what it takes from the trained aggregator's logits of the training bags, or of their patients.

    Args:
        aggregator: trained.
        bags: that it was trained on.
        patient_rule: "mean" or "max" where patients of several bags are scored.
        where: graph, device and precision, as :func:`predict` takes them.
    """
    task = aggregator.task
    logits = torch.cat([aggregator.task_logits(output.logits) for _, output, _ in predict(aggregator, bags, *where)])
    targets = as_bags(bags).targets
    if task.of_patients and patient_rule in ("mean", "max"):
        logits, targets = of_patients(task, logits, bags, patient_rule)
    return task.finished(targets, logits.double().numpy())
