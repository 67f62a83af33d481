"""A protocol: no training, the class whose mean training slide is nearest."""

import torch

from mil_zoo import register_protocol
from mil_zoo.train.protocols import TrialResult


@register_protocol("nearest_mean")
def nearest_mean(context, scale=1.0):
    """Logits are the negative distances of a slide's mean instance to the classes' means over training slides."""
    train = context.bags["train"]
    slides, labels = torch.stack([bag.features.mean(0) for bag in train]), torch.tensor([bag.label for bag in train])
    centres = torch.stack([slides[labels == label].mean(0) for label in range(context.task.width)])
    logits = {
        part: -scale * torch.cdist(torch.stack([bag.features.mean(0) for bag in context.bags[part]]), centres)
        for part in ("val", "test")
        if part in context.bags
    }
    return TrialResult(
        task=context.task,
        predictions={part: context.task.predict(rows) for part, rows in logits.items()},
        epochs=[{"epoch": 1, "seconds": 0.0, "selected": 1}],
        weights={"centres": centres},
        parameters=centres.numel(),
        logits=logits,
    )
