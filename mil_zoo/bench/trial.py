"""One trial as a unit of work: a value that says all there is to do, and the function that does it anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil_zoo.bench import memory
from mil_zoo.bench.energy import Energy, energy
from mil_zoo.bench.machine import machine_name
from mil_zoo.bench.outcome import (
    metrics_of,
    notes_of,
    patients_of,
    predictions_of,
    scores_of_last,
    scores_of_patients,
    weights_file,
    write_files,
    write_test_embeddings,
)
from mil_zoo.bench.parts import Parts, few_labels, split_bags
from mil_zoo.bench.plan import TrialPlan
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.run_directory import empty_folder
from mil_zoo.bench.suite import Suite
from mil_zoo.bench.tuning import Training, Tuned, tune
from mil_zoo.bench.warm_up import warm_up
from mil_zoo.data.bags import Bags
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError, Terminated
from mil_zoo.kernels.backends import set_threads
from mil_zoo.registry import load_plugin, no_silent_exit
from mil_zoo.train.checkpoint import CheckpointPlace
from mil_zoo.train.device import default_device
from mil_zoo.train.protocols import TrialContext, TrialResult, run_protocol

TRACEBACK = "traceback.txt"  # of a failed trial
TUNING = "tuning.csv"  # of a tuned trial: its configurations
LONGEST = 500  # signs of the reason why a trial failed


@dataclass(frozen=True)
class Job:
    """A trial with all that a process needs to run it; it can be pickled.

    Attributes:
        trial: model, split and seed.
        source: how to open the dataset.
        folder: where its files go.
        suite: whose settings of all trials apply (threads, shuffled labels, explanations).
        plugins: files to import first.
        place: where its unfinished training lies, for the next attempt to continue; None for nowhere.
        alone: whether no other trial of the run uses the processors meanwhile, so that their energy is its own.
        spared: plugins among them that the trial is tried without, should they fail to import.
    """

    trial: TrialPlan
    source: DatasetSource
    folder: Path
    suite: Suite
    plugins: tuple[Path, ...] = ()
    place: CheckpointPlace | None = None
    alone: bool = False
    spared: tuple[Path, ...] = ()

    def outcome(self, **more: Any) -> Trial:
        """What came of the trial: what is known before it runs, and ``more``."""
        model, split = self.trial.model, self.trial.split
        return dataclasses.replace(
            Trial(
                trial=self.trial.id,
                aggregator=model.name,
                grid=model.grid,
                features=model.features,
                repeat=split.repeat,
                fold=split.fold,
                seed=self.trial.seed,
                n_train=len(split.train) + len(split.withheld),
                n_val=len(split.val),
                n_test=len(split.test),
            ),
            **more,
        )

    def failed(self, reason: str) -> Trial:
        """The outcome of a trial that came to nothing. Half a surrogate pair in the reason is spelled out."""
        return self.outcome(status="failed", reason=reason.encode("utf-8", "backslashreplace").decode("utf-8"))


class Worker:
    """Runs trials one after the other and keeps the datasets, and the bags of the last split, for the next.

    Args:
        source: a dataset that is open already,
        dataset: and where it came from.
    """

    def __init__(self, source: DatasetSource | None = None, dataset: Dataset | None = None) -> None:
        self._datasets = {} if source is None or dataset is None else {source: dataset}
        self._kept: dict[str, Any] = {}  # what protocols keep for the next trials
        self._warm: set[tuple[str, DatasetSource]] = set()  # whose kernels are compiled in this process
        self._last: tuple[DatasetSource, Split, int | None] | None = None
        self._bags: tuple[Parts, Standardiser | None] | None = None

    def run(self, job: Job, on_epoch: Callable[[Row], None] = lambda row: None) -> Trial:
        """Runs a trial and writes its files into ``job.folder``, which holds nothing else afterwards.

        What an aggregator does wrong makes a failed trial whose only file is the traceback.

        Args:
            job: the trial.
            on_epoch: called with the row of every epoch.

        Returns:
            What came of it.

        Raises:
            OSError: its files could not be written.
        """
        torch.set_grad_enabled(True)  # what a plugin changed for all is not for the next trial
        torch.set_default_dtype(torch.float32)
        try:
            for plugin in job.plugins:
                with contextlib.suppress(*[InputError] * (plugin in job.spared)):
                    load_plugin(plugin)
            dataset, (bags, standardiser) = self._open(job)
            bags = few_labels(bags, job.trial, dataset.task)
            context, tuned = _context(job, dataset, bags, on_epoch, self._kept), None
            with trial_threads(job.suite.threads), no_silent_exit():
                if (kind := (job.trial.model.label, job.source)) not in self._warm:
                    self._warm.add(kind)
                    warm_up(context)
                with _peak_memory() as peak, energy() if job.alone else contextlib.nullcontext(Energy()) as used:
                    if job.suite.tune is None:
                        result = run_protocol(context)
                    else:
                        tuned = self._tuned(job, dataset, bags, on_epoch)
                        result = tuned.result
            predictions = predictions_of(bags, result)
            patients = patients_of(bags, result, dataset.patient_rule)
            scored = predictions if patients is None else patients
            spent, tested = [epoch["seconds"] for epoch in result.epochs], len(bags["test"])
            outcome = job.outcome(
                n_labelled=len(bags["train"]),
                n_val=len(bags["val"]),
                metrics=metrics_of(result.task, scored, "test"),
                val_metrics=metrics_of(result.task, scored, "val"),
                notes=notes_of(result.task, scored),
                **scores_of_patients(result.task, predictions, dataset.patient_rule),
                last_metrics=scores_of_last(bags, result, dataset.patient_rule),
                epochs=len(result.epochs),
                selected_epoch=next(epoch["epoch"] for epoch in result.epochs if epoch["selected"]),
                parameters=result.parameters,
                seconds_per_epoch=_seconds_per_epoch(result.epochs),
                peak_mem_mib=None if np.isnan(peak.mib) else peak.mib,
                settings={} if tuned is None else tuned.settings,
                training_seconds=sum(spent) if tuned is None else tuned.seconds,
                machine=machine_name(default_device()),
                inference_ms=None if result.inference_seconds is None else 1000 * result.inference_seconds / tested,
            )
            outcome = dataclasses.replace(outcome, energy_j=used.joules)
            weights = weights_file(result.weights)
        except BaseException as error:  # whatever an aggregator does wrong, the other trials go on
            keyboard = isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
            if keyboard or isinstance(error, Terminated):
                raise  # where the keyboard is ignored the aggregator raised it
            (empty_folder(job.folder) / TRACEBACK).write_text(
                "".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace"
            )
            if job.place is not None:  # continued it would fail again
                shutil.rmtree(job.place.folder, ignore_errors=True)
            return job.failed(_reason(error, job.plugins))
        write_files(empty_folder(job.folder), predictions, patients, result, weights, standardiser, dataset.task)
        if job.suite.embeddings:
            write_test_embeddings(job.folder, result)
        if tuned is not None:
            pd.DataFrame(tuned.rows).to_csv(job.folder / TUNING, index=False, lineterminator="\n")
        return outcome

    def _tuned(self, job: Job, dataset: Dataset, bags: Parts, on_epoch: Callable[[Row], None]) -> Tuned:
        def train(training: Training) -> TrialResult:
            def told(row: Row) -> None:
                on_epoch(row | {"training": training.number})

            trial = dataclasses.replace(job.trial, model=training.model)
            asked: dict[str, Any] = {} if training.chosen else {"faithfulness": [], "explain": []}
            suite = dataclasses.replace(job.suite, **asked)
            one = dataclasses.replace(job, trial=trial, place=training.place, suite=suite)
            return run_protocol(_context(one, dataset, dict(training.bags), told, self._kept))

        def score(parts: Mapping[str, Bags], result: TrialResult, part: str) -> dict[str, float | None]:
            predictions = predictions_of(dict(parts), result)
            patients = patients_of(dict(parts), result, dataset.patient_rule)
            return metrics_of(result.task, predictions if patients is None else patients, part)

        with contextlib.ExitStack() as stack:
            place = job.place
            if place is None:
                place = CheckpointPlace(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mil-zoo-"))))
            return tune(job.trial, job.suite, dataset.task, bags, place, train, score)

    def _open(self, job: Job) -> tuple[Dataset, tuple[Parts, Standardiser | None]]:
        if job.source not in self._datasets:
            self._datasets[job.source] = open_dataset(job.source)
        shuffle = job.trial.seed if job.suite.permute_labels else None
        dataset, wanted = self._datasets[job.source], (job.source, job.trial.split, shuffle)
        if self._bags is None or self._last != wanted:
            self._last, self._bags = wanted, split_bags(dataset, job.trial.split, shuffle, job.suite.project)
        return dataset, self._bags


def _context(
    job: Job, dataset: Dataset, bags: Parts, on_epoch: Callable[[Row], None], kept: dict[str, Any]
) -> TrialContext:
    model, split, seed = job.trial.model, job.trial.split, job.trial.seed
    return TrialContext(
        name=model.name,
        options=model.options,
        graph=model.graph,
        training=model.training,
        in_dim=bags["train"].dim,
        task=dataset.task,
        bags=bags,
        seed=int(np.random.SeedSequence([seed, split.repeat, split.fold]).generate_state(1)[0]),
        device=default_device(),
        on_epoch=on_epoch,
        patient_rule=dataset.patient_rule,
        faithfulness=job.suite.faithfulness,
        explain=job.suite.explain,
        kept=kept,
        place=job.place,
    )


def _reason(error: BaseException, plugins: Sequence[Path]) -> str:
    """Why a trial failed, in one line; of a plugin's error also the plugin's line."""
    try:
        what = f"it left Python (exit code {error.code})" if isinstance(error, SystemExit) else str(error)
    except Exception as second:
        what = f"what it says cannot be told ({type(second).__name__})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in plugins]
    shown = re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", what[:LONGEST]).strip()  # no line ends, no escapes of terminals
    what = f"{shown} ... (all of it is in {TRACEBACK})" if len(what) > LONGEST else shown
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {what}{where}"


@contextlib.contextmanager
def trial_threads(number: int) -> Iterator[None]:
    """Sets how many CPU threads torch and the kernels use."""
    before = torch.get_num_threads()
    set_threads(number)
    try:
        yield
    finally:
        set_threads(before)


@contextlib.contextmanager
def _peak_memory() -> Iterator[memory.Peak]:
    """Measures the memory that a trial takes, of the GPU where one is used, above what was held before."""
    if not torch.cuda.is_available():
        with memory.peak_memory() as peak:
            yield peak
        return
    torch.cuda.reset_peak_memory_stats()
    before, peak = torch.cuda.memory_allocated(), memory.Peak()
    yield peak
    peak.mib = (torch.cuda.max_memory_allocated() - before) / 2**20


def _seconds_per_epoch(epochs: Sequence[Row]) -> float:
    """Mean over the epochs but the first, in which kernels are compiled and files read for the first time."""
    return float(np.mean([epoch["seconds"] for epoch in epochs[1:] or epochs]))
