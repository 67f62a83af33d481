"""The benchmark from Python: train one aggregator, compare several, and both as scikit-learn has it."""

from mil_zoo.api.compare import cross_validate
from mil_zoo.api.estimators import MILClassifier
from mil_zoo.api.fit import fit

__all__ = ["MILClassifier", "cross_validate", "fit"]
