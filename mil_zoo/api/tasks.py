"""What is predicted, as a user of Python says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.errors import InputError
from mil_zoo.tasks import Classification, Task, task_of_config

TaskLike = Task | str | dict[str, Any] | None


def check_task(task: TaskLike) -> None:
    """Raises an ``InputError`` where ``task`` is nothing that says what is predicted."""
    if not isinstance(task, Task | str | dict | None):
        raise InputError(
            f"a task is a name, a dict of its name and settings, or a mil_zoo.tasks.Task, not {task!r:.60}"
        )


def task_for(task: TaskLike, bags: Sequence[Bag]) -> Task:
    """The task that is meant: itself, by its name, by its name and settings, or classification of the bags' labels.

    Raises:
        InputError: unknown name or setting, or bags that state targets and no task, or labels that are no classes.
    """
    check_task(task)
    if isinstance(task, Task):
        return task
    slides = as_bags(bags).slides
    if not slides:
        raise InputError("there are no bags; give some")
    settings = {"name": task} if isinstance(task, str) else dict(task or {})
    if settings.get("name", "classification") not in ("classification", "ordinal"):
        return task_of_config({"task": settings})
    if not settings and any(slide.target is not None for slide in slides):
        raise InputError('the bags have targets: say what they are, for instance task="survival" or task="regression"')
    labels = [slide.label for slide in slides]
    for slide in slides:
        if not isinstance(slide.label, int | np.integer) or slide.label < 0:
            raise InputError(
                f"slide {slide.slide_id!r} has the label {slide.label!r}; give every bag a class index from 0"
            )
    present = {label for label in labels if label is not None}
    absent = sorted(set(range(max(present))) - present)
    if absent and max(present) > 1 and "num_classes" not in settings:
        raise InputError(
            f"slide {slides[labels.index(max(present))].slide_id!r} has the label {max(present)} and no bag has "
            f"{absent[0]}; count classes from 0, drop the bag if its label marks that nothing is known, or say how "
            'many classes there are: task={"name": "classification", "num_classes": C}'
        )
    classes: Any = settings.get("num_classes", max(2, 1 + max(present)))
    if not settings or settings == {"name": "classification"}:
        return Classification(classes)
    return task_of_config({"task": {"num_classes": classes, **settings}})
