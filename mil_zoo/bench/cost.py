"""What an aggregator costs on one large bag: time and peak memory, each measured in a process of its own."""

from __future__ import annotations

import csv
import dataclasses
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mil_zoo.bench.processes import fresh_interpreters
from mil_zoo.config import from_mapping
from mil_zoo.errors import InputError
from mil_zoo.files import replacing, writing

if TYPE_CHECKING:  # the list of aggregators reads the table below and must not wait for torch
    from mil_zoo.data.bag import Bag, BagBatch

INSTANCES, FEATURES = 10_000, 1024
SECONDS, AT_LEAST = 2.0, 3  # a step is repeated for so long, and so often
STEPS = ("eval", "train")


@dataclass(frozen=True)
class Cost:
    """Holds the cost of one bag of ``INSTANCES`` x ``FEATURES`` with an aggregator as the benchmark trains it.

    Attributes:
        name: of the aggregator.
        parameters: numbers trained, with ``FEATURES`` features and two classes.
        eval_ms: median time of ``forward`` in eval mode without gradients, its graph built before; None, as the next
            three are, where it was not measured since the model changed.
        eval_mib: peak of resident memory during it, above the weights and the loaded bag.
        train_ms: median time of a training step: losses, gradients and the update by AdamW.
        train_mib: its peak of resident memory, above weights, optimiser state and bag.
        machine: processor, threads and versions; empty where nothing was measured.
        date: of the measurement, ISO; empty likewise.
    """

    name: str
    parameters: int
    eval_ms: float | None
    eval_mib: float | None
    train_ms: float | None
    train_mib: float | None
    machine: str
    date: str


def measure(name: str, threads: int = 2, plugins: Iterable[str | Path] = ()) -> Cost:
    """Measures a registered aggregator on the CPU, in two fresh processes.

    Args:
        name: of the aggregator.
        threads: of torch and Numba.
        plugins: files that register aggregators.

    Raises:
        InputError: the aggregator failed in the process.
    """
    numbers: dict[str, float] = {}
    for step in STEPS:
        with ProcessPoolExecutor(1, fresh_interpreters()) as process:
            try:
                result = process.submit(_run, name, step, threads, list(plugins)).result()
            except Exception as error:  # of the aggregator, whatever it is
                reason = f"{type(error).__name__}: {error}"
                raise InputError(
                    f"{name} could not be measured on a bag of {INSTANCES:,} instances: {reason}"
                ) from error
        numbers |= {f"{step}_ms": result["ms"], f"{step}_mib": result["mib"]}
    return Cost(
        name=name,
        parameters=int(result["parameters"]),
        **numbers,
        machine=_machine(threads),
        date=date.today().isoformat(),
    )


def read_costs(path: Path | None = None) -> dict[str, Cost]:
    """Reads costs by aggregator, from a file of :func:`write_costs` or, by default, the package's own."""
    if path is not None and not path.exists():
        return {}
    text = (resources.files("mil_zoo.bench") / "costs.csv" if path is None else path).read_text(encoding="utf-8")
    try:
        costs = [from_mapping(Cost, _numbers(row), str(path)) for row in csv.DictReader(text.splitlines())]
    except ValueError as error:
        raise InputError(f"{path} is not a table of costs ({error}); give --measure another file") from error
    return {cost.name: cost for cost in costs}


def _numbers(row: dict[str, str]) -> dict[str, str | float | None]:
    def number(key: str, value: str) -> str | float | None:
        if key == "parameters":
            return int(value)
        if key.endswith(("_ms", "_mib")):
            return float(value) if value else None
        return value

    return {key: number(key, value) for key, value in row.items()}


def write_costs(costs: Iterable[Cost], path: Path) -> None:
    """Writes ``costs`` as CSV, by name."""
    with writing(path), replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(cost) for cost in sorted(costs, key=lambda cost: cost.name))


def _machine(threads: int) -> str:
    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        names = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "numba"))
    return f"{processor}, {threads} threads, Python {platform.python_version()}, {versions}"


def count_parameters(name: str) -> int:
    """Counts the numbers that the benchmark trains in an aggregator, with ``FEATURES`` features and two classes."""
    from mil_zoo.aggregators.registry import create_aggregator

    return sum(parameter.numel() for parameter in create_aggregator(name, FEATURES, 2).parameters())


def _run(name: str, step: str, threads: int, plugins: Iterable[str | Path]) -> dict[str, float]:
    """Measures parameters, time in ms and memory in MiB of one kind of step, in this process."""
    import torch

    from mil_zoo.aggregators.registry import create_aggregator
    from mil_zoo.bench import memory
    from mil_zoo.data.bag import BagBatch
    from mil_zoo.registry import load_plugin

    for plugin in plugins:
        load_plugin(plugin)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    aggregator = create_aggregator(name, FEATURES, 2).train(step == "train")
    optimizer = torch.optim.AdamW(aggregator.parameters(), lr=1e-5, fused=True)
    graph = type(aggregator).graph

    def run(batch: BagBatch) -> None:
        if step == "eval":
            with torch.inference_mode():
                aggregator(batch)
            return
        optimizer.zero_grad(set_to_none=True)
        aggregator.losses(batch)["loss"].backward()
        optimizer.step()

    run(BagBatch.from_bags([_bag(500)], graph=graph))  # compiles kernels and makes the optimiser's state
    optimizer.zero_grad(set_to_none=True)
    batch = BagBatch.from_bags([_bag(INSTANCES)], graph=graph)
    with memory.peak_memory() as peak:
        run(batch)
    times: list[float] = []
    while len(times) < AT_LEAST or sum(times) < SECONDS:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in aggregator.parameters())
    return {"parameters": parameters, "ms": round(1e3 * statistics.median(times), 1), "mib": round(peak.mib, 1)}


def _bag(n: int) -> Bag:
    """Makes a labelled bag of random features on a patch grid with a fifth of its sites empty."""
    import torch

    from mil_zoo.data.bag import Bag

    side = int((1.25 * n) ** 0.5) + 1
    site = torch.randperm(side * side)[:n]
    coords = torch.stack([site % side, site // side], dim=1) * 256.0
    return Bag(features=torch.randn(n, FEATURES), coords=coords, patch_size=256.0, label=1, slide_id="measured")
