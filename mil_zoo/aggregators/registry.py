"""The registry that creates aggregators by name."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mil_zoo.aggregators.options import check_options, declared_options
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.registry import Registry
from mil_zoo.tasks import Classification, Task

if TYPE_CHECKING:
    from mil_zoo.aggregators.base import Aggregator

AGGREGATORS: Registry[type[Aggregator]] = Registry("aggregator", package="mil_zoo.aggregators")


def register_aggregator(name: str) -> Callable[[type[Aggregator]], type[Aggregator]]:
    """Class decorator that registers an :class:`Aggregator` under ``name`` (lowercase, as in ``--models name``).

    Raises:
        InputError: the name is taken or none, or the constructor takes a ``task``, which an aggregator is given once it
            is made.
    """

    def decorate(cls: type[Aggregator]) -> type[Aggregator]:
        if "task" in inspect.signature(cls.__init__).parameters:
            raise InputError(
                f"aggregator {name!r}: its constructor takes in_dim, num_classes (outputs) and options; leave task "
                "out, forward and losses find it as self.task"
            )
        return AGGREGATORS.register(name)(cls)

    return decorate


def list_aggregators() -> list[str]:
    """Returns the names of all registered aggregators, sorted."""
    return AGGREGATORS.names()


def create_aggregator(
    name: str, in_dim: int = 1024, num_classes: int = 2, *, task: Task | None = None, **options: Any
) -> Aggregator:
    """Creates a registered aggregator.

    Args:
        name: see ``list_aggregators()``.
        in_dim: feature dimension D.
        num_classes: of classification: C >= 2, or 1 for one logit with binary cross-entropy.
        task: what is predicted; None for ``Classification(num_classes)``.
        **options: the aggregator's own options.

    Raises:
        InputError: unknown name or option (the nearest valid one is offered), an option's value is refused, or a term
            of the loss needs classes and the task has none.
    """
    cls = AGGREGATORS.get(name)
    for argument, value in {"in_dim": in_dim, "num_classes": num_classes}.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{argument} is a whole number, not {value!r:.60}")
    if not isinstance(task, Task | None):
        raise InputError(
            f'task is a mil_zoo.tasks.Task, for instance mil_zoo.tasks.create_task("survival"), not {task!r:.60}'
        )
    known = aggregator_options(name)
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}{did_you_mean(option, known)}")
    check_options(cls, name, options)
    task = task or Classification(num_classes)
    aggregator = cls(in_dim, task.outputs, **options)
    try:
        aggregator.set_task(task)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    aggregator.created_with = options
    return aggregator


def aggregator_options(name: str) -> dict[str, Any]:
    """Returns the options of an aggregator and their defaults (``inspect.Parameter.empty`` where there is none).

    Where its constructor passes ``**kwargs`` on, those of its base are among them, with ``...`` for a default, since it
    may set them itself.
    """
    from mil_zoo.aggregators.base import Aggregator  # which offers what stands here

    mro = AGGREGATORS.get(name).__mro__
    return declared_options(mro[: mro.index(Aggregator)])
