"""The order in which a sequence model reads the instances of a bag."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError

Order = Literal["stored", "raster", "hilbert"]
ORDERS = ("stored", "raster", "hilbert")
BITS = 16  # the Hilbert curve visits 2^16 x 2^16 places


def sequence_order(batch: BagBatch, order: Order) -> Tensor | None:
    """Says which instance is read when.

    Args:
        batch: with coordinates, unless ``order`` is "stored".
        order: "stored", as the features lie in the bag; "raster", row by row from the top left; "hilbert", along a
            Hilbert curve over the bag's bounding square, on which neighbours in the sequence are neighbours in place.

    Returns:
        int64 ``[ΣN]``, rows of the batch, bag by bag; None for "stored".

    Raises:
        InputError: the batch has no coordinates.
    """
    if order == "stored":
        return None
    if batch.coords is None:
        raise InputError(f"the order {order!r} needs coordinates in every bag; use order='stored'")
    if order == "raster":
        rows = batch.coords[:, 0].argsort(stable=True)
        rows = rows[batch.coords[rows, 1].argsort(stable=True)]
    else:
        rows = _hilbert(batch).argsort(stable=True)
    return rows[batch.bag_index[rows].argsort(stable=True)]


def _hilbert(batch: BagBatch) -> Tensor:
    """int64 ``[ΣN]``: how far along its bag's curve each instance lies."""
    bag, coords = batch.bag_index[:, None].expand(-1, 2), batch.coords.double()
    low = coords.new_full((len(batch), 2), torch.inf).scatter_reduce(0, bag, coords, "amin")
    high = coords.new_full((len(batch), 2), -torch.inf).scatter_reduce(0, bag, coords, "amax")
    extent = (high - low).amax(1, keepdim=True).clamp(min=1e-9)[batch.bag_index]
    x, y = ((coords - low[batch.bag_index]) / extent * (2**BITS - 1)).long().unbind(1)
    along = torch.zeros_like(x)
    for bit in range(BITS - 1, -1, -1):
        right, down = (x >> bit) & 1, (y >> bit) & 1
        along = along * 4 + ((3 * right) ^ down)
        rest = (1 << bit) - 1
        x, y = x & rest, y & rest
        turned, mirrored = down == 0, (down == 0) & (right == 1)
        x, y = torch.where(mirrored, rest - x, x), torch.where(mirrored, rest - y, y)
        x, y = torch.where(turned, y, x), torch.where(turned, x, y)
    return along
