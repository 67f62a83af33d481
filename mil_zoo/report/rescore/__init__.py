"""Predictions that others published, scored again: the tables, intervals and paired tests of a bench, and what cannot
be right. Nothing here reads a bag."""

from mil_zoo.report.rescore.read import Columns, parse_columns
from mil_zoo.report.rescore.write import Rescored, rescore

__all__ = ["Columns", "Rescored", "parse_columns", "rescore"]
