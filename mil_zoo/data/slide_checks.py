"""What a check of slides finds: a row for each, and findings over all of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.layouts.base import LAYOUTS, FeatureSet, Layout, TableLayout
from mil_zoo.data.layouts.geometry import nearest_distances
from mil_zoo.errors import InputError

WINDOW = 1.42 * 2  # reach of the graph window:2, in steps: a patch without a neighbour in it is isolated

NUMBERS = ["patches", "dimensions", "patch_size", "isolated", "repeated"]
COLUMNS = ["slide_id", "label", "patient_id", *NUMBERS, "unit", "geometry", "digest", "problem"]

OnSlide = Callable[[int, int], None]  # slides done, slides in all


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes:
        level: "error" where it must be mended, "warning" where it should be known.
        text: one sentence.
        slides: the slides or patients it concerns.
    """

    level: Literal["error", "warning"]
    text: str
    slides: tuple[str, ...] = ()


@dataclass
class Report:
    """What a check found.

    Attributes:
        title: of the dataset.
        where: the file or folder that was read.
        layout: how it is laid out.
        features: name of the set of features; empty where there is one without a name.
        slides: one row a slide: slide_id, label, patient_id, maybe split, patches, dimensions, patch_size, unit,
            geometry, isolated (patches without another one within the window), repeated (patches at the place of
            another), digest (of the features), problem.
        findings: errors first.
    """

    title: str
    where: Path | str
    layout: str
    features: str = ""
    slides: pd.DataFrame = field(default_factory=pd.DataFrame)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended."""
        return not any(finding.level == "error" for finding in self.findings)

    def summary(self) -> dict[str, str]:
        """The facts of the report as text, by name."""
        table = self.slides
        good = table[table["problem"] == ""]
        placed = table.dropna(subset=["patch_size"])
        steps = Counter(zip(placed["patch_size"].round(3), placed["unit"], strict=True))
        facts = {
            "where": str(self.where),
            "layout": self.layout,
            "features": self.features,
            "slides": f"{len(table)}, {len(good)} without a problem",
        }
        if "label" in table:
            labels = Counter(table["label"].dropna().astype(str))
            facts["labels"] = ", ".join(f"{name}: {count}" for name, count in sorted(labels.items())) or "none"
        if "patient_id" in table and table["patient_id"].notna().any():
            facts["patients"] = str(table["patient_id"].nunique())
        if "split" in table:
            parts = Counter(table["split"].dropna().astype(str))
            facts["split"] = ", ".join(f"{name}: {count}" for name, count in sorted(parts.items()))
        patches = table["patches"].dropna()
        if len(patches):
            low, middle, high = patches.min(), patches.median(), patches.max()
            facts["patches"] = f"{int(patches.sum()):,} ({low:,.0f} to {high:,.0f} a slide, median {middle:,.0f})"
        facts["dimensions"] = ", ".join(str(int(width)) for width in sorted(good["dimensions"].dropna().unique()))
        facts["patch size"] = ", ".join(f"{step:g} {unit} ({n} slides)" for (step, unit), n in steps.most_common(4))
        facts["patch size from"] = "; ".join(sorted(set(placed["geometry"]) - {""})[:2])
        if len(placed):
            lonely, among = placed["isolated"].sum(), placed["patches"].sum()
            facts["isolated patches"] = f"{int(lonely):,} ({lonely / among:.2%})"
        return {name: value for name, value in facts.items() if value}

    def add(self, level: Literal["error", "warning"], text: str, slides: Iterable[str] = ()) -> None:
        """Adds a finding, errors before warnings."""
        finding, place = Finding(level, text, tuple(slides)), len(self.findings)
        if level == "error":
            place = sum(other.level == "error" for other in self.findings)
        self.findings.insert(place, finding)


def check_features(
    features: FeatureSet, title: str, allow_pickle: bool = False, on_slide: OnSlide | None = None
) -> Report:
    """Reads every slide of a set of features once; an unreadable one is a finding, the others go on.

    Args:
        features: the files.
        title: of the dataset.
        allow_pickle: run whatever code a pickle holds.
        on_slide: called after each slide.
    """
    report = Report(title, features.folder, features.layout, features.name)
    layout, rows = LAYOUTS.get(features.layout), []
    for number, (slide_id, path) in enumerate(sorted(features.files.items())):
        try:
            bags = layout.read_all(path, allow_pickle) if isinstance(layout, TableLayout) else [layout.read(path)]
            rows += [slide_row(bag) for bag in bags]
        except InputError as error:
            rows.append(_unreadable_row(layout, slide_id, path, str(error)))
        if on_slide is not None:
            on_slide(number + 1, len(features.files))
    report.slides = pd.DataFrame(rows, columns=COLUMNS)
    _judge_slides(report)
    return report


def check_bags(bags: Sequence[Bag], title: str, where: Path | str, on_slide: OnSlide | None = None) -> Report:
    """The same for bags in memory."""
    report, rows = Report(title, where, bags[0].layout or "simulated"), []
    for number, bag in enumerate(bags):
        rows.append(slide_row(bag))
        if on_slide is not None:
            on_slide(number + 1, len(bags))
    report.slides = pd.DataFrame(rows, columns=COLUMNS)
    _judge_slides(report)
    return report


def slide_row(bag: Bag) -> dict[str, Any]:
    """The row of a slide in :attr:`Report.slides`."""
    features = bag.features.contiguous().numpy()
    digest = hashlib.blake2b(repr(features.shape).encode(), digest_size=8)
    digest.update(features.data)
    row: dict[str, Any] = {
        "slide_id": bag.slide_id,
        "patches": len(bag),
        "dimensions": features.shape[1],
        "problem": "",
    }
    row |= {"label": None if bag.label is None else str(bag.label), "patient_id": bag.patient_id}
    row |= {"digest": digest.hexdigest()}
    if bag.coords is not None:
        row |= _coords_row(bag.coords.numpy(), bag.patch_size, bag.unit, bag.geometry)
        if row.get("isolated") == len(bag) - row["repeated"] > 1:
            row["problem"] = (
                f"slide {bag.slide_id!r}: no patch has another one within two steps of {bag.patch_size:g} {bag.unit}; "
                "the coordinates are in another unit, or the patch size is wrong"
            )
    return row


def _coords_row(coords: npt.NDArray[Any], step: float | None, unit: str, geometry: str) -> dict[str, Any]:
    row: dict[str, Any] = {"patch_size": step, "unit": unit, "geometry": geometry}
    row["repeated"] = len(coords) - len(np.unique(coords, axis=0))
    if step is not None:
        row["isolated"] = int((nearest_distances(coords) > WINDOW * step).sum())
    return row


def _unreadable_row(layout: Layout, slide_id: str, path: Path, problem: str) -> dict[str, Any]:
    """What can be said of a slide whose features cannot be read: its coordinates may be sound."""
    row: dict[str, Any] = {"slide_id": slide_id, "problem": problem}
    try:
        found = layout.coordinates(path)
    except InputError:
        return row
    if found is not None and len(found[0]):
        row |= {"patches": len(found[0])} | _coords_row(*found[:2], "px", found[2])
    return row


def _judge_slides(report: Report) -> None:
    table = report.slides
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column])
    for column in ("unit", "geometry"):
        table[column] = table[column].astype(object).fillna("")
    bad = table[table["problem"] != ""]
    for slide_id, problem in zip(bad["slide_id"], bad["problem"], strict=True):
        report.add("error", problem, [slide_id])
    good = table[table["problem"] == ""]
    widths = Counter(good["dimensions"].dropna().astype(int))
    if len(widths) > 1:
        usual = widths.most_common(1)[0][0]
        odd = good[good["dimensions"] != usual]
        report.add(
            "error", f"features have {usual} dimensions in most slides and others here; use one encoder", odd.slide_id
        )
    if good["unit"].nunique() > 1:
        report.add("error", f"coordinates are in several units: {', '.join(sorted(good['unit'].unique()))}")
    steps = Counter(good["patch_size"].dropna().round(3))
    if len(steps) > 1:
        text = ", ".join(f"{step:g} ({count})" for step, count in steps.most_common(4))
        report.add("warning", f"patch sizes differ between slides: {text}; right where magnifications do")
    for column, text in (("digest", "identical features under several ids"), ("slide_id", "an id occurs twice")):
        repeated = good[good.duplicated(column, keep=False)]
        for _, group in repeated.groupby(column):
            report.add("error", f"{text}; keep one", group["slide_id"])
    twins = good[good["repeated"] > 0]
    if len(twins):
        report.add(
            "warning", f"{int(twins['repeated'].sum())} patches lie at the place of another one", twins["slide_id"]
        )
    measured = good[good["geometry"].astype(str).str.startswith("the coordinates' own step")]
    if len(measured):
        report.add(
            "warning", f"the patch size is measured, not stated: {measured['geometry'].iloc[0]}", measured["slide_id"]
        )
