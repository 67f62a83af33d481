"""Splits: stratified, grouped by patient, reproducible, and refused where they cannot be trusted."""

import numpy as np
import pytest
import torch

from mil_zoo import Bag, InputError
from mil_zoo.data.card import DataCard
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.splits.draw import completed, kfold
from mil_zoo.data.splits.schemes import draw_splits
from mil_zoo.data.splits.split import Split, check_splits, find_leaks, from_masks, split_hash


def bags(labels, patients=None):
    return [
        Bag(features=torch.zeros(1, 1), label=label, slide_id=f"s{i:03d}", patient_id=patients[i] if patients else None)
        for i, label in enumerate(labels)
    ]


def test_every_slide_is_tested_once_a_repetition_and_no_patient_is_on_two_sides():
    rng = np.random.default_rng(0)
    patients = [f"p{rng.integers(40)}" for _ in range(120)]
    slides = bags([int(rng.integers(2)) for _ in range(120)], patients)
    patient_of = {bag.slide_id: bag.patient_id for bag in slides}
    splits = kfold(slides, folds=5, repeats=2)
    assert len(splits) == 10
    for repeat in range(2):
        tested = [slide for split in splits if split.repeat == repeat for slide in split.test]
        assert sorted(tested) == sorted(patient_of)
    for split in splits:
        assert sorted(split.train + split.val + split.test) == sorted(patient_of)
        sides = [{patient_of[slide] for slide in part} for part in (split.train, split.val, split.test)]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert sides[one].isdisjoint(sides[other])


def test_parts_are_stratified_and_of_the_wanted_size():
    slides = bags([0] * 150 + [1] * 50)
    label_of = {bag.slide_id: bag.label for bag in slides}
    for split in kfold(slides, folds=5, validation_fraction=0.15):
        assert len(split.test) == 40
        assert 20 <= len(split.val) <= 28  # 15 % of 160 is 24
        for part in (split.train, split.val, split.test):
            assert abs(np.mean([label_of[slide] for slide in part]) - 0.25) < 0.06


def test_the_seed_decides_and_the_hash_tells():
    slides = bags([0, 1] * 30)
    assert kfold(slides, 3, seed=1) == kfold(slides, 3, seed=1)
    assert split_hash(kfold(slides, 3, seed=1)) == split_hash(kfold(slides, 3, seed=1))
    assert split_hash(kfold(slides, 3, seed=1)) != split_hash(kfold(slides, 3, seed=2))
    first, second = (kfold(slides, 3, repeats=2)[i * 3].test for i in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0] * 10 + [1] * 3, 5, "class 1 has 3 patients, fewer than the 5 folds"),
        ([0, 1], 3, "fewer than the 3 folds"),
        ([0] * 4 + [1], 2, "class 1 has 1 patients, fewer than the 2 folds; add slides of it, or drop the class"),
        ([0, 1] * 5, 1, "folds >= 2"),
        ([0] * 10 + [1] * 2, 2, "one patient left for training and validation; ask for more folds, .* or add patients"),
        ([0] * 10 + [1] * 3, 2, "one patient left for training and validation; ask for more folds"),
    ],
)
def test_splits_that_cannot_be_are_refused(labels, folds, message):
    with pytest.raises(InputError, match=message):
        kfold(bags(labels), folds)


def test_more_folds_leave_a_class_more_patients_to_train_on():
    assert len(kfold(bags([0] * 10 + [1] * 3), 3)) == 3


def test_a_class_of_few_sites_cannot_be_split():
    sites = {bag.slide_id: f"{i % 10}" if i < 10 else f"{i % 3}" for i, bag in enumerate(bags([0] * 10 + [1] * 6))}
    with pytest.raises(InputError, match=r"a class has one site left .* or add sites of it"):
        kfold(bags([0] * 10 + [1] * 6), 2, site_of=sites)


def test_a_class_whose_slides_are_of_one_patient_cannot_be_split():
    with pytest.raises(InputError, match="class 1 has 1 patients"):
        kfold(bags([0] * 10 + [1] * 10, [f"p{i}" for i in range(10)] + ["q"] * 10), 2)


def test_find_leaks_names_every_patient_on_both_sides():
    patient_of = {"a1": "A", "a2": "A", "b1": "B", "c1": "C", "c2": "C", "d": None}
    assert find_leaks(["a1", "b1", "c1"], ["a2", "c2", "d"], patient_of) == ["A", "C"]
    assert find_leaks(["a1"], ["b1"], patient_of) == []
    assert find_leaks(["d"], ["d"], patient_of) == ["d"]


def test_leaky_and_incomplete_splits_are_errors():
    slides = bags([0, 1] * 4, ["p", "p", "q", "q", "r", "r", "s", "s"])
    with pytest.raises(InputError, match="fold 0: patients in both train and test: p, q; split by patient"):
        check_splits([Split(0, 0, ("s000", "s003"), ("s004", "s005"), ("s001", "s002"))], slides)
    with pytest.raises(InputError, match="test slide 'zz' is not in the dataset"):
        check_splits([Split(0, 0, ("s000", "s001"), ("s002", "s003"), ("zz",))], slides)
    with pytest.raises(InputError, match="no test slide has label 1"):
        check_splits([Split(0, 0, ("s000", "s001"), ("s002", "s003"), ("s004",))], slides)


def test_published_folds_are_used_as_they_are():
    slides, test = bags([0, 1] * 10), np.zeros((2, 2, 20), bool)
    test[0, 0, :10] = test[0, 1, 10:] = test[1, 0, 5:15] = True
    test[1, 1] = ~test[1, 0]
    splits = completed(from_masks(test, slides), slides)
    assert [split.test for split in splits] == [
        tuple(slides[i].slide_id for i in np.flatnonzero(test[repeat, fold])) for repeat in (0, 1) for fold in (0, 1)
    ]
    for split in splits:
        assert sorted(split.train + split.val + split.test) == [bag.slide_id for bag in slides]
    with pytest.raises(InputError, match="of 20 bags, the dataset holds 4"):
        from_masks(test, slides[:4])


def test_a_leaky_split_runs_only_when_it_is_asked_for_and_validation_stays_apart():
    patients = [f"p{i // 2}" for i in range(24)]
    slides = bags([0, 1] * 12, patients)
    ids = [bag.slide_id for bag in slides]
    patient_of = dict(zip(ids, patients, strict=True))
    for val in ((), tuple(ids[1:7])):  # p0 to p3: p0 is in train too, p3 in test
        train = tuple(slide for slide in ids[:15] if slide not in val)
        split = Split(0, 0, train, val, tuple(ids[15:]))
        with pytest.raises(InputError, match=r"in both train and test: p7; .* --allow-leaky-splits"):
            completed([split], slides)
        (run,) = completed([split], slides, allow_leaks=True)
        assert find_leaks(run.train, run.test, patient_of) == ["p7"]
        assert run.test == split.test
        assert set(run.val) <= set(val or ids[:14])
        assert {patient_of[s] for s in run.val}.isdisjoint(patient_of[s] for s in run.train + run.test)
        if not val:
            assert sorted(run.train + run.val) == sorted(train)


def test_sites_stay_together():
    rng = np.random.default_rng(0)
    sites = [f"site{i}" for i in rng.integers(0, 30, 200)]
    slides = bags([int(site[4:]) % 2 for site in sites], [f"{site}-{i // 2}" for i, site in enumerate(sites)])
    site_of = {bag.slide_id: site for bag, site in zip(slides, sites, strict=True)}
    splits = kfold(slides, 5, site_of=site_of)  # every site gave slides of one class
    assert sorted(slide for split in splits for slide in split.test) == sorted(site_of)
    for split in splits:
        sides = [{site_of[slide] for slide in part} for part in (split.train, split.val, split.test)]
        assert sum(map(len, sides)) == 30
        assert 0.3 < np.mean([int(site_of[slide][4:]) % 2 for slide in split.test]) < 0.7
    with pytest.raises(InputError, match="class 0 has 15 sites, fewer than the 16 folds"):
        kfold(slides, 16, site_of=site_of)
    with pytest.raises(InputError, match="the site of slide 's000' is unknown"):
        kfold(slides, 5, site_of={})
    with pytest.raises(InputError, match="patient 'p' has slides of the sites"):
        kfold(
            bags([0, 1] * 10, ["p"] * 2 + [f"q{i}" for i in range(18)]),
            2,
            site_of={f"s{i:03d}": f"{i}" for i in range(20)},
        )


def test_slides_in_no_part_are_named(tmp_path):
    slides = bags([0, 1] * 20)
    names = [bag.slide_id for bag in slides]
    parts = ["train"] * 20 + ["val"] * 6 + ["test"] * 10 + [""] * 4
    rows = [f"{name},{part}\n" for name, part in zip(names, parts, strict=True)]
    (tmp_path / "split.csv").write_text("slide_id,split\n" + "".join(rows))
    dataset = Dataset(DataCard("mine", "Mine", "real", "slides", ["a", "b"]), slides)
    drawn = draw_splits(dataset, str(tmp_path / "split.csv"))
    assert drawn.warnings == ["4 of 40 slides are in no part of any split and play no role (s036, s037, s038, ...)."]
