"""Renders a folder of measurements as a Markdown table and plots: ``python benchmarks/render.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

COLUMNS = {
    "group": "what",
    "side": "by",
    "milliseconds": "time (ms)",
    "faster": "faster than",
    "floor_milliseconds": "floor (ms)",
    "times_the_floor": "time / floor",
    "peak_memory_mib": "peak memory (MiB)",
    "smaller": "less memory than",
}
PLOTS = {
    "time": ("milliseconds", "time (ms)"),
    "memory": ("peak_memory_mib", "peak memory (MiB)"),
    "floor": ("times_the_floor", "time / floor"),
}


def render(folder: Path) -> None:
    """Writes ``table.md`` and plots beside the JSON files of ``folder``."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    rows = pd.DataFrame([row for name, document in documents.items() for row in _rows(name, document)])
    (folder / "table.md").write_text(_header(documents) + _table(rows))
    sized = rows[rows["size"].notna()] if "size" in rows else rows.iloc[:0]
    for name, (column, label) in PLOTS.items():
        _plot(sized[sized[column] > 0], column, label, folder / f"{name}.png")


def _rows(suite: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for benchmark in document["benchmarks"]:
        extra = benchmark["extra_info"]
        side = extra.get("side") or ", ".join(map(str, (benchmark["params"] or {}).values())) or benchmark["name"]
        row = {"milliseconds": 1e3 * benchmark["stats"]["min"], **extra, "suite": suite, "side": side}
        rows.append(row | {"group": benchmark["group"] or benchmark["name"].partition("[")[0]})
    return rows


def _header(documents: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, document in documents.items():
        about, commit = document["mil_zoo"], document["commit_info"]
        rates = about["rates"]
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if k != "mil-zoo" and v != "absent")
        lines.append(
            f"- {name}: {about['machine']}, python {about['python']}, {versions}; commit {str(commit.get('id'))[:7]}"
            f"{' with changes' * bool(commit.get('dirty'))}; triad {rates['bytes_per_second'] / 1e9:.1f} GB/s, "
            f"products {rates['float32_operations_per_second'] / 1e9:,.0f} (float32) and "
            f"{rates['bfloat16_operations_per_second'] / 1e9:,.0f} (bfloat16) GFLOP/s in that run"
        )
    tiny = any(document["mil_zoo"]["tiny"] for document in documents.values())
    warning = "**A rehearsal on tiny sizes: the numbers mean nothing.**\n\n" if tiny else ""
    return warning + "\n".join(lines) + "\n\n"


def _table(rows: pd.DataFrame) -> str:
    """One line a measurement; within a group each fused side is compared with every baseline."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for group, members in rows.groupby("group", sort=False):
        baselines = members[members.get("baseline", pd.Series(False, members.index)).eq(True)]
        for _, row in members.iterrows():
            row = row.copy()
            row["group"] = group
            if row.get("baseline") is not True:
                row["faster"] = _ratios(baselines, row, "milliseconds")
                row["smaller"] = _ratios(baselines, row, "peak_memory_mib")
            lines.append("| " + " | ".join(_cell(row.get(column)) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _ratios(baselines: pd.DataFrame, row: pd.Series, column: str) -> str:
    if column not in baselines or not row.get(column, 0) > 1:  # below a MiB or a ms a ratio says nothing
        return ""
    above = baselines[baselines[column] > 1]
    return ", ".join(f"{other['side']} {other[column] / row[column]:.1f}x" for _, other in above.iterrows())


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plot(rows: pd.DataFrame, column: str, label: str, path: Path) -> None:
    """One panel an op that was measured at several sizes: ``column`` against N, a line for each side."""
    rows = rows.assign(op=rows["group"].str.partition(",")[0]) if len(rows) else rows.assign(op=[])
    ops = [op for op, members in rows.groupby("op", sort=False) if members["size"].nunique() > 1]
    if not ops:
        return
    columns = min(len(ops), 3)
    shape = -(-len(ops) // columns), columns
    figure, axes = plt.subplots(*shape, figsize=(5 * columns, 4 * shape[0]), squeeze=False, layout="constrained")
    for ax in axes.flat[len(ops) :]:
        ax.set_axis_off()
    for ax, op in zip(axes.flat, ops, strict=False):
        members = rows[rows["op"] == op]
        sns.lineplot(members, x="size", y=column, hue="side", style="side", markers=True, dashes=False, ax=ax)
        if column == "milliseconds":
            full = members[~members["side"].str.contains("bfloat16")]  # whose floor is another
            floor = full.groupby("size")["floor_milliseconds"].min()
            ax.plot(floor.index, floor, color="grey", linestyle=":", label="floor (float32)")
        if column == "times_the_floor":
            ax.axhline(1, color="grey", linestyle=":")
        ax.set(xscale="log", yscale="log", title=op, xlabel="N (patches)", ylabel=label)
        ax.legend(title=None, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    render(Path(sys.argv[1]))
