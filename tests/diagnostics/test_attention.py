import math

import numpy as np
import pytest

from mil_zoo.diagnostics.attention import attention_curve, attention_skew
from mil_zoo.errors import InputError


def test_curve_without_labels():
    assert attention_curve([0.1, 0.5, 0.4]) == {"max_attention": 0.5, "n_x_max": 1.5, "high_count": 1.0}


def test_curve_with_labels():
    weights = [0.1, 0.3, 0.2, 0.15, 0.05, 0.2]
    curve = attention_curve(weights, [1, 1, 0, 0, 1, 1])
    # The five most attended are instances 1, 2, 5, 3 and 0; three of them are positive.
    assert curve["top1_positive"] == 1.0
    assert curve["top5_positive"] == pytest.approx(3 / 5)
    assert curve["high_count"] == 0
    assert "high_positive" not in curve


def test_two_instances_of_one_half_are_both_highly_attended():
    curve = attention_curve(np.float32([0.5, 0.0, 0.5]), [0, 0, 1])
    assert curve["high_count"] == 2
    assert curve["high_positive"] == 0.5


def test_equal_attention_counts_the_earlier_instance():
    assert attention_curve([0.25] * 4, [0, 1, 1, 1])["top1_positive"] == 0
    assert attention_curve([0.25] * 4, [1, 0, 0, 0])["top1_positive"] == 1
    assert attention_curve([1 / 6] * 6, [1, 1, 1, 1, 1, 0])["top5_positive"] == 1


def test_a_small_bag_counts_all_its_instances():
    assert attention_curve([0.7, 0.2, 0.1], [0, 1, 1])["top5_positive"] == pytest.approx(2 / 3)


def test_skew_by_hand():
    skew = attention_skew([0.5, 0.25, 0.125, 0.125])
    assert skew["n_instances"] == 4
    assert skew["n_x_max"] == 2
    assert skew["entropy"] == pytest.approx(1.75 * math.log(2) / math.log(4))
    assert skew["effective_instances"] == pytest.approx(1 / (0.25 + 0.0625 + 2 * 0.015625))
    assert skew["effective_fraction"] == pytest.approx(skew["effective_instances"] / 4)
    # Half the mean absolute difference over the mean; the six pairs differ by 1/4, 3/8, 3/8, 1/8, 1/8 and 0.
    assert skew["gini"] == pytest.approx((2 * 1.25 / 16) / (2 * 0.25))
    assert skew["mass_top1pct"] == 0.5
    assert skew["mass_top10"] == 1


def test_uniform_and_one_hot_are_the_ends_of_the_scale():
    uniform, one_hot = attention_skew(np.full(50, 0.02)), attention_skew(np.eye(50)[7])
    assert uniform["entropy"] == pytest.approx(1)
    assert uniform["gini"] == pytest.approx(0)
    assert uniform["effective_fraction"] == pytest.approx(1)
    assert uniform["mass_top10"] == pytest.approx(0.2)
    assert one_hot["entropy"] == 0
    assert one_hot["gini"] == pytest.approx(49 / 50)
    assert one_hot["effective_instances"] == 1


@pytest.mark.parametrize(("n", "held"), [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (700, 7), (2900, 29)])
def test_top_percent_rounds_up(n, held):
    assert attention_skew(np.full(n, 1 / n))["mass_top1pct"] == pytest.approx(held / n)


def test_one_instance():
    skew = attention_skew([1.0], instance_labels=[1])
    assert skew["entropy"] == 1
    assert skew["gini"] == 0
    assert skew["mass_ratio"] == 1
    assert "attention_auroc" not in skew


def test_heads():
    skew = attention_skew([0.5, 0.5], head_attention=[[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    assert [skew[f"head_max_{head}"] for head in range(3)] == [0.9, 0.9, 0.5]
    assert "head_max_3" not in skew


def test_alignment_by_hand():
    skew = attention_skew([0.4, 0.3, 0.2, 0.1], instance_labels=[1, 0, 1, 0], instance_scores=[-1, 3, 2, 5])
    assert skew["positive_share"] == 0.5
    assert skew["mass_on_positives"] == pytest.approx(0.6)
    assert skew["mass_ratio"] == pytest.approx(1.2)
    # Of the four pairs of a positive and a negative, attention orders three and the scores none.
    assert skew["attention_auroc"] == pytest.approx(3 / 4)
    assert skew["attention_ap"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert skew["instance_auroc"] == 0
    assert skew["instance_ap"] == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_alignment_needs_positives_and_detection_needs_both():
    none, every = (attention_skew([0.5, 0.5], instance_labels=labels) for labels in ([0, 0], [1, 1]))
    assert "mass_ratio" not in none
    assert "attention_ap" not in none
    assert every["mass_ratio"] == 1
    assert "attention_ap" not in every


def test_skew_holds_the_curve_numbers():
    weights, labels = [0.6, 0.3, 0.1], [1, 0, 0]
    assert attention_curve(weights, labels).items() <= attention_skew(weights, instance_labels=labels).items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(attention=[0.5, 0.4]), "sums to 0.9"),
        (dict(attention=[1.5, -0.5]), "non-negative"),
        (dict(attention=[float("nan"), 1.0]), "NaN"),
        (dict(attention=[]), "N >= 1"),
        (dict(attention=[[0.5, 0.5]]), "one number an instance"),
        (dict(attention=[0.5, 0.5], instance_labels=[1]), "each of the 2 instances"),
        (dict(attention=[0.5, 0.5], instance_labels=[1, 2]), "0 or 1"),
        (dict(attention=[0.5, 0.5], head_attention=[0.5, 0.5]), "heads"),
        (dict(attention=[0.5, 0.5], instance_labels=[0, 1], instance_scores=[1.0]), "instance_scores"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        attention_skew(**arguments)


def test_a_sum_within_a_thousandth_is_rounding():
    assert attention_skew([0.5, 0.4995])["max_attention"] == 0.5
    with pytest.raises(InputError, match="normalise"):
        attention_skew([0.5, 0.498])
