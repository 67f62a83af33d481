"""The search for a configuration: Optuna proposes, a function judges, the best is chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mil_zoo.bench.space import Dimension, Space, space_size
from mil_zoo.errors import InputError

SAMPLERS = ("tpe", "random")
_PROPOSALS = 50  # that are asked for before a repeated one is replaced


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A configuration and what came of it on validation slides.

    Attributes:
        settings: of the space; those of the recipe for the first configuration.
        score: of the task's criterion; NaN where it is undefined or the training failed.
        loss: of the same slides, which decides between equal scores; NaN where there is none.
        epochs: that were trained for it.
        seconds: that its trainings took.
        reason: why it failed; "" where it did not.
    """

    settings: dict[str, Any]
    score: float = math.nan
    loss: float = math.nan
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""


def search(
    space: Space,
    recipe: dict[str, Any],
    number: int,
    sampler: str,
    seed: int,
    judge: Callable[[int, dict[str, Any]], Judged],
    higher_is_better: bool,
) -> list[Judged]:
    """Judges ``number`` different configurations, the first of which is the recipe.

    What is proposed depends on the seed and on what was judged before, and on nothing else: a search that is broken off
    and begun anew proposes the same.

    Args:
        space: what may be set, and to what.
        recipe: the settings of the first configuration, which may lie outside of the space.
        number: of configurations.
        sampler: "tpe" (tree-structured Parzen estimator) or "random".
        seed: of the proposals.
        judge: gives what came of a configuration, by its number and settings.
        higher_is_better: the direction of the scores.

    Raises:
        InputError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("--tune needs Optuna: pip install 'mil-zoo[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(
        direction="maximize" if higher_is_better else "minimize", sampler=samplers[sampler](seed=seed)
    )
    distributions = {dimension.name: _distribution(optuna, dimension) for dimension in space}
    found = [judge(0, recipe)]
    nearest = {dimension.name: _nearest(dimension, recipe[dimension.name]) for dimension in space}
    if found[0].score == found[0].score and None not in nearest.values():
        known = optuna.trial.create_trial(params=nearest, distributions=distributions, value=found[0].score)
        study.add_trial(known)
    seen = [recipe]
    while len(found) < number:
        for _ in range(_PROPOSALS):
            proposed = study.ask(distributions)
            settings = {dimension.name: proposed.params[dimension.name] for dimension in space}
            if settings not in seen:
                break
            study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        else:
            settings = next(each for each in _all(space) if each not in seen)
            proposed = None
        seen.append(settings)
        found.append(judge(len(found), settings))
        failed = found[-1].score != found[-1].score
        if proposed is not None:
            state = optuna.trial.TrialState.FAIL if failed else None
            study.tell(proposed, None if failed else found[-1].score, state=state)
    return found


def ranking(judged: Sequence[Judged], higher_is_better: bool) -> list[int]:
    """The numbers of the configurations, the best first: by score, then lower loss, then the earlier one."""

    def place(i: int) -> tuple[bool, float, float, int]:
        one = judged[i]
        undefined, loss = one.score != one.score, math.inf if one.loss != one.loss else one.loss
        return undefined, 0.0 if undefined else -one.score if higher_is_better else one.score, loss, i

    return sorted(range(len(judged)), key=place)


def check_budget(number: int, space: Space, name: str, recipe: dict[str, Any]) -> None:
    """Raises an ``InputError`` where the space of a model holds fewer configurations than are asked for."""
    outside = not all(dimension.holds(recipe[dimension.name]) for dimension in space)
    size = space_size(space) + outside
    if number > size:
        raise InputError(
            f"--tune {number}: {name} has {size:.0f} configurations in all; ask for no more, or widen its search"
        )


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    made, span = optuna.distributions, dimension.range
    if span is None:
        return made.CategoricalDistribution(dimension.choices)
    if span.whole:
        return made.IntDistribution(int(span.low), int(span.high), log=span.log)
    return made.FloatDistribution(span.low, span.high, log=span.log)


def _nearest(dimension: Dimension, value: Any) -> Any:
    """The value of the space that stands for a recipe's; None where nothing does."""
    if dimension.range is None or not isinstance(value, int | float) or isinstance(value, bool):
        return value if dimension.holds(value) else None
    return type(value)(min(max(value, dimension.range.low), dimension.range.high))


def _all(space: Space) -> Any:
    """Every configuration of a finite space, in order."""
    axes = []
    for dimension in space:
        span = dimension.range
        axes.append(dimension.choices if span is None else range(int(span.low), int(span.high) + 1))
    for values in itertools.product(*axes):
        yield {dimension.name: value for dimension, value in zip(space, values, strict=True)}
