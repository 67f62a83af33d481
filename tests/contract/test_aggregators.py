"""What every registered aggregator must do. Registering one subscribes it to all of these."""

import pytest
import torch

from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.testing import CHECKS, DIM

# The pseudo-inverses of 256 landmarks take half a second a bag.
SMALLER = {"camil": {"landmarks": 16}, "dgrmil": {"embed_dim": 64}, "transmil": {"embed_dim": 64}}
CONFIGURATIONS = [(name, SMALLER.get(name, {})) for name in AGGREGATORS.names()] + [
    ("abmil", {"gated": True, "embed_dim": 16}),
    ("srmil", {"readout": "attention"}),
    ("mean", {"embed_dim": 16}),
    ("mambamil", {"embed_dim": 16, "mixer": "bimamba", "order": "hilbert"}),
    ("s4mil", {"embed_dim": 16, "order": "raster"}),
    ("ibmil", {"baseline": "dsmil", "confounder": torch.eye(4, DIM), "learn_confounder": True}),
    ("ibmil", {"baseline": "transmil", "embed_dim": 16, "num_confounders": 3, "merge": "sub"}),
    ("mhim", {"embed_dim": 16, "version": 2, "class_scores": True}),
    ("mhim", {"embed_dim": 16, "baseline": "transmil", "version": 2, "merge_ratio": 0.5}),
    ("mhim", {"embed_dim": 16, "baseline": "transmil", "attention_layer": -1, "mask_ratio_low": 0.3}),
    ("vit", {"embed_dim": 16, "alibi": True}),
    ("vit", {"embed_dim": 16, "alibi": True, "class_token_penalty": True, "tiles_see_class_token": False}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=str)
def test_contract(name, options, check):
    check(AGGREGATORS.get(name), options)
