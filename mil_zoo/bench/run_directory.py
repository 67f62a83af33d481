"""The run directory: everything a benchmark leaves behind, written so that a kill at any moment loses one trial."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from mil_zoo.bench.run_settings import refuse_other_settings
from mil_zoo.bench.trial_csv import read_csv, read_together
from mil_zoo.config import read_yaml, yaml_text
from mil_zoo.errors import InputError, as_path
from mil_zoo.files import refuse_link, refuse_pipe, write_text

CHANGED = "was changed after the trial wrote it (its checksum differs)"


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
        self._checked: set[Path] = set()  # files that were found to be what their trial wrote
        self._digests: dict[str, Mapping[str, str]] | None = None  # of the rows, once they were read

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """An existing run directory; an ``InputError`` where there is none."""
        run = cls(as_path(path, "path", "the --out folder of a bench"))
        if not (run.path / "config.yaml").is_file():
            raise InputError(f"{path} is not a run directory (it has no config.yaml); pass the --out folder of a bench")
        for file in run.path.iterdir():
            refuse_pipe(file)
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The settings the run was started with.

        Raises:
            InputError: they cannot be read, or were changed since.
        """
        path = self.path / "config.yaml"
        settings = read_yaml(path)
        known = settings.pop("sha256", None)
        if known not in (None, _checksum(settings)):
            raise InputError(
                f"{path} was changed after the run wrote it (its checksum differs); bring it back, or start the bench "
                "with another --out"
            )
        return settings

    @contextmanager
    def writing(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Claims the directory for one runner and checks that it holds these settings, or none yet.

        Plugins are compared by their content, wherever they lie.

        Raises:
            InputError: the directory cannot be written, another runner is at work in it, or it holds another run.
        """
        lock = FileLock(self.path / ".lock", timeout=0, thread_local=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.refuse_links()
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
                refuse_other_settings(self.path, self.config, settings)
            elif any(row.get("status") == "ok" for row in self.trials()):
                raise InputError(
                    f"{self.path} holds finished trials and no config.yaml, which says how they were made; bring it "
                    "back, or choose another --out"
                )
            else:
                known = {"sha256": _checksum(settings), **settings}  # first: a file cut short still has it
                write_text(self.path / "config.yaml", yaml_text(known))
            self._drop_torn_row()
            yield
        finally:
            lock.release()

    def refuse_links(self) -> None:
        """Raises an ``InputError`` where something in the directory is a link, which would be written through, or a
        pipe."""
        for folder in (self.path, self.path / "figures", self.path / "trials"):
            for path in folder.iterdir() if folder.is_dir() else ():
                refuse_link(path)
                refuse_pipe(path)

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
        try:
            text = file.read_text(encoding="utf-8", errors="replace")  # what was no text has another checksum
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); bring it back, or delete it and run the same command again"
            ) from error
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                intact = isinstance(row, dict) and row.pop("sha256", None) == _checksum(row)
            except (json.JSONDecodeError, RecursionError):
                intact = False
            if not intact:
                raise InputError(
                    f"{file}, line {number}: the row was changed after it was written (its checksum differs); "
                    "delete the line and run the same command again to repeat the trial"
                )
            rows[row["trial"]] = row
        self._digests = {trial: row.get("files", {}) for trial, row in rows.items()}
        return list(rows.values())

    def table(self, name: str, needs: Sequence[str] = ()) -> pd.DataFrame | None:
        """A csv of the run itself, as text ("splits.csv", "covariates.csv", ...); None where there is none.

        Raises:
            InputError: it cannot be read, lacks a column that is needed, or was changed as far as ``config.yaml`` says.
        """
        path = self.path / name
        if not path.exists():
            return None
        refuse_pipe(path)
        try:
            content = path.read_bytes()
            known = self.config.get("split", {}).get("file") if name == "splits.csv" else None
            if known not in (None, hashlib.sha256(content).hexdigest()):
                raise ValueError("its checksum differs from that in config.yaml")
            found: pd.DataFrame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            if missing := [column for column in needs if column not in found]:
                raise ValueError(f"it has no column {missing[0]!r}")
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} was changed or cannot be read ({error}); start the bench with --out {self.path} again, which "
                "writes it"
            ) from error
        return found

    def staging(self, trial: str) -> Path:
        """Where the files of a running trial are written; ``add_trial`` gives them their final place."""
        return self.path / "trials" / f".{trial}.partial"

    def unfinished(self, trial: str) -> Path:
        """Where the unfinished training of a trial lies, for the next start to continue."""
        return self.path / "trials" / f".{trial}.unfinished"

    def add_trial(self, row: Mapping[str, Any], write: Callable[[Path], None] | None = None) -> None:
        """Stores a finished trial: its files first, under their final name only when complete, then its row.

        Args:
            row: JSON values; "trial" names it. The SHA-256 of its files is added.
            write: writes the trial's files into the folder it is given; None where they lie in ``staging`` already,
                or there are none.
        """
        folder, partial = self.path / "trials" / row["trial"], self.staging(row["trial"])
        if write is not None:
            write(empty_folder(partial))
        if partial.exists():
            row = {**row, "files": {path.name: _sha256(path) for path in sorted(partial.iterdir())}}
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        line = json.dumps({**row, "sha256": _checksum(row)}) + "\n"
        with open(self.path / "trials.jsonl", "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._digests = None

    def predictions(self, trial: str) -> pd.DataFrame:
        """slide_id, patient_id, split, label, prob_0 ... of a trial."""
        return self._csv(trial, "predictions.csv")

    def epochs(self, trial: str) -> pd.DataFrame:
        """One row an epoch of a trial: losses, scores, seconds, which was selected."""
        return self._csv(trial, "epochs.csv")

    def tuning(self, trial: str) -> pd.DataFrame:
        """The configurations of a tuned trial, see ``mil_zoo.bench.tuning``."""
        return self._csv(trial, "tuning.csv")

    def skew(self, trial: str) -> pd.DataFrame:
        """epoch, slide_id, split, name, value of a trial; empty for an aggregator without attention."""
        name = "skew.csv"
        if name not in self._files(trial) and not self.path_of(trial, name).exists():
            empty: pd.DataFrame = pd.DataFrame(columns=["epoch", "slide_id", "split", "name", "value"])
            return empty
        return self._csv(trial, name)

    def tables(self, trials: Sequence[str], name: str) -> dict[str, pd.DataFrame]:
        """A csv of several trials, each as :meth:`predictions` and its like give it, in a fraction of their time.

        Files of one header are read as one. A column's type is that of a file alone: one that is all whole numbers, in
        a column that is not so elsewhere, is read once more by itself.

        Raises:
            InputError: a file is missing or was changed.
        """
        found = read_together({trial: self.read(trial, name) for trial in trials})
        return {trial: self._csv(trial, name) if (table := found.get(trial)) is None else table for trial in trials}

    def attention(self, trial: str) -> Path:
        """Where the attention of the trial's test slides lies (absent for an aggregator without attention)."""
        path = self.path_of(trial, "attention.h5")
        if path.exists() or path.name in self._files(trial):
            self.checked(trial, path.name)
        return path

    def path_of(self, trial: str, name: str) -> Path:
        """Where the file ``name`` of a trial lies."""
        return self.path / "trials" / trial / name

    def read(self, trial: str, name: str) -> bytes:
        """The content of a trial's file, once it is what the trial wrote.

        Raises:
            InputError: the file is missing, cannot be read, or was changed since.
        """
        refuse_pipe(self.path_of(trial, name))
        try:
            content = self.path_of(trial, name).read_bytes()
        except OSError as error:
            raise self._damaged(trial, name, f"cannot be read ({error.strerror})") from error
        known = self._files(trial).get(name)
        if known is not None and hashlib.sha256(content).hexdigest() != known:
            raise self._damaged(trial, name, CHANGED)
        return content

    def checked(self, trial: str, name: str) -> Path:
        """Where a trial's file lies, once it is what the trial wrote; errors as in :meth:`read`. It is read once."""
        path = self.path_of(trial, name)
        if path not in self._checked:
            refuse_pipe(path)
            try:
                found = _sha256(path)
            except OSError as error:
                raise self._damaged(trial, name, f"cannot be read ({error.strerror})") from error
            if found != self._files(trial).get(name, found):
                raise self._damaged(trial, name, CHANGED)
            self._checked.add(path)
        return path

    def damage(self, trial: str) -> str:
        """What is wrong with the files of a finished trial, as a sentence; "" where they are what it wrote."""
        try:
            for name in self._files(trial):
                self.checked(trial, name)
        except InputError as error:
            return str(error)
        return ""

    def _files(self, trial: str) -> Mapping[str, str]:
        """SHA-256 of the files of a trial by name, as its row says; {} for a trial without a row or files."""
        if self._digests is None:
            self.trials()
        return (self._digests or {}).get(trial, {})

    def _csv(self, trial: str, name: str) -> pd.DataFrame:
        try:
            table = read_csv(self.read(trial, name))
        except (ValueError, pd.errors.ParserError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(trial, name, f"is no table ({error})") from error
        return table

    def _damaged(self, trial: str, name: str, what: str) -> InputError:
        return InputError(
            f"{self.path_of(trial, name)} {what}; start the bench with --out {self.path} again, which repeats the trial"
        )

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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _checksum(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
