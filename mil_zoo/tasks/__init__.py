"""What a benchmark predicts: the task, and everything that follows from it. Nothing here imports torch until it trains.

A file of this package holds one task; its losses, which need torch, lie in ``losses`` and load on use.
"""

from mil_zoo.tasks.base import Task
from mil_zoo.tasks.classification import Classification
from mil_zoo.tasks.multilabel import MultiLabel
from mil_zoo.tasks.ordinal import Ordinal
from mil_zoo.tasks.registry import TASKS, create_task, register_task, task_of_config, task_settings
from mil_zoo.tasks.regression import Regression
from mil_zoo.tasks.survival import Survival

__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "Survival",
    "Task",
    "create_task",
    "register_task",
    "task_of_config",
    "task_settings",
]
