"""The settings of a task as users write them: the fields of its dataclass, where ``loss`` stands for ``criterion``.

``loss`` itself is the method of a task that computes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mil_zoo.config import from_mapping
from mil_zoo.errors import InputError

if TYPE_CHECKING:
    from mil_zoo.tasks.base import Task

Made = TypeVar("Made", bound="Task")
TaskClass = TypeVar("TaskClass", bound="type[Task]")


def task_from(cls: type[Made], settings: Mapping[str, Any]) -> Made:
    """The task of a class by its settings.

    Raises:
        InputError: an unknown setting, or a value of another type.
    """
    if not dataclasses.is_dataclass(cls):
        if settings:
            raise InputError(f"task {cls.name} has no setting {next(iter(settings))!r}")
        return cls()
    try:
        return from_mapping(cls, _renamed(cls, settings, "loss", "criterion"), f"task {cls.name}")
    except InputError as error:
        raise InputError(str(error).replace("criterion", "loss")) from None


def settings_of(task: Task) -> dict[str, Any]:
    """The settings that :func:`task_from` makes a task from again, as plain values."""
    if not dataclasses.is_dataclass(task):
        return {}
    return _renamed(type(task), dataclasses.asdict(task), "criterion", "loss")


def loss_by_name(cls: TaskClass) -> TaskClass:
    """Class decorator of a dataclass with a field ``criterion``: the constructor calls it ``loss``, as users do."""
    made: Callable[..., None] = cls.__init__

    @functools.wraps(made)
    def init(self: Task, *args: Any, **settings: Any) -> None:
        made(self, *args, **_renamed(cls, settings, "loss", "criterion"))

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


def _renamed(cls: type, settings: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The settings with ``criterion`` called ``loss``, or the other way, where the dataclass has that field."""
    if "criterion" not in {field.name for field in dataclasses.fields(cls)}:
        return dict(settings)
    return {new if key == old else key: value for key, value in settings.items()}
