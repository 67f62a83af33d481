"""Opening the data of a benchmark: all that can be wrong with them is found here, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mil_zoo.data.bags import Bags
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.digests import of_bag, of_labels, samples_of, together
from mil_zoo.data.judge import judge_identical, judge_shapes, raise_errors, with_warnings
from mil_zoo.data.judge_annotations import annotations_in_words, judge_annotations, lesion_free_slides, look_at_all
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.source import DatasetSource
from mil_zoo.errors import InputError


def open_judged(
    source: DatasetSource, features: Sequence[str] = (), verify: bool = False, project: int | None = None
) -> tuple[Dataset, dict[str, str]]:
    """Opens a dataset, looks at the heads of all its files and at its annotations, and digests what lies there.

    Args:
        source: how to open it.
        features: further sets of features, which are looked at too.
        verify: read and digest all features, not sampled rows alone.
        project: numbers an instance to which features will be projected.

    Returns:
        The dataset, whose card says what tables must say of annotations, and the digests that its run keeps: of
        "labels", of "features" (sampled rows), and where ``verify`` asks for it of "all features".

    Raises:
        InputError: a file or an annotation that cannot be read, features of several dimensions or of fewer than
            ``project``, or identical slides.
    """
    dataset = _with_judged_annotations(open_dataset(source))
    every = [dataset.bags, *(open_dataset(source.with_features(each)).bags for each in features)]
    for other, bags in zip(features, every[1:], strict=True):
        if odd := sorted(set(dataset.bags.slide_ids).symmetric_difference(bags.slide_ids)):
            raise InputError(
                f"the features {source.features!r} and {other!r} are of different slides: {', '.join(odd[:5])} "
                f"({len(odd)} in all) is in one of them alone; encoders are compared on the same slides: extract the "
                "missing ones, or drop their rows from the label table"
            )
    for name, bags in zip([source.features, *features], every, strict=True):
        if project is not None and project > bags.dim:
            raise InputError(
                f"--project must be from 1 to {bags.dim}, not {project}: {name or 'the dataset'} has {bags.dim} "
                "features a patch"
            )
    digests = {"labels": of_labels(dataset.bags), "features": " ".join(map(judged_digest, every))}
    if verify:
        whole = (together(f"{slide.slide_id}\t{of_bag(slide.read())}" for slide in bags.slides) for bags in every)
        digests["all features"] = " ".join(whole)
    return dataset, digests


def _with_judged_annotations(dataset: Dataset) -> Dataset:
    """The dataset with what its tables must say of annotations, once all of them can be read."""
    looked = look_at_all(dataset.bags)
    findings = judge_annotations(looked, lesion_free_slides(dataset.bags, dataset.card))
    raise_errors(findings)
    card = with_warnings(dataset.card, findings)
    if looked:
        card = replace(card, instance_labels=f"{card.instance_labels}; {annotations_in_words(looked)}")
    return replace(dataset, card=card)


def judged_digest(bags: Bags) -> str:
    """One digest of sampled rows of all slides, once their shapes fit each other and no slide occurs twice."""
    raise_errors(judge_shapes(bags))
    samples = samples_of(bags)
    raise_errors(judge_identical(bags, samples))
    return together(f"{slide}\t{digest}" for slide, digest in samples.items())
