"""Published numbers beside those of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil_zoo.config import from_mapping, read_shipped, shipped_names
from mil_zoo.report.results import METRICS, summaries
from mil_zoo.report.text import bullets, csv, markdown

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory


@dataclass(frozen=True)
class Published:
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


def published_numbers() -> list[Published]:
    """All shipped published numbers."""
    return [
        from_mapping(Published, entry, f"published/{name}.yaml, number {i}")
        for name in shipped_names("published")
        for i, entry in enumerate(read_shipped("published", name)["numbers"], 1)
    ]


def published_table(runs: Sequence[RunDirectory]) -> pd.DataFrame:
    """One row a published number and run that can be set beside it, and one for each number that no run recomputes.

    Columns: those of :class:`Published`, ``label`` and ``run`` of ours (empty without one), ``mean``, ``sd``, ``low``,
    ``high`` (corrected resampled t, uncut), ``splits``, ``our_protocol``, and ``difference`` (ours - published).
    """
    rows = []
    for number in published_numbers():
        known = vars(number) | {"options": ", ".join(f"{key}={value}" for key, value in number.options.items())}
        matching = [ours for run in runs for ours in _ours(run, number)]
        rows += [known | ours for ours in matching or [{}]]
    columns = [*Published.__dataclass_fields__, "label", "run", "mean", "sd", "low", "high", "splits", "our_protocol"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    return table.assign(difference=table["mean"] - table["value"])


def write_published(runs: Sequence[RunDirectory], out: Path) -> list[Path]:
    """Writes ``published.csv`` and the page ``published.md`` into ``out``."""
    table = published_table(runs)
    parts = ["# Published numbers and ours\n"]
    for dataset, numbers in table.groupby("dataset", sort=False):
        rows = []
        for _, row in numbers.iterrows():
            spread = "" if pd.isna(row["spread"]) else f" ± {row['spread']:.3f}"
            ours = "not run" if pd.isna(row["mean"]) else _interval(row)
            name = f"{row['published_as']}" + (f" ({row['options']})" if row["options"] else "")
            difference = "-" if pd.isna(row["mean"]) else f"{row['difference']:+.3f}"
            protocols = [row["protocol"], "-" if pd.isna(row["mean"]) else row["our_protocol"]]
            label = row["aggregator"] if pd.isna(row["mean"]) else row["label"]
            metric = METRICS.get(row["metric"], row["metric"])
            rows.append(
                [name, metric, f"{row['value']:.3f}{spread}", protocols[0], label, ours, protocols[1], difference]
            )
        header = [
            "Published as",
            "Metric",
            "Published",
            "Protocol",
            "Here",
            "Ours [95 %]",
            "Our protocol",
            "Ours - published",
        ]
        sources = dict.fromkeys(f"Source: {source}." for source in numbers["source"])
        differs = dict.fromkeys(
            f"{row['published_as']}, {METRICS.get(row['metric'], row['metric'])}: {row['differs']}."
            for _, row in numbers.iterrows()
            if row["differs"]
        )
        warnings = dict.fromkeys(
            " ".join(str(text).split())
            for run in runs
            if run.config["dataset"]["name"] == dataset
            for text in run.config["dataset"]["warnings"]
        )
        parts.append(f"## {dataset}\n\n{markdown(header, rows)}\n{bullets([*sources, *differs, *warnings])}")
    parts.append(bullets([_NOTE]))
    out.mkdir(parents=True, exist_ok=True)
    written = {"published.csv": csv(table), "published.md": "\n".join(parts)}
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in written]


_NOTE = (
    "Ours: mean ± standard deviation over test folds, 95 % interval by the corrected resampled t (Nadeau & Bengio "
    "2003), cut to [0, 1]. Protocols differ, and so a difference is no proof of an error on either side."
)


def _ours(run: RunDirectory, number: Published) -> list[dict[str, Any]]:
    config = run.config
    if config["dataset"]["name"] != number.dataset:
        return []
    found = []
    split = config["split"]
    for label, summary in summaries(run, number.metric).items():
        settings = config["model_settings"].get(label, {})
        same = all(settings.get("options", {}).get(key) == value for key, value in number.options.items())
        if label.partition("@")[0] != number.aggregator or not same:
            continue
        found.append(
            {name: getattr(summary, name) for name in ("mean", "sd", "low", "high")}
            | {
                "label": label,
                "run": Path(run.path).name,
                "splits": summary.n,
                "our_protocol": f"{split['kind']}, {split['repeats']} x {split['folds']} folds, "
                f"{settings['training']['epochs']} epochs",
            }
        )
    return found


def _interval(row: pd.Series) -> str:
    if np.isnan(row["low"]):
        return f"{row['mean']:.3f}"
    low, high = np.clip([row["low"], row["high"]], 0, 1)
    return f"{row['mean']:.3f} ± {row['sd']:.3f} [{low:.3f}, {high:.3f}]"
