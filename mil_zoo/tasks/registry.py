"""The registry that creates tasks by name, from settings or from what a run says of its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mil_zoo.registry import Registry
from mil_zoo.tasks.base import Task
from mil_zoo.tasks.settings import TaskClass

TASKS: Registry[type[Task]] = Registry("task", package="mil_zoo.tasks")
DEFAULT = "classification"


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Class decorator that registers a :class:`Task` under ``name`` (lowercase, as in ``--task name``)."""

    def decorate(cls: TaskClass) -> TaskClass:
        cls.name = name
        return TASKS.register(name)(cls)

    return decorate


def create_task(name: str = DEFAULT, settings: Mapping[str, Any] | None = None, classes: Sequence[str] = ()) -> Task:
    """Creates a registered task.

    Args:
        name: registry key.
        settings: its own settings.
        classes: the dataset's class names, for the tasks that have classes.

    Raises:
        InputError: unknown name or setting (the nearest valid one is offered).
    """
    return TASKS.get(name).create(settings or {}, classes)


def task_settings(task: Task) -> dict[str, Any]:
    """What a run's ``config.yaml`` says of its task: ``{"task": {"name": ..., ...}}``, nothing for classification."""
    return {} if task.name == DEFAULT else {"task": {"name": task.name, **task.settings()}}


def task_of_config(config: Mapping[str, Any]) -> Task:
    """The task of a run by its ``config.yaml``, or by a card's mapping with "task" and "classes"."""
    settings = dict(config.get("task") or {})
    classes = config.get("classes") or config.get("dataset", {}).get("classes", ())
    return create_task(settings.pop("name", DEFAULT), settings, classes)
