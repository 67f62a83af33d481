"""The attention that the trials of a run stored, each file opened once however many tables and figures ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np

OPEN = 256  # files at a time: systems allow a process 1024, and more than these are opened again


class AttentionStore:
    """``attention.h5`` of every trial, read a slide at a time: a run may hold more than memory does.

    Args:
        path_of: where the file of a trial lies; there need not be one.
    """

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        self._path_of = path_of
        self._files: OrderedDict[str, h5py.File] = OrderedDict()  # those that are open
        self._without: set[str] = set()  # trials that have none
        self._slides: dict[str, dict[str, dict[str, Any]]] = {}

    def slides(self, trial: str) -> dict[str, dict[str, Any]]:
        """What is known of every slide of a trial by its id, in the order of the ids; {} for one without attention.

        Each holds the attributes ``slide_id``, ``label``, ``predicted``, ``patch_size`` (NaN: unknown), the number of
        instances ``n``, and ``arrays``, the names of what :meth:`read` finds.
        """
        if trial not in self._slides:
            file = self._open(trial)
            groups = [] if file is None else [file[key] for key in sorted(file)]
            self._slides[trial] = {
                str(group.attrs["slide_id"]): dict(group.attrs) | {"n": len(group["attention"]), "arrays": set(group)}
                for group in groups
            }
        return self._slides[trial]

    def read(self, trial: str, slide: str, name: str) -> np.ndarray | None:
        """An array of a slide: ``attention [N]``, ``coords [N, 2]``, ``instance_labels [N]``, ``head_attention [N, H]``
        or ``instance_scores [N]``; None where it was not stored."""
        file = self._open(trial)
        group = {} if file is None else file[quote(slide, safe="")]
        return np.asarray(group[name][:]) if name in group else None

    def close(self) -> None:
        """Closes every file; they open again when asked for."""
        while self._files:
            self._files.popitem()[1].close()

    def _open(self, trial: str) -> h5py.File | None:
        if trial not in self._files and trial not in self._without:
            path = self._path_of(trial)
            if not path.exists():
                self._without.add(trial)
                return None
            if len(self._files) >= OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[trial] = h5py.File(path)
        return self._files.get(trial)
