"""Outcomes of the simulated slides: survival whose hazard grows with the lesions, and a grade of their extent.

They are drawn from the lesions that the slides hold, so that a model that finds these can predict them, and they are no
more tissue than the slides are. Like those, the numbers come from judgement: half of the patients without a lesion have
the event within ten years, and tenfold lesions mean 4.5 times the hazard. No aggregator was trained while they were
chosen; one check was: the true share of lesions must reach a concordance of .75 to .85, as it must be learnable and no
certainty (.72 with the first numbers, .80 with these). The bounds of the grades put about a third of the patients with
lesions into each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mil_zoo.data.bag import Bag

MEDIAN_MONTHS = 120.0  # without a lesion
SLOPE = 1.5  # of the log hazard, in the decimal logarithm of 1 + 1000 times the share of lesion patches
FOLLOWED_MONTHS = (24.0, 120.0)  # patients are followed for a time between these, each as likely
GRADES = (0.03, 0.12)  # shares of lesion patches between limited and moderate, moderate and wide extent


def share_of_lesions(bags: list[Bag]) -> dict[str, float]:
    """The share of a patient's patches that are positive, by patient."""
    patches: dict[str, list[torch.Tensor]] = {}
    for bag in bags:
        assert bag.instance_labels is not None
        patches.setdefault(bag.patient_id or bag.slide_id, []).append(bag.instance_labels)
    return {patient: float(torch.cat(labels).double().mean()) for patient, labels in patches.items()}


def survival(bags: list[Bag], seed: int = 0) -> list[Bag]:
    """The bags with time (months) and event as targets; slides of a patient have the same.

    The time to the event is exponential with the hazard ``log 2 / 120 exp(1.5 log10(1 + 1000 share))`` a month;
    censoring is uniform and independent of it.

    Args:
        bags: simulated slides.
        seed: of the outcomes; each patient has a stream of random numbers of its own.
    """
    target = {}
    for number, (patient, share) in enumerate(sorted(share_of_lesions(bags).items())):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        hazard = np.log(2) / MEDIAN_MONTHS * np.exp(SLOPE * np.log10(1 + 1000 * share))
        time, followed = rng.exponential(1 / hazard), rng.uniform(*FOLLOWED_MONTHS)
        target[patient] = np.array([round(min(time, followed), 1), float(time <= followed)])
    return [bag.changed(label=None, target=target[bag.patient_id or bag.slide_id]) for bag in bags]


def grades(bags: list[Bag]) -> list[Bag]:
    """The bags with the extent of their patient's lesions as label: 0 none, 1 limited, 2 moderate, 3 wide."""
    share = share_of_lesions(bags)

    def grade(bag: Bag) -> int:
        own = share[bag.patient_id or bag.slide_id]
        return 0 if own == 0 else 1 + int(np.searchsorted(GRADES, own, side="right"))

    return [bag.changed(label=grade(bag)) for bag in bags]


OUTCOMES: dict[str, Callable[[list[Bag]], list[Bag]]] = {"demo_survival": survival, "demo_grade": grades}
"""What becomes of the demo's slides, by the name of the card."""
