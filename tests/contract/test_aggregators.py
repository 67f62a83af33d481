"""What every registered aggregator must do. Registering one subscribes it to all of these."""

import pytest

from mil_zoo.aggregators.base import AGGREGATORS
from mil_zoo.testing import CHECKS

# The pseudo-inverses of TransMIL's 256 landmarks take half a second a bag; its own tests have them.
SMALLER = {name: {"embed_dim": 64} for name in ("dgrmil", "transmil")}
CONFIGURATIONS = [(name, SMALLER.get(name, {})) for name in AGGREGATORS.names()] + [
    ("abmil", {"gated": True, "embed_dim": 16}),
    ("srmil", {"readout": "attention"}),
    ("mean", {"embed_dim": 16}),
    ("mambamil", {"embed_dim": 16, "mixer": "bimamba", "order": "hilbert"}),
    ("s4mil", {"embed_dim": 16, "order": "raster"}),
    ("vit", {"embed_dim": 16, "alibi": True}),
    ("vit", {"embed_dim": 16, "alibi": True, "class_token_penalty": True, "tiles_see_class_token": False}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=str)
def test_contract(name, options, check):
    check(AGGREGATORS.get(name), options)
