"""The run directory: everything a benchmark leaves behind, written so that a kill at any moment loses one trial."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from mil_zoo.config import read_yaml
from mil_zoo.errors import InputError
from mil_zoo.files import write_text


class RunDirectory:
    """Reads and writes one run directory.

    Layout: ``config.yaml`` (the settings), ``splits.csv`` (which slide is in which part), ``trials.jsonl`` (one
    checksummed row a trial, appended atomically), ``trials/<trial>/`` (predictions.csv, epochs.csv, skew.csv,
    attention.h5, weights.safetensors), tables and figures.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """An existing run directory; an ``InputError`` where there is none."""
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise InputError(f"{path} is not a run directory (it has no config.yaml); pass the --out folder of a bench")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The settings the run was started with."""
        return read_yaml(self.path / "config.yaml")

    @contextmanager
    def writing(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Claims the directory for one runner and checks that it holds these settings, or none yet.

        Raises:
            InputError: the directory cannot be written, another runner is at work in it, or it holds another run.
        """
        lock = FileLock(self.path / ".lock", timeout=0, thread_local=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / ".lock").is_symlink():
                raise InputError(f"{self.path / '.lock'} is a link, which a run does not write through; delete it")
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another mil-zoo is writing this run; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); choose another --out") from error
        except NotImplementedError:  # no locks on this file system: two runners are then the user's to avoid
            warnings.warn(f"{self.path} lies where files cannot be locked; start one run there at a time", stacklevel=3)
        try:
            settings = json.loads(json.dumps(settings))
            if (self.path / "config.yaml").exists():
                _same_settings(self.path, self.config, settings)
            else:
                write_text(self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            self._drop_torn_row()
            yield
        finally:
            lock.release()

    def write_text(self, name: str, text: str) -> None:
        """Writes the file ``name`` of the run as a whole."""
        write_text(self.path / name, text)

    def trials(self) -> list[dict[str, Any]]:
        """The rows of ``trials.jsonl``; of a trial that was repeated after a failure, the last.

        Raises:
            InputError: a row was altered after it was written.
        """
        file = self.path / "trials.jsonl"
        rows: dict[str, dict[str, Any]] = {}
        if not file.exists():
            return []
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                intact = isinstance(row, dict) and row.pop("sha256", None) == _checksum(row)
            except json.JSONDecodeError:
                intact = False
            if not intact:
                raise InputError(
                    f"{file}, line {number}: the row was changed after it was written (its checksum differs); "
                    "delete the line and run the same command again to repeat the trial"
                )
            rows[row["trial"]] = row
        return list(rows.values())

    def staging(self, trial: str) -> Path:
        """Where the files of a running trial are written; ``add_trial`` gives them their final place."""
        return self.path / "trials" / f".{trial}.partial"

    def add_trial(self, row: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> None:
        """Stores a finished trial: its files first, under their final name only when complete, then its row.

        Args:
            row: JSON values; "trial" names it. The files of one whose "status" is "failed" are dropped.
            write: writes the trial's files into the folder it is given; None where they lie in ``staging`` already,
                or there are none.
        """
        folder, partial = self.path / "trials" / row["trial"], self.staging(row["trial"])
        if write is not None:
            write(empty_folder(partial))
        if row.get("status") == "failed":
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        line = json.dumps({**row, "sha256": _checksum(row)}) + "\n"
        with open(self.path / "trials.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def predictions(self, trial: str) -> pd.DataFrame:
        """slide_id, patient_id, split, label, prob_0 ... of a trial."""
        return self._csv(trial, "predictions.csv", dtype={"slide_id": str, "patient_id": str})

    def epochs(self, trial: str) -> pd.DataFrame:
        """One row an epoch of a trial: losses, scores, seconds, which was selected."""
        return self._csv(trial, "epochs.csv")

    def skew(self, trial: str) -> pd.DataFrame:
        """epoch, slide_id, split, name, value of a trial; empty for an aggregator without attention."""
        if not (self.path / "trials" / trial / "skew.csv").exists():
            empty: pd.DataFrame = pd.DataFrame(columns=["epoch", "slide_id", "split", "name", "value"])
            return empty
        return self._csv(trial, "skew.csv", dtype={"slide_id": str})

    def attention(self, trial: str) -> Path:
        """Where the attention of the trial's test slides lies (absent for an aggregator without attention)."""
        return self.path / "trials" / trial / "attention.h5"

    def _csv(self, trial: str, name: str, **options: Any) -> pd.DataFrame:
        path = self.path / "trials" / trial / name
        try:
            table: pd.DataFrame = pd.read_csv(path, float_precision="round_trip", **options)
            return table
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing although the trial finished; delete its row in trials.jsonl and run again"
            ) from None

    def _drop_torn_row(self) -> None:
        """Removes what a kill left of a row that was being appended (it has no newline yet)."""
        file = self.path / "trials.jsonl"
        if file.exists() and not (content := file.read_bytes()).endswith(b"\n") and content:
            os.truncate(file, content.rfind(b"\n") + 1)


def empty_folder(path: Path) -> Path:
    """Makes the folder ``path``, without what it held before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _checksum(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def _same_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differences = _differences(old, new)
    if differences:
        raise InputError(
            f"{path} holds a run of other settings ({'; '.join(differences[:5])}); "
            "choose another --out or repeat its settings"
        )


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]
