"""Divisions of slides into training, validation and test parts, and what is wrong with published ones."""

from mil_zoo.data.splits.draw import kfold
from mil_zoo.data.splits.split import Split, find_leaks, from_masks

__all__ = ["Split", "find_leaks", "from_masks", "kfold"]
