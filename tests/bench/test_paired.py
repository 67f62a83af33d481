"""Paired tests, against published worked examples and cases counted by hand."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mil_zoo import InputError
from mil_zoo.stats import TestSet, corrected_t_test, delong_test, holm, permutation_test, wilcoxon_test

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


def test_delong_over_folds_repeats_and_seeds():
    rng = np.random.default_rng(1)
    labels = np.array([0, 1] * 20)
    one, other = (slides(labels, *rng.random((2, 40))) for _ in range(2))
    single = delong_test([one], [other])
    two_folds = delong_test([one, one], [other, other])
    assert two_folds.difference == pytest.approx(single.difference)
    assert two_folds.se == pytest.approx(single.se / np.sqrt(2))
    assert delong_test([one, one], [other, other], repeats=2).se == pytest.approx(single.se)
    swapped = delong_test([other], [one])
    assert (swapped.difference, swapped.p) == (-single.difference, single.p)
    # The mean of two seeds varies less than either when they err apart.
    first = delong_test([slides(labels, one.probabilities[0, :, 1])], [slides(labels, other.probabilities[0, :, 1])])
    assert single.se < first.se


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
    with pytest.raises(InputError, match="both present"):
        delong_test([slides([1, 1], [0.1, 0.2])], [slides([1, 1], [0.3, 0.2])])


def test_corrected_t_by_hand():
    summary, p = corrected_t_test([0.1, 0.0, 0.2, None], n_train=80, n_test=20)
    t = 0.1 / (0.1 * np.sqrt(1 / 3 + 20 / 80))
    assert summary.mean == pytest.approx(0.1)
    assert p == pytest.approx(2 * (1 - scipy_stats.t.cdf(t, 2)))
    assert (summary.low > 0) == (p < 0.05)
    assert corrected_t_test([0, 0, 0], 80, 20)[1] == 1
    assert np.isnan(corrected_t_test([0.1, 0.1], 80, 20)[1])
    assert np.isnan(corrected_t_test([0.1], 80, 20)[1])


def test_corrected_t_without_test_slides_is_the_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 10))
    p = corrected_t_test(list(a - b), n_train=1, n_test=1e-12)[1]
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
