"""A run, read once: what every table, figure and page of it is made from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mil_zoo.bench.results import RunConfig, Trial
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.errors import InputError, did_you_mean, no_line
from mil_zoo.metrics import Metric
from mil_zoo.report.attention_store import AttentionStore
from mil_zoo.report.table_file import summaries_in
from mil_zoo.report.test_parts import SplitKey, estimate_of, scored_sets_of, test_set_numbers, test_sets_of
from mil_zoo.report.trial_tables import (
    alone,
    fitted_task,
    group_of,
    skew_of,
    tables_of,
    test_patients,
    test_predictions,
    test_rows,
)
from mil_zoo.stats import Estimate, Scored, Summary, TestSet
from mil_zoo.tasks import Task, task_of_config

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Results:
    """The results of one run: its configuration, its trials, and the tables that the trials wrote, each read once.

    What is made from them, a table or a list of comparisons, is made once too (:meth:`once`).

    Attributes:
        run: where the files lie.
        config: how the run was made.
        trials: models and grid points in the order of the config, the points that it does not list in numeric order;
            then by repeat, fold and seed, so that nothing depends on the order in which trials finished.
        slides: whose attention maps are drawn; None for two typical ones.
        title: of the dataset, in headings; None for its own.
        control: the ``aggregator[@grid]`` that the others are compared with; None for none.
    """

    run: RunDirectory
    config: RunConfig
    trials: tuple[Trial, ...]
    slides: tuple[str, ...] | None = None
    title: str | None = None
    control: str | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        path: Path | str | RunDirectory,
        slides: Sequence[str] | None = None,
        title: str | None = None,
        control: str | None = None,
    ) -> Results:
        """Reads a run directory. The files of its trials are read when a table or figure first needs them.

        Args:
            path: the ``--out`` folder of a bench, or one that holds a run's ``config.yaml`` and ``table.csv`` only.
            slides: test slides whose attention maps are drawn; None for two typical ones.
            title: of the dataset, in headings; None for its own.
            control: ``aggregator[@grid]`` that the others are compared with; None for none.

        Raises:
            InputError: there is no run, its files were damaged or written by another version, or it has no ``control``.
        """
        if isinstance(slides, str) or not isinstance(slides, Iterable | None):
            raise InputError(f"slides is a list of slide ids, not {slides!r:.60}")
        if not isinstance(title, str | None):
            raise InputError(f"title is text, not {title!r:.60}")
        if title is not None and (fault := no_line(title)):
            raise InputError(f"title {fault}")
        run = path if isinstance(path, RunDirectory) else RunDirectory.open(path)
        config = RunConfig.from_settings(run.config, str(run.path / "config.yaml"))
        trials = [Trial.from_row(row, str(run.path / "trials.jsonl")) for row in run.trials()]
        known = list(config.model_settings)
        if control not in (None, *known):
            raise InputError(f"{run.path} has no aggregator {control!r}{did_you_mean(str(control), known)}")
        named = None if slides is None else tuple(slides)
        return cls(run, config, tuple(config.in_order(trials)), named, title, control)

    def once(self, make: Callable[..., Made], *arguments: Any) -> Made:
        """``make(self, *arguments)``, made at the first call and kept for the next."""
        key = make, arguments
        if key not in self._made:
            self._made[key] = make(self, *arguments)
        made: Made = self._made[key]
        return made

    def table(self) -> pd.DataFrame:
        """The comparison as a data frame, the numbers of ``table.csv``: a row an aggregator (or variant), its index.

        Columns: for each metric on the test slides ``<metric>_mean``, ``_sd``, ``_low``, ``_high`` (95 % interval) and
        ``_n`` (test sets), and more; see :func:`mil_zoo.report.tables.scores.score_table`. NaN where undefined.

        Example:
            >>> results = mil_zoo.cross_validate(["abmil", "mean"], bags)
            >>> results.table()[["auc_mean", "auc_low", "auc_high"]]
        """
        from mil_zoo.report.tables import numbers

        table = numbers(self)["table"]
        return pd.DataFrame(list(table.rows), columns=list(table.header)).set_index("aggregator")

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.run.path)

    # Trials ---------------------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> dict[str, list[Trial]]:
        """The trials of every ``aggregator[@grid]``; a model without a trial is there with an empty list."""
        of_model = defaultdict(list)
        for trial in self.trials:
            of_model[trial.aggregator].append(trial)
        groups: dict[str, list[Trial]] = {}
        for model in dict.fromkeys([*self.config.models, *of_model]):
            for trial in of_model[model]:
                groups.setdefault(trial.label, []).append(trial)
            if not of_model[model]:
                groups[model] = []
        return groups

    @cached_property
    def finished(self) -> dict[str, list[Trial]]:
        """The trials of every ``aggregator[@grid]`` that did not fail."""
        return {label: [trial for trial in trials if trial.ok] for label, trials in self.groups.items()}

    # Scores ---------------------------------------------------------------------------------------------------------

    @cached_property
    def task(self) -> Task:
        """What the run predicts."""
        return task_of_config(self.config.settings())

    def task_of(self, trial: Trial) -> Task:
        """The task as a trial fitted it to its training bags."""
        return self.once(fitted_task, trial.trial) if "task.json" in trial.files else self.task

    def scored_rows(self, trial: Trial) -> pd.DataFrame:
        """What a trial is scored by: the rows of its test patients where it combined them, else of its test slides."""
        if "patients.csv" not in trial.files:
            return self.test_predictions(trial)
        return self.once(test_patients, trial.trial)

    @property
    def patient_rule(self) -> str | None:
        """How slides are combined where both they and patients are scored; None where only one of them is."""
        return None if self.task.of_patients else self.config.dataset.patient_rule

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics of the task that the trials recorded, in the order of tables; all where no trial finished."""
        recorded = self._recorded
        return [metric for metric in self.task.metrics if metric.name in recorded or not recorded]

    @cached_property
    def unknown_metrics(self) -> list[str]:
        """Metrics that the trials recorded and that nothing registers now: their plugin is not loaded."""
        known = {metric.name for metric in self.task.metrics}
        return [name for name in self._recorded if name not in known]

    @property
    def _recorded(self) -> list[str]:
        return list(dict.fromkeys(name for trial in self.trials if trial.ok for name in trial.metrics))

    @cached_property
    def headline(self) -> list[Metric]:
        """The metrics of short tables and figures: the first of the task, the one that selects, those of plugins."""
        return [
            metric
            for i, metric in enumerate(self.metrics)
            if i == 0 or metric.name == self.task.select or metric.of_plugin
        ]

    @cached_property
    def shown(self) -> list[Metric]:
        """The metrics of the comparison table: those that the task names and those of plugins; all where it names none.

        The others stand in ``table.csv`` and in a table of their own.
        """
        names = self.task.shown
        return [metric for metric in self.metrics if not names or metric.name in names or metric.of_plugin]

    @property
    def lead(self) -> Metric:
        """The metric that ranks aggregators where only one is shown: the one that the task names, or its first.

        Raises:
            InputError: the run has no metric.
        """
        chosen = [metric for metric in self.metrics if metric.name == self.task.lead] or self.metrics
        if not chosen:
            raise InputError(f"{self.path} has no metric: nothing registers one of the task {self.task.name}")
        return chosen[0]

    @property
    def selecting(self) -> Metric:
        """The metric that validation patients are scored by where something is chosen; else the one that ranks."""
        return next((metric for metric in self.metrics if metric.name == self.task.select), self.lead)

    def metric(self, name: str) -> Metric:
        """A metric of the run by its name.

        Raises:
            InputError: the run has none of that name.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise InputError(f"{self.path} has no metric {name!r}; it has {', '.join(m.name for m in self.metrics)}")

    def summaries(self, metric: str) -> dict[str, Summary]:
        """Summary of a test metric over splits by ``aggregator[@grid]``, of those that have one.

        From the trials, or where a folder holds a run's tables only (as ``benchmarks/results`` does), from
        ``table.csv``.
        """
        kept = self.path / "table.csv"
        if not self.trials and kept.exists():
            return summaries_in(kept, metric)
        found = {}
        for label in self.finished:
            one = self.estimate(label, metric)
            if one.n:
                found[label] = Summary(one.mean, one.sd, one.low, one.high, one.n)
        return found

    def estimate(self, label: str, metric: str, patient_rule: str | None = None) -> Estimate:
        """Mean, spread and interval of a test metric of an ``aggregator[@grid]``: the same in tables, figures and page.

        Args:
            label: ``aggregator[@grid]``.
            metric: name of a metric of the run.
            patient_rule: how slides are combined, where patients are scored; None for slides.
        """
        return self.once(estimate_of, label, metric, patient_rule)

    def test_set_of(self, split: SplitKey, patient_rule: str | None = None) -> Any:
        """What stands for the test set of a split: equal for splits that are tested on the same patients."""
        return self.once(test_set_numbers, patient_rule).get(split, split)

    # Files of trials ------------------------------------------------------------------------------------------------

    def predictions(self, trial: Trial) -> pd.DataFrame:
        """slide_id, patient_id, split, the target's and the prediction's columns of a trial."""
        return self._table_of("predictions.csv", trial, self.run.predictions)

    def test_predictions(self, trial: Trial) -> pd.DataFrame:
        """The rows of the test slides in the order of their ids."""
        if "predictions.csv" not in trial.files:
            return test_rows([self.predictions(trial)])[0]
        return self.once(test_predictions, group_of(self._place[trial.trial]))[trial.trial]

    def epochs(self, trial: Trial) -> pd.DataFrame:
        """One row an epoch of a trial: losses, scores, seconds, which was selected."""
        return self._table_of("epochs.csv", trial, self.run.epochs)

    def test_skew(self, *trials: Trial) -> pd.DataFrame:
        """trial (its place among ``trials``), epoch, slide_id, split, name, value of the test slides of some trials.

        In the order of the run's trials; without a row for an aggregator without attention.
        """
        return self._skew("test", trials)

    def training_skew(self, *trials: Trial) -> pd.DataFrame:
        """trial (its place), epoch, name, ``sum`` and ``count`` over the training slides of some trials.

        Of ``high_count`` it is of slides that hold such an instance, bags of one or two instances left out; these are
        counted under ``tiny_bags``.
        """
        return self._skew("training", trials)

    def _table_of(self, name: str, trial: Trial, read: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """A csv of a trial, read with those of its neighbours; alone where its row does not say that it has one."""
        if name not in trial.files:
            return self.once(alone, read, trial.trial)
        return self.once(tables_of, name, group_of(self._place[trial.trial]))[trial.trial]

    def _skew(self, part: str, trials: Sequence[Trial]) -> pd.DataFrame:
        places = [self._place[trial.trial] for trial in trials]
        parts = [getattr(self.once(skew_of, number), part) for number in sorted(set(map(group_of, places)))]
        rows = pd.concat([rows for rows in parts if len(rows)] or parts)
        return rows[rows["trial"].isin(places)]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {trial.trial: i for i, trial in enumerate(self.trials)}

    @cached_property
    def attention(self) -> AttentionStore:
        """The attention of the test slides."""
        return AttentionStore(self.run.attention)

    def test_sets(self, label: str, patient_rule: str | None = None) -> dict[SplitKey, TestSet]:
        """Predictions of the test slides by (repeat, fold), seeds in order; slides in order of their ids.

        Where patients are unknown, each slide is one of its own. Trials that wrote no files are left out, and so is a
        task without class probabilities. With a patient rule the predictions are of patients.
        """
        return self.once(test_sets_of, label, patient_rule)

    def scored_sets(self, label: str, patient_rule: str | None = None) -> dict[SplitKey, list[Scored]]:
        """As :meth:`test_sets`, of a task without class probabilities: by (repeat, fold) one of each seed.

        Empty for classes, and where slides are scored of which a patient has several: what is drawn is patients.
        """
        return self.once(scored_sets_of, label, patient_rule)

    # What is said of the data ---------------------------------------------------------------------------------------

    @property
    def simulated(self) -> bool:
        """Whether the slides were made by a program; every table and figure then says so."""
        return self.config.dataset.simulated or self.config.dataset.kind == "simulated"

    @property
    def dataset_title(self) -> str:
        """The title of the dataset, which says so where slides are simulated."""
        name = self.dataset_name
        return name + " (simulated slides)" if self.simulated and "simulated" not in name.lower() else name

    @property
    def dataset_name(self) -> str:
        """The title of the dataset; of one that is a path the last part, which says no more than others may know."""
        if self.title is not None:
            return self.title
        name = self.config.dataset.title
        if name.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", name):
            return re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name
        return name
