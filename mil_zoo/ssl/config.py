"""How slide embeddings are learned without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mil_zoo.errors import InputError

SPARSE = "sparse"


@dataclass(frozen=True)
class PretrainConfig:
    """Backbone, views, loss and schedule of Giga-SSL; the defaults are the authors' (one deviation: epochs).

    Attributes:
        backbone: "sparse" for the sparse slide encoder, or a registered aggregator whose embedding is learned.
        options: constructor options of such an aggregator.
        graph: graph spec over the instances of a view, for an aggregator that needs one; None for its own.
        out_dim: dimension of the sparse encoder's embedding.
        downsample: size of a site of the sparse encoder, in the unit of the coordinates; None for the patch size.
        instances: T, instances of a view.
        views: R, random views whose mean embeds a slide.
        epochs: passes over the slides (the authors' released configuration has 3000).
        batch_size: slides of a step, all processes together; the last steps of an epoch are as large as the others.
        learning_rate: of a step of 256 slides; a step of fewer has a rate in proportion.
        warmup_epochs: of a linear rise from 0, at most half of all epochs; then a cosine to 0.
        weight_decay: L2 penalty of Adam.
        temperature: of NT-Xent.
        projection_dim: width of the projections that the loss compares.
        precision: "bfloat16" computes in mixed precision; "auto" does on a GPU.
        seed: of weights, order, views and dropout.
    """

    backbone: str = SPARSE
    options: dict[str, Any] = field(default_factory=dict)
    graph: str | None = None
    out_dim: int = 512
    downsample: float | None = None
    instances: int = 5
    views: int = 50
    epochs: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.03
    warmup_epochs: int = 10
    weight_decay: float = 5e-4
    temperature: float = 0.05
    projection_dim: int = 256
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("out_dim", "instances", "views", "epochs", "learning_rate", "temperature", "projection_dim"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the pretraining must be positive, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise InputError(f"NT-Xent tells slides apart: batch_size must be at least 2, not {self.batch_size}")
        if self.warmup_epochs < 0 or self.weight_decay < 0:
            raise InputError(
                f"warmup_epochs and weight_decay must not be negative, not {self.warmup_epochs} and {self.weight_decay}"
            )
