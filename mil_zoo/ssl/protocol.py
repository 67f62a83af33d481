"""Giga-SSL as a protocol of the benchmark: pretraining without labels, then a linear probe on few or many labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.errors import InputError
from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.ssl.embed import embed_slides
from mil_zoo.ssl.model import SlideEncoder
from mil_zoo.ssl.pretrain import Row, pretrain
from mil_zoo.ssl.probe import LinearProbe
from mil_zoo.ssl.views import BagSource
from mil_zoo.tasks import Classification
from mil_zoo.train.checkpoint import CheckpointPlace
from mil_zoo.train.protocols import TrialContext, TrialResult, register_protocol


@register_protocol(
    "gigassl", family="classification", reads=("epochs", "learning_rate", "weight_decay", "bags_per_step")
)
def gigassl(
    context: TrialContext,
    backbone: str = PretrainConfig.backbone,
    backbone_options: dict[str, Any] | None = None,
    out_dim: int = PretrainConfig.out_dim,
    downsample: float | None = PretrainConfig.downsample,
    instances: int = PretrainConfig.instances,
    views: int = PretrainConfig.views,
    warmup_epochs: int = PretrainConfig.warmup_epochs,
    temperature: float = PretrainConfig.temperature,
    projection_dim: int = PretrainConfig.projection_dim,
) -> TrialResult:
    """Giga-SSL: slide embeddings learned without labels, classified by a logistic regression.

    Pretrains on every slide whose patient is not tested, without labels, embeds the slides, and fits a logistic
    regression (C = 10, balanced) on the labelled training slides. Validation slides choose nothing. Of the training
    settings, epochs, learning_rate (for 256 slides a step), weight_decay and bags_per_step (the batch) count.

    Source: Lazard et al., Giga-SSL, CVPRW 2023, arXiv 2212.03273; github trislaz/gigassl.

    Args:
        context: slides and settings of the trial.
        backbone: "sparse", or a registered aggregator.
        backbone_options: its options, for an aggregator.
        out_dim: dimension of the sparse encoder's embedding.
        downsample: size of a site of the sparse encoder; None for the patch size.
        instances: T, instances of a view.
        views: R, views whose mean embeds a slide.
        warmup_epochs: epochs of rising learning rate.
        temperature: of NT-Xent.
        projection_dim: width of what the loss compares.

    Raises:
        InputError: a task without classes, or see ``pretrain``.
    """
    training, task = context.training, context.task
    if not isinstance(task, Classification):
        raise InputError(f"gigassl ends in a logistic regression, which classifies; it cannot do the task {task.name}")
    config = PretrainConfig(
        backbone=backbone,
        options=backbone_options or {},
        out_dim=out_dim,
        downsample=downsample,
        instances=instances,
        views=views,
        epochs=training.epochs,
        batch_size=training.bags_per_step,
        learning_rate=training.learning_rate,
        warmup_epochs=warmup_epochs,
        weight_decay=training.weight_decay,
        temperature=temperature,
        projection_dim=projection_dim,
        seed=context.seed,
    )
    encoder, rows, embeddings = context.kept.setdefault("gigassl", LastPretraining()).get(context, config)
    for row in rows:
        context.on_epoch(row)

    def embedded(bags: Sequence[Bag]) -> np.ndarray:
        return torch.stack([embeddings[slide.slide_id] for slide in as_bags(bags).slides]).numpy()

    train = context.bags["train"]
    probe = LinearProbe(len(task.prediction_columns)).fit(embedded(train), np.array(as_bags(train).labels))
    probabilities = {
        part: torch.from_numpy(probe.predict(embedded(context.bags[part])))
        for part in ("val", "test")
        if part in context.bags
    }
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    weights |= {f"probe.{name}": torch.from_numpy(value) for name, value in probe.arrays().items()}
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    parameters += sum(probe.arrays()[name].size for name in ("coefficients", "intercepts"))
    epochs = [row | {"selected": int(row is rows[-1])} for row in rows]
    tested = torch.from_numpy(embedded(context.bags["test"])) if "test" in context.bags else None
    return TrialResult(task, probabilities, epochs, weights, parameters, embeddings=tested)


class LastPretraining:
    """Keeps the last pretraining: trials that differ in the number of labels alone share it."""

    def __init__(self) -> None:
        self._key: object = None
        self._kept: tuple[SlideEncoder, list[Row], dict[str, Tensor]] | None = None

    def get(self, context: TrialContext, config: PretrainConfig) -> tuple[SlideEncoder, list[Row], dict[str, Tensor]]:
        """Encoder, its curve, and the embeddings of all slides, tested ones too, by slide id."""
        pool = context.bags["unlabelled"]
        parts = [pool, *[context.bags[part] for part in ("test",) if part in context.bags]]
        ids = [slide_id for part in parts for slide_id in as_bags(part).slide_ids]
        first = hashlib.sha256(pool[0].features.float().numpy().tobytes()).hexdigest()
        key = (ids, first, dataclasses.asdict(config), context.device)
        if self._kept is None or key != self._key:
            self._kept = None  # not two at a time
            place = context.place
            encoder, rows = pretrain(
                BagSource(pool),
                context.in_dim,
                config,
                device=context.device,
                folder=None if place is None else place.folder / "pretraining",
                checkpoint_seconds=CheckpointPlace.seconds if place is None else place.seconds,
            )
            found = torch.cat([embed_slides(encoder, BagSource(part), device=context.device) for part in parts])
            self._key, self._kept = key, (encoder, rows, dict(zip(ids, found, strict=True)))
        return self._kept
