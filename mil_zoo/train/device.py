"""Where to compute, and how batches get there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.prefetch import map_ahead
from mil_zoo.errors import InputError
from mil_zoo.kernels.onednn import multiplies_bfloat16

FREE = 0.5  # of a GPU's memory that bags which stay there leave free
OTHERS = 0.05  # of it that other processes may use; where they use more, no further bag stays


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_precision() -> Literal["float32", "bfloat16"]:
    """The precision of matrix products that the default device takes less time for: bfloat16 where it can multiply it.

    Steps on an AMD Zen 5 (AVX512_BF16) took .58 to .75 of float32's time, on a Xeon without it longer than float32's.
    """
    on_gpu = default_device() == "cuda"
    return "bfloat16" if (torch.cuda.is_bf16_supported() if on_gpu else multiplies_bfloat16()) else "float32"


def usable_device(device: str | None) -> str:
    """The device that was asked for, or a GPU where there is one.

    Raises:
        InputError: torch cannot compute on it here.
    """
    if device is None:
        return default_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"device {device!r} cannot be used here ({first}); name another, or leave it out") from None
    return str(device)


def room_on(device: str) -> bool:
    """Whether one more bag may stay on ``device`` throughout a training: on a GPU that has room and is not shared."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return bool(free > FREE * total and others < OTHERS * total)


def batches_on(
    device: str, groups: Iterable[Sequence[Bag]], graph: str | None = None
) -> Iterator[tuple[Sequence[Bag], BagBatch]]:
    """Each group of bags, and its batch on ``device``.

    For a GPU another thread packs the next batch and copies it to pinned memory while the present one is in use, so
    that it moves without anyone waiting.

    Args:
        device: where the batches are wanted.
        groups: the bags of each batch.
        graph: graph spec, or None.
    """
    if torch.device(device).type != "cuda":
        for bags in groups:
            yield bags, BagBatch.from_bags(bags, graph=graph).to(device)
        return

    def packed(bags: Sequence[Bag]) -> tuple[Sequence[Bag], BagBatch]:
        batch = BagBatch.from_bags(bags, graph=graph)
        if batch.graph is not None:
            batch.graph.csr.transposed  # noqa: B018  made here, not in the step
        batch.features = batch.features.pin_memory()
        return bags, batch

    for bags, batch in map_ahead(packed, iter(groups)):
        yield bags, batch.to(device)
