"""What is recorded of attention while an aggregator trains, and how it is written."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
import torch
from torch import Tensor

from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.data.bag import Bag
from mil_zoo.diagnostics.attention import attention_curve, attention_skew
from mil_zoo.tasks import Task


class AttentionRecorder:
    """Collects attention numbers of training slides every epoch and of test slides at the end.

    The training numbers are the few that figure 3 needs; test slides get all of them and their attention itself.
    Aggregators without attention leave the recorder empty.

    Args:
        task: says of a prediction which output's attention is meant, where there is one an output.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rows: list[tuple[int, str, str, str, float]] = []
        self._maps: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def record_training(self, epoch: int, bag: Bag, output: AggregatorOutput, prediction: Tensor) -> None:
        """Adds the curve numbers of a training slide at the end of ``epoch`` (from 1)."""
        attention = attention_of(output, self._task.shown_output(prediction.numpy()))
        if attention is not None:
            self._add(epoch, bag, "train", attention_curve(attention, _labels_of_positive(bag)))

    def record_test(self, epoch: int, bag: Bag, output: AggregatorOutput, prediction: Tensor) -> None:
        """Adds every number and the attention of a test slide; ``epoch`` is the chosen checkpoint's."""
        shown = self._task.shown_output(prediction.numpy())
        attention = attention_of(output, shown)
        if attention is None:
            return
        heads = None if output.head_attention is None else output.head_attention.numpy()
        scores = None if output.instance_logits is None else _instance_scores(output.instance_logits, shown)
        self._add(epoch, bag, "test", attention_skew(attention, heads, _labels_of_positive(bag), scores))
        arrays = {
            "attention": attention.astype(np.float32),
            "head_attention": None if heads is None else heads.astype(np.float32),
            "instance_scores": None if scores is None else scores.astype(np.float32),
            "coords": None if bag.coords is None else bag.coords.numpy().astype(np.float32),
            "instance_labels": None if bag.instance_labels is None else bag.instance_labels.numpy().astype(np.int8),
        }
        attributes = {
            "slide_id": bag.slide_id,
            "label": -1 if bag.label is None else bag.label,
            "predicted": -1 if shown is None else shown,
            "patch_size": np.nan if bag.patch_size is None else float(bag.patch_size),
        }
        self._maps.append((arrays, attributes))

    def record_numbers(self, epoch: int, bag: Bag, numbers: Mapping[str, float]) -> None:
        """Adds further numbers of a test slide."""
        self._add(epoch, bag, "test", numbers)

    def state(self) -> list[list[Any]]:
        """The numbers so far; no attention maps, which are of test slides."""
        return [[*row[:4], float(row[4])] for row in self._rows]

    def restore(self, state: Iterable[Sequence[Any]]) -> None:
        """Takes up what :meth:`state` gave."""
        self._rows = [(epoch, slide, split, name, value) for epoch, slide, split, name, value in state]

    def write(self, folder: Path) -> None:
        """Writes ``skew.csv`` (one row a number) and ``attention.h5`` (one group a test slide) into ``folder``.

        Writes nothing for an aggregator without attention.
        """
        if not self._rows:
            return
        with open(folder / "skew.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["epoch", "slide_id", "split", "name", "value"])
            writer.writerows((*row[:4], f"{row[4]:.6g}") for row in self._rows)
        with h5py.File(folder / "attention.h5", "w") as file:
            for arrays, attributes in self._maps:
                group = file.create_group(quote(attributes["slide_id"], safe=""))
                group.attrs.update(attributes)
                for name, values in arrays.items():
                    if values is not None:
                        group.create_dataset(name, data=values, compression="gzip", shuffle=True)

    def _add(self, epoch: int, bag: Bag, split: str, numbers: Mapping[str, float]) -> None:
        self._rows += [(epoch, bag.slide_id, split, name, value) for name, value in numbers.items()]


def attention_of(output: AggregatorOutput, shown: int | None) -> Any:
    """Attention ``[N]`` of one slide in float64, or None.

    Where there is one for each output, it is that of the output ``shown`` (the predicted class), for None their mean.
    """
    if output.attention is None:
        return None
    attention = output.attention
    if attention.ndim == 2:
        attention = attention.mean(1) if shown is None else attention[:, min(shown, attention.shape[1] - 1)]
    return attention.double().numpy()


def _instance_scores(logits: Tensor, shown: int | None) -> Any:
    """Scores ``[N]`` of instances by their logits ``[N, C]``: how much more probable one class is than all others.

    It is the log-odds ``z_c - log sum_(k != c) exp z_k`` of the softmax, where c is class 1 of two and the predicted
    class ``shown`` of more, against which the instances of a slide are told apart. With one logit it is the logit, and
    in a task without classes (``shown`` is None) the mean of the outputs.
    """
    values = logits.double()
    if values.shape[1] == 1 or shown is None:
        return values.mean(1).float().numpy()
    chosen = 1 if values.shape[1] == 2 else shown
    others = torch.cat([values[:, :chosen], values[:, chosen + 1 :]], dim=1)
    return (values[:, chosen] - others.logsumexp(1)).float().numpy()


def _labels_of_positive(bag: Bag) -> Any:
    """Instance labels of a slide with a positive instance; the others hold negatives only and are left out."""
    return None if bag.instance_labels is None or not bag.instance_labels.any() else bag.instance_labels.numpy()
