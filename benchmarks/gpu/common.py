"""What the steps share: the device, rows of results that are written at once, and timing."""

from __future__ import annotations

import fcntl
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mil_zoo import Bag, BagBatch
from mil_zoo.graph import BagGraph
from mil_zoo.kernels import CSR
from mil_zoo.train.replay import Replays

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # whose cases are taken from there

SECONDS = 0.25  # that one thing is timed for, about


@dataclass(frozen=True)
class Check:
    """One run of a step.

    Attributes:
        out: folder of the results.
        step: the step's name.
        part: which part of a step that is split among processes.
        parts: how many there are.
        quick: sizes so small that the numbers mean nothing.
        untimed: few instances of true width, run once: what is timed later is compiled, by many processes.
    """

    out: Path
    step: str
    part: int = 0
    parts: int = 1
    quick: bool = False
    untimed: bool = False

    @property
    def device(self) -> torch.device:
        """The GPU, or the CPU where the check is rehearsed."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def small(self) -> bool:
        """Whether there are few instances."""
        return self.quick or self.untimed

    @property
    def dim(self) -> int:
        """Features of an instance."""
        return 64 if self.quick else 1024

    def report(self, what: str, **values: Any) -> None:
        """Writes one row of results at once, and prints it."""
        line = json.dumps({"step": self.step, "what": what, **values})
        with (self.out / "rows.jsonl").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line + "\n")
        print(line, flush=True)

    def attempt(self, what: str, function: Callable[[], None]) -> None:
        """Runs ``function``; what it raises becomes a row."""
        try:
            function()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.report(what, error=f"{type(error).__name__}: {str(error)[:600]} ({where})")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def mine(self, items: list[Any]) -> list[tuple[int, Any]]:
        """The items of this part, with their numbers."""
        return [(i, item) for i, item in enumerate(items) if i % self.parts == self.part]

    def facts(self) -> dict[str, float]:
        """What the first step measured: bytes and operations a second."""
        path = self.out / "facts.json"
        return json.loads(path.read_text()) if path.exists() else {}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], object], device: torch.device, warm_up: int = 3) -> dict[str, float]:
    """Median time of a step on the device, and of handing it over to the device.

    The first calls compile and tune. The cache of the device (L2) is overwritten before every call. Events mark the
    beginning and the end on the device; where handing over takes as long, launches dominate.
    """
    rehearsal = device.type != "cuda"
    for _ in range(1 if rehearsal else warm_up):
        step()
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    rounds = max(5, min(30, int(SECONDS / max(time.perf_counter() - start, 1e-4)))) if not rehearsal else 1
    flush = torch.empty(2**26 if device.type == "cuda" else 1, dtype=torch.int32, device=device)
    elapsed, host = [], []
    for _ in range(rounds):
        flush.zero_()
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
        start = time.perf_counter()
        step()
        host.append(1e3 * (time.perf_counter() - start))
        if device.type == "cuda":
            last.record()
            torch.cuda.synchronize()
            elapsed.append(first.elapsed_time(last))
        else:
            elapsed.append(host[-1])
    return {
        "milliseconds": statistics.median(elapsed),
        "fastest": min(elapsed),
        "host_milliseconds": statistics.median(host),
        "rounds": rounds,
    }


def peak_mib(step: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a call needs on top of what is there before; None without a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def window_graph(n: int, device: torch.device, reach: int = 2) -> CSR:
    """5 x 5 windows over the first n patches of a square, row after row, self-loops included."""
    side = int((n - 1) ** 0.5) + 1
    step = torch.arange(-reach, reach + 1, device=device)
    cell = torch.arange(n, device=device)
    y = (cell // side)[:, None, None] + step[None, :, None]
    x = (cell % side)[:, None, None] + step[None, None, :]
    place = (y * side + x).flatten(1)
    inside = ((y >= 0) & (x >= 0) & (x < side)).flatten(1) & (place < n)
    indptr = torch.zeros(n + 1, dtype=torch.int64, device=device)
    indptr[1:] = inside.sum(1).cumsum(0)
    return CSR(indptr.int(), place[inside].int(), n)


def random_batch(n: int, dim: int, device: torch.device, graph: bool, dtype: torch.dtype = torch.float32) -> BagBatch:
    """One labelled bag of n random patches that fill a square; with its 5 x 5 windows where a graph is wanted."""
    side = int((n - 1) ** 0.5) + 1
    cell = torch.arange(n, device=device)
    csr = None
    if graph:  # on the CPU, where graphs are built, unless that takes long
        csr = window_graph(n, device if n > 200_000 else torch.device("cpu")).to(device)
    return BagBatch(
        features=torch.randn(n, dim, device=device, dtype=dtype),
        offsets=torch.tensor([0, n], device=device),
        labels=torch.tensor([1], device=device),
        targets=torch.tensor([[1]], device=device),
        coords=torch.stack([cell % side, cell // side], dim=1).float() * 256,
        patch_sizes=torch.tensor([256.0], device=device),
        graph=None if csr is None else BagGraph(csr, (n,), (csr.num_edges,)),
        slide_ids=("random",),
    )


def random_bag(n: int, dim: int, number: int) -> Bag:
    """A labelled bag of n random patches that fill a square; not quite random: its label can be learned."""
    side, cell = int((n - 1) ** 0.5) + 1, torch.arange(n)
    features = torch.randn(n, dim, generator=torch.Generator().manual_seed(number))
    features[: n // 10] += number % 2
    coords = torch.stack([cell % side, cell // side], dim=1).float() * 256
    return Bag(features=features, label=number % 2, slide_id=f"s{number}", coords=coords, patch_size=256.0)


@contextmanager
def serving(replayed: bool) -> Iterator[None]:
    """Within, steps are replayed as CUDA graphs where they can be, or none is."""
    serve = Replays.serve
    if not replayed:
        Replays.serve = staticmethod(lambda aggregator, device: False)
    try:
        yield
    finally:
        Replays.serve = staticmethod(serve)


def random_inputs(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def measure(
    check: Check, what: str, by: str, step: Callable, bytes_: float = 0, operations: float = 0, **more: Any
) -> None:
    """Reports a timed step beside its floor: bytes to move and operations to do, at the rates that were measured."""
    if check.untimed:
        step()
        return
    facts, precision = check.facts(), "bfloat16" if more.get("precision") == "bfloat16" else "float32"
    spent = timed(step, check.device)
    seconds = max(
        bytes_ / facts.get("bytes_per_second", float("inf")),
        operations / facts.get(f"{precision}_operations_per_second", float("inf")),
    )
    floor = {"floor_ms": 1e3 * seconds, "times_the_floor": spent["milliseconds"] / (1e3 * seconds)} if seconds else {}
    check.report(what, by=by, **spent, **floor, peak_mib=peak_mib(step, check.device), **more)
