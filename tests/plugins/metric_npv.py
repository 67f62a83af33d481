"""A metric from a plugin file: the negative predictive value of two classes."""

import numpy as np

import mil_zoo


@mil_zoo.register_metric("npv", title="NPV", higher_is_better=True)
def npv(labels, probabilities, weights=None):
    """Share of the slides predicted negative that are; NaN where none is."""
    weights = np.ones(len(labels)) if weights is None else weights
    negative = weights * (probabilities[:, 1] < 0.5)
    return float((negative * (labels == 0)).sum() / negative.sum()) if negative.any() else float("nan")
