"""Trainings whose steps are replayed as CUDA graphs against the same trainings handed over kernel by kernel."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor

from gpu.common import Check, random_bag, serving
from mil_zoo import create_aggregator, list_aggregators
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.replay import Replays

FIRST = ("srmil", "sm_abmil", "patchgcn", "gtp", "sm_transformer", "ibmil", "deepgraphsurv", "abmil", "transmil")
OPTIONS = {"ibmil": {"num_confounders": 2}}
SIZES = (300, 500, 300, 700, 500, 300)  # shapes that several slides share, and one of one slide
ALLOWED = 0.02  # of the way that the weights went; a wrong draw or a stale value changes a tenth of it and more


def run(check: Check) -> None:
    """Every aggregator whose steps are replayed."""
    names = [name for name in list_aggregators() if vars(AGGREGATORS.get(name)).get("replayable")]
    names = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    for _, name in check.mine(names[:3] if check.quick else names):
        check.attempt(name, partial(_compare, check, name))


def _compare(check: Check, name: str) -> None:
    start, _ = _trained(check, name, 0, replayed=False)
    apart, _ = _trained(check, name, 5, replayed=False)
    again, _ = _trained(check, name, 5, replayed=False)
    replayed, recordings = _trained(check, name, 5, replayed=True)
    way = _length({key: apart[key] - start[key] for key in start})
    difference = _length({key: replayed[key] - apart[key] for key in start}) / way
    check.report(
        f"{name}, five epochs of six slides, replayed",
        largest_error=difference,
        of_tensor="all weights",
        error_of_the_same_again=_length({key: again[key] - apart[key] for key in start}) / way,
        recordings=recordings,
        allowed=ALLOWED,
        passed=difference <= ALLOWED and (recordings >= len(set(SIZES)) or check.device.type != "cuda"),
    )


def _trained(check: Check, name: str, epochs: int, replayed: bool) -> tuple[dict[str, Tensor], int]:
    """The weights after some epochs, and how many steps were recorded."""
    torch.manual_seed(0)
    torch.cuda.manual_seed_all(0)
    model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {}))
    bags = [random_bag(n, check.dim, i) for i, n in enumerate(SIZES)]
    made: list[Replays] = []
    original = Replays.__init__

    def noted(self: Replays, *args: object) -> None:
        made.append(self)
        original(self, *args)  # type: ignore[arg-type]

    if epochs:
        config = TrainingConfig(epochs=epochs, learning_rate=2e-4, record="off", select="last", schedule="constant")
        Replays.__init__ = noted  # type: ignore[method-assign,assignment]
        try:
            with serving(replayed), warnings.catch_warnings():
                warnings.simplefilter("error")  # says that steps are not replayed
                fit(model, bags, bags[:2], config, graph=type(model).graph, seed=7, device=str(check.device))
        finally:
            Replays.__init__ = original  # type: ignore[method-assign]
    weights = {key: value.double().cpu() for key, value in model.state_dict().items() if value.is_floating_point()}
    return weights, sum(len(replays.recorded) for replays in made)


def _length(weights: dict[str, Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in weights.values()]).norm())
