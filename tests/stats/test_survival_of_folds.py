"""Published risks of real patients over folds: pooled concordance, intervals, differences, risk groups, covariates."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mil_zoo import InputError
from mil_zoo.metrics import find_metric
from mil_zoo.noted import note_of
from mil_zoo.stats import (
    Covariates,
    Scored,
    adds_to_clinical,
    bootstrap_difference,
    bootstrap_patients,
    concordance,
    concordance_ipcw,
    concordance_pairs,
    corrected_t_test,
    cumulative_dynamic_auc,
    estimate,
    external_difference,
    fit_clinical,
    follow_up,
    logrank,
    pooled_concordance,
    read_covariates,
    risk_groups,
    wilcoxon_test,
)

C = find_metric("c_index", "survival")


@pytest.fixture(scope="module")
def published(real_data) -> pd.DataFrame:
    path = real_data / "survival" / "golden" / "mcat_risks.csv.gz"
    return pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)


@pytest.fixture(scope="module")
def golden(real_data):
    return lambda name: pd.read_csv(real_data / "survival" / "golden" / name)


def folds(published: pd.DataFrame, model: str, cohort: str) -> list[Scored]:
    rows = published[(published["model"] == model) & (published["cohort"] == cohort)]
    return [scored(part) for _, part in rows.groupby("fold")]


def scored(part: pd.DataFrame) -> Scored:
    arrays = tuple(part[name].to_numpy(dtype=float) for name in ("time_months", "event", "risk"))
    return Scored(arrays, part["patient_id"].to_numpy(dtype=str), part["event"].to_numpy(dtype=int))


def test_forty_published_folds(published, golden):
    """C of each fold as its authors printed it, and the counts of pairs."""
    table = golden("mcat_folds.csv").merge(golden("mcat_fold_metrics.csv"), on=["model", "cohort", "fold"])
    assert len(table) == 40
    for row in table.itertuples():
        own = published[(published["model"] == row.model) & (published["cohort"] == row.cohort)]
        test, train = own[own["fold"] == row.fold], own[own["fold"] != row.fold]
        outcome = [test[name].to_numpy(dtype=float) for name in ("time_months", "event", "risk")]
        given = train["time_months"].to_numpy(), train["event"].to_numpy()
        assert concordance(*outcome) == pytest.approx(row.published_c, abs=1e-12), row
        uno = concordance_ipcw(*outcome, *given, tau=60)
        assert uno == pytest.approx(row.uno_c_60_left, abs=1e-9), row
        auc = cumulative_dynamic_auc(*outcome, *given, [12, 24, 36]).auc
        expected = [row.auc_12_left, row.auc_24_left, row.auc_36_left]
        assert auc == pytest.approx(expected, abs=1e-9, nan_ok=True), row


def test_pooled_pairs(published, golden):
    """Concordant over comparable pairs, both summed over folds; never pairs of two folds."""
    table = golden("mcat_folds.csv")
    for (model, cohort), rows in table.groupby(["model", "cohort"]):
        sums = rows[["concordant", "discordant", "tied_risk"]].sum()
        expected = (sums["concordant"] + sums["tied_risk"] / 2) / sums.sum()
        parts = folds(published, model, cohort)
        assert pooled_concordance(parts) == pytest.approx(expected, abs=1e-12)
        shifted = [
            Scored((*part.arguments[:2], part.arguments[2] + 100 * number), part.patients, part.labels)
            for number, part in enumerate(parts)
        ]
        assert pooled_concordance(shifted) == pytest.approx(expected, abs=1e-12)


def test_comparisons_over_folds(golden):
    """The corrected t of the differences of five folds, with a quarter as many test as training patients."""
    values = golden("mcat_fold_metrics.csv").set_index(["model", "cohort", "fold"])
    for row in golden("mcat_paired.csv").itertuples():
        a, b = (values.loc[(model, row.cohort), row.metric] for model in (row.model_a, row.model_b))
        differences = (a - b).tolist()
        test = corrected_t_test(differences, n_train=4, n_test=1)
        assert test.difference.mean == pytest.approx(row.mean_difference, abs=1e-9)
        assert test.se == pytest.approx(row.corrected_se, abs=1e-9)
        assert test.p == pytest.approx(row.p, abs=1e-9)
        assert (test.difference.low, test.difference.high) == pytest.approx((row.lower, row.upper), abs=1e-9)
        p = wilcoxon_test(differences)
        assert p == pytest.approx(row.wilcoxon_p, abs=1e-9)
        assert p >= 0.0625  # five folds cannot reach less


def test_an_interval_over_the_choice_of_patients(published):
    parts = folds(published, "mcat", "blca")
    drawn = bootstrap_patients(parts, C)
    assert drawn.value == pytest.approx(np.mean([C(*part.arguments) for part in parts]))
    assert drawn.low < drawn.value < drawn.high
    assert 0.05 < drawn.high - drawn.low < 0.2
    assert (drawn.replicates, drawn.lost) == (2000, 0)
    assert bootstrap_patients(parts, C) == drawn
    pooled = bootstrap_patients(parts)
    assert pooled.value == pooled_concordance(parts)
    assert pooled.low < pooled.value < pooled.high


def test_draws_stay_within_the_strata(published):
    """As many patients with the event in each draw: the metric that counts them does not vary."""
    from mil_zoo.metrics import Metric

    def share(time, event, weights=None):
        return np.average(event, weights=weights)

    events = Metric("events", "Events", "survival", None, share)
    parts = folds(published, "mcat", "ucec")
    drawn = bootstrap_patients(parts, events, replicates=100)
    assert drawn.value == pytest.approx(np.mean([part.labels.mean() for part in parts]))
    assert note_of(drawn.low) == "every draw of the patients gives the same value"


def test_a_difference_with_one_draw_for_both(published):
    a, b = folds(published, "mcat", "blca"), folds(published, "snn_omics", "blca")
    apart = bootstrap_difference(a, b, C)
    each = [bootstrap_patients(parts, C) for parts in (a, b)]
    assert apart.value == pytest.approx(each[0].value - each[1].value)
    assert apart.low < apart.value < apart.high
    assert 0 < apart.p < 0.05
    back = bootstrap_difference(b, a, C)
    assert back.value == pytest.approx(-apart.value)
    assert (back.low, back.high) == pytest.approx((-apart.high, -apart.low))
    same = bootstrap_difference(a, a, C)
    assert (same.value, same.p, same.p_worse) == (0, 1, 0.5)
    assert note_of(same.low) == "every draw of the patients gives the same value"
    order = [np.random.default_rng(0).permutation(len(part.labels)) for part in b]
    shuffled = [
        Scored(tuple(array[o] for array in part.arguments), part.patients[o], part.labels[o])
        for part, o in zip(b, order, strict=True)
    ]
    assert bootstrap_difference(a, shuffled, C) == apart


def test_other_patients_are_named(published):
    a, b = folds(published, "mcat", "blca"), folds(published, "snn_omics", "blca")
    gone = b[2].patients[0]
    b[2] = Scored(tuple(array[1:] for array in b[2].arguments), b[2].patients[1:], b[2].labels[1:])
    with pytest.raises(InputError, match=f"fold 2: .* the second model lacks {gone} \\(1\\)"):
        bootstrap_difference(a, b, C)
    with pytest.raises(InputError, match="same folds"):
        bootstrap_difference(a, b[:4], C)
    twice = np.array(["p", "p", "q"])
    with pytest.raises(InputError, match="patient 'p' is scored 2 times"):
        Scored((np.zeros(3),), twice, np.zeros(3, int))


def test_a_fold_without_pairs_does_not_vanish(published):
    """The mean says of how many folds it is; with too few draws that are defined there is no interval."""
    parts = folds(published, "mcat", "blca")
    nobody = Scored((parts[1].arguments[0], np.zeros(75), parts[1].arguments[2]), parts[1].patients, np.zeros(75, int))
    four = bootstrap_patients([parts[0], nobody, *parts[2:]], C, replicates=50)
    assert note_of(four.value) == "mean of 4 of 5 folds: no event"
    none = bootstrap_patients([nobody], C, replicates=50)
    assert note_of(none.value) == note_of(none.low) == "no event"
    time, event = np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 0])
    few = Scored((time, event, -time), np.array(list("abcd")), np.zeros(4, int))
    drawn = bootstrap_patients([few], C, replicates=400)
    assert drawn.value == 1
    assert drawn.lost > 20
    assert note_of(drawn.low) == f"the value is undefined in {drawn.lost} of 400 draws of the patients"


def test_another_cohort(published):
    inside, outside = folds(published, "mcat", "gbmlgg"), folds(published, "mcat", "blca")
    lost = external_difference(inside, outside[:1], C)
    assert lost.value == pytest.approx(np.mean([C(*p.arguments) for p in inside]) - C(*outside[0].arguments))
    alone = bootstrap_patients(inside, C), bootstrap_patients(outside[:1], C)
    widths = [one.high - one.low for one in alone]
    assert lost.high - lost.low == pytest.approx(np.hypot(*widths), rel=0.1)
    assert lost.p < 0.05


def test_risk_groups_are_joined_over_folds(published):
    parts = folds(published, "mcat", "gbmlgg")
    arrays = [[part.arguments[i] for part in parts] for i in range(3)]
    thresholds = [float(np.median(np.concatenate([r for j, r in enumerate(arrays[2]) if j != i]))) for i in range(5)]
    groups = risk_groups(*arrays, thresholds)
    assert sum(groups.patients) == sum(len(part.labels) for part in parts)
    assert groups.low.at(24) > groups.high.at(24)
    assert groups.test.p < 1e-10
    assert groups.ratio.value > 3
    assert groups.note == ""
    times = np.concatenate(arrays[0])
    assert (times >= groups.until).sum() >= 10
    assert (times > groups.until).sum() < 10
    moved = risk_groups(arrays[0], arrays[1], [r + 9 * i for i, r in enumerate(arrays[2])], [
        t + 9 * i for i, t in enumerate(thresholds)
    ])  # fmt: skip
    assert moved.test.chi2 == groups.test.chi2
    flat = risk_groups(arrays[0], arrays[1], [np.zeros(len(r)) for r in arrays[2]], [0.0] * 5)
    assert flat.collapsed == (0, 1, 2, 3, 4)
    assert flat.high is None
    assert np.isnan(flat.test.p)
    assert flat.note


def test_checks_of_every_table(real_data):
    """Events, comparable pairs, median follow-up and the log-rank test between folds of the published cohorts."""
    checks = pd.read_csv(real_data / "survival" / "checks.csv")
    for (file, endpoint, unit), rows in checks.groupby(["file", "endpoint", "unit"]):
        table = pd.read_csv(real_data / "survival" / f"{file}.csv.gz", dtype=str, keep_default_na=False)
        columns = [f"time_{unit}", "event"] if f"time_{unit}" in table else [f"{endpoint}_{unit}", f"{endpoint}_event"]
        table = table[(table[columns] != "").all(axis=1)].drop_duplicates("patient_id")
        for row in rows.itertuples():
            if row.fold == "all":
                own = table
                if "fold" in own and (own["fold"] != "").any() and row.folds_logrank_p == row.folds_logrank_p:
                    inside = own[own["fold"] != ""]
                    test = logrank(*(inside[c].astype(float).to_numpy() for c in columns), inside["fold"].to_numpy())
                    # The table counts a fold that nobody of is at risk at any event (KIRC, DFI) as a group; R does not.
                    p = stats.chi2.sf(test.chi2, inside["fold"].nunique() - 1)
                    assert p == pytest.approx(row.folds_logrank_p, rel=0.01), row
                    assert test.df == sum(test.expected > 0) - 1
            else:
                own = table[table["fold"] == str(row.fold)]
            time, event = (own[column].astype(float).to_numpy() for column in columns)
            assert (len(time), event.sum()) == (row.n, row.events), row
            assert concordance_pairs(time, event, np.zeros(len(time))).comparable == row.comparable_pairs, row
            assert follow_up(time, event) == pytest.approx(row.median_follow_up, rel=1e-3, nan_ok=True), row


# Clinical covariates --------------------------------------------------------------------------------------------------


def cohort(real_data, name: str) -> pd.DataFrame:
    table = pd.read_csv(real_data / "survival" / f"{name}.csv.gz", dtype=str, keep_default_na=False)
    return table[table["fold"] != ""].drop_duplicates("patient_id").reset_index(drop=True)


@pytest.mark.parametrize(
    ("name", "columns", "published_mean"),
    [
        ("tcga_blca", ["age", "sex", "stage"], 0.654),
        ("tcga_brca", ["age", "sex", "stage"], 0.745),
        ("tcga_luad", ["age", "sex", "stage"], 0.672),
        ("tcga_ucec", ["age", "sex", "stage"], 0.760),
        ("tcga_gbmlgg", ["age", "sex", "type"], 0.836),
    ],
)
def test_age_sex_and_stage_predict_survival(real_data, name, columns, published_mean):
    table = cohort(real_data, name)
    time, event = table["time_months"].astype(float).to_numpy(), table["event"].astype(int).to_numpy()
    values = []
    for fold in sorted(table["fold"].unique()):
        test = (table["fold"] == fold).to_numpy()
        known = read_covariates(table, columns)
        train = Covariates(known.names, known.matrix[~test])
        fit = fit_clinical(time[~test], event[~test], train)
        risk = fit.risk(Covariates(known.names, known.matrix[test]))
        assert np.isfinite(risk).all()
        values.append(concordance(time[test], event[test], risk))
    assert np.mean(values) == pytest.approx(published_mean, abs=0.01)  # here with indicators of the unknown


def test_how_covariates_are_read():
    table = pd.DataFrame(
        {
            "age": ["60", "", "71"],
            "sex": ["F", "M", ""],
            "stage": ["IIIA", "Stage IV", "X"],
            "type": ["A", "B", "A"],
            "empty": ["", "", ""],
        }
    )
    known = read_covariates(table, ["age", "sex", "stage", "type"])
    assert known.names == ("age", "sex", "stage", "type=B")
    expected = [[60, 0, 3, 0], [np.nan, 1, 4, 1], [71, np.nan, np.nan, 0]]
    assert known.matrix == pytest.approx(np.array(expected), nan_ok=True)
    with pytest.raises(InputError, match="'grade' is no column"):
        read_covariates(table, ["grade"])
    with pytest.raises(InputError, match="'empty' is empty"):
        read_covariates(table, ["empty"])


def test_a_column_of_ids_is_no_covariate():
    """Hardly two patients have the same word in it; some dozen hospitals of 40 patients are groups."""
    ids = [f"case {i // 3 * 3 if i < 6 else i}" for i in range(40)]
    table = pd.DataFrame({"case": ids, "hospital": [f"h{i % 12}" for i in range(40)], "age": range(40)})
    with pytest.raises(
        InputError, match=r"'case' holds 36 different words for 40 patients \('case 0', 'case 3', 'case 6'"
    ):
        read_covariates(table, ["age", "case"])
    assert len(read_covariates(table, ["age", "hospital"]).names) == 12  # a value fewer than hospitals


def test_a_covariate_that_separates_or_does_not_vary_breaks_nothing(real_data):
    """Men with breast cancer: 11, of whom one died; where he is tested no man in training had the event."""
    table = cohort(real_data, "tcga_brca")
    time, event = table["time_months"].astype(float).to_numpy(), table["event"].astype(int).to_numpy()
    known = read_covariates(table, ["age", "sex"])
    alive = ~((table["sex"] == "M").to_numpy() & (event == 1))
    fit = fit_clinical(time[alive], event[alive], Covariates(known.names, known.matrix[alive]))
    risk = fit.risk(known)
    assert np.isfinite(risk).all()
    men = (table["sex"] == "M").to_numpy()
    assert risk[men].max() < risk.max()
    women = alive & ~men & ~np.isnan(known.matrix[:, 1])
    fit = fit_clinical(time[women], event[women], Covariates(known.names, known.matrix[women]))
    assert fit.names == ("age",)
    with pytest.raises(InputError, match=r"none of the clinical covariates \(sex\) varies"):
        fit_clinical(time[women], event[women], Covariates(("sex",), known.matrix[women][:, 1:]))


def test_what_a_model_adds_to_the_covariates(published, real_data):
    table = cohort(real_data, "tcga_blca").set_index("patient_id")
    rows = published[(published["model"] == "mcat") & (published["cohort"] == "blca")]
    known = read_covariates(table.loc[rows["patient_id"]], ["age", "sex", "stage"])
    arrays = [rows[name].to_numpy(dtype=float) for name in ("time_months", "event", "risk")]
    adds = adds_to_clinical(arrays[0], arrays[1], known, arrays[2], rows["fold"].to_numpy())
    assert adds.df == 1
    assert 0 < adds.p < 0.05
    scaled = adds_to_clinical(
        arrays[0], arrays[1], known, arrays[2] * 7 + 100 * rows["fold"].to_numpy(), rows["fold"].to_numpy()
    )
    assert scaled.chi2 == pytest.approx(adds.chi2)
    noise = np.random.default_rng(0).normal(size=len(rows))
    assert adds_to_clinical(arrays[0], arrays[1], known, noise, rows["fold"].to_numpy()).p > 0.05


def test_the_interval_of_a_single_test_set(published):
    """However often it was trained for: over the choice of patients, who are drawn once for all trainings."""
    part = folds(published, "mcat", "blca")[0]
    noise = np.random.default_rng(0).normal(0, 0.1, len(part.labels))
    again = Scored((*part.arguments[:2], part.arguments[2] + noise), part.patients, part.labels)
    values = [C(*one.arguments) for one in (part, again)]
    found = estimate({0: values}, {0: [part, again]}, C, 300, 75)
    drawn = bootstrap_patients([part, again], C)
    assert (found.method, found.test_sets, found.n) == ("patients", 1, 2)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == (drawn.low, drawn.high)
    parts = folds(published, "mcat", "blca")
    over = estimate(
        {i: [C(*one.arguments)] for i, one in enumerate(parts)}, {i: [p] for i, p in enumerate(parts)}, C, 4, 1
    )
    assert (over.method, over.test_sets) == ("corrected t", 5)
