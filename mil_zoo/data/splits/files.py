"""Split files: which splits a path stands for, and the file that keeps those of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.splits.formats import PARTS, of_parts, read_split_file
from mil_zoo.data.splits.split import Split
from mil_zoo.errors import InputError, did_you_mean


def is_split_file(text: str) -> bool:
    """Whether ``text`` names a file or folder of splits rather than a way to draw them."""
    path = text.partition(":")[0]
    return path.endswith((".csv", ".csv.gz", ".npz")) or "/" in path or Path(path).is_dir()


def read_splits(text: str, patient_of: Mapping[str, str] | None = None) -> list[Split]:
    """The splits that ``FILE``, ``FILE:NAME`` or a folder stands for; a part without slides is empty.

    Args:
        text: a path, and after a colon which of a file's several splits is meant; see
            :func:`mil_zoo.data.splits.formats.read_split_file`.
        patient_of: patient of each slide of the dataset, to which names in the file are matched by the rule of
            :mod:`mil_zoo.data.labels.names`. A split of patients takes all their slides.

    Raises:
        InputError: nothing is there, the file is none of those, it holds several splits and none was named, or it names
            patients and their slides are not known.
    """
    path, _, name = text.partition(":")
    file = read_split_file(Path(path))
    found = file.splits
    if name and name not in found:
        raise InputError(f"{path} holds no split {name!r}{did_you_mean(name, found)}")
    if not name and len(found) > 1 and "test" not in found:
        raise InputError(f"{path} holds several splits; choose one, {path}:NAME, of {', '.join(found)}")
    chosen = found[name] if name else found["test"] if len(found) > 1 else next(iter(found.values()))
    if patient_of is None:
        if file.of_patients:
            raise InputError(f"{path} splits patients; it needs a dataset that says which slides are theirs")
        return chosen
    slides_of: dict[str, list[str]] = defaultdict(list)
    for slide, patient in patient_of.items():
        slides_of[patient].append(slide)
    places = {slide: [slide] for slide in patient_of}
    known = slides_of if file.of_patients else places
    names = list(dict.fromkeys(i for split in chosen for i in (*split.train, *split.val, *split.test, *split.withheld)))
    meant = match_names(names, list(known), path)
    missing = [name for name in names if name not in meant]
    if file.of_patients and missing:
        raise InputError(
            f"{path}: patient {missing[0]!r} is not in the dataset ({len(missing)} such); its label table needs a "
            "column patient_id with these names"
        )
    return [
        split.mapped(lambda part: tuple(slide for name in part for slide in known.get(meant.get(name, ""), [name])))
        for split in chosen
    ]


def published_split(labels: pd.DataFrame, path: Path | str) -> list[Split]:
    """The split in the column ``split`` of a label table; none where it lacks the column, train or test slides.

    Raises:
        InputError: the column holds something other than train, val, test or nothing.
    """
    if "split" not in labels:
        return []
    text = labels["split"].str.strip().str.lower()
    unknown = text.notna() & ~text.isin(list(PARTS))
    if unknown.any():
        row = labels[unknown].iloc[0]
        raise InputError(
            f"{path}: slide {row['slide_id']!r} has split {row['split']!r}, not train, val, test or nothing"
        )
    part = text.map(PARTS)
    split = of_parts(labels["slide_id"], part)
    return [split] if split.train and split.test else []


def published_folds(labels: pd.DataFrame, path: Path | str) -> list[Split]:
    """The folds in the column ``fold`` of a label table: each tests the slides that bear its number.

    It trains on those of the other numbers; a slide without a number is in no part. Published folds of a training and a
    "validation" part are meant so: what they validate on is tested here, and validation slides come from their training
    part.

    Raises:
        InputError: a fold is no whole number, or there is only one.
    """
    known = labels.dropna(subset=["fold"])
    odd = known[~known["fold"].str.fullmatch(r"\d+(\.0+)?")]
    if len(odd):
        row = odd.iloc[0]
        raise InputError(f"{path}: slide {row['slide_id']!r} has fold {row['fold']!r}, not a whole number or nothing")
    number = known["fold"].astype(float).astype(int)
    folds = sorted(number.unique().tolist())
    if len(folds) == 1:
        raise InputError(f"{path}: the column fold holds one number only; name two folds or drop the column")
    return [
        Split(0, i, tuple(known["slide_id"][number != fold]), (), tuple(known["slide_id"][number == fold]))
        for i, fold in enumerate(folds)
    ]


def splits_csv(splits: Sequence[Split], bags: Sequence[Bag]) -> str:
    """``splits.csv``: slide_id, patient_id, label, and a column a split with train, val, test, withheld or nothing.

    It has a row a slide, also where the slides of a patient are one bag.
    """
    rows = [(slide, name) for slide in as_bags(bags).slides for name in slide.names()]
    bag_of = pd.Series([slide.slide_id for slide, _ in rows], dtype=object)
    table = pd.DataFrame(
        {
            "slide_id": [name for _, name in rows],
            "patient_id": [slide.patient_id or "" for slide, _ in rows],
            "label": [slide.label for slide, _ in rows],
        }
    )
    columns = {}
    for split in splits:
        part_of = {slide: part for part in ("train", "val", "test", "withheld") for slide in getattr(split, part)}
        columns[f"r{split.repeat}-f{split.fold}"] = bag_of.map(part_of)
    text: str = pd.concat([table, pd.DataFrame(columns)], axis=1).to_csv(index=False, lineterminator="\n")
    return text
