"""Digests: identical slides under two names are found before training, and data that changed since a run began."""

import numpy as np
import pytest
import torch
from layouts import (
    FEATURES,
    GRID,
    write_clam,
    write_dsmil,
    write_h5,
    write_histossl,
    write_slideflow,
    write_stamp,
    write_torchmil,
    write_trident,
)

from mil_zoo import Bag, InputError
from mil_zoo.bench.plan import make_plan
from mil_zoo.bench.runner import run_plan
from mil_zoo.bench.suite import read_suite
from mil_zoo.data import open_dataset
from mil_zoo.data.bags import as_bags
from mil_zoo.data.digests import identical, of_sample, samples_of
from mil_zoo.data.layouts.base import LAYOUTS
from mil_zoo.data.layouts.find import layout_of
from mil_zoo.data.packed.writer import import_dataset
from mil_zoo.data.patients import pack_patients


def write_pt(root, slide):
    (root / "pt_files").mkdir(parents=True)
    torch.save(torch.from_numpy(FEATURES), root / "pt_files" / f"{slide}.pt")
    return root / "pt_files" / f"{slide}.pt"


def write_csv(root, slide):
    return write_dsmil(root, {slide: 1}) / "1-class" / f"{slide}.csv"


def write_stacked(root, slide):
    return write_h5(root / "h5_files" / f"{slide}.h5", features=FEATURES[None], coords=GRID)


WRITERS = [write_clam, write_trident, write_stamp, write_torchmil, write_histossl, write_slideflow, write_pt, write_csv]


@pytest.mark.parametrize("write", [*WRITERS, write_stacked], ids=lambda write: write.__name__)
def test_rows_of_every_layout(tmp_path, write):
    path = write(tmp_path, "a")
    layout = layout_of(path)
    assert layout.rows(path, [0, 3, 11]).tolist() == FEATURES[[0, 3, 11]].tolist()
    assert layout.shape(path) == FEATURES.shape


def test_every_layout_of_one_slide_a_file_is_among_them(tmp_path):
    known = {layout_of(write(tmp_path / write.__name__, "a")).name for write in WRITERS}
    assert known == {name for name in LAYOUTS if LAYOUTS.get(name).read.__qualname__ != "TableLayout.read"} & known
    assert {"clam", "dsmil", "histossl", "slideflow", "stamp", "torchmil", "trident"} <= known


def slides(count=6, rows=40):
    rng = np.random.default_rng(0)
    return [
        Bag(
            features=rng.normal(size=(rows, 4)).astype(np.float32),
            label=i % 2,
            slide_id=f"s{i}",
            patient_id=f"p{i // 2}",
        )
        for i in range(count)
    ]


def test_identical_slides_are_found_and_similar_ones_are_not(tmp_path):
    bags = slides()
    assert identical(as_bags(bags), samples_of(as_bags(bags))) == []
    twin = bags[1].features.clone()
    twin[1] += 1  # between two of the rows that are sampled
    similar = [*bags, Bag(features=twin, label=0, slide_id="similar")]
    assert of_sample(as_bags(similar).slides[-1]) == of_sample(as_bags(similar).slides[1])
    assert identical(as_bags(similar), samples_of(as_bags(similar))) == []
    same = as_bags([*bags, Bag(features=bags[1].features.clone(), label=0, slide_id="again")])
    assert identical(same, samples_of(same)) == [("s1", "again")]


def test_a_digest_does_not_depend_on_where_the_slide_lies(tmp_path):
    for number in range(4):
        write_clam(tmp_path / "f", f"s{number}", features=FEATURES + np.float32(number))
    (tmp_path / "f" / "labels.csv").write_text("slide_id,label,patient_id\ns0,0,p\ns1,0,p\ns2,1,q\ns3,1,r\n")
    dataset = open_dataset(str(tmp_path / "f"))
    expected = samples_of(dataset.bags)
    import_dataset(dataset, tmp_path / "s", "fp32")
    assert samples_of(open_dataset(str(tmp_path / "s")).bags) == expected
    in_memory = as_bags(list(dataset.bags))
    assert samples_of(in_memory) == expected
    assert samples_of(pack_patients(dataset.bags)) == samples_of(pack_patients(in_memory))


def plan(path, verify=False, **more):
    suite = read_suite(None, datasets=[str(path)], models=["mean"], folds=2, epochs=1, **more)
    return make_plan(suite, str(path), verify=verify)


def write_table(path, bags, labels=None):
    np.savez(
        path,
        X=np.concatenate([bag.features for bag in bags]),
        bag_ptr=np.cumsum([0, *map(len, bags)]),
        bag_label=[bag.label for bag in bags] if labels is None else labels,
        bag_name=[bag.slide_id for bag in bags],
    )
    return path


def test_a_slide_under_two_names_or_in_two_cohorts_is_an_error(tmp_path):
    bags = slides(8)
    path = write_table(tmp_path / "a.npz", bags)
    plan(path)
    bags[3] = bags[3].changed(features=bags[0].features)
    with pytest.raises(InputError, match=r"identical features under several names; keep one .*: s0, s3 \(2 in all\)"):
        plan(write_table(tmp_path / "b.npz", bags))
    other = [bag.changed(slide_id=f"t{i}") for i, bag in enumerate(slides(8))]
    with pytest.raises(InputError, match=r"several names; .*: s0, t0"):
        plan(path, test_on=str(write_table(tmp_path / "c.npz", other)))


def test_data_that_changed_since_a_run_began(tmp_path):
    bags = slides(8)
    path = write_table(tmp_path / "a.npz", bags)
    run = run_plan(plan(path), tmp_path / "run")
    run_plan(plan(path), tmp_path / "run")
    for what, changed, labels in (
        ("features", [bag.changed(features=-bag.features) for bag in bags], None),
        ("labels", bags, [1, 1, 0, 0, 1, 1, 0, 0]),
    ):
        write_table(path, changed, labels)
        with pytest.raises(InputError, match=rf"the data changed since this run began \(other {what}\)"):
            run_plan(plan(path), tmp_path / "run")
    assert len(run.trials()) == 2


def test_a_row_between_those_sampled_is_noticed_where_all_are_asked_for(tmp_path):
    bags = slides(8)
    path = write_table(tmp_path / "a.npz", bags)
    run_plan(plan(path, verify=True), tmp_path / "run")
    bags[2].features[1] += 1
    write_table(path, bags)
    run_plan(plan(path), tmp_path / "run")  # sampled rows are the same
    with pytest.raises(InputError, match=r"the data changed since this run began \(other all features\)"):
        run_plan(plan(path, verify=True), tmp_path / "run")
