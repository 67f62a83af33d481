"""A trained aggregator with all that predicting takes, and the ways it leaves the process: a folder, ONNX."""

from mil_zoo.fitted.model import Facts, Fitted, Prediction, predict_together
from mil_zoo.fitted.saved import load

__all__ = ["Facts", "Fitted", "Prediction", "load", "predict_together"]
