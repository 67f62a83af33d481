"""What the recorder makes of an aggregator's outputs."""

import h5py
import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.diagnostics.recorder import AttentionRecorder
from mil_zoo.tasks import Classification


@pytest.mark.parametrize(("num_classes", "predicted"), [(1, 0), (2, 0), (2, 1), (3, 2), (3, 0)])
def test_instance_scores_are_the_log_odds_of_the_softmax(tmp_path, num_classes, predicted):
    torch.manual_seed(0)
    bag, logits = make_bag(20, 4), torch.randn(20, num_classes)
    recorder = AttentionRecorder(Classification(num_classes))
    prediction = torch.zeros(max(2, num_classes)).index_fill(0, torch.tensor(predicted), 1.0)
    output = AggregatorOutput(logits, logits, torch.full((20,), 0.05), instance_logits=logits)
    recorder.record_test(1, bag, output, prediction)
    recorder.write(tmp_path)
    with h5py.File(tmp_path / "attention.h5") as file:
        scores = file[bag.slide_id]["instance_scores"][:]
    if num_classes == 1:
        expected = logits[:, 0]
    else:
        probability = logits.double().softmax(1)[:, 1 if num_classes == 2 else predicted]
        expected = probability.logit()
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5, atol=1e-6)
