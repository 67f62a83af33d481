import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo.diagnostics.faithfulness import DRAWS, faithfulness
from mil_zoo.diagnostics.stability import stability
from mil_zoo.errors import InputError


def test_stability_by_hand():
    a = np.array([0.5, 0.3, 0.1, 0.06, 0.04])
    same = {"seed_spearman": 1, "seed_top10_overlap": 1, "seed_top1pct_overlap": 1}
    assert stability([a, a, a]) == pytest.approx(same)
    # Ranks 5 4 3 2 1 against 4 5 3 2 1: 1 - 6 * 2 / (5 * 24) = 0.9
    b = np.array([0.3, 0.5, 0.1, 0.06, 0.04])
    got = stability([a, b])
    assert got["seed_spearman"] == pytest.approx(0.9)
    assert (got["seed_top10_overlap"], got["seed_top1pct_overlap"]) == (1, 0)


def test_overlap_counts_the_top_ten():
    a = np.arange(300.0)[::-1]
    b = np.roll(a, 5)  # its ten highest are instances 5 to 14, its three highest 5 to 7
    got = stability([a, b])
    assert got["seed_top10_overlap"] == pytest.approx(0.5)
    assert got["seed_top1pct_overlap"] == 0
    three = stability([a, b, a])  # pairs: apart, same, apart
    assert three["seed_top10_overlap"] == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_stability_at_the_edges():
    assert stability([np.ones(3)]) == {}
    assert "seed_spearman" not in stability([np.ones(3), np.arange(3)])
    with pytest.raises(InputError, match="differs in length"):
        stability([np.ones(3), np.ones(4)])


def test_faithfulness_by_hand():
    """A model whose probability is the share of instances with a large first feature."""
    bag = make_bag(20, 3)
    bag.features[:, 0] = (torch.arange(20) < 5).float()
    asked = []

    def predict(bags):
        asked.extend(bags)
        return [torch.tensor([1 - part.features[:, 0].mean(), part.features[:, 0].mean()]) for part in bags]

    attention = np.where(np.arange(20) < 5, 0.16, 0.2 / 15)
    got = faithfulness(bag, attention, torch.tensor([0.75, 0.25]), 0, predict, [5, 20])
    # The predicted class is 0, with 0.75: without the five it is 1, of the five alone 0.
    assert got["remove_top5"] == pytest.approx(-0.25)
    assert got["keep_top5"] == pytest.approx(0.75)
    assert set(got) == {"remove_top5", "keep_top5", "remove_random5", "keep_random5"}
    assert len(asked) == 2 * (1 + DRAWS)
    assert [len(part) for part in asked[:2]] == [15, 5]
    assert len(asked[0].coords) == len(asked[0].instance_labels) == 15
    assert abs(got["remove_random5"]) < 0.25
    assert faithfulness(bag, attention, torch.tensor([0.75, 0.25]), 0, predict, [20]) == {}
    assert got == faithfulness(bag, attention, torch.tensor([0.75, 0.25]), 0, predict, [5, 20])
