"""The tables of a run: computed once from its results, written as files, shown on a console and on the page."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from mil_zoo.files import write_text
from mil_zoo.noted import note_of
from mil_zoo.report.load import Results
from mil_zoo.report.tables.comparison_tables import bold_note, shown_comparisons
from mil_zoo.report.tables.cost_table import cost_table, shown_costs
from mil_zoo.report.tables.diagnostics_table import diagnostics_table
from mil_zoo.report.tables.encoders import encoder_table, levels, shown_encoders
from mil_zoo.report.tables.explanations_table import explanations_table, shown_explanations
from mil_zoo.report.tables.external import external_table, shown_external
from mil_zoo.report.tables.label_budget import label_budget_table, shown_label_budgets
from mil_zoo.report.tables.last_epoch import last_epoch_table, shown_last_epochs
from mil_zoo.report.tables.pairs import best, comparisons
from mil_zoo.report.tables.practical import (
    baseline_table,
    equivalence_table,
    shown_baselines,
    shown_equivalences,
)
from mil_zoo.report.tables.reporting import reporting_sheet
from mil_zoo.report.tables.scores import (
    MEASURED,
    all_levels,
    further_scores,
    score_table,
    shown_scores,
    terminal_scores,
)
from mil_zoo.report.tables.sentences import data_note, notes
from mil_zoo.report.tables.skew_table import shown_skew, skew_table
from mil_zoo.report.tables.subgroup_table import shown_subgroups, subgroup_table
from mil_zoo.report.tables.survival_table import survival_document, survival_numbers
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.tuning_table import budget_table, configuration_table, shown_tuning
from mil_zoo.report.tables.variance import shown_variances, variance_table
from mil_zoo.report.tables.variants import variant_table

__all__ = [
    "Cell",
    "Document",
    "Table",
    "comparisons",
    "documents",
    "numbers",
    "score_table",
    "skew_table",
    "terminal_scores",
    "write_tables",
]


def documents(results: Results) -> list[Document]:
    """The tables that people read, the comparison first; each is a Markdown file and a section of the page."""
    return results.once(_marked_documents)


def numbers(results: Results) -> dict[str, Table]:
    """The tables that programs read, by the name of their csv file.

    ``table.csv`` holds no measured time or memory (they are in ``cost.csv``): repeating a run gives it byte by byte.
    """
    scores = score_table(results)
    frames = {
        "table": all_levels(results).drop(columns=MEASURED),
        "cost": cost_table(results),
        "comparisons": comparisons(results),
        "equivalence": equivalence_table(results),
        "baseline": baseline_table(results),
        "variance": variance_table(results),
        "subgroups": subgroup_table(results),
        "external": external_table(results),
        "survival": survival_numbers(results) if _of_survival(results) else pd.DataFrame(),
        "encoders": encoder_table(scores, results.metrics),
        "diagnostics": diagnostics_table(results),
        "skew": skew_table(results),
        "explanations": explanations_table(results),
        "last_epoch": last_epoch_table(results),
        "ablation": variant_table(results),
        "learning_curve": label_budget_table(results),
        "tuning": configuration_table(results),
        "budget": budget_table(results),
        "undefined": _notes_of_trials(results),
    }
    if results.config.dataset.kind == "predictions":
        del frames["cost"]
    return {name: Table.of(frame) for name, frame in frames.items() if len(frame)}


def write_tables(results: Results) -> list[Path]:
    """Writes every table of a run into its directory.

    ``table.csv|md|tex``, ``cost.csv|md``, ``reporting.md``; of survival ``survival.csv|md|tex``, and where the task has
    more metrics than the comparison shows ``scores.md|tex``; where aggregators can be compared ``comparisons.csv|md``,
    ``equivalence.csv`` and ``baseline.csv``; with several seeds on several splits ``variance.csv|md``; where a
    checkpoint was chosen before the last epoch ``last_epoch.csv|md``; with attention ``diagnostics.csv`` and
    ``skew.csv|md``; with explainers ``explanations.csv|md``; with a grid ``ablation.csv``, and
    ``learning_curve.csv|md`` where it varies the number of labels; ``encoders.csv|md`` where several sets of features
    are compared; ``tuning.csv|md`` and ``budget.csv`` of a tuned run.

    Returns:
        The files written.
    """
    with uncollected():
        texts = _texts(results)
    for name, text in texts.items():
        write_text(results.path / name, text)
    return [results.path / name for name in texts]


def _texts(results: Results) -> dict[str, str]:
    """The content of every file, by its name."""
    tables, texts = numbers(results), {document.name: document for document in documents(results)}
    written = {}
    for name in dict.fromkeys([*tables, *texts]):
        if name in tables:
            written[f"{name}.csv"] = tables[name].csv()
        if name in texts:
            written[f"{name}.md"] = texts[name].markdown()
        if name in _IN_LATEX:
            caption = f"{_IN_LATEX[name]} on {results.dataset_title}"
            written[f"{name}.tex"] = texts[name].tables[0].latex(caption)
    return written


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it no garbage is collected: a collection looks at every cell of a table of a million rows, for nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


_IN_LATEX = {"table": "Test metrics", "survival": "Survival: test patients", "scores": "Further test metrics"}


def _of_survival(results: Results) -> bool:
    return results.task.family == "survival" and any(results.finished.values())


def _notes_of_trials(results: Results) -> pd.DataFrame:
    """trial, metric, value (empty where undefined) and the note on it; of missing intervals the aggregator as trial."""
    rows = [
        (trial.trial, name, trial.metrics.get(name), note)
        for trial in results.trials
        for name, note in trial.notes.items()
    ]
    for label, metric in itertools.product(results.finished, results.metrics):
        for level, rule in levels(results).items():
            if note := note_of(results.estimate(label, metric.name, rule).low):
                rows.append((label + level, f"{metric.name}_low, {metric.name}_high", None, note))
    return pd.DataFrame(rows, columns=["trial", "metric", "value", "note"])


def _marked_documents(results: Results) -> list[Document]:
    """The documents; of simulated slides each says so, also where its own tables have no sentence on the data."""
    made, note = _documents(results), data_note(results)
    if not results.simulated:
        return made
    return [
        document
        if any(note in said for said in (document.notes, *(table.notes for table in document.tables)))
        else dataclasses.replace(document, notes=[note, *document.notes])
        for document in made
    ]


def _documents(results: Results) -> list[Document]:
    below = [*notes(results), *bold_note(results)]
    made = [Document("table", "Comparison", [shown_scores(results, best(results), below)])]
    if _of_survival(results):
        made.append(survival_document(results))
    if (further := further_scores(results)) is not None:
        made.append(Document("scores", "Further scores", [further]))
    if len(comparisons(results)):
        compared = shown_comparisons(results, results.control)
        more = [table for table in (shown_equivalences(results), shown_baselines(results)) if table is not None]
        made.append(dataclasses.replace(compared, tables=[*compared.tables, *more]))
    if len(external_table(results)):
        made.append(shown_external(results))
    if len(subgroup_table(results)):
        made.append(shown_subgroups(results))
    if len(variance_table(results)):
        made.append(shown_variances(results))
    if len(configuration_table(results)):
        made.append(shown_tuning(results))
    if len(last_epoch_table(results)):
        made.append(shown_last_epochs(results))
    if len(skew_table(results)):
        made.append(shown_skew(results, notes(results)))
    if len(explanations_table(results)):
        made.append(shown_explanations(results))
    if results.config.dataset.several_encoders:
        made.append(shown_encoders(score_table(results), results.metrics, notes(results)))
    if len(label_budget_table(results)):
        made.append(shown_label_budgets(results))
    if results.config.dataset.kind == "predictions":  # nothing was trained
        return made
    return [*made, Document("cost", "Costs", [shown_costs(results)]), reporting_sheet(results)]
