"""Memory of large tensors on a CPU, whose fresh pages the system clears when they are first touched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LARGE = 2**25  # bytes; the GNU C library gives a larger block back to the system as soon as it is freed


def empty(like: Tensor, *shape: int) -> Tensor:
    """A new tensor on a CPU with the dtype of ``like``; in huge pages where it is larger than ``LARGE``.

    Such a tensor is fresh whenever it is made. NumPy asks Linux for pages of 2 MiB, of which there are 512 times fewer;
    PyTorch does not, unless ``THP_MEM_ALLOC_ENABLE=1`` is set, which slows down steps whose tensors are smaller.
    """
    size = like.element_size() * torch.Size(shape).numel()
    if size <= LARGE:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype).view(shape)
