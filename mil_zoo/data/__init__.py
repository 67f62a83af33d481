"""Bags of instances, datasets, their cards, readers and splits. The names below load on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mil_zoo.data import splits
    from mil_zoo.data.bag import Bag, BagBatch
    from mil_zoo.data.card import DataCard, list_cards, read_card
    from mil_zoo.data.dataset import open_dataset
    from mil_zoo.data.labelled import Dataset, Standardiser
    from mil_zoo.data.labels.annotations import Annotations, label_instances, read_annotations
    from mil_zoo.data.layouts.find import find_features, read_bag
    from mil_zoo.data.layouts.table import read_table
    from mil_zoo.data.source import DatasetSource

_HOME = {
    "Annotations": "labels.annotations",
    "Bag": "bag",
    "BagBatch": "bag",
    "DataCard": "card",
    "Dataset": "labelled",
    "DatasetSource": "source",
    "Standardiser": "labelled",
    "find_features": "layouts.find",
    "label_instances": "labels.annotations",
    "list_cards": "card",
    "open_dataset": "dataset",
    "read_annotations": "labels.annotations",
    "read_bag": "layouts.find",
    "read_card": "card",
    "read_table": "layouts.table",
}

__all__ = [
    "Annotations",
    "Bag",
    "BagBatch",
    "DataCard",
    "Dataset",
    "DatasetSource",
    "Standardiser",
    "find_features",
    "label_instances",
    "list_cards",
    "open_dataset",
    "read_annotations",
    "read_bag",
    "read_card",
    "read_table",
    "splits",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"mil_zoo.data.{_HOME[name]}"), name)
    if name == "splits":
        return importlib.import_module("mil_zoo.data.splits")
    raise AttributeError(f"module 'mil_zoo.data' has no attribute {name!r}")
