"""Training on one dataset and testing on another."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mil_zoo.data.labelled import Dataset
from mil_zoo.data.labels.dialects import folded
from mil_zoo.data.splits.split import find_leaks, patient_key
from mil_zoo.errors import InputError


def joined(train: Dataset, test: Dataset) -> Dataset:
    """The bags of both, to be divided by ``train_elsewhere``.

    Args:
        train: the dataset to train and validate on; its card's graph and scaling apply.
        test: the dataset all of whose slides are tested.

    Returns:
        A dataset whose ``test_ids`` are the slides of ``test``.

    Raises:
        InputError: other classes, another feature dimension, or patients (or slides) in both; ten of them are named.
    """
    a, b = train.card, test.card
    if reason := train.task.refuses(test.task):
        raise InputError(f"{a.name!r} cannot be tested on {b.name!r}: {reason}")
    if a.classes != b.classes:
        raise InputError(
            f"{a.name!r} has the classes {', '.join(a.classes)} and {b.name!r} {', '.join(b.classes)}; --test-on needs "
            f"the same ones in the same order: call those of {b.name!r} so in its label table (--test-labels)"
        )
    if train.in_dim != test.in_dim:
        raise InputError(
            f"{a.name!r} has {train.in_dim} features a patch and {b.name!r} {test.in_dim}; use one encoder for both"
        )
    ours, theirs = (dataset.bags.slide_ids for dataset in (train, test))
    patient_of = {slide.slide_id: patient_key(slide) for d in (train, test) for slide in d.bags.slides}
    shared = sorted({*find_leaks(ours, theirs, patient_of), *(set(ours) & set(theirs))})
    here = {folded(patient_of[slide]): patient_of[slide] for slide in ours}
    written = {patient_of[slide]: here[alike] for slide in theirs if (alike := folded(patient_of[slide])) in here}
    shared = shared or [f"{name} ({known} there)" for known, name in sorted(written.items())]
    if shared:
        some = ", ".join(shared[:10]) + (f" and {len(shared) - 10} more" if len(shared) > 10 else "")
        raise InputError(f"patients are in both {a.name!r} and {b.name!r}: {some}; drop them from one")
    kinds = [card.kind for card in (a, b)]
    card = replace(
        a,
        name=f"{a.name}-to-{b.name}",
        title=f"{a.title}, tested on {b.title}",
        kind=next((kind for kind in ("simulated", "own") if kind in kinds), a.kind),
        bags=None,
        bags_per_class=None,
        instance_labels=_both(a.instance_labels, b.instance_labels),
        warnings=list(dict.fromkeys([*a.warnings, *b.warnings])),
    )
    tables = [dataset.covariates for dataset in (train, test) if dataset.covariates is not None]
    return Dataset(
        card,
        train.bags + test.bags,
        test_ids=tuple(theirs),
        features=train.features,
        excluded=[*train.excluded, *test.excluded],
        covariates=pd.concat(tables, ignore_index=True) if len(tables) == 2 else None,
    )


def _both(train: str | None, test: str | None) -> str | None:
    if train == test or train is None or test is None:
        return train or test
    return f"{train} (training); {test} (test)"
