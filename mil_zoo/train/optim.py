"""Optimisers and learning-rate schedules by their names in ``training``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from mil_zoo.train.config import TrainingConfig


class LookaheadRAdam(torch.optim.RAdam):
    """RAdam that every 6th step goes half the way back to where the weights were after the last such step.

    The first of these steps only remembers the weights, as in the authors' code.

    Source: Zhang et al., Lookahead Optimizer, NeurIPS 2019; "lookahead_radam" of github szc19990412/TransMIL, with the
    defaults of timm.
    """

    EVERY, TOWARDS = 6, 0.5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0
        self.slow: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of RAdam, and every 6th time the way back."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        self.count += 1
        if self.count == self.EVERY:
            self.slow = [p.clone() for p in parameters]
        elif self.count % self.EVERY == 0:
            for slow, parameter in zip(self.slow, parameters, strict=True):
                slow.lerp_(parameter, self.TOWARDS)
                parameter.copy_(slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """RAdam's state, the number of steps and the slow weights."""
        return {**super().state_dict(), "count": self.count, "slow": self.slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state."""
        state = dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.count, slow = state.pop("count"), state.pop("slow")
        self.slow = [each.to(p.device) for each, p in zip(slow, parameters, strict=False)]
        super().load_state_dict(state)


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over ``parameters``; TransMIL's decays no vectors (biases, norms)."""
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **options)
    options["betas"] = config.betas
    if config.optimizer == "lookahead_radam":
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for parameter in parameters:
            (vectors if parameter.ndim <= 1 else matrices).append(parameter)
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return LookaheadRAdam([group for group in groups if group["params"]], decoupled_weight_decay=True, **options)
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(parameters, fused=True, **options)


def learning_rate_factor(epoch: int, config: TrainingConfig) -> float:
    """What the learning rate of ``epoch`` (from 0) is multiplied by."""
    if config.schedule == "step":
        return 1.0 if 2 * epoch < config.epochs else 0.2
    return 1.0 if config.schedule == "constant" else 0.5 * (1 + np.cos(np.pi * epoch / config.epochs))
