"""The ways a benchmark may divide a dataset, by name: official, kfold, monte-carlo, site, low-label:N, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.splits.draw import Strata, completed, kfold, monte_carlo, train_elsewhere
from mil_zoo.data.splits.few_labels import choose_labelled, parse_labelled
from mil_zoo.data.splits.files import is_split_file, read_splits
from mil_zoo.data.splits.split import Split, Words, check_seed, check_splits, leaks_of, patient_key, restricted
from mil_zoo.errors import InputError, did_you_mean

SCHEMES = ("kfold", "official", "monte-carlo", "site", "low-label")


@dataclass(frozen=True)
class DrawnSplits:
    """The splits of a benchmark and what its tables say of them.

    Attributes:
        splits: in the order of repeat and fold.
        kind: how they were made, in words.
        warnings: sentences that every table carries.
        validated: whether every split came with validation slides of its own, so that none were drawn.
    """

    splits: list[Split]
    kind: str
    warnings: list[str]
    validated: bool = False


def draw_splits(
    dataset: Dataset,
    scheme: str = "kfold",
    folds: int | Literal["published"] = 5,
    repeats: int = 1,
    validation_fraction: float = 0.15,
    seed: int = 0,
    allow_leaks: bool = False,
    strata: Strata | None = None,
) -> DrawnSplits:
    """Divides a dataset.

    Args:
        dataset: its bags, published splits and sites; where it joins two, all slides of the second are tested, and
            ``repeats`` divisions of the first into train and val are made.
        scheme: "kfold"; "official", the splits that come with the dataset (also meant by ``folds="published"``);
            "monte-carlo", ``folds`` independent draws with a fifth of the slides for test; "site", k-fold in which no
            site is on two sides; "low-label:50" or "low-label:25%", k-fold (or the published splits) with that number
            or share of training slides; or a split file, see :func:`mil_zoo.data.splits.files.read_splits`.
        folds: number of test parts a repetition.
        repeats: repetitions; of a split file all are used.
        validation_fraction: share of the training slides on which checkpoints are chosen.
        seed: of the shuffles.
        allow_leaks: run official splits and split files that share patients between train and test.
        strata: what every part holds its share of (a task's shares), see ``kfold``; None for the classes.

    Raises:
        InputError: an unknown scheme, a dataset without what the scheme needs, or splits that leak.
    """
    check_seed(seed)
    bags = dataset.bags
    present = {slide.label for slide in as_bags(bags).slides}
    for label, class_name in enumerate(dataset.card.classes if strata is None else ()):
        if label not in present:
            raise InputError(
                f"no slide of {dataset.card.title} has the label {class_name!r}; drop the class or add slides"
            )

    def said(splits: Sequence[Split], published: Sequence[Split] = ()) -> list[str]:
        given = {(split.repeat, split.fold) for split in published if split.val}
        drawn = [split for split in splits if (split.repeat, split.fold) not in given]
        shares = _validation_warnings(drawn, dataset, validation_fraction, strata is None)
        return _leak_warnings(splits, bags) + shares + _unused_warnings(splits, bags)

    if dataset.test_ids:
        if scheme != "kfold":
            raise InputError(f"--test-on tests on all slides of the other dataset; leave out --split {scheme}")
        splits = train_elsewhere(bags, dataset.test_ids, repeats, validation_fraction, seed, strata)
        return DrawnSplits(splits, f"all {len(dataset.test_ids)} slides of the other dataset are tested", said(splits))
    name, _, labelled = scheme.partition(":")
    if is_split_file(scheme):
        words = Words(
            Path(scheme).name, dataset.card.classes, "put slides of it there, or draw splits by leaving out --split"
        )
        published = _of_bags(scheme, bags)
        if dataset.partial:
            published = restricted(published, bags.slide_ids)
        splits = completed(published, bags, validation_fraction, seed, allow_leaks, strata, words)
        kind = f"read from {Path(scheme).name}"
        return DrawnSplits(splits, kind, said(splits, published), all(split.val for split in published))
    if name not in SCHEMES or (labelled != "") != (name == "low-label"):
        raise InputError(
            f"--split {scheme!r} is no way to split{did_you_mean(name, SCHEMES)} (low-label:50, or a file)"
        )
    if name == "official" or folds == "published":
        if name not in ("official", "kfold", "low-label"):
            raise InputError(f"--split {scheme} draws its own folds; give their number with --folds, not 'published'")
        words = Words(
            f"official split of {dataset.card.title}",
            dataset.card.classes,
            "mend the column split of the label table, or leave out --split official",
        )
        published = _first(dataset, repeats)
        splits = completed(published, bags, validation_fraction, seed, allow_leaks, strata, words)
        kind = "published folds" if len(splits) > 1 else "official split"
        drawn = DrawnSplits(splits, kind, said(splits, published), all(split.val for split in published))
        return _thinned(drawn, bags, labelled, seed, allow_leaks, strata is None)
    unit = "patient" if all(slide.patient_id for slide in as_bags(bags).slides) else "slide (patients unknown)"
    if name == "site":
        if not dataset.site_of:
            raise InputError(
                f"dataset {dataset.card.name!r} does not say which site a slide comes from; add a column 'site' to its "
                "label table, or choose another --split"
            )
        splits = kfold(bags, folds, repeats, validation_fraction, seed, dataset.site_of, strata)
        return DrawnSplits(splits, f"site-preserved k-fold ({len(set(dataset.site_of.values()))} sites)", said(splits))
    if name == "monte-carlo":
        if repeats != 1:
            raise InputError("--split monte-carlo makes --folds independent draws; leave --repeats out")
        splits = monte_carlo(bags, folds, 0.2, validation_fraction, seed, strata)
        return DrawnSplits(splits, f"stratified Monte-Carlo draws by {unit}, 20 % for test", said(splits))
    splits = kfold(bags, folds, repeats, validation_fraction, seed, strata=strata)
    drawn = DrawnSplits(splits, f"stratified k-fold by {unit}", said(splits))
    return _thinned(drawn, bags, labelled, seed, False, strata is None)


def _unused_warnings(splits: Sequence[Split], bags: Sequence[Bag]) -> list[str]:
    """Which slides are in no part of any split."""
    used: set[str] = set()
    for split in splits:
        used.update(split.train, split.val, split.test, split.withheld)
    unused = [slide.slide_id for slide in as_bags(bags).slides if slide.slide_id not in used]
    if not unused:
        return []
    named = ", ".join(unused[:3]) + ", ..." * (len(unused) > 3)
    return [f"{len(unused)} of {len(bags)} slides are in no part of any split and play no role ({named})."]


def _of_bags(path: str, bags: Sequence[Bag]) -> list[Split]:
    """The splits of a file, which names slides or patients, by bag: the slides of a patient may be one."""
    slides = as_bags(bags).slides
    bag_of = {name: slide.slide_id for slide in slides for name in (*slide.names(), slide.slide_id)}
    patient_of = {name: patient_key(slide) for slide in slides for name in (*slide.names(), slide.slide_id)}
    return [
        split.mapped(lambda part: tuple(dict.fromkeys(bag_of.get(name, name) for name in part)))
        for split in read_splits(path, patient_of)
    ]


def low_label(
    splits: Sequence[Split],
    bags: Sequence[Bag],
    labelled: float,
    seed: int = 0,
    allow_leaks: bool = False,
    classes: bool = True,
) -> list[Split]:
    """The same test parts with few training slides, stratified by class.

    The validation part shrinks in proportion: a checkpoint chosen on more labels than it was trained on would use them.

    Args:
        splits: those to thin out.
        bags: labelled bags.
        labelled: a share of the training slides, in (0, 1], or their number, above 1.
        seed: of the choice; the parts of one seed are nested.
        allow_leaks: see :func:`mil_zoo.data.splits.draw.completed`.
        classes: whether labels are classes, of which every part needs some.

    Raises:
        InputError: more slides than a training part holds.
    """
    label_of = {slide.slide_id: slide.label for slide in as_bags(bags).slides}
    thinned = []
    for split in splits:
        share = labelled if labelled <= 1 else labelled / len(split.train)
        parts: list[tuple[str, ...]] = []
        for number, (part, wanted) in enumerate(((split.train, labelled), (split.val, min(share, 1.0)))):
            labels = [label_of[slide] for slide in part]
            chosen = choose_labelled(labels, wanted, [seed, split.repeat, split.fold, number])
            parts.append(tuple(part[i] for i in chosen))
        used = set(parts[0])
        withheld = tuple(slide for slide in split.train if slide not in used)
        thinned.append(replace(split, train=parts[0], val=parts[1], withheld=withheld))
    check_splits(thinned, bags, allow_leaks, classes=classes)
    return thinned


def _first(dataset: Dataset, repeats: int) -> list[Split]:
    if not dataset.published_splits:
        raise InputError(
            f"dataset {dataset.card.name!r} comes without published folds: no column split of its label table names "
            "train and test slides, and no column fold is there; add one, or ask for a number of --folds"
        )
    published = 1 + max(split.repeat for split in dataset.published_splits)
    if not 1 <= repeats <= published:
        raise InputError(f"{published} repetitions of the folds are published; ask for --repeats 1 to {published}")
    return [split for split in dataset.published_splits if split.repeat < repeats]


def _thinned(
    drawn: DrawnSplits, bags: Sequence[Bag], labelled: str, seed: int, allow_leaks: bool, classes: bool
) -> DrawnSplits:
    """The splits with as few training slides as "50" or "25%" says; as they are where it says nothing."""
    if not labelled:
        return drawn
    try:
        share = parse_labelled(labelled)
    except ValueError:
        raise InputError(
            f"--split low-label:{labelled}: write low-label:50 (training slides) or low-label:25% (of them)"
        ) from None
    kind = f"{drawn.kind}, {labelled} {'of the ' if labelled.endswith('%') else ''}training slides"
    return replace(drawn, splits=low_label(drawn.splits, bags, share, seed, allow_leaks, classes), kind=kind)


def _leak_warnings(splits: Sequence[Split], bags: Sequence[Bag]) -> list[str]:
    leaks = leaks_of(splits, {slide.slide_id: patient_key(slide) for slide in as_bags(bags).slides})
    patients = sorted({patient for found in leaks.values() for patient in found})
    if not patients:
        return []
    folds = len({place[:2] for place in leaks})
    return [
        f"LEAKY SPLIT, run as published: in {folds} of {len(splits)} splits patients are in both train and test "
        f"({len(patients)} in all: {', '.join(patients[:10])}{', ...' if len(patients) > 10 else ''}), so scores are "
        "too good."
    ]


def _validation_warnings(splits: Sequence[Split], dataset: Dataset, asked: float, classes: bool) -> list[str]:
    """What to say where patients are too few or too large for a validation part of the wanted size."""
    if not splits:
        return []
    lines = []
    slides = {slide.slide_id: slide for slide in as_bags(dataset.bags).slides}
    for label, class_name in enumerate(dataset.card.classes if classes else ()):
        shares = []
        for split in splits:
            val, train = (
                {patient_key(slides[s]) for s in part if slides[s].label == label} for part in (split.val, split.train)
            )
            if len(val) == 1 and 1 + len(train) < 1 / asked:
                shares.append(1 / (1 + len(train)))
        if shares:
            lines.append(
                f"Class {class_name!r} has few patients: the validation part takes one of {round(1 / max(shares))} "
                f"({max(shares):.0%} where {asked:.0%} were asked for) in {len(shares)} of {len(splits)} splits."
            )
    held = [len(split.val) / (len(split.val) + len(split.train)) for split in splits]
    odd = [share for share in held if not asked / 2 <= share <= 1.5 * asked]
    if odd:
        shares_held = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(odd), max(odd))))
        lines.append(
            f"The validation part holds {shares_held} of the training slides in {len(odd)} of "
            f"{len(splits)} splits, where {asked:.0%} were asked for: patients are few, or some have many slides."
        )
    return lines
