"""The bags of each part of a split, with the labels that a trial may use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mil_zoo.bench.plan import TrialPlan
from mil_zoo.data.bags import Bags
from mil_zoo.data.derived import standardised
from mil_zoo.data.labelled import Dataset, Standardiser
from mil_zoo.data.splits.few_labels import choose_labelled
from mil_zoo.data.splits.split import Split, patient_key
from mil_zoo.tasks import Task

Parts = dict[str, Bags]


def split_bags(
    dataset: Dataset, split: Split, shuffle: int | None = None, project: int | None = None
) -> tuple[Parts, Standardiser | None]:
    """The bags of "train", "val", "test" and "unlabelled", and what standardised them where the card says so.

    With a seed to ``shuffle`` by, training and validation slides get each other's labels, others for every seed; of
    survival patients get each other's time and event together, the same for all slides of a patient.
    "unlabelled" is every slide of a patient who is not tested, for methods that learn without labels. With a width to
    ``project`` to, features become their coordinates on that many principal axes of the training instances.
    """
    slides = {part: getattr(split, part) for part in ("train", "val", "test")}
    tested = {patient_key(slide) for slide in dataset.bags.select(split.test).slides}
    slides["unlabelled"] = [slide.slide_id for slide in dataset.bags.slides if patient_key(slide) not in tested]
    bags, standardiser = dataset.bags, None
    if project is not None:
        standardiser = Standardiser.projecting(bags.select(split.train), project, dataset.card.standardise)
    elif dataset.card.standardise:
        standardiser = Standardiser.fit(bags.select(split.train))
    if standardiser is not None:
        bags = standardised(bags, standardiser)
    parts: Parts = {part: bags.select(ids) for part, ids in slides.items()}
    if shuffle is not None:
        for number, part in enumerate(("train", "val")):
            rng = np.random.default_rng([number, split.repeat, split.fold, shuffle])
            parts[part] = parts[part].with_targets_of(_givers(parts[part], dataset.task, rng))
    return parts, standardiser


def few_labels(bags: Parts, trial: TrialPlan, task: Task) -> Parts:
    """The same parts with the share of training and validation slides whose labels the trial may use.

    The choice is the same for all models, and nested: fewer labels are a part of more labels.
    """
    labelled = trial.model.training.labelled
    if labelled == 1:
        return bags
    split, thinned = trial.split, dict(bags)
    shares = (labelled, min(1.0, labelled if labelled <= 1 else labelled / len(bags["train"])))
    for number, (part, share) in enumerate(zip(("train", "val"), shares, strict=True)):
        names = bags[part].slide_ids
        strata = task.strata(bags[part].targets).tolist()
        chosen = choose_labelled(strata, share, [trial.seed, split.repeat, split.fold, number])
        thinned[part] = bags[part].select([names[i] for i in chosen])
    return thinned


def _givers(bags: Bags, task: Task, rng: np.random.Generator) -> list[int]:
    """For each slide the one whose target it gets."""
    keys = [patient_key(slide) if task.of_patients else slide.slide_id for slide in bags.slides]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # of each patient the first slide
    owners = sorted(first.values())
    order = shuffled_order(task.strata(bags.targets[owners]), rng)
    giver = {keys[owner]: owners[i] for owner, i in zip(owners, order, strict=True)}
    return [giver[key] for key in keys]


def shuffled_order(strata: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each slide whose target it gets: a random order in which each class gets its share of every label.

    Over a few dozen slides a plain shuffle agrees with the truth by chance often enough to look like a leak.
    """
    place = np.empty(len(strata))
    for stratum in np.unique(strata):  # spread every class evenly over the sequence
        members = np.flatnonzero(strata == stratum)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.empty(len(strata), dtype=np.int64)
    order[np.lexsort((rng.random(len(strata)), strata))] = np.argsort(place)
    return order
