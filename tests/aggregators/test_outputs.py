"""What an aggregator of one's own returns from ``forward`` is looked at before anything is computed with it."""

import pytest
import torch
from helpers import make_batch
from torch import nn

from mil_zoo import Aggregator, AggregatorOutput, InputError


class Own(Aggregator):
    """Returns what it is told to."""

    def __init__(self, output):
        super().__init__(4, 2)
        self.weight, self.output = nn.Parameter(torch.zeros(1)), output

    def forward(self, batch):
        """See ``Aggregator.forward``."""
        return self.output


LOGITS, EMBEDDING = torch.zeros(2, 2), torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (LOGITS, "must return an AggregatorOutput, not Tensor"),
        (
            AggregatorOutput(torch.zeros(2, 3), EMBEDDING),
            "must return float logits [2, 2], a row for each bag, not float32 [2, 3]",
        ),
        (AggregatorOutput(torch.zeros(2, 1), EMBEDDING), "not float32 [2, 1]"),
        (AggregatorOutput(LOGITS.long(), EMBEDDING), "float logits [2, 2], a row for each bag, not int64 [2, 2]"),
        (AggregatorOutput(LOGITS, torch.zeros(8)), "an embedding [2, E], a row for each bag, not [8]"),
        (
            AggregatorOutput(LOGITS, EMBEDDING, torch.zeros(7)),
            "attention with a row for each of the 8 instances, not [7]",
        ),
        (
            AggregatorOutput(LOGITS, EMBEDDING, torch.zeros(8), head_attention=torch.zeros(2, 8)),
            "head_attention with a row for each of the 8 instances, not [2, 8]",
        ),
    ],
)
def test_an_output_of_another_shape_is_one_sentence(output, sentence):
    with pytest.raises(InputError, match="forward of Own must return") as raised:
        Own(output)(make_batch([3, 5], 4, None))
    assert sentence in str(raised.value)


def test_an_output_as_the_contract_has_it_passes():
    output = AggregatorOutput(LOGITS, EMBEDDING, torch.full((8, 2), 0.2), instance_logits=torch.zeros(8, 2))
    assert Own(output)(make_batch([3, 5], 4, None)) is output
