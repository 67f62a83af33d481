"""Memory of large tensors on a CPU: the system clears every fresh page when it is first touched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LINE = 64  # bytes of a line of the caches, at which a tensor starts
LARGE = 2**25  # bytes; the GNU C library gives a larger block back to the system as soon as it is freed


def empty(like: Tensor, *shape: int) -> Tensor:
    """A new tensor on a CPU with the dtype of ``like``; in huge pages where it is larger than ``LARGE``.

    Such a tensor is fresh whenever it is made. NumPy asks Linux for pages of 2 MiB, of which there are 512 times fewer;
    PyTorch does where ``THP_MEM_ALLOC_ENABLE=1`` is set, for smaller ones too, which slows down steps on bags of a few
    thousand instances.
    """
    size = like.element_size() * torch.Size(shape).numel()
    if size <= LARGE:
        return like.new_empty(shape)
    room = np.empty(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return torch.from_numpy(room[start : start + size]).view(like.dtype).view(shape)
