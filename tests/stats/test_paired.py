"""Paired tests, against published worked examples and cases counted by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mil_zoo import InputError
from mil_zoo.metrics import find_metric
from mil_zoo.stats import (
    TestSet,
    corrected_t_test,
    delong_test,
    holm,
    patient_interval,
    patient_test,
    permutation_test,
    wilcoxon_test,
)

# DeLong, DeLong & Clarke-Pearson 1988: 49 patients with ovarian cancer; albumin, total protein, K-G score (subtracted
# from 10), whether surgery did not help (0: the event). The 43 complete records, as in the manual of SAS's LOGISTIC.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1
3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1
3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1
3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def slides(labels, *seeds, patients=None):
    """A test set of two classes from scores of class 1, one row a seed."""
    scores = np.array(seeds, dtype=float)
    names = np.arange(len(labels)) if patients is None else patients
    return TestSet(np.array(labels), np.stack([1 - scores, scores], axis=-1), np.array(names, dtype=str))


@pytest.fixture(scope="module")
def ovarian():
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    labels = table[:, 3].astype(int)
    # Larger is better for the patient in all three: the K-G score counts down from 10.
    return {
        name: slides(labels, scores)
        for name, scores in {"albumin": table[:, 0], "protein": table[:, 1], "kg": 10 - table[:, 2]}.items()
    }


def test_delong_on_the_ovarian_cancer_data(ovarian):
    """Areas, standard error and p as SAS/STAT prints them in its example of comparing ROC curves."""
    against_protein = delong_test([ovarian["protein"]], [ovarian["kg"]])
    against_albumin = delong_test([ovarian["albumin"]], [ovarian["kg"]])
    assert against_protein.auc_a == pytest.approx(0.6478, abs=5e-5)
    assert against_protein.auc_b == pytest.approx(0.7258, abs=5e-5)
    assert against_albumin.auc_a == pytest.approx(0.7366, abs=5e-5)
    assert against_protein.difference == pytest.approx(-0.0780, abs=5e-5)
    assert against_protein.se == pytest.approx(0.1046, abs=5e-5)
    assert against_protein.p == pytest.approx(0.4561, abs=5e-5)
    assert against_albumin.se == pytest.approx(0.0953, abs=5e-5)
    assert against_albumin.p == pytest.approx(0.9102, abs=5e-5)


def test_delong_counts_pairs_as_its_definition_does():
    """Structural components written out: psi(x, y) = 1, 1/2, 0 over all pairs."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 7 + [1] * 5)
    a, b = rng.integers(0, 5, (2, 12)) / 5  # ties
    got = delong_test([slides(labels, a)], [slides(labels, b)])
    components = []
    for scores in (a, b):
        above = scores[labels == 1][:, None] - scores[labels == 0][None]
        psi = (above > 0) + 0.5 * (above == 0)
        components.append((psi.mean(1), psi.mean(0)))
    v10, v01 = components[0][0] - components[1][0], components[0][1] - components[1][1]
    assert got.se == pytest.approx(np.sqrt(v10.var(ddof=1) / 5 + v01.var(ddof=1) / 7))
    assert got.difference == pytest.approx(components[0][0].mean() - components[1][0].mean())


def elsewhere(part, prefix="other"):
    """The same predictions of other patients."""
    return TestSet(part.labels, part.probabilities, np.char.add(prefix, part.patients))


def test_delong_over_folds_repeats_and_seeds():
    rng = np.random.default_rng(1)
    labels = np.array([0, 1] * 20)
    one, other = (slides(labels, *rng.random((2, 40))) for _ in range(2))
    single = delong_test([one], [other])
    two_folds = delong_test([one, elsewhere(one)], [other, elsewhere(other)])
    assert two_folds.difference == pytest.approx(single.difference)
    assert two_folds.se == pytest.approx(single.se / np.sqrt(2))
    # The same patients again say nothing new, nor do slides of the same patient.
    assert delong_test([one, one], [other, other]).se == pytest.approx(single.se)
    swapped = delong_test([other], [one])
    assert (swapped.difference, swapped.p) == (-single.difference, single.p)
    assert swapped.p_worse == pytest.approx(1 - single.p_worse)
    # The mean of two seeds varies less than either when they err apart.
    first = delong_test([slides(labels, one.probabilities[0, :, 1])], [slides(labels, other.probabilities[0, :, 1])])
    assert single.se < first.se


def test_slides_of_a_patient_are_no_patients():
    """Every slide four times under one patient has the variance of one each, but for the factor I / (I - 1)."""
    rng = np.random.default_rng(2)
    labels = np.array([0, 1] * 15)
    a, b = rng.random((2, 30))
    single = delong_test([slides(labels, a)], [slides(labels, b)])
    names = np.repeat(np.arange(30), 4)
    fourfold = [slides(np.repeat(labels, 4), np.repeat(x, 4), patients=names) for x in (a, b)]
    assert delong_test(fourfold[:1], fourfold[1:]).se == pytest.approx(single.se)
    apart = [TestSet(part.labels, part.probabilities, np.arange(120).astype(str)) for part in fourfold]
    assert delong_test(apart[:1], apart[1:]).se == pytest.approx(single.se / 2, rel=0.05)


def test_obuchowski_s_variance_written_out():
    """Sums over patients with positive and negative slides, as in equation 3 of the paper; brute force over pairs."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    patients = rng.integers(0, 15, 60)
    a, b = rng.random((2, 60))
    psi = [
        (x[labels == 1][:, None] > x[labels == 0][None]) + 0.5 * (x[labels == 1][:, None] == x[labels == 0][None])
        for x in (a, b)
    ]
    v10, v01 = psi[0].mean(1) - psi[1].mean(1), psi[0].mean(0) - psi[1].mean(0)
    theta, m, n = v10.mean(), (labels == 1).sum(), (labels == 0).sum()
    up = np.array([(v10[patients[labels == 1] == p] - theta).sum() for p in range(15)])
    down = np.array([(v01[patients[labels == 0] == p] - theta).sum() for p in range(15)])
    with_up, with_down = len(set(patients[labels == 1])), len(set(patients[labels == 0]))
    s10 = with_up / ((with_up - 1) * m) * (up**2).sum()
    s01 = with_down / ((with_down - 1) * n) * (down**2).sum()
    both = len(set(patients))
    s11 = both / (both - 1) * (up * down).sum()
    got = delong_test([slides(labels, a, patients=patients)], [slides(labels, b, patients=patients)])
    assert got.se == pytest.approx(np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n)))


def test_three_classes_are_compared_one_against_the_rest():
    rng = np.random.default_rng(4)
    labels = np.arange(90) % 3
    values = rng.dirichlet(np.ones(3), (2, 90)) + 0.5 * np.eye(3)[labels]
    a, b = (TestSet(labels, (v / v.sum(1, keepdims=True))[None], np.arange(90).astype(str)) for v in values)
    got = delong_test([a], [b])
    jackknife = patient_test([a], [b], find_metric("auc"))
    assert got.difference == pytest.approx(jackknife.difference.mean)
    assert got.se == pytest.approx(jackknife.se, rel=0.03)


def test_delong_where_nothing_varies():
    labels = [0, 0, 1, 1]
    right, wrong = slides(labels, [0.1, 0.2, 0.8, 0.9]), slides(labels, [0.9, 0.8, 0.2, 0.1])
    assert delong_test([right], [right]).p == 1
    assert np.isnan(delong_test([right], [wrong]).p)


def test_paired_tests_refuse_other_slides():
    a, b = slides([0, 1, 1], [0.1, 0.2, 0.3]), slides([0, 1, 0], [0.1, 0.2, 0.3])
    for test in (delong_test, lambda x, y: permutation_test(x, y, "auc")):
        with pytest.raises(InputError, match="same slides"):
            test([a], [b])
    with pytest.raises(InputError, match="all present"):
        delong_test([slides([1, 1], [0.1, 0.2])], [slides([1, 1], [0.3, 0.2])])


def test_corrected_t_by_hand():
    found = corrected_t_test([0.1, 0.0, 0.2, None], n_train=80, n_test=20)
    t = 0.1 / (0.1 * np.sqrt(1 / 3 + 20 / 80))
    assert found.difference.mean == pytest.approx(0.1)
    assert found.p == pytest.approx(2 * (1 - scipy_stats.t.cdf(t, 2)))
    assert found.p_worse == pytest.approx(1 - found.p / 2)
    assert (found.difference.low > 0) == (found.p < 0.05)
    assert corrected_t_test([0, 0, 0], 80, 20).p == 1
    assert np.mean([0.1, 0.2, -0.3]) != 0
    assert corrected_t_test([0.1, 0.2, -0.3], 80, 20).difference.mean == 0, "what is left of it is rounding"
    assert np.isnan(corrected_t_test([0.1], 80, 20).p)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.7, 0.8, 0.75], [0.6, 0.7, 0.65]),  # 0.1 each, but for rounding: p was 3e-30
        ([0.3, 0.6, 0.9, 1.0], [0.2, 0.5, 0.8, 0.9]),
        ([0.1 + 0.2, 0.3], [0.2, 0.2]),
    ],
)
def test_equal_differences_have_no_p(a, b):
    found = corrected_t_test(list(np.subtract(a, b)), 80, 20)
    assert np.isnan(found.p)
    assert "the same in every split" in found.reason
    assert found.difference.sd == 0
    assert np.isnan([found.se, found.difference.low, found.difference.high]).all()
    none = corrected_t_test(list(np.subtract(a, a) + [1e-17] * len(a)), 80, 20)
    assert none.p == 1
    assert np.isnan([none.se, none.difference.low]).all()
    assert "0 in every split" in none.reason


def test_models_that_no_patient_tells_apart_have_a_difference_without_interval():
    labels = np.arange(20) % 2
    sets = [TestSet(labels, np.stack([1 - labels, labels], -1)[None].astype(float), np.arange(20).astype(str))]
    found = patient_test(sets, sets, find_metric("accuracy"))
    assert (found.difference.mean, found.p) == (0, 1)
    assert np.isnan([found.difference.low, found.difference.high, found.se]).all()
    assert found.reason.startswith("No patient changes")


def test_corrected_t_without_test_slides_is_the_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 10))
    p = corrected_t_test(list(a - b), n_train=1, n_test=1e-12).p
    assert p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


def test_wilcoxon_on_demsars_table_2():
    """C4.5 against C4.5+m on 14 data sets: R+ = 93, R- = 12, significant at 0.05 (Demsar 2006, section 3.1.3)."""
    differences = [
        0.005, -0.008, 0.017, 0.033, 0.006, -0.005, 0.007, 0, 0.063, 0, 0.022, 0.047, 0.009, 0.021
    ]  # fmt: skip
    ranks = scipy_stats.rankdata(np.abs(differences))
    signs = np.sign(differences)
    plus = ranks[signs > 0].sum() + ranks[signs == 0].sum() / 2
    assert plus == pytest.approx(93)
    z = (12 - 14 * 15 / 4) / np.sqrt(14 * 15 * 29 / 24)
    assert wilcoxon_test(differences) == pytest.approx(2 * scipy_stats.norm.cdf(z), abs=0.005)
    assert wilcoxon_test(differences) < 0.05
    assert wilcoxon_test([0.0, 0.0, None]) == 1
    assert np.isnan(wilcoxon_test([None]))


def signs(differences):
    """Every assignment of signs to the differences that are not 0, written out."""
    ranks = scipy_stats.rankdata(np.abs(differences))[np.array(differences) != 0]
    plus = np.sign([d for d in differences if d])
    sums = [abs(np.dot(ranks, choice)) for choice in itertools.product((-1, 1), repeat=len(ranks))]
    return np.mean(np.array(sums) >= abs(np.dot(ranks, plus)) - 1e-9)


def test_wilcoxon_counts_all_signs():
    """One zero among four: scipy's table gives .125 where a quarter of the eight assignments is as extreme."""
    assert wilcoxon_test([0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.25)
    assert wilcoxon_test([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)  # five can never reach .05
    rng = np.random.default_rng(0)
    for n in (3, 6, 9):
        for _ in range(20):
            differences = (rng.integers(-4, 5, n) / 10).tolist()  # ties and zeros
            assert wilcoxon_test(differences) == pytest.approx(signs(differences) if any(differences) else 1)
    untied = rng.normal(0.4, 1, 14)
    assert wilcoxon_test(untied.tolist()) == pytest.approx(scipy_stats.wilcoxon(untied, method="exact").pvalue)


def test_holm_on_demsars_example():
    """p = .016, .156, .796 against the control, k = 4: only the first is rejected (Demsar 2006, section 3.2.2)."""
    adjusted = holm([0.156, np.nan, 0.016, 0.796])
    assert adjusted == pytest.approx([0.312, np.nan, 0.048, 0.796], nan_ok=True)
    assert np.isnan(holm([np.nan])).all()


def test_permutation_counts_every_exchange():
    """Of 2^4 exchanges of 4 slides, A being right on all and B on none, two are as extreme: p = 1 / 8."""
    labels = [0, 1, 0, 1]
    a, b = slides(labels, [0.1, 0.9, 0.1, 0.9]), slides(labels, [0.9, 0.1, 0.9, 0.1])
    for metric in ("accuracy", "auc"):
        assert permutation_test([a], [b], metric, 20_000) == pytest.approx(1 / 8, abs=0.01)
        assert permutation_test([a], [a], metric) == 1
    # Two patients: of 2^2 exchanges two are as extreme.
    patients = ["p", "p", "q", "q"]
    a, b = (slides(labels, part.probabilities[0, :, 1], patients=patients) for part in (a, b))
    assert permutation_test([a], [b], "accuracy", 20_000) == pytest.approx(1 / 2, abs=0.02)


def test_a_patient_is_exchanged_in_all_repeats_or_in_none():
    """The same split twice says no more than once: of 2^4 exchanges two are as extreme."""
    a, b = slides([0, 1, 0, 1], [0.1, 0.9, 0.1, 0.9]), slides([0, 1, 0, 1], [0.9, 0.1, 0.9, 0.1])
    assert permutation_test([a, a], [b, b], "accuracy", 20_000) == pytest.approx(1 / 8, abs=0.01)


def test_permutation_is_uniform_without_a_difference():
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 30)
    p = [
        permutation_test([slides(labels, rng.random(60))], [slides(labels, rng.random(60))], "auc", 200)
        for _ in range(200)
    ]
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_permutation_of_three_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    good = rng.dirichlet(np.ones(3), 60) + 2 * np.eye(3)[labels]
    good, poor = (values / values.sum(1, keepdims=True) for values in (good, rng.dirichlet(np.ones(3), 60)))
    a, b = (TestSet(labels, values[None], np.arange(60).astype(str)) for values in (good, poor))
    assert permutation_test([a], [b], "auc", 500) == pytest.approx(1 / 501)
    assert permutation_test([a, a], [b, b], "accuracy", 500) == pytest.approx(1 / 501)


def test_a_shifted_model_is_exchanged_by_its_ranks():
    """Logits shifted by three change no rank: a better model is found all the same, and a copy differs by nothing."""
    rng = np.random.default_rng(5)
    labels = np.arange(80) % 2
    found = []
    for _ in range(20):
        good, poor = 2 * labels + rng.normal(size=80), 0.7 * labels + rng.normal(size=80)
        good, poor, copy = (1 / (1 + np.exp(-logit)) for logit in (good - 3, poor, poor - 3))
        found.append(permutation_test([slides(labels, good)], [slides(labels, poor)], "auc", 300) < 0.05)
        assert permutation_test([slides(labels, copy)], [slides(labels, poor)], "auc", 100) == 1
    assert np.mean(found) > 0.7


@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1"])
def test_predicted_classes_are_exchanged(metric):
    labels = np.array([0, 1] * 20)
    right = slides(labels, labels * 0.8 + 0.1)
    wrong = slides(labels, np.where(np.arange(40) % 4 < 2, 1 - labels, labels) * 0.8 + 0.1)
    assert permutation_test([right], [wrong], metric, 500) == pytest.approx(1 / 501)
    assert permutation_test([right], [right], metric, 100) == 1
    with pytest.raises(InputError, match="the permutation test knows accuracy"):
        permutation_test([right], [right], "npv")


def test_the_jackknife_of_a_difference_in_accuracy_is_mcnemars_z():
    rng = np.random.default_rng(6)
    labels = np.arange(60) % 2
    a, b = (slides(labels, np.where(rng.random(60) < q, labels, 1 - labels) * 0.8 + 0.1) for q in (0.9, 0.6))
    found = patient_test([a], [b], find_metric("accuracy"))
    right = [part.probabilities[0].argmax(1) == labels for part in (a, b)]
    apart = right[0].astype(float) - right[1]
    assert found.difference.mean == pytest.approx(apart.mean())
    assert found.se == pytest.approx(apart.std(ddof=1) / np.sqrt(60))
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(apart, 0).pvalue)
    assert patient_interval([a], find_metric("accuracy")).se == pytest.approx(right[0].std(ddof=1) / np.sqrt(60))
