"""One trial as a unit of work: a value that says all there is to do, and the function that does it anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import save

from mil_zoo.bench import memory
from mil_zoo.bench.energy import Energy, energy
from mil_zoo.bench.plan import TrialPlan
from mil_zoo.bench.results import Row, Trial
from mil_zoo.bench.run_directory import empty_folder
from mil_zoo.bench.suite import Suite
from mil_zoo.bench.tuning import Training, Tuned, tune
from mil_zoo.bench.warm_up import warm_up
from mil_zoo.data.bags import Bags, as_bags
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.source import DatasetSource
from mil_zoo.data.splits.few_labels import choose_labelled
from mil_zoo.data.splits.split import Split, patient_key
from mil_zoo.kernels.backends import set_threads
from mil_zoo.noted import note_of
from mil_zoo.registry import load_plugin
from mil_zoo.tasks import Task, task_settings
from mil_zoo.train.checkpoint import CheckpointPlace
from mil_zoo.train.device import default_device
from mil_zoo.train.protocols import TrialContext, TrialResult, run_protocol
from mil_zoo.train.steps import of_patients

TASK = "task.json"  # the task that a trial fitted to its training slides, where that is not the run's
STAGES = "stages.json"  # what a model learned before its training, and from which slides, where it does
TRACEBACK = "traceback.txt"  # of a failed trial
EMBEDDINGS = "embeddings.npy"  # of the test slides, in the order of predictions.csv
TUNING = "tuning.csv"  # of a tuned trial: its configurations
Parts = dict[str, Bags]


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
    """

    trial: TrialPlan
    source: DatasetSource
    folder: Path
    suite: Suite
    plugins: tuple[Path, ...] = ()
    place: CheckpointPlace | None = None
    alone: bool = False

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
        try:
            for plugin in job.plugins:
                load_plugin(plugin)
            dataset, (bags, standardiser) = self._open(job)
            bags = few_labels(bags, job.trial, dataset.task)
            context, tuned = _context(job, dataset, bags, on_epoch, self._kept), None
            with trial_threads(job.suite.threads):
                if (kind := (job.trial.model.label, job.source)) not in self._warm:
                    self._warm.add(kind)
                    warm_up(context)
                with _peak_memory() as peak, energy() if job.alone else contextlib.nullcontext(Energy()) as used:
                    if job.suite.tune is None:
                        result = run_protocol(context)
                    else:
                        tuned = self._tuned(job, dataset, bags, on_epoch)
                        result = tuned.result
            predictions = _predictions(bags, result)
            patients = _patients(bags, result, dataset.patient_rule)
            scored = predictions if patients is None else patients
            spent, tested = [epoch["seconds"] for epoch in result.epochs], len(bags["test"])
            outcome = job.outcome(
                n_labelled=len(bags["train"]),
                n_val=len(bags["val"]),
                metrics=_score(result.task, scored, "test"),
                val_metrics=_score(result.task, scored, "val"),
                notes=_notes(result.task, scored),
                **_patient_level(result.task, predictions, dataset.patient_rule),
                last_metrics=_of_last(bags, result, dataset.patient_rule),
                epochs=len(result.epochs),
                selected_epoch=next(epoch["epoch"] for epoch in result.epochs if epoch["selected"]),
                parameters=result.parameters,
                seconds_per_epoch=_seconds_per_epoch(result.epochs),
                peak_mem_mib=None if np.isnan(peak.mib) else peak.mib,
                settings={} if tuned is None else tuned.settings,
                training_seconds=sum(spent) if tuned is None else tuned.seconds,
                inference_ms=None if result.inference_seconds is None else 1000 * result.inference_seconds / tested,
            )
            outcome = dataclasses.replace(outcome, energy_j=used.joules)
            weights = _weights(result.weights)
        except (Exception, SystemExit) as error:  # whatever an aggregator does wrong, the other trials go on
            (empty_folder(job.folder) / TRACEBACK).write_text(
                "".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace"
            )
            if job.place is not None:  # continued it would fail again
                shutil.rmtree(job.place.folder, ignore_errors=True)
            return job.failed(_reason(error, job.plugins))
        _write(empty_folder(job.folder), predictions, patients, result, weights, standardiser, dataset.task)
        if result.embeddings is not None and job.suite.embeddings:
            np.save(job.folder / EMBEDDINGS, _halved(result.embeddings), allow_pickle=False)
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
            predictions = _predictions(dict(parts), result)
            patients = _patients(dict(parts), result, dataset.patient_rule)
            return _score(result.task, predictions if patients is None else patients, part)

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
            self._last, self._bags = wanted, split_bags(dataset, job.trial.split, shuffle)
        return dataset, self._bags


def split_bags(dataset: Dataset, split: Split, shuffle: int | None = None) -> tuple[Parts, Standardiser | None]:
    """The bags of "train", "val", "test" and "unlabelled", and what standardised them where the card says so.

    With a seed to ``shuffle`` by, training and validation slides get each other's labels, others for every seed; of
    survival patients get each other's time and event together, the same for all slides of a patient.
    "unlabelled" is every slide of a patient who is not tested, for methods that learn without labels.
    """
    slides = {part: getattr(split, part) for part in ("train", "val", "test")}
    tested = {patient_key(slide) for slide in dataset.bags.select(split.test).slides}
    slides["unlabelled"] = [slide.slide_id for slide in dataset.bags.slides if patient_key(slide) not in tested]
    bags, standardiser = dataset.bags, None
    if dataset.card.standardise:
        standardiser = Standardiser.fit(bags.select(split.train))
        bags = as_bags([standardiser(bag) for bag in bags])
    parts: Parts = {part: bags.select(ids) for part, ids in slides.items()}
    if shuffle is not None:
        for number, part in enumerate(("train", "val")):
            rng = np.random.default_rng([number, split.repeat, split.fold, shuffle])
            parts[part] = parts[part].with_targets_of(_givers(parts[part], dataset.task, rng))
    return parts, standardiser


def few_labels(bags: Parts, trial: TrialPlan, task: Task) -> Parts:
    """The same parts with the share of training and validation slides whose labels the trial may use.

    The choice is the same for all models, and nested: fewer labels are a part of more labels.
    """
    labelled = trial.model.training.labelled
    if labelled == 1:
        return bags
    split, thinned = trial.split, dict(bags)
    shares = (labelled, min(1.0, labelled if labelled <= 1 else labelled / len(bags["train"])))
    for number, (part, share) in enumerate(zip(("train", "val"), shares, strict=True)):
        names = bags[part].slide_ids
        strata = task.strata(bags[part].targets).tolist()
        chosen = choose_labelled(strata, share, [trial.seed, split.repeat, split.fold, number])
        thinned[part] = bags[part].select([names[i] for i in chosen])
    return thinned


def _givers(bags: Bags, task: Task, rng: np.random.Generator) -> list[int]:
    """For each slide the one whose target it gets."""
    keys = [patient_key(slide) if task.of_patients else slide.slide_id for slide in bags.slides]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # of each patient the first slide
    owners = sorted(first.values())
    order = shuffled_order(task.strata(bags.targets[owners]), rng)
    giver = {keys[owner]: owners[i] for owner, i in zip(owners, order, strict=True)}
    return [giver[key] for key in keys]


def shuffled_order(strata: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each slide whose target it gets: a random order in which each class gets its share of every label.

    Over a few dozen slides a plain shuffle agrees with the truth by chance often enough to look like a leak.
    """
    place = np.empty(len(strata))
    for stratum in np.unique(strata):  # spread every class evenly over the sequence
        members = np.flatnonzero(strata == stratum)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.empty(len(strata), dtype=np.int64)
    order[np.lexsort((rng.random(len(strata)), strata))] = np.argsort(place)
    return order


def _context(
    job: Job, dataset: Dataset, bags: Parts, on_epoch: Callable[[Row], None], kept: dict[str, Any]
) -> TrialContext:
    model, split, seed = job.trial.model, job.trial.split, job.trial.seed
    return TrialContext(
        name=model.name,
        options=model.options,
        graph=model.graph,
        training=model.training,
        in_dim=dataset.in_dim,
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


def _predictions(bags: Parts, result: TrialResult) -> pd.DataFrame:
    """``predictions.csv``: what is known of each slide, the target's columns, the prediction's, and the logits."""
    parts = []
    for part, predictions in result.predictions.items():
        slides = bags[part].slides
        known: dict[str, Sequence[Any]] = {
            "slide_id": [slide.slide_id for slide in slides],
            "patient_id": [slide.patient_id or "" for slide in slides],
            "split": [part] * len(slides),
        }
        known |= result.task.target_cells(bags[part].targets)
        known |= result.task.prediction_cells(predictions.numpy())
        if part in result.logits:  # they rank also where predictions saturate
            columns = result.logits[part].double().T.tolist()
            known |= {f"logit_{i}": [repr(value) for value in column] for i, column in enumerate(columns)}
        parts.append(pd.DataFrame(known))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table


def _patients(bags: Parts, result: TrialResult, rule: str | None) -> pd.DataFrame | None:
    """``patients.csv``: as ``predictions.csv``, of patients whose slides are several bags; None where none are scored.

    A task that scores patients combines the logits of their slides, of which it then predicts.
    """
    task = result.task
    if not task.of_patients or rule not in ("mean", "max"):
        return None
    tables = []
    for part, logits in result.logits.items():
        combined, targets = of_patients(task, logits, bags[part], rule)
        names = list(dict.fromkeys(patient_key(slide) for slide in bags[part].slides))
        known = {"slide_id": names, "patient_id": names, "split": [part] * len(names)}
        cells = task.target_cells(targets) | task.prediction_cells(task.predict(combined).numpy())
        tables.append(pd.DataFrame(known | cells))
    table: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return table


def _reason(error: BaseException, plugins: Sequence[Path]) -> str:
    """Why a trial failed, in one line; of a plugin's error also the plugin's line."""
    what = f"it left Python (exit code {error.code})" if isinstance(error, SystemExit) else str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in plugins]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {what}{where}"


def _weights(weights: Mapping[str, torch.Tensor]) -> bytes:
    """The content of ``weights.safetensors``. A parameter that two modules share is written under both of its names."""
    seen: set[int] = set()
    owned = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        owned[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    return save(owned)


def _halved(embeddings: torch.Tensor) -> npt.NDArray[Any]:
    """In float16; as they are where one of them is too large for it."""
    values = embeddings.detach().float().numpy()
    return values.astype(np.float16) if np.abs(values).max(initial=0) <= np.finfo(np.float16).max else values


def _write(
    folder: Path,
    predictions: pd.DataFrame,
    patients: pd.DataFrame | None,
    result: TrialResult,
    weights: bytes,
    standardiser: Standardiser | None,
    task: Task,
) -> None:
    if result.task != task:
        (folder / TASK).write_text(json.dumps(task_settings(result.task)), encoding="utf-8")
    predictions.to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
    if patients is not None:
        patients.to_csv(folder / "patients.csv", index=False, lineterminator="\n")
    pd.DataFrame(result.epochs).to_csv(folder / "epochs.csv", index=False, lineterminator="\n")
    if result.stages:
        (folder / STAGES).write_text(json.dumps(list(result.stages), indent=1), encoding="utf-8")
    if result.recorder is not None:
        result.recorder.write(folder)
    if result.explanations is not None:
        result.explanations.write(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    if standardiser is not None:
        content = save({"mean": standardiser.mean, "scale": standardiser.scale})
        (folder / "standardiser.safetensors").write_bytes(content)


def _score(task: Task, predictions: pd.DataFrame, part: str) -> dict[str, float | None]:
    return _defined(task.score(*task.read(predictions[predictions["split"] == part])))


def _defined(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in scores.items()}


def _notes(task: Task, predictions: pd.DataFrame) -> dict[str, str]:
    """Why test metrics are undefined, and what must be known of others, by name."""
    scores = task.score(*task.read(predictions[predictions["split"] == "test"]))
    return {name: note for name, value in scores.items() if (note := note_of(value))}


def _of_last(bags: Parts, result: TrialResult, rule: str | None) -> dict[str, float | None]:
    """The test scores of the last epoch; {} where it was chosen."""
    if result.last is None or (result.task.of_patients and rule in ("mean", "max")):  # these are of slides
        return {}
    return _defined(result.task.score(bags["test"].targets, result.last.double().numpy()))


def _patient_level(task: Task, predictions: pd.DataFrame, rule: str | None) -> Row:
    """What a trial's row says of patients; nothing where slides are not combined."""
    if rule not in ("mean", "max") or task.of_patients:
        return {}
    return {"patient_metrics": _score(task, task.patients(predictions[predictions["split"] == "test"], rule), "test")}


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
