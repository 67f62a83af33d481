"""What a training step takes from the host: random numbers, drawn on the CPU so that a seed gives the same everywhere.

A CUDA graph repeats the very numbers that it holds. So that a recorded step can be given new ones, :class:`Draws` notes
what a step draws, in order, gives each draw a place on the device while the step is recorded, and fills the places
before every replay by drawing again: a replayed step uses the numbers that the same step would draw by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mil_zoo.kernels.devices import to_device

_SIXTEEN_BYTES = 2  # int64 numbers; a seed begins at a multiple, so that the kernels compiled for one serve all

_present: Draws | None = None  # of the step that is being noted or recorded


def draw_seed() -> int | Tensor:
    """A seed below 2^62 from torch's default generator, so that ``torch.manual_seed`` governs it.

    Returns:
        an integer; in a step that is noted or recorded, int64 ``[]`` on its device.
    """
    return int(_random_seed()) if _present is None else _present.next(_random_seed)


def from_host(function: Callable[[], Tensor], device: torch.device) -> Tensor:
    """What ``function`` makes or draws on the CPU, on ``device``.

    Args:
        function: gives a tensor of the same shape and dtype at each call for bags of the same sizes.
        device: where the tensor is wanted.
    """
    return to_device(function(), device) if _present is None else _present.next(function)


def _random_seed() -> Tensor:
    return torch.randint(2**62, ())


class Draws:
    """What the steps of one shape draw.

    Args:
        device: of the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.functions: list[Callable[[], Tensor]] = []
        self.shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.places: list[Tensor] | None = None
        self.seeds = torch.zeros(0, _SIXTEEN_BYTES, dtype=torch.int64)  # the memory of those places that are seeds
        self.taken = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A step in here draws its numbers as ever, and what it drew is noted."""
        self.functions, self.shapes, self.places = [], [], None
        with self._present():
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A step in here draws nothing: it reads the places, which :meth:`again` fills.

        Raises:
            RuntimeError: it asks for another number of draws than the step that was noted.
        """
        self.taken = 0
        with self._present():
            yield
        if self.taken != len(self.functions):
            raise RuntimeError(f"the step drew {len(self.functions)} times and then {self.taken} times")

    @contextmanager
    def _present(self) -> Iterator[None]:
        global _present
        _present = self
        try:
            yield
        finally:
            _present = None

    def next(self, function: Callable[[], Tensor]) -> Tensor:
        """The next draw of the step, on its device."""
        if self.places is None:
            value = function()
            self.functions.append(function)
            self.shapes.append((tuple(value.shape), value.dtype))
            return to_device(value, self.device)
        self.taken += 1
        if self.taken > len(self.places):
            raise RuntimeError(f"the step drew {len(self.places)} times and then once more")
        return self.places[self.taken - 1]

    def make_places(self) -> None:
        """Makes a place for each draw; outside a recording, whose memory is used for much else."""
        is_seed = [function is _random_seed for function in self.functions]
        self.seeds = torch.zeros(sum(is_seed), _SIXTEEN_BYTES, dtype=torch.int64, device=self.device)
        seeds = iter(self.seeds[:, 0])
        self.places = [
            next(seeds) if seed else torch.zeros(shape, dtype=dtype, device=self.device)
            for seed, (shape, dtype) in zip(is_seed, self.shapes, strict=True)
        ]

    def again(self) -> None:
        """Draws again what the step draws, in its order, into the places."""
        assert self.places is not None
        seeds: list[Tensor] = []
        for function, place in zip(self.functions, self.places, strict=True):
            if function is _random_seed:
                seeds.append(function())
            else:
                place.copy_(to_device(function(), self.device))
        if seeds:
            self.seeds[:, 0].copy_(to_device(torch.stack(seeds), self.device))
