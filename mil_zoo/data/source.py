"""How a dataset is opened: one value that says which files, read how, tested on which other dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mil_zoo.config import shipped_names
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe

PatientRule = Literal["mean", "max", "packed"]
ROOT_VARIABLE = "MIL_ZOO_REAL_DATA"


@dataclass(frozen=True)
class DatasetSource:
    """All that it takes to open a dataset, here or in another process; it can be hashed and pickled.

    Attributes:
        name: a card (see ``mil-zoo datasets``; ``./NAME`` is a folder that has a card's name), or the path of a bag
            table, a folder of slides, a packed store, or one feature file.
        root: folder that holds a card's files; None for the folder in the variable ``MIL_ZOO_REAL_DATA``.
        labels: a csv that replaces the dataset's own labels: slide_id, label (class index or name) and, optionally,
            patient_id, site, and split (train, val or test of the published split; nothing for none of them). A folder
            of slides has its own in ``labels.csv``.
        features: which set of features, where a folder holds those of several encoders; ``a+b`` for the features of
            both side by side.
        layout: how the files are laid out; None to tell it from what lies there.
        allow_pickle: run whatever code a pickle of features holds; only for files of one's own.
        patients: how patients of several slides are scored: "mean" or "max" of their slides' probabilities, or
            "packed", all slides in one bag; None for what the card says, else the mean.
        task: what is predicted, ("name", registry key) and settings as pairs; empty for what the card says.
        allow_missing: use the slides that have features where the labels (or a split file) name more.
        test_on: another dataset, on which training on this one is tested.
    """

    name: str
    root: Path | None = None
    labels: Path | None = None
    features: str | None = None
    layout: str | None = None
    allow_pickle: bool = False
    patients: PatientRule | None = None
    task: tuple[tuple[str, Any], ...] = ()
    allow_missing: bool = False
    test_on: DatasetSource | None = None

    @property
    def names_card(self) -> bool:
        """Whether ``name`` is a shipped card's, whatever else is called so in this folder: ``./demo`` is a folder."""
        return self.name in shipped_names("data_cards")

    @property
    def data_root(self) -> Path | None:
        """``root``, or the folder in the variable ``MIL_ZOO_REAL_DATA``; None where neither is given."""
        return self.root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)

    def anywhere(self) -> DatasetSource:
        """The same, independent of the working directory and of the environment.

        Raises:
            InputError: its labels come through a pipe, which another process cannot read, nor anybody twice.
        """
        if self.labels is not None:
            refuse_pipe(self.labels)
        name, root = self.name, self.data_root
        if not self.names_card and (name.endswith(".npz") or Path(name).exists()):
            name = str(Path(name).resolve())
        return replace(
            self,
            name=name,
            root=root and root.resolve(),
            labels=self.labels and self.labels.resolve(),
            test_on=self.test_on and self.test_on.anywhere(),
        )

    def with_task(self, task: Mapping[str, Any] | None) -> DatasetSource:
        """The same for what is to be predicted: the ``name`` of a task and its settings; as it is for nothing."""
        return replace(self, task=tuple((key, _frozen(value)) for key, value in task.items())) if task else self

    def with_features(self, features: str) -> DatasetSource:
        """The same with another set of features, also of the dataset that is tested on."""
        return replace(self, features=features, test_on=self.test_on and self.test_on.with_features(features))


def _frozen(value: Any) -> Any:
    """A setting that can be hashed: lists as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def as_source(source: DatasetSource | Path | str, **fields: Any) -> DatasetSource:
    """``source`` with other ``fields``; of a name or a path the source that it stands for.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(source, DatasetSource):
        return replace(source, **fields)
    if not isinstance(source, str | Path):
        raise InputError(f"source is a card's name, a path or a DatasetSource, not {source!r:.60}")
    return DatasetSource(str(source), **fields)
