"""Rows of a graph that are too long for one GPU program, cut into pieces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LONG_ROW = 1024  # edges of a row that one GPU program walks; longer rows are cut into pieces of this many


class Rows(NamedTuple):
    """What one launch over a graph works on: all rows of it (``rows`` is None), or pieces of some.

    Attributes:
        starts: integer ``[count]``, the first edge of each.
        ends: integer ``[count]``, one past the last edge.
        rows: int64 ``[count]``, the row that each is a piece of.
        count: how many.
    """

    starts: Tensor
    ends: Tensor
    rows: Tensor | None
    count: int  # type: ignore[assignment]  # the tuple's method of this name is of no use here


class LongRows(NamedTuple):
    """The rows of a graph with more than ``LONG_ROW`` edges, in pieces.

    Attributes:
        pieces: at most ``LONG_ROW`` edges each, in order.
        rows: int64 ``[L]``.
        first: int64 ``[L + 1]``, the first piece of each.
    """

    pieces: Rows
    rows: Tensor
    first: Tensor

    @classmethod
    def of(cls, indptr: Tensor) -> LongRows | None:
        """The long rows of a graph whose rows start at ``indptr``; None where it has none."""
        indptr = indptr.long()
        degrees = indptr.diff()
        rows = (degrees > LONG_ROW).nonzero()[:, 0]
        if len(rows) == 0:
            return None
        counts = (degrees[rows] + LONG_ROW - 1) // LONG_ROW
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        of = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)  # piece -> long row
        starts = indptr[rows][of] + LONG_ROW * (torch.arange(len(of), device=of.device) - first[of])
        ends = torch.minimum(starts + LONG_ROW, indptr[rows + 1][of])
        return cls(Rows(starts, ends, rows[of], len(of)), rows, first)

    def to(self, device: torch.device) -> LongRows:
        """The same on ``device``."""
        starts, ends, rows, count = self.pieces
        pieces = Rows(starts.to(device), ends.to(device), None if rows is None else rows.to(device), count)
        return LongRows(pieces, self.rows.to(device), self.first.to(device))
