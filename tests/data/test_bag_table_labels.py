"""Labels of a bag table are numbers, whole floats or names, all else is a sentence that names the bag; patch sizes."""

import numpy as np
import pytest

from mil_zoo import InputError
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.layouts.table import named_classes, read_table


@pytest.fixture
def table(tmp_path):
    """``table(labels)``: the path of a bag table of one instance a bag."""

    def write(labels, **more):
        labels = np.asarray(labels)
        names = np.array([f"bag {i}" for i in range(len(labels))])
        features = np.arange(2.0 * len(labels), dtype="f4").reshape(-1, 2)
        path = tmp_path / "bags.npz"
        arrays = {"X": features, "bag_ptr": np.arange(len(labels) + 1), "bag_label": labels, "bag_name": names}
        np.savez(path, **arrays | more)
        return path

    return write


@pytest.mark.parametrize(
    "labels",
    [[1, 0], [1.0, 0.0], np.float32([1, 0]), ["1", "0"], ["1.0", "0.0"], [b"1", b"0"], [True, False]],
)
def test_whole_numbers_are_class_indices_however_they_are_written(table, labels):
    path = table(labels)
    assert [bag.label for bag in read_table(path)] == [1, 0]
    assert named_classes(path) == []


@pytest.mark.parametrize("labels", [["tumour", "normal"] * 3, [b"tumour", b"normal"] * 3])
def test_names_are_numbered_in_sorted_order_and_recorded(table, labels):
    dataset = open_dataset(table(labels))
    assert dataset.card.classes == ["normal", "tumour"], "what config.yaml records"
    assert [slide.label for slide in dataset.bags.slides] == [1, 0] * 3


def test_classes_that_are_given_number_the_names(table):
    labels = [bag.label for bag in read_table(table(["b", "a", "1.0"]), classes=["b", "a"])]
    assert labels == [0, 1, 1]
    with pytest.raises(InputError, match=r"bags\.npz: bag_label of bag 'bag 1' is 'c', not one of b, a"):
        read_table(table(["b", "c"]), classes=["b", "a"])


@pytest.mark.parametrize(
    ("labels", "told"),
    [([0, 1.5], "1.5"), ([0, np.nan], "nan"), ([0, np.inf], "inf"), ([0, -1], "-1"), (["0", "x"], "'x'")],
)
def test_what_is_no_class_is_told_with_its_bag(table, labels, told):
    with pytest.raises(InputError, match=rf"bags\.npz: bag_label of bag 'bag 1' is {told}, not a whole number from 0"):
        read_table(table(labels))


def test_an_empty_name_is_told(table):
    with pytest.raises(InputError, match="bag_label of bag 'bag 1' is ''"):
        open_dataset(table(["a", "", "b"]))


@pytest.mark.parametrize("odd", [999999999, 20230101])
def test_a_date_or_an_id_is_no_class(table, odd):
    with pytest.raises(InputError, match=rf"bags\.npz.*label {odd} is a date, an id or a mark.*bag 3"):
        open_dataset(table([0, 1, 0, odd, 1, 0]))


def test_a_single_class_is_told(table):
    with pytest.raises(InputError, match=r"bags\.npz: bag_label is 'a' in every bag, one class; add bags of another"):
        open_dataset(table(["a", "a", "a"]))


@pytest.mark.parametrize(("sizes", "read"), [(256, [256, 256]), ([512.0], [512, 512]), ([256, 512], [256, 512])])
def test_patches_have_the_size_that_the_table_states(table, sizes, read):
    bags = read_table(table([0, 1], patch_size=sizes, coords=np.zeros((2, 2))))
    assert [bag.patch_size for bag in bags] == read
    assert {bag.geometry for bag in bags} == {"patch_size of the table"}
    assert [bag.patch_size for bag in read_table(table([0, 1]))] == [None, None]


@pytest.mark.parametrize("sizes", [0, -256, np.nan, "256", [256, 256, 256], [[256, 256]]])
def test_a_patch_size_that_is_none_is_one_sentence(table, sizes):
    with pytest.raises(
        InputError, match=r"bags\.npz: patch_size must be one positive number, or one for each of the 2 bags"
    ):
        read_table(table([0, 1], patch_size=sizes))
