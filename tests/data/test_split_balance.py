"""Parts that are fair to large patients, exact, and the same whatever the order of rows or the version of a library."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold

from mil_zoo import Bag, InputError
from mil_zoo.data.splits.balance import arrange, hold_out, share_of
from mil_zoo.data.splits.draw import kfold, monte_carlo, train_elsewhere
from mil_zoo.data.splits.split import split_hash


def bags(labels, patients=None, names=None):
    return [
        Bag(
            features=torch.zeros(1, 1),
            label=label,
            slide_id=f"s{i:03d}" if names is None else names[i],
            patient_id=None if patients is None else patients[i],
        )
        for i, label in enumerate(labels)
    ]


def table(groups, strata):
    groups, group_of = np.unique(groups, return_inverse=True)
    strata, stratum_of = np.unique(strata, return_inverse=True)
    counts = np.zeros((len(groups), len(strata)), dtype=np.int64)
    np.add.at(counts, (group_of, stratum_of), 1)
    return counts


LARGE = [f"P{p:02d}" for p in range(40) for _ in range(12 if p == 7 else 1)]
LARGE_LABELS = [int(patient[1:]) % 2 for patient in LARGE]


def shares(splits, ids):
    """How often the first of ``ids`` is in train, val and test."""
    return [np.mean([ids[0] in getattr(split, part) for split in splits]) for part in ("train", "val", "test")]


def test_a_large_patient_is_in_each_part_as_often_as_others():
    slides = bags(LARGE_LABELS, LARGE)
    of = {p: [bag.slide_id for bag in slides if bag.patient_id == p] for p in ("P07", "P08", "P30", "P31")}
    splits = [split for seed in range(60) for split in kfold(slides, 5, seed=seed)]
    draws = [split for seed in range(20) for split in monte_carlo(slides, 15, seed=seed)]
    elsewhere = [split for seed in range(20) for split in train_elsewhere(slides, of["P30"] + of["P31"], 15, seed=seed)]
    for ids in (of["P07"], of["P08"]):
        train, val, test = shares(splits, ids)
        assert test == pytest.approx(0.2)  # every repeat tests everybody once
        assert val == pytest.approx(0.8 * 0.15, abs=0.06)
        train, val, test = shares(draws, ids)
        assert test == pytest.approx(0.2, abs=0.08)
        assert train == pytest.approx(0.8 * 0.85, abs=0.09)
        assert shares(elsewhere, ids)[1] == pytest.approx(0.15, abs=0.07)


def test_every_group_s_chance_is_its_share():
    """Counted over all places that a seed may draw: 3 of 20 cells, for every group, however large."""
    rng = np.random.default_rng(0)
    sizes = np.append(rng.integers(1, 6, 60), [40, 25])
    counts = np.zeros((62, 2), dtype=np.int64)
    counts[np.arange(62), np.arange(62) % 2] = sizes
    drawn = np.mean([hold_out(counts, 0.15, seed) for seed in range(750)], axis=0)
    # A share of 750 draws has a standard deviation of 0.013.
    assert drawn == pytest.approx(np.full(62, 0.15), abs=0.045)
    assert (drawn[-2:].mean(), drawn.mean()) == pytest.approx((0.15, 0.15), abs=0.025)


def test_real_patients_and_sites(real_data):
    """The largest patient and site of TCGA's lung slides (they were in train never, and in 20 % of folds)."""
    slides = pd.read_csv(real_data / "labels_splits" / "tcga_nsclc_slides.csv.gz", dtype=str)
    for groups in (slides["case_id"], slides["slide_id"].str[5:7]):
        counts = table(groups, slides["label"])
        largest = counts.sum(1).argmax()
        drawn = [hold_out(counts, 0.15, seed) for seed in range(100)]  # a share has a standard deviation of 0.036
        assert np.mean([part[largest] for part in drawn]) == pytest.approx(0.15, abs=0.08)
        held = [counts[part].sum() / counts.sum() for part in drawn]
        assert np.abs(np.array(held) - 0.15).max() < 0.03


def test_balance_is_no_worse_than_scikit_learns(real_data):
    """Mean over classes of the spread over folds of a class's share, which scikit-learn makes small."""
    folder = real_data / "labels_splits"
    lung = pd.read_csv(folder / "tcga_nsclc_slides.csv.gz", dtype=str)
    breast = pd.read_csv(folder / "bracs_slides.csv", dtype=str)
    camelyon = pd.read_csv(folder / "camelyon16_slides.csv", dtype=str)
    for groups, labels in (
        (lung["slide_id"].str[5:7], lung["label"]),
        (breast["case_id"], breast["label7"]),
        (breast["case_id"], breast["label3"]),
        (camelyon["slide_id"], camelyon["label"]),
        (pd.Series(LARGE), pd.Series(LARGE_LABELS)),
    ):
        counts = table(groups, labels)
        group_of = np.unique(groups, return_inverse=True)[1]
        for folds in (3, 5, 10):
            ours = [spread(counts, arrange(counts, folds, 1, seed), folds) for seed in range(3)]
            outer = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
            theirs = np.zeros(len(counts), dtype=int)
            for fold, (_, test) in enumerate(outer.split(group_of, labels, group_of)):
                theirs[group_of[test]] = fold
            assert max(ours) <= spread(counts, theirs, folds) * 1.001 + 3e-4


def spread(counts, fold_of, folds):
    held = np.stack([counts[fold_of == fold].sum(0) for fold in range(folds)])
    return (held / held.sum(0)).std(0).mean()


def test_slides_of_their_own_are_divided_exactly():
    slides = bags([0] * 120 + [1] * 40)
    for split in kfold(slides, 4, seed=3):
        parts = [[int(slide[1:]) >= 120 for slide in part] for part in (split.train, split.val, split.test)]
        assert [(len(part), sum(part)) for part in parts][2] == (40, 10)
        assert len(parts[1]) in (18, 19)  # 15 % of 120 is 18, of 30 it is 4.5
        assert sum(parts[1]) in (4, 5)


def test_the_order_of_rows_and_the_names_of_classes_play_no_role():
    rng = np.random.default_rng(1)
    patients = [f"p{i}" for i in rng.integers(0, 30, 90)]
    labels = rng.integers(0, 3, 90).tolist()
    names = [f"s{i:02d}" for i in range(90)]
    order = rng.permutation(90)
    shuffled = [[column[i] for i in order] for column in (labels, patients, names)]
    for draw in (lambda slides: kfold(slides, 3, 2, seed=5), lambda slides: monte_carlo(slides, 3, seed=5)):
        one = draw(bags(labels, patients, names))
        assert draw(bags(*shuffled)) == one
        assert draw(bags([2 - label for label in labels], patients, names)) == one
    by_strata = kfold(bags([0] * 90, patients, names), 3, 2, seed=5, strata=[f"stage {label}" for label in labels])
    assert [split.test for split in by_strata] == [
        split.test for split in kfold(bags(labels, patients, names), 3, 2, seed=5)
    ]


def test_splits_never_change():
    """Raw output of PCG64 and whole numbers: the same for ever. A change here changes every user's folds."""
    slides = bags(LARGE_LABELS, LARGE)
    assert split_hash([*kfold(slides, 5, 2, seed=7), *monte_carlo(slides, 3, seed=7)]) == GOLDEN


def test_few_positives_keep_the_validation_part_small():
    for negatives, positives, folds in ((300, 3, 3), (500, 5, 5), (200, 20, 5)):
        slides = bags([0] * negatives + [1] * positives)
        for split in kfold(slides, folds):
            held = [sum(int(slide[1:]) >= negatives for slide in part) for part in (split.train, split.val)]
            assert min(held) >= 1
            assert len(split.val) / (len(split.val) + len(split.train)) == pytest.approx(0.15, abs=0.01)
            assert held[1] == (1 if positives < 20 else pytest.approx(2.4, abs=0.61))


def test_leave_one_out():
    slides = bags([0, 1] * 20)
    splits = kfold(slides, 40)
    assert sorted(slide for split in splits for slide in split.test) == [bag.slide_id for bag in slides]
    assert {len(split.test) for split in splits} == {1}
    for split in splits:
        assert {int(slide[1:]) % 2 for slide in split.val} == {0, 1}
    with pytest.raises(InputError, match="class 0 has 20 patients, fewer than the 39 folds; ask for at most 20"):
        kfold(slides, 39)
    with pytest.raises(InputError, match="there are 40 patients, fewer than the 41 folds"):
        kfold(slides, 41)


def test_shares_are_fractions():
    assert [str(share_of(x)) for x in (0.15, 0.2, 1 / 3, 0.5, 0.01)] == ["3/20", "1/5", "1/3", "1/2", "1/100"]
    with pytest.raises(InputError, match="seed of splits must be 0 or more"):
        kfold(bags([0, 1] * 10), 2, seed=-1)
    with pytest.raises(InputError, match="3 strata are given for 20 slides"):
        kfold(bags([0, 1] * 10), 2, strata=[0, 1, 0])


@pytest.mark.parametrize("seed", range(10))
def test_few_patients_without_classes_leave_a_validation_part(seed):
    """Of six patients 15 % are less than one: one is taken, and every one is somewhere."""
    slides = bags([None] * 12)
    for split in kfold(slides, 2, seed=seed, strata=[i % 6 for i in range(12)]):
        assert [len(split.train), len(split.val), len(split.test)] == [5, 1, 6]
    with pytest.raises(InputError, match="too few patients are left for a training and a validation part"):
        kfold(bags([None, None]), 2, seed=seed, strata=[0, 0])


@pytest.mark.parametrize("seed", range(20))
def test_any_cohort_is_divided_by_patient(seed):
    """Sizes, classes and patients of all kinds; a refusal is one sentence."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(8, 120)), int(rng.integers(1, 5))
    patients = [f"p{i}" for i in rng.integers(0, rng.integers(4, n + 1), n)]
    slides = bags(rng.integers(0, classes, n).tolist(), patients)
    patient_of = {bag.slide_id: bag.patient_id for bag in slides}
    fraction = float(rng.uniform(0.02, 0.5))
    try:
        splits = kfold(slides, int(rng.integers(2, 6)), 2, fraction, seed)
    except InputError:
        return
    for split in splits:
        sides = [{patient_of[slide] for slide in part} for part in (split.train, split.val, split.test)]
        assert sum(map(len, sides)) == len(set(patients))
        assert sorted(split.train + split.val + split.test) == sorted(patient_of)


GOLDEN = "98e335a30b6c"
