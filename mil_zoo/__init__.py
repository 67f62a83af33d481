"""mil-zoo: the zoo and benchmark of multiple-instance-learning aggregators for whole-slide images.

The public names below load on first use, so that ``import mil_zoo`` and ``mil-zoo --help`` stay instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mil_zoo._openmp import wait_asleep

wait_asleep()

if TYPE_CHECKING:
    from mil_zoo.aggregators.base import Aggregator
    from mil_zoo.aggregators.output import AggregatorOutput
    from mil_zoo.aggregators.registry import create_aggregator, list_aggregators, register_aggregator
    from mil_zoo.api import MILClassifier, cross_validate, fit
    from mil_zoo.bench.predictor import Predictor
    from mil_zoo.data.bag import Bag, BagBatch
    from mil_zoo.data.layouts.base import register_layout
    from mil_zoo.errors import InputError
    from mil_zoo.fitted import Fitted, load
    from mil_zoo.fitted.onnx import export_onnx
    from mil_zoo.graph import register_graph
    from mil_zoo.metrics import register_metric
    from mil_zoo.report.load import Results
    from mil_zoo.tasks import register_task
    from mil_zoo.train.protocols import register_protocol

__version__ = "0.1.0"

_HOME = {
    "Aggregator": "mil_zoo.aggregators.base",
    "AggregatorOutput": "mil_zoo.aggregators.output",
    "Bag": "mil_zoo.data.bag",
    "BagBatch": "mil_zoo.data.bag",
    "Fitted": "mil_zoo.fitted",
    "InputError": "mil_zoo.errors",
    "MILClassifier": "mil_zoo.api",
    "Predictor": "mil_zoo.bench.predictor",
    "Results": "mil_zoo.report.load",
    "create_aggregator": "mil_zoo.aggregators.registry",
    "cross_validate": "mil_zoo.api",
    "export_onnx": "mil_zoo.fitted.onnx",
    "fit": "mil_zoo.api",
    "list_aggregators": "mil_zoo.aggregators.registry",
    "load": "mil_zoo.fitted",
    "register_aggregator": "mil_zoo.aggregators.registry",
    "register_graph": "mil_zoo.graph",
    "register_layout": "mil_zoo.data.layouts.base",
    "register_metric": "mil_zoo.metrics",
    "register_protocol": "mil_zoo.train.protocols",
    "register_task": "mil_zoo.tasks",
}
_SUBPACKAGES = (
    "aggregators",
    "api",
    "bench",
    "data",
    "diagnostics",
    "fitted",
    "graph",
    "kernels",
    "metrics",
    "report",
    "ssl",
    "stats",
    "survival",
    "tasks",
    "train",
)

__all__ = [
    "Aggregator",
    "AggregatorOutput",
    "Bag",
    "BagBatch",
    "Fitted",
    "InputError",
    "MILClassifier",
    "Predictor",
    "Results",
    "create_aggregator",
    "cross_validate",
    "export_onnx",
    "fit",
    "list_aggregators",
    "load",
    "register_aggregator",
    "register_graph",
    "register_layout",
    "register_metric",
    "register_protocol",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"mil_zoo.{name}")
    raise AttributeError(f"module 'mil_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_SUBPACKAGES])
