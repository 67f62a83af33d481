"""The demo's slides, kept in a file between runs."""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.demo import simulate
from mil_zoo.data.demo.simulate import HARD, DemoParameters, simulate_demo
from mil_zoo.files import refuse_pipe, replacing

DEMOS = {"demo": (120, DemoParameters()), "demo_hard": (80, HARD)}
"""Number of slides and numbers of the simulation, by the card's name."""

_PER_PATCH = ("features", "coords", "instance_labels")
_PER_SLIDE = ("label", "slide_id", "patient_id", "patch_size")


def load_demo(cache_dir: Path | None = None, name: str = "demo") -> list[Bag]:
    """The slides of the card ``demo``, or of ``demo_hard``, kept in a file after the first call.

    A file that cannot be read is warned about and written again; where nothing can be written, nothing is.

    Args:
        cache_dir: the folder; default ``$XDG_CACHE_HOME/mil-zoo``, else ``~/.cache/mil-zoo``.
        name: of the card.
    """
    number, parameters = DEMOS[name]
    try:
        folder = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mil-zoo"
    except RuntimeError:  # a user without a home
        return simulate_demo(number, parameters=parameters)
    # Named after the code that makes and writes it, so that a change of that never serves old slides.
    code = b"".join(Path(source).read_bytes() for source in (simulate.__file__, __file__))
    path = Path(folder) / f"{name}-{hashlib.sha256(code).hexdigest()[:12]}.npz"
    try:
        refuse_pipe(path)
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # truncated, overwritten, forbidden, ...: whatever it is, the remedy is the same
        warnings.warn(f"{path} cannot be read ({error}); the demo is simulated and written again", stacklevel=2)
    bags = simulate_demo(number, parameters=parameters)
    with suppress(OSError):  # a cache saves seconds; a read-only home is no reason to fail
        _write(path, bags)
    return bags


def _write(path: Path, bags: list[Bag]) -> None:
    arrays = {name: np.concatenate([getattr(bag, name) for bag in bags]) for name in _PER_PATCH}
    arrays |= {name: np.array([getattr(bag, name) for bag in bags]) for name in _PER_SLIDE}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, offsets=np.cumsum([0, *map(len, bags)]), **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> list[Bag]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("offsets", *_PER_PATCH, *_PER_SLIDE)}
    bags = []
    for i, (start, end) in enumerate(pairwise(arrays["offsets"])):
        values: dict[str, Any] = {name: torch.from_numpy(arrays[name][start:end]) for name in _PER_PATCH}
        bags.append(Bag(**values, **{name: arrays[name][i].item() for name in _PER_SLIDE}))
    return bags
