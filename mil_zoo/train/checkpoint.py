"""A training that is killed continues: what it needs for that, in one file that is written as a whole."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil_zoo.files import refuse_pipe, write_bytes

_LOG = logging.getLogger("mil_zoo")
AT_EPOCH_ENDS = 10.0  # seconds: shorter epochs do not write a file each


@dataclass(frozen=True)
class CheckpointPlace:
    """Where the unfinished training of a trial lies, and how often it is written.

    Attributes:
        folder: of the trial; whoever runs the trial removes it in the end.
        seconds: between two files within an epoch. At the end of an epoch ten seconds are enough.
        keep_finished: write the state of the finished training too, however short it was, so that a second call takes
            it up and trains nothing.
    """

    folder: Path
    seconds: float = 180.0
    keep_finished: bool = False

    def of(self, name: str, keep_finished: bool = False) -> CheckpointPlace:
        """The place of one of several trainings of the trial."""
        return CheckpointPlace(self.folder / name, self.seconds, keep_finished)


class Checkpoint:
    """Writes and reads the state of a training.

    The file holds tensors, numbers, texts, lists and mappings; it is read without executing anything. One that cannot
    be read is of no use, and the training starts anew.

    Args:
        place: where and how often; None for a training that keeps nothing.
        beside: what else belongs to the training: gives its state, and takes one up.
    """

    def __init__(
        self,
        place: CheckpointPlace | None,
        beside: tuple[Callable[[], Any], Callable[[Any], None]] = (lambda: None, lambda state: None),
    ) -> None:
        self._place, self._beside = place, beside
        self._saved = time.monotonic()

    @property
    def path(self) -> Path | None:
        """The file; None where nothing is kept."""
        return None if self._place is None else self._place.folder / "training.pt"

    def due(self, within_epoch: bool, finished: bool = False) -> bool:
        """Whether the state should be written now."""
        if self._place is None:
            return False
        if finished and self._place.keep_finished:
            return True
        wait = self._place.seconds if within_epoch else min(self._place.seconds, AT_EPOCH_ENDS)
        return time.monotonic() - self._saved >= wait

    def save(self, state: Mapping[str, Any], device: str) -> None:
        """Writes the state, with that of torch's random numbers and of what stands beside the training."""
        assert self.path is not None
        whole = {**state, "beside": self._beside[0](), "random": torch.get_rng_state()}
        if torch.device(device).type == "cuda":
            whole["random_of_gpu"] = torch.cuda.get_rng_state(device)
        content = io.BytesIO()
        torch.save(_plain(whole), content)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, content.getvalue())
        self._saved = time.monotonic()

    def load(self, device: str) -> dict[str, Any] | None:
        """The state, its random numbers and what stands beside taken up; None where there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            refuse_pipe(self.path)
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            torch.set_rng_state(state["random"])
        except Exception as error:  # torch has many errors for a damaged file, none in common
            _LOG.warning("mil-zoo: %s cannot be read (%s); the training starts anew", self.path, type(error).__name__)
            return None
        if "random_of_gpu" in state and torch.device(device).type == "cuda":
            torch.cuda.set_rng_state(state["random_of_gpu"], device)
        self._beside[1](state["beside"])
        return state


def _plain(value: Any) -> Any:
    """The value without numpy's kinds of numbers and noted ones, which a file that executes nothing cannot hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [*map(_plain, value)]
    if isinstance(value, np.generic):
        return value.item()
    return float(value) if isinstance(value, float) else value
