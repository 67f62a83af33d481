"""SRMIL: spatially regularised multiple-instance learning (Wu et al., WACV 2026, arXiv 2602.19487).

- :class:`~mil_zoo.aggregators.srmil.literal.LiteralSRMIL` (``literal.py``) is the paper in code: one pass after another
  over a graph of plain edges, to be read beside the equations. Slow, and the oracle of the tests.
- :class:`~mil_zoo.aggregators.srmil.fast.SRMIL` (``fast.py``) is what ``create_aggregator("srmil")`` makes: the same
  parameters, losses and gradients with the work reordered for the fused kernels.
- ``readouts.py`` holds the two readouts, the global node and attention pooling.
"""

from mil_zoo.aggregators.srmil.fast import SRMIL

__all__ = ["SRMIL"]
