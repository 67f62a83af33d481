"""Bags of instances, datasets, their cards, readers and splits."""

from mil_zoo.data import splits
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.card import DataCard, list_cards, read_card
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.labels.annotations import Annotations, label_instances, read_annotations
from mil_zoo.data.layouts.base import find_features, read_bag
from mil_zoo.data.layouts.table import read_table
from mil_zoo.data.source import DatasetSource

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
