"""A metric that takes the name of a built-in one: refused."""

import mil_zoo


@mil_zoo.register_metric("auc", title="My AUC", higher_is_better=True)
def auc(labels, probabilities, weights=None):
    """A lie."""
    return 1.0
