"""What is wrong with annotations beside the slides that they belong to."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import Bags, Slide, SlideFile
from mil_zoo.data.card import DataCard
from mil_zoo.data.judge import Finding
from mil_zoo.data.labels.annotations import Annotations, InstanceLabeller, read_annotations
from mil_zoo.data.labels.names import both_sides
from mil_zoo.data.patients import PatientSlides
from mil_zoo.errors import InputError

_LAID = 3  # slides whose patches tell, before anything is trained, whether annotations are of their level


@dataclass(frozen=True)
class Looked:
    """What was found in the annotations of one slide.

    Attributes:
        slide_id: its name.
        problem: why they cannot be used, as a sentence; empty where they can.
        annotations: what they hold; None where they cannot be read.
        positive: patches that they make positive; None where that was not asked, or the slide has no coordinates.
    """

    slide_id: str
    problem: str = ""
    annotations: Annotations | None = None
    positive: int | None = None


def look_at(slide_id: str, labeller: InstanceLabeller, bag: Bag | None = None) -> Looked:
    """Reads the annotations of a slide, and lays them over its patches where the bag is given."""
    if labeller.path is None:
        return Looked(slide_id)
    annotations = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are left out: the findings say it
            annotations = read_annotations(labeller.path, scale=labeller.scale or 1.0)
        labels = None if bag is None else labeller.apply(annotations, bag)
    except InputError as error:
        return Looked(slide_id, str(error), annotations)
    return Looked(slide_id, "", annotations, None if labels is None else int(labels.sum()))


def look_at_all(bags: Bags) -> list[Looked]:
    """What the annotations of all slides hold that have some; the first with lesions are laid over their patches."""
    looked, laid = [], 0
    for slide in _one_by_one(bags):
        if not isinstance(slide, SlideFile) or slide.labeller is None or not slide.labeller.path:
            continue
        found = look_at(slide.slide_id, slide.labeller)
        if laid < _LAID and found.annotations is not None and found.annotations.positives and not found.problem:
            laid += 1
            with suppress(InputError):  # features that cannot be read are told where features are looked at
                found = look_at(slide.slide_id, slide.labeller, slide.read())
        looked.append(found)
    return looked


def judge_annotations(looked: Iterable[Looked], lesion_free: Iterable[str]) -> list[Finding]:
    """What is wrong with annotations.

    Args:
        looked: what was found in them, a row a slide.
        lesion_free: slides that need hold no lesion.
    """
    looked, free = list(looked), set(lesion_free)
    findings = [Finding("error", each.problem, (each.slide_id,)) for each in looked if each.problem]
    read = [each for each in looked if each.annotations is not None and not each.problem]
    bare = [each for each in read if not each.annotations.positives and each.slide_id not in free]  # type: ignore[union-attr]
    if bare:
        groups: Counter[str] = sum((Counter(each.annotations.ignored) for each in bare if each.annotations), Counter())
        others = f" (shapes of other classes: {', '.join(map(repr, groups))})" if groups else ""
        names = tuple(each.slide_id for each in bare)
        text = f"annotations hold no lesion{others}, so all patches of their slides count as negative"
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else ".")
        findings.append(Finding("warning", text, names, f"Of {len(names)} slides the {text}: {shown}"))
    crossed = [each for each in read if each.annotations.crossed]  # type: ignore[union-attr]
    if crossed:
        times = max(sum(each.annotations.crossed.values()) for each in crossed)  # type: ignore[union-attr]
        text = f"annotations cross themselves (up to about {times:,} times) and are read by the even-odd rule"
        names = tuple(each.slide_id for each in crossed)
        findings.append(Finding("warning", text, names, f"In {len(names)} slides {text}."))
    beside = [each.slide_id for each in read if each.positive == 0 and each.annotations and each.annotations.positives]
    if beside:
        text = "lesions are annotated and none makes a patch positive"
        remedy = "are they of another level (annotation_scale in a card.yaml), unit or slide?"
        shown = ", ".join(beside[:3]) + (", ..." if len(beside) > 3 else ".")
        findings.append(Finding("warning", f"{text}; {remedy}", tuple(beside), f"In slides {text}: {shown}"))
    return findings


def annotations_in_words(looked: Iterable[Looked]) -> str:
    """How many slides have annotations, and how many of these hold no lesion."""
    read = [each.annotations for each in looked if each.annotations is not None]
    return f"{len(read)} slides have annotations, {sum(not each.positives for each in read)} of them with no lesion"


def judge_annotation_names(names: Iterable[str], slide_ids: Sequence[str], folder: Path) -> list[Finding]:
    """Annotation files that belong to no slide."""
    spare = sorted(set(names) - set(slide_ids))
    if not spare:
        return []
    text = f"annotation files in {folder} belong to no slide ({both_sides(spare, slide_ids, 'they are called')})"
    return [Finding("warning", text, tuple(spare), f"{len(spare)} {text}.")]


def lesion_free_slides(bags: Bags, card: DataCard) -> list[str]:
    """Slides of the class without lesions: the one that the card names, else the first."""
    free = card.classes.index(card.lesion_free_class) if card.lesion_free_class in card.classes else 0
    return [slide.slide_id for slide in _one_by_one(bags) if slide.label == free]


def _one_by_one(bags: Bags) -> list[Slide]:
    """The slides, also of patients whose slides are packed in one bag."""
    return [one for slide in bags.slides for one in (slide.members if isinstance(slide, PatientSlides) else (slide,))]
