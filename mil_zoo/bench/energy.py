"""Energy that a trial took, from counters of the machine: RAPL of CPUs, NVML of GPUs; nothing where there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


@dataclass
class Energy:
    """What the counters counted.

    Attributes:
        joules: of all packages and visible GPUs together; None where there is no counter, or none that may be read.
    """

    joules: float | None = None


@contextmanager
def energy(rapl: Path = RAPL) -> Iterator[Energy]:
    """Counts the energy that is used meanwhile.

    The counters are of whole processors, so what else runs on them is counted too.

    Args:
        rapl: folder of the CPUs' counters; on many machines only root may read them.
    """
    used = Energy()
    counters: list[_Package | _Gpu] = [*_packages(rapl), *_gpus()]
    before = [counter.read() for counter in counters]
    yield used
    with suppress(Exception):  # a counter that is gone meanwhile costs its number, not the trial
        after = [counter.read() for counter in counters]
        pairs = zip(counters, before, after, strict=True)
        joules = [(now - then) % counter.span * counter.unit for counter, then, now in pairs]
        used.joules = sum(joules) if joules else None


@dataclass(frozen=True)
class _Package:
    """The counter of a processor, in microjoules, which begins anew at ``span``."""

    file: Path
    span: int
    unit: float = 1e-6

    def read(self) -> int:
        return int(self.file.read_text())


def _packages(rapl: Path) -> list[_Package]:
    found = []
    for folder in sorted(rapl.glob("intel-rapl:[0-9]*")):  # also of AMD's; intel-rapl:0:1 is a part of intel-rapl:0
        if folder.name.count(":") == 1:
            with suppress(OSError, ValueError):
                package = _Package(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()) + 1)
                package.read()
                found.append(package)
    return found


@dataclass(frozen=True)
class _Gpu:
    """The counter of a GPU, in millijoules."""

    nvml: Any
    handle: Any
    span: int = 2**64
    unit: float = 1e-3

    def read(self) -> int:
        return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))


def _gpus() -> list[_Gpu]:
    """Those that this process may see; none without the package nvidia-ml-py."""
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = range(pynvml.nvmlDeviceGetCount()) if visible is None else filter(None, visible.split(","))
        found = []
        for name in names:
            by_index = str(name).isdigit()
            handle = (
                pynvml.nvmlDeviceGetHandleByIndex(int(name))
                if by_index
                else pynvml.nvmlDeviceGetHandleByUUID(str(name))
            )
            gpu = _Gpu(pynvml, handle)
            gpu.read()
            found.append(gpu)
        return found
    except Exception:  # not installed, no driver, or a GPU without such a counter
        return []
