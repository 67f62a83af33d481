"""Files that are damaged or hostile: one sentence that names them, and never a signal, a traceback or memory lost."""

import os
import pickle
import sys
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from layouts import FEATURES, GRID, mutated, write_clam, write_h5, write_srmil

from mil_zoo import Bag, InputError, load
from mil_zoo.data import read_bag
from mil_zoo.data.formats.npy import load_arrays, load_npy
from mil_zoo.data.formats.pickles import load_pickle
from mil_zoo.data.labels.dialects import read_csv
from mil_zoo.data.open import contents_of, locate
from mil_zoo.data.source import DatasetSource

ROUNDS = int(os.environ.get("MIL_ZOO_FUZZ", "300"))  # mutations of each sample


def samples():
    items = [SimpleNamespace(x=FEATURES, pos=GRID, graph_y=np.array([[0, 1]]), slide_index=np.int64(7), y=None)]
    mappings = [OrderedDict(x=FEATURES.astype(">f4"), pos=GRID.tolist(), slide_index="a")]
    tensors = [{"x": torch.from_numpy(FEATURES), "pos": torch.from_numpy(GRID), "graph_y": torch.eye(2)[:1]}]
    return [pickle.dumps(item, protocol) for item in (items, mappings, tensors) for protocol in (2, 3, 4, 5)]


def test_what_data_are_made_of_comes_back(tmp_path):
    for number, content in enumerate(samples()):
        (tmp_path / f"{number}.pkl").write_bytes(content)
        bag = read_bag(tmp_path / f"{number}.pkl")
        assert torch.equal(bag.features, torch.from_numpy(FEATURES))
        assert torch.equal(bag.coords, torch.from_numpy(GRID).float())
    half = torch.arange(6).reshape(2, 3).bfloat16()
    tensors = [half, half.T, half[1:], torch.zeros(0, 3), torch.nn.Parameter(half)]
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(tensors))
    arrays = load_pickle(tmp_path / "t.pkl")
    assert [array.tolist() for array in arrays] == [tensor.float().tolist() for tensor in tensors]
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # a place in the memo beyond the memory
    assert load_pickle(tmp_path / "m.pkl") == []


DTYPE = b"cnumpy\ndtype\n(S'%s'\nI00\nI01\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
HOSTILE = {
    "an array of objects": ARRAY + b"(I1\n(I1\nt" + DTYPE % b"O8" + b"I00\nS'AAAAAAAA'\ntb.",
    "a state for a dtype": DTYPE % b"f8" + b"(I3\nS'|'\nNN(dI63\ntb.",
    "fields": ARRAY
    + b"(I1\n(I1\nt"
    + DTYPE % b"f8"
    + b"(I3\nS'<'\nN(S'a'\ntN"
    + b"I-1\nI-1\nI0\ntbI00\nS'AAAAAAAA'\ntb.",
    "more rows than bytes": ARRAY + b"(I1\n(I1000000000\nt" + DTYPE % b"f8" + b"I00\nS'AAAAAAAA'\ntb.",
    "a negative shape": ARRAY + b"(I1\n(I-1\nt" + DTYPE % b"f8" + b"I00\nS'AAAAAAAA'\ntb.",
    "another class": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "ndarray called": b"cnumpy\nndarray\n(I9\ntR.",
    "a scalar of objects": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"O8" + b"S'AAAAAAAA'\ntR.",
    "a state for a list": b"(l(dI1\nsb.",
    "a set": b"\x80\x04\x8f.",
    "a byte array of gigabytes": b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".",
    "keys nested deeply": b"\x80\x02}(" + b"N" + b"\x85" * 100_000 + b"Nu.",
    "methods of text": b"cbuiltins\ngetattr\n(S'a'\nS'join'\ntR.",
    "a tensor beyond its storage": None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name):
    content = HOSTILE[name]
    if content is None:
        content = pickle.dumps(torch.arange(4.0), 2)
        assert content.count(b"K\x04\x85") == 1
        content = content.replace(b"K\x04\x85", b"K\xff\x85")
    (tmp_path / "a.pkl").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"a\.pkl is not (read|a readable pickle)"):
        load_pickle(tmp_path / "a.pkl")
    assert time.perf_counter() - start < 5


def test_mutated_pickles_end_in_a_bag_or_a_sentence(tmp_path):
    rng, path, read = np.random.default_rng(0), tmp_path / "a.pkl", 0
    for content in samples():
        for _ in range(ROUNDS // 12):
            changed = bytearray(content)
            for place in rng.integers(len(changed), size=rng.integers(1, 6)):
                changed[place] = rng.integers(256)
            cut = rng.integers(len(changed)) if rng.random() < 0.2 else len(changed)
            path.write_bytes(bytes(changed[:cut]))
            with suppress(InputError):
                read += len(read_bag(path)) > 0
    assert read > 0


def test_mutated_files_of_every_kind_end_in_a_bag_or_a_sentence(tmp_path):
    np.savez(tmp_path / "t.npz", X=FEATURES, bag_ptr=[0, 12], bag_label=[1], coords=GRID, inst_label=np.zeros(12, int))
    np.savez_compressed(tmp_path / "z.npz", X=FEATURES, bag_ptr=[0, 12], bag_label=[1])
    np.save(tmp_path / "embeddings.npy", FEATURES)
    np.save(tmp_path / "ids.npy", np.array([f"s{i}" for i in range(12)]))
    torch.save(torch.from_numpy(FEATURES), tmp_path / "a.pt")
    (tmp_path / "d.csv").write_text("0,1,2\n" + "\n".join(",".join(map(str, row)) for row in FEATURES.tolist()))
    write_clam(tmp_path, "c")
    paths = [tmp_path / name for name in ("t.npz", "z.npz", "embeddings.npy", "a.pt", "d.csv", "h5_files/c.h5")]
    rng = np.random.default_rng(1)
    for path in paths:
        whole = path.read_bytes()
        for _ in range(ROUNDS // 10):
            path.write_bytes(mutated(whole, rng))
            with suppress(InputError):
                read_bag(path, slide="s1" if path.name == "embeddings.npy" else None)


def test_declared_sizes_are_held_against_the_file(tmp_path):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000,)}\n"
    header = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("X.npy", header + b"1234")
    with pytest.raises(InputError, match=r"t.npz: X declares \[10000000000\] of float32 and holds"):
        load_arrays(tmp_path / "t.npz")
    (tmp_path / "a.npy").write_bytes(header + b"1234")
    with pytest.raises(InputError, match=r"a.npy is not a readable .npy file"):
        load_npy(tmp_path / "a.npy")


def test_the_sentence_says_what_a_file_is_instead(tmp_path):
    path = write_clam(tmp_path, "a")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(InputError, match=r"a.h5 is a pointer of git-lfs .*; fetch it with git lfs pull"):
        read_bag(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a.h5 is empty \(it was changed \d s ago and may still be written\)"):
        read_bag(path)
    path.unlink()
    path.symlink_to(tmp_path / "gone.h5")
    with pytest.raises(InputError, match=r"a.h5(: no such file| is a link to a file that is gone)"):
        read_bag(path)


def test_h5_files_that_hold_something_else(tmp_path):
    for name, message in {
        "coords": r"\(it holds coords\); these are the places of patches: pass the folder of the features",
        "imgs": r"\(it holds imgs\); these are the pixels of patches",
        "embeddings": r"\(it holds embeddings\); extract the slide again, or rename its dataset",
    }.items():
        path = write_h5(tmp_path / f"{name}.h5", **{name: GRID})
        with pytest.raises(InputError, match=message):
            read_bag(path)
    outside = write_h5(tmp_path / "outside.h5", features=FEATURES)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(outside), "/features")
        file["coords"] = h5py.SoftLink("/nowhere")
    with pytest.raises(InputError, match="features lies in another file, which is not read"):
        read_bag(tmp_path / "link.h5")
    path = write_h5(tmp_path / "complex.h5", features=FEATURES.astype(np.complex64), coords=GRID)
    with pytest.raises(InputError, match="features is not an array of numbers"):
        read_bag(path)


def test_a_filter_that_is_not_installed_is_named(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, compression="gzip", shuffle=True)
    assert read_bag(tmp_path / "a.h5").features.tolist() == FEATURES.tolist()
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != 1)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(
        InputError, match=r"a.h5: features is compressed by a filter \(number 1\) .* pip install hdf5plugin"
    ):
        read_bag(tmp_path / "a.h5")


def test_tensors_that_carry_more_than_numbers(tmp_path):
    features = torch.from_numpy(FEATURES)
    torch.save(features.clone().requires_grad_() * 1.0, tmp_path / "a.pt")
    assert read_bag(tmp_path / "a.pt").features.tolist() == FEATURES.tolist()
    for odd, message in (
        (features.to_sparse(), "holds a sparse_coo tensor"),
        (features.cfloat(), "tensor of complex64"),
        (features.sum(), r"must be \[patches, dimensions\], not one number"),
        (FEATURES, r"it asks for numpy[\w.]+_reconstruct\); save the features as a plain tensor"),
    ):
        torch.save(odd, tmp_path / "b.pt")
        with pytest.raises(InputError, match=message):
            read_bag(tmp_path / "b.pt")


def test_tensors_that_would_be_larger_than_their_file(tmp_path):
    torch.save(torch.zeros(1).expand(10**6, 64).unsqueeze(0), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt declares a tensor \[1, 1000000, 64\] that holds one number many times"):
        read_bag(tmp_path / "a.pt")
    torch.save(torch.zeros(1000, 64), tmp_path / "b.pt")
    with (
        zipfile.ZipFile(tmp_path / "b.pt") as whole,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    with pytest.raises(InputError, match=r"c.pt is not a readable tensor file \(it is compressed"):
        read_bag(tmp_path / "c.pt")
    assert len(read_bag(tmp_path / "b.pt")) == 1000


@pytest.mark.parametrize("values", [[0, 255], [0, 2], [0.0, np.nan], [0, 0.5]])
def test_instance_labels_are_zero_one_or_unknown(tmp_path, values):
    with pytest.raises(InputError, match=r"slide 's': instance_labels hold .* where 0 \(negative\), 1 \(positive\)"):
        Bag(features=FEATURES[:2], instance_labels=np.array(values), slide_id="s")
    np.savez(tmp_path / "t.npz", X=FEATURES[:2], bag_ptr=[0, 2], bag_label=[1], inst_label=values)
    with pytest.raises(InputError, match=r"t.npz: inst_label holds .* in row 1 \(1 such rows\)"):
        read_bag(tmp_path / "t.npz")


def test_instance_labels_that_are_read(tmp_path):
    for values in ([False, True], [0.0, 1.0], [0, 1]):
        assert Bag(features=FEATURES[:2], instance_labels=np.array(values)).instance_labels.tolist() == [0, 1]
    write_srmil(tmp_path / "a.pkl", {"a": 1})
    assert set(read_bag(tmp_path / "a.pkl").instance_labels.tolist()) == {0, 1}


def test_a_pipe_is_no_file_and_nothing_waits_for_it(tmp_path):
    """Opened, it would wait for a writer for ever: as a slide, first of a folder or not, and as a table of labels."""
    folder = tmp_path / "h5_files"
    folder.mkdir()
    for name in ("a", "c"):
        os.mkfifo(folder / f"{name}.h5")
    with h5py.File(folder / "b.h5", "w") as file:
        file["features"] = np.ones((4, 3), np.float32)
    bags = contents_of(locate(source := DatasetSource(str(folder))), source).bags
    assert bags.slide_ids == ["a", "b", "c"]
    assert bags.slides[1].shape() == (4, 3)
    for slide in (bags.slides[0], bags.slides[2]):
        with pytest.raises(InputError, match=rf"{slide.slide_id}.h5 is a pipe or a device and no file"):
            slide.shape()
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(InputError, match=r"labels.csv is a pipe or a device and no file"):
        read_csv(tmp_path / "labels.csv")
    (tmp_path / "pointer.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"pointer.csv is a pointer of git-lfs and not the file itself"):
        read_csv(tmp_path / "pointer.csv")


def test_no_command_waits_for_a_pipe(tmp_path, run_cli, bag_table):
    """A device like /dev/zero, which never ends, is one more."""
    for name in ("suite.yaml", "encoder.safetensors", "weights.pt", "slides.txt", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    pretrain = ("pretrain", "--dataset", bag_table, "--out", tmp_path / "p", "--epochs", 1, "--batch-size", 8)
    os.mkfifo(tmp_path / "substituted")
    for command in (
        ("bench", "--suite", tmp_path / "substituted"),
        ("bench", "--dataset", bag_table, "--labels", tmp_path / "substituted"),
        ("bench", "--suite", tmp_path / "suite.yaml"),
        ("bench", "--suite", tmp_path / "zero.yaml"),
        ("embed", tmp_path / "encoder.safetensors", "--dataset", bag_table, "--out", tmp_path / "e"),
        (*pretrain, "--weights", tmp_path / "weights.pt"),
        (*pretrain, "--slides", tmp_path / "slides.txt"),
    ):
        code, _, err = run_cli(*command)
        assert (code, "is a pipe or a device and no file" in err) == (2, True), command
    with pytest.raises(InputError, match=r"config.json is a pipe or a device and no file"):
        load(tmp_path / "model")
    (tmp_path / "none.txt").touch()
    assert "names no slide; write one slide id a line" in run_cli(*pretrain, "--slides", tmp_path / "none.txt")[2]
