"""Scores of predictions: one registry of metrics, which every table, figure, test and selection rule asks. No torch.

A file of this package holds the metrics of one family of tasks; :func:`register_metric` adds one from anywhere.
"""

import importlib
import pkgutil

from mil_zoo.metrics.patients import combine_slides, patient_predictions
from mil_zoo.metrics.registry import Metric, find_metric, inside, metrics_of, register_metric, score

for _module in pkgutil.iter_modules(__path__):  # first of all, so that a plugin meets the built-in names
    importlib.import_module(f"{__name__}.{_module.name}")

from mil_zoo.metrics.classification import ranks_of_class  # noqa: E402

__all__ = [
    "Metric",
    "combine_slides",
    "find_metric",
    "inside",
    "metrics_of",
    "patient_predictions",
    "ranks_of_class",
    "register_metric",
    "score",
]
