"""Readers, label tables, names and splits over random inputs: the right value, or one sentence."""

import csv
import io
import pickle
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
from examples import attempt, some
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mil_zoo import Bag, InputError
from mil_zoo.data import read_bag
from mil_zoo.data.formats.pickles import as_array, load_pickle
from mil_zoo.data.labels.names import match_names
from mil_zoo.data.labels.tables import read_csv, read_labels
from mil_zoo.data.splits.draw import kfold, monte_carlo
from mil_zoo.data.splits.files import read_splits, splits_csv
from mil_zoo.data.splits.split import split_hash

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
DTYPES = st.one_of(
    hnp.floating_dtypes(endianness="?"),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.byte_string_dtypes(min_len=1, max_len=4),
)
ARRAYS = hnp.arrays(DTYPES, SHAPES)
SAFE = st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="/\\")
NAMES = st.text(SAFE, min_size=1, max_size=12).map(str.strip).filter(lambda text: text.strip(" .\u200b") and text)


def read(path):
    """A bag that keeps its promises, or None where a sentence names the file or the slide."""
    bag, said = attempt(lambda: read_bag(path))
    if bag is None:
        assert path.stem in said
        return None
    assert bag.features.ndim == 2
    assert len(bag) > 0
    assert bag.features.isfinite().all()
    assert bag.coords is None or tuple(bag.coords.shape) == (len(bag), 2)
    assert bag.patch_size is None or bag.patch_size > 0
    return bag


@some
@given(
    features=ARRAYS,
    coords=ARRAYS,
    name=st.sampled_from(["features", "feats"]),
    attrs=st.dictionaries(
        st.sampled_from(["patch_size", "patch_size_level0", "overlap", "downsample"]), st.one_of(ARRAYS, st.text(SAFE))
    ),
)
def test_h5_files(tmp_path, features, coords, name, attrs):
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        file[name], file["coords"] = features, coords
        with suppress(ValueError, TypeError):
            file["coords"].attrs.update(attrs)
    bag = read(path)
    if bag is not None:
        assert bag.features.numel() == features.size


@some
@given(
    arrays=st.dictionaries(
        st.sampled_from(["X", "bag_ptr", "bag_label", "bag_name", "patient_id", "coords", "patch_size", "inst_label"]),
        ARRAYS,
    )
)
def test_bag_tables(tmp_path, arrays):
    np.savez(tmp_path / "table.npz", **arrays)
    with suppress(InputError):
        read_bag(tmp_path / "table.npz", slide="0")


@some
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".h5", ".pt", ".npz", ".pkl", ".csv"]))
def test_bytes_that_are_no_features(tmp_path, content, suffix):
    path = tmp_path / f"slide{suffix}"
    path.write_bytes(content)
    read(path)


@some
@given(
    features=hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", ">f4", "i8", "u1", "?"]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements={"min_value": 0, "max_value": 1},
    )
)
def test_every_number_type_of_a_tensor_is_read(tmp_path, features):
    native = torch.from_numpy(features.astype(features.dtype.newbyteorder("=")))
    torch.save(native, tmp_path / "slide.pt")
    assert torch.equal(read(tmp_path / "slide.pt").features, native.float())
    assert torch.equal(Bag(features=features).features.float(), native.float())


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@some
@given(
    content=PLAIN,
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    array=hnp.arrays(hnp.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf" and dtype.itemsize <= 8), SHAPES),
)
def test_pickles_of_plain_data_come_back(tmp_path, content, protocol, array):
    path = tmp_path / "slide.pkl"
    path.write_bytes(pickle.dumps([content, array], protocol))
    with suppress(InputError):  # text and bytes of old protocols are told apart by what they hold
        first, second = load_pickle(path)
        np.testing.assert_array_equal(as_array(second), array)
        if protocol >= 3:
            assert first == content


@some
@given(
    rows=st.lists(st.tuples(NAMES, st.text(SAFE, min_size=1, max_size=8).map(str.strip)), min_size=1, max_size=8),
    separator=st.sampled_from(",;\t|"), end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)  # fmt: skip
def test_tables_of_any_dialect(tmp_path, rows, separator, end, encoding):
    assume(all(label for _, label in rows))
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows([("slide_id", "label"), *rows])
    (tmp_path / "t.csv").write_bytes(text.getvalue().encode(encoding))
    table = read_csv(tmp_path / "t.csv")
    assert list(table.itertuples(index=False, name=None)) == rows
    assert read_labels(tmp_path / "t.csv")["slide_id"].tolist() == [name for name, _ in rows]


@some
@given(content=st.binary(max_size=120))
def test_bytes_that_are_no_table(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    table, said = attempt(lambda: read_labels(tmp_path / "t.csv"))
    assert table is not None or "t.csv" in said


@some
@given(known=st.lists(NAMES, min_size=1, max_size=8, unique=True), data=st.data())
def test_names_meet_whatever_is_around_them(known, data):
    assert match_names(known, known) == {name: name for name in known}
    name = data.draw(st.sampled_from(known))
    dressed = data.draw(st.sampled_from(["/x/{}", "{}.h5", "{}.svs", " {} ", "D:\\{}.pt"])).format(name)
    found, said = attempt(lambda: match_names([dressed], known))
    assert "could be any of" in said if found is None else found.get(dressed) in (name, dressed)


COHORTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=4, max_size=40)


def cohort(rows):
    """Slides of a class and a patient each; a patient has one class."""
    first = {}
    return [
        Bag(features=torch.zeros(1, 1), label=first.setdefault(p, label), slide_id=f"s{i:02d}", patient_id=f"p{p}")
        for i, (label, p) in enumerate(rows)
    ]


@some
@given(rows=COHORTS, folds=st.integers(2, 5), seed=st.integers(0, 2**31), fraction=st.floats(0.05, 0.5))
def test_splits_are_partitions_that_divide_no_patient(rows, folds, seed, fraction):
    bags = cohort(rows)
    patient_of = {bag.slide_id: bag.patient_id for bag in bags}
    tested = []
    for draw in (kfold, monte_carlo):
        try:
            splits = draw(bags, folds, validation_fraction=fraction, seed=seed)
        except InputError:
            continue
        again = draw(bags[::-1], folds, validation_fraction=fraction, seed=seed)
        assert split_hash(splits) == split_hash(again)
        for split in splits:
            assert sorted([*split.train, *split.val, *split.test]) == sorted(patient_of)
            sides = [{patient_of[slide] for slide in part} for part in (split.train, split.val, split.test)]
            assert sum(map(len, sides)) == len(set.union(*sides))
            assert all(sides)
            tested += split.test if draw is kfold else ()
    assert sorted(tested) in ([], sorted(patient_of))


@some
@given(rows=COHORTS, seed=st.integers(0, 1000))
def test_a_split_file_gives_back_its_splits(tmp_path, rows, seed):
    bags = cohort(rows)
    try:
        splits = kfold(bags, 2, seed=seed)
    except InputError:
        return
    (tmp_path / "splits.csv").write_text(splits_csv(splits, bags))
    found = read_splits(str(tmp_path / "splits.csv"), {bag.slide_id: bag.patient_id for bag in bags})
    assert split_hash(found) == split_hash(splits)


def test_a_budget_can_be_given(monkeypatch):
    assert some.max_examples >= 10
    with pytest.raises(InputError):
        kfold(cohort([(0, 0), (1, 0), (0, 1), (1, 1)]), 5)
