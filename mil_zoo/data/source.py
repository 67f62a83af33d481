"""How a dataset is opened for a benchmark: which files, tested on which other dataset, patients scored how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mil_zoo.data.dataset import Dataset, data_root, open_dataset
from mil_zoo.data.patients import PatientRule, pack_patients, pack_splits, settle_rule
from mil_zoo.data.splits.split import patient_key
from mil_zoo.data.transfer import joined


@dataclass(frozen=True)
class DatasetSource:
    """All that it takes to open a dataset again, in another process for instance.

    Attributes:
        name: see :func:`open_dataset`, like the next five.
        root: see there.
        labels: see there.
        features: see there.
        layout: see there.
        allow_pickle: see there.
        patients: how patients of several slides are scored: "mean" or "max" of their slides' probabilities, or
            "packed", all slides in one bag; None for what the card says, else the mean.
        test_on: another dataset, on which training on this one is tested.
    """

    name: str
    root: Path | None = None
    labels: Path | None = None
    features: str | None = None
    layout: str | None = None
    allow_pickle: bool = False
    patients: PatientRule | None = None
    test_on: DatasetSource | None = None

    def anywhere(self) -> DatasetSource:
        """The same, independent of the working directory and of the environment."""
        name, root = self.name, data_root(self.root)
        if name.endswith(".npz") or Path(name).is_dir():
            name = str(Path(name).resolve())
        return replace(
            self,
            name=name,
            root=root and root.resolve(),
            labels=self.labels and self.labels.resolve(),
            test_on=self.test_on and self.test_on.anywhere(),
        )

    def with_features(self, features: str) -> DatasetSource:
        """The same with another set of features, also of the dataset that is tested on."""
        return replace(self, features=features, test_on=self.test_on and self.test_on.with_features(features))

    def open(self) -> Dataset:
        """The dataset, or both datasets joined.

        Raises:
            InputError: see :func:`open_dataset`, ``joined`` and ``settle_rule``.
        """
        dataset = self._open()
        if self.test_on is not None:
            dataset = joined(dataset, self.test_on._open())
        rule = settle_rule(dataset.bags, self.patients or dataset.card.patient_level)
        if rule != "packed":
            return replace(dataset, patient_rule=rule)
        place = {slide.slide_id: patient_key(slide) for slide in dataset.bags.slides}
        return replace(
            dataset,
            bags=pack_patients(dataset.bags),
            published_splits=pack_splits(dataset.published_splits, dataset.bags),
            site_of={place[slide]: site for slide, site in dataset.site_of.items()},
            test_ids=tuple(dict.fromkeys(place[slide] for slide in dataset.test_ids)),
            patient_rule=rule,
        )

    def _open(self) -> Dataset:
        how = {"features": self.features, "layout": self.layout, "allow_pickle": self.allow_pickle}
        return open_dataset(self.name, self.root, self.labels, **how)  # type: ignore[arg-type]
