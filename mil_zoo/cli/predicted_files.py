"""The files that ``mil-zoo predict`` writes beside its table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mil_zoo.report.names import file_stem, short_hash

FILES = ("csv", "png", "geojson")
SHOWN = 10  # classes that the last line names; classes.csv has all


def write_classes(path: Path, task: Any) -> str:
    """Writes, and says, of which class each column of probabilities is; "" of a task without classes."""
    from mil_zoo.fitted.card import classes_of_columns

    named = list(classes_of_columns(task).items())
    if not named:
        path.unlink(missing_ok=True)  # of an earlier prediction
        return ""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("column", "class"), *named])
    more = f", ... and {len(named) - SHOWN} more in {path.name}" if len(named) > SHOWN else ""
    return f" ({', '.join(f'{column}: {name}' for column, name in named[:SHOWN])}{more})"


def files_of(out: Path, stem: str | None = None) -> list[Path]:
    """The files of attention and explanations in ``out``, of one slide or of all."""
    kinds = [("attention", kind) for kind in FILES] + [("explanations", kind) for kind in ("csv", "png")]
    if stem is not None:
        return [path for folder, kind in kinds if (path := out / folder / f"{stem}.{kind}").exists()]
    return [path for folder, kind in kinds for path in (out / folder).glob(f"*.{kind}")]


def stem_of(slide: str, source: str, taken: dict[str, str]) -> str:
    """The name of a slide's files: its own, and a hash of where it lies where another slide has it already."""
    stem = file_stem(slide)
    if taken.setdefault(stem.casefold(), source) != source:
        stem = f"{stem}-{short_hash(source)}"
        taken[stem.casefold()] = source
    return stem


def write_explanations(scores: dict[str, Any], bag: Any, caption: str, maps: bool, stem: Path) -> list[str]:
    """Writes the explanations of a slide; says what cannot be, and why."""
    from mil_zoo.report.attention_files import write_explanations_csv, write_explanations_png

    coords = None if bag.coords is None else bag.coords.double().numpy()
    stem.parent.mkdir(exist_ok=True)
    write_explanations_csv(stem.with_name(f"{stem.name}.csv"), scores, coords)
    if not maps:
        return []
    if coords is None:
        return ["no maps of explanations: the slide has no coordinates"]
    path = stem.with_name(f"{stem.name}.png")
    write_explanations_png(path, scores, coords, bag.patch_size, caption)
    return []


def write_attention(prediction: Any, caption: str, warning: str, wanted: list[str], stem: Path) -> list[str]:
    """Writes the attention files of a slide; says which cannot be, and why."""
    from mil_zoo.report.attention_files import write_csv, write_geojson, write_png

    bag, attention = prediction.bag, prediction.attention
    coords = None if bag.coords is None else bag.coords.double().numpy()
    skipped = []
    for kind in wanted:
        path = stem.with_name(f"{stem.name}.{kind}")
        path.parent.mkdir(exist_ok=True)
        if kind == "csv":
            write_csv(path, attention, coords)
        elif coords is None:
            skipped.append(f"no {kind}: the slide has no coordinates")
        elif kind == "png":
            write_png(path, attention, coords, bag.patch_size, caption)
        elif bag.unit != "px":
            skipped.append(f"no geojson: coordinates are in {bag.unit}, QuPath needs level-0 pixels")
        else:
            write_geojson(path, attention, coords, bag.patch_size, bag.slide_id, warning)
    return skipped
