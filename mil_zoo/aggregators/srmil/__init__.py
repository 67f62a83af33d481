"""SRMIL: spatially regularised MIL."""

from mil_zoo.aggregators.srmil.fast import SRMIL

__all__ = ["SRMIL"]
