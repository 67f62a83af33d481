"""Bag tables: one ``.npz`` with all bags of a dataset (classic MIL sets, nuclei, any table of instances)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import numbers
from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.data.labels.tables import class_indices, class_numbers, unknown_among
from mil_zoo.data.layouts.base import Claim, Sure, TableLayout, register_layout
from mil_zoo.errors import InputError

_WHOLE = re.compile(r"[0-9]{1,18}")
_WHOLE_FLOAT = re.compile(r"^([0-9]+)\.0+$")  # "1.0", which pandas writes for 1


def read_table(
    path: Path,
    positive_instance_class: int | None = None,
    single_label: int | None = None,
    classes: Sequence[str] = (),
) -> list[Bag]:
    """Reads every bag of a table.

    Arrays of the file: ``X`` float [n_inst, d]; ``bag_ptr`` int [n_bags + 1]; ``bag_label`` [n_bags], class indices
    (1.0 counts as 1) or names of ``classes``, or
    ``bag_labels`` [n_bags, T] where a bag has several labels (its target, then); optional
    ``bag_name`` [n_bags], ``patient_id`` [n_bags] (patients or any other groups), ``coords`` [n_inst, 2]
    (x, y), ``patch_size`` (one number, or [n_bags]; the step of the patches in level-0 pixels), ``inst_label`` int
    [n_inst] (1 positive, 0 negative, below 0 unknown) or ``inst_class`` int [n_inst].

    Args:
        path: the ``.npz`` file; it is read without pickle.
        positive_instance_class: the value of ``inst_class`` that counts as positive.
        single_label: for tables with ``bag_labels`` 0/1 [n_bags, classes] instead of ``bag_label``: keep the bags with
            exactly one label, of the classes that at least this many of them have.
        classes: the classes that ``bag_label`` names, where it holds names; see :func:`named_classes`.

    Raises:
        InputError: the file is missing, damaged or no bag table, or a bag in it is malformed.
    """
    arrays = load_arrays(path)
    if single_label is not None and "bag_labels" in arrays:
        arrays = _keep_single_labels(arrays, single_label)
    several = arrays.get("bag_labels") if "bag_label" not in arrays else None
    for key in ("X", "bag_ptr", "bag_label"):
        if key not in arrays and (key != "bag_label" or several is None):
            raise InputError(f"{path}: the array {key!r} is missing; a bag table needs X, bag_ptr and bag_label")
    features, pointer = arrays["X"], arrays["bag_ptr"]
    if features.ndim != 2 or features.dtype.kind not in "biuf":
        raise InputError(f"{path}: X must be numbers [instances, dimensions], not {features.dtype} {features.shape}")
    if pointer.ndim != 1 or pointer.dtype.kind not in "iu" or len(pointer) < 2:
        raise InputError(
            f"{path}: bag_ptr must be whole numbers [bags + 1], at least two, not {pointer.dtype} {list(pointer.shape)}"
        )
    num_bags = len(pointer) - 1
    if several is not None and (several.ndim != 2 or len(several) != num_bags or several.dtype.kind not in "biuf"):
        raise InputError(f"{path}: bag_labels must be numbers [{num_bags} bags, labels], not {several.shape}")
    labels = arrays["bag_label"] if several is None else np.zeros(num_bags, dtype=np.int64)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        bag = int(np.searchsorted(pointer, row, side="right")) - 1
        raise InputError(f"{path}: X is NaN or infinite in row {row} (bag {bag}); correct the row or drop it")
    if pointer[0] != 0 or pointer[-1] != len(features) or (pointer[1:] < pointer[:-1]).any():
        raise InputError(f"{path}: bag_ptr must rise from 0 to the {len(features)} rows of X")
    names = arrays.get("bag_name", np.array([f"bag_{i:04d}" for i in range(num_bags)]))
    per_bag = {"bag_label": labels, "bag_name": names, "patient_id": arrays.get("patient_id")}
    for key, values in per_bag.items():
        if values is not None and values.shape != (num_bags,):
            raise InputError(f"{path}: {key} has {list(values.shape)} entries for {num_bags} bags")
    labels = _class_indices(path, labels, names, classes)
    if len(set(names.tolist())) < num_bags:
        raise InputError(f"{path}: bag_name holds a name twice; every bag needs its own")
    instance_labels = _instance_labels(path, arrays, positive_instance_class)
    sizes = _patch_sizes(path, arrays, num_bags)
    for key in ("coords", "inst_label", "inst_class"):
        if key in arrays and arrays[key].shape[:1] != (len(features),):
            rows = len(arrays[key]) if arrays[key].ndim else 0
            raise InputError(f"{path}: {key} has {rows} rows and X {len(features)}; they must match")

    def part(values: Any, i: int) -> Any:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values[pointer[i] : pointer[i + 1]]))

    return [
        Bag(
            features=part(features.astype(np.float32, copy=False), i),
            coords=part(arrays.get("coords"), i),
            patch_size=sizes[i],
            label=int(labels[i]) if several is None else None,
            target=None if several is None else several[i].astype(np.float64),
            instance_labels=part(instance_labels, i),
            slide_id=str(names[i]),
            patient_id=None if per_bag["patient_id"] is None else str(per_bag["patient_id"][i]),
            layout="arrays",
            geometry="patch_size of the table" if sizes[i] else "",
        )
        for i in range(num_bags)
    ]


def _patch_sizes(path: Path, arrays: dict[str, Any], num_bags: int) -> list[float | None]:
    """The patch size of every bag; None where the table states none."""
    sizes = arrays.get("patch_size")
    if sizes is None:
        return [None] * num_bags
    whole = sizes.dtype.kind in "iuf" and sizes.shape in ((), (1,), (num_bags,))
    if not whole or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(
            f"{path}: patch_size must be one positive number, or one for each of the {num_bags} bags: the step of the "
            f"patches in level-0 pixels; correct it, or leave it out where patches have no size"
        )
    found: list[float | None] = np.broadcast_to(sizes, num_bags).astype(float).tolist()
    return found


def named_classes(path: Path) -> list[str]:
    """The class names that ``bag_label`` of a table holds, sorted; none where it holds numbers."""
    labels = load_arrays(path).get("bag_label")
    found = set() if labels is None or labels.dtype.kind not in "US" else {_text(label) for label in labels.ravel()}
    if all(_WHOLE.fullmatch(label) for label in found):
        return []
    for label in unknown_among(found):
        raise InputError(
            f"{path}: bag_label {label!r} beside numbers marks bags of which nothing is known; drop these bags, or "
            "write a name in its place if it is a class"
        )
    classes = sorted(found - {""})
    if len(found) == 1:
        raise InputError(f"{path}: bag_label is {classes[0]!r} in every bag, one class; add bags of another")
    return classes


def _text(label: Any) -> str:
    text = (label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)).strip()
    return _WHOLE_FLOAT.sub(r"\1", text)


def _class_indices(path: Path, labels: Any, names: Any, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """``bag_label`` as whole numbers from 0, or an ``InputError`` that names the bag whose label is none."""
    known = class_indices(classes)
    number = class_numbers(classes)
    found = []
    for label, name in zip(labels.tolist(), names.tolist(), strict=True):
        text = _text(label) if isinstance(label, (bytes, str)) else ""
        if text in known:
            found.append(number[known[text]])
        elif _WHOLE.fullmatch(text):
            found.append(int(text))
        elif isinstance(label, (bool, int, float)) and label >= 0 and label == label // 1 and label < 2**63:
            found.append(int(label))
        else:
            wanted = f"one of {', '.join(classes)}" if classes else "a whole number from 0 (0, 1, ...)"
            raise InputError(
                f"{path}: bag_label of bag {name!r} is {label!r}, not {wanted}; correct it or drop the bag"
            )
    return np.array(found, dtype=np.int64)


def read_published_folds(path: Path) -> Any:
    """The published test bags of a table, bool ``[repeats, folds, n_bags]``; None where it holds none.

    They lie in the array ``test_mask_<repeats>x<folds>``; every bag must be tested once a repetition.
    """
    arrays = load_arrays(path)
    name = next((name for name in arrays if name.startswith("test_mask_")), None)
    if name is None:
        return None
    mask = arrays[name]
    if mask.dtype != bool or mask.ndim != 3 or not (mask.sum(1) == 1).all():
        raise InputError(f"{path}: {name} must be bool [repeats, folds, bags] with every bag in one fold a repetition")
    return mask


def _instance_labels(path: Path, arrays: dict[str, Any], positive_class: int | None) -> Any:
    if positive_class is not None and "inst_class" in arrays:
        return (arrays["inst_class"] == positive_class).astype(np.int64)
    labels = arrays.get("inst_label")
    if labels is None:
        return None
    labels = numbers(path, labels, "inst_label", np.float64)
    if (labels < 0).any():
        return None
    odd = np.flatnonzero((labels != 0) & (labels != 1))
    if len(odd):
        raise InputError(
            f"{path}: inst_label holds {labels[odd[0]]:g} in row {odd[0]} ({len(odd)} such rows), not 1 (positive), 0 "
            "(negative) or a number below 0 (unknown); divide a mask of 0 and 255 by 255"
        )
    return labels.astype(np.int64)


def _keep_single_labels(arrays: dict[str, Any], least: int) -> dict[str, Any]:
    labels, pointer = arrays["bag_labels"], arrays["bag_ptr"]
    single = labels.sum(1) == 1
    classes = np.flatnonzero(labels[single].sum(0) >= least)
    kept = np.flatnonzero(single & labels[:, classes].any(1))
    rows = np.concatenate([np.arange(pointer[i], pointer[i + 1]) for i in kept])
    names = arrays.get("bag_name", np.array([f"bag_{i:04d}" for i in range(len(labels))]))
    return {
        "X": arrays["X"][rows],
        "bag_ptr": np.concatenate([[0], np.diff(pointer)[kept].cumsum()]),
        "bag_label": labels[kept][:, classes].argmax(1),
        "bag_name": names[kept],
    }


@register_layout("arrays")
class Arrays(TableLayout):
    """A bag table; each file is a dataset of its own."""

    about = "one .npz of all bags: X, bag_ptr, bag_label and more (see the README)"
    suffixes = (".npz",)

    def claim(self, path: Path) -> Claim | None:
        """By the names of its arrays."""
        try:
            with zipfile.ZipFile(path) as archive:
                known = {"X.npy", "bag_ptr.npy"}.issubset(archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return None
        return Claim(Sure.STATED, "the arrays X and bag_ptr") if known else None

    def group(self, path: Path) -> Path:
        """The file itself."""
        return path

    def encoder(self, path: Path) -> str:
        """The name of the file."""
        return path.stem

    def read_all(self, path: Path, allow_pickle: bool = False) -> list[Bag]:
        """Every bag of the table."""
        return read_table(path)
