"""What a comparison takes of another implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

DIM, EMBED = 1024, 512


class Peer(NamedTuple):
    """Another implementation of an aggregator.

    Attributes:
        options: ours that make the same model.
        module: theirs.
        loss: of features ``[N, D]`` and label int64 ``[1]``, a scalar.
        logits: of features ``[N, D]``.
        in_dim: D.
        num_classes: C, or 1.
    """

    options: dict[str, Any]
    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    in_dim: int = DIM
    num_classes: int = 2
