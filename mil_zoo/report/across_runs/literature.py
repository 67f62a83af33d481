"""Published numbers beside those of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_zoo.config import from_mapping, read_shipped, shipped_names
from mil_zoo.files import write_text, writing
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Cell, Document, Table
from mil_zoo.report.tables.text import fixed, interval, one_line


@dataclass(frozen=True)
class PublishedNumber:
    """A published number, as ``configs/published/*.yaml`` states it.

    Attributes:
        dataset: data card.
        aggregator: registry key of what it is compared with.
        published_as: the method's name in the source.
        metric: "accuracy", "auc", ...
        value: the number.
        protocol: how it was measured.
        source: where it is published.
        spread: its published spread; None where there is none.
        options: what the aggregator must have been run with.
        differs: what is not the same here; "" where nothing is.
    """

    dataset: str
    aggregator: str
    published_as: str
    metric: str
    value: float
    protocol: str
    source: str
    spread: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    differs: str = ""


def published_numbers() -> list[PublishedNumber]:
    """All shipped published numbers."""
    return [
        from_mapping(PublishedNumber, entry, f"published/{name}.yaml, number {i}")
        for name in shipped_names("published")
        for i, entry in enumerate(read_shipped("published", name)["numbers"], 1)
    ]


def published_table(runs: Sequence[Results]) -> pd.DataFrame:
    """One row a published number and run that can be set beside it, and one for each number that no run recomputes.

    Columns: those of :class:`PublishedNumber`, ``label`` and ``run`` of ours (empty without one), ``mean``, ``sd``,
    ``low``, ``high`` (corrected resampled t, uncut), ``splits``, ``our_protocol``, and ``difference`` (ours less
    published).
    """
    rows = []
    for number in published_numbers():
        known = vars(number) | {"options": ", ".join(f"{key}={value}" for key, value in number.options.items())}
        matching = [ours for run in runs for ours in _ours(run, number)]
        rows += [known | ours for ours in matching or [{}]]
    ours = ["label", "run", "mean", "sd", "low", "high", "splits", "our_protocol"]
    table = pd.DataFrame(rows).reindex(columns=[*PublishedNumber.__dataclass_fields__, *ours])
    return table.assign(difference=table["mean"] - table["value"])


def write_published(runs: Sequence[Results], out: Path) -> list[Path]:
    """Writes ``published.csv`` and the page ``published.md`` into ``out``."""
    table = published_table(runs)
    tables = [_of_dataset(runs, str(dataset), numbers) for dataset, numbers in table.groupby("dataset", sort=False)]
    page = Document("published", "Published numbers", tables, [_NOTE], heading="Published numbers and ours")
    written = {"published.csv": Table.of(table).csv(), "published.md": page.markdown()}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
    return [out / name for name in written]


_HEADER = ["Published as", "Metric", "Published", "Protocol", "Here", "Ours [95 %]", "Our protocol", "Ours - published"]


def _of_dataset(runs: Sequence[Results], dataset: str, numbers: pd.DataFrame) -> Table:
    metrics = {metric.name: metric for run in runs for metric in run.task.metrics}
    titles = {name: metric.title for name, metric in metrics.items()}
    rows: list[list[Any]] = []
    sources: dict[str, None] = {}
    differs: dict[str, None] = {}
    for row in numbers.to_dict("records"):
        bounds = metrics[row["metric"]].bounds if row["metric"] in metrics else (0, 1)
        known, metric = not np.isnan(row["mean"]), titles.get(row["metric"], row["metric"])
        spread = "" if pd.isna(row["spread"]) else f"{row['spread']:.3f}"
        ours = (
            [row["label"], _interval(row, bounds), row["our_protocol"]]
            if known
            else [row["aggregator"], "not run", "-"]
        )
        name = f"{row['published_as']}" + (f" ({row['options']})" if row["options"] else "")
        difference = fixed(row["difference"], "+.3f") if known else "-"
        rows.append([name, metric, Cell(f"{row['value']:.3f}", spread), row["protocol"], *ours, difference])
        sources[f"Source: {row['source']}."] = None
        if row["differs"]:
            differs[f"{row['published_as']}, {metric}: {row['differs']}."] = None
    of_dataset = [run for run in runs if run.config.dataset.name == dataset]
    warnings = dict.fromkeys(one_line(text) for run in of_dataset for text in run.config.dataset.warnings)
    return Table(_HEADER, rows, [*sources, *differs, *warnings], title=dataset)


_NOTE = (
    "Ours: mean ± standard deviation over test folds, 95 % interval by the corrected resampled t (Nadeau & Bengio "
    "2003), cut to where the metric lies. Protocols differ, and so a difference is no proof of an error on either side."
)


def _ours(run: Results, number: PublishedNumber) -> list[dict[str, Any]]:
    if run.config.dataset.name != number.dataset:
        return []
    found = []
    split = run.config.split
    for label, summary in run.summaries(number.metric).items():
        settings = run.config.model_settings.get(label)
        options = {} if settings is None else settings.options
        same = all(options.get(key) == value for key, value in number.options.items())
        if label.partition("@")[0] != number.aggregator or not same:
            continue
        epochs = "unknown" if settings is None else settings.training.get("epochs", "unknown")
        found.append(
            {name: getattr(summary, name) for name in ("mean", "sd", "low", "high")}
            | {
                "label": label,
                "run": run.path.name,
                "splits": summary.n,
                "our_protocol": f"{split.kind}, {split.repeats} x {split.folds} folds, {epochs} epochs",
            }
        )
    return found


def _interval(row: dict[Any, Any], bounds: tuple[float, float]) -> Cell:
    if np.isnan(row["sd"]):
        return Cell(f"{row['mean']:.3f}")
    low, high = np.clip([row["low"], row["high"]], *bounds)
    return Cell(f"{row['mean']:.3f}", f"{row['sd']:.3f}", (interval(low, high, ".3f"),))
