"""DGL stands at the door: everything but the door works where it cannot be imported, and the door says why."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_fresh_interpreter, make_bag, needs_dgl

import mil_zoo
from mil_zoo import InputError, _dgl
from mil_zoo.cli import main
from mil_zoo.graph import build, build_csr, register_graph
from mil_zoo.graph.base import GRAPHS


def use_everything_without_dgl(table, out):
    """Everything but the door, in a process where DGL cannot be imported."""
    sys.modules["dgl"] = None
    coords = [[0, 0], [256, 0], [1024, 0]]
    graph = mil_zoo.graph.build_csr(coords, "window:2", patch_size=256)
    assert graph.indices.tolist() == [0, 1, 0, 1, 2]
    assert "dgl" not in mil_zoo.kernels.available_backends()
    bag = mil_zoo.Bag(features=[[1.0], [2.0], [3.0]], coords=coords, patch_size=256, label=1)
    batch = mil_zoo.BagBatch.from_bags([bag], graph="window:2")
    mil_zoo.create_aggregator("srmil", in_dim=1, hidden=8).losses(batch)["loss"].backward()
    with pytest.raises(InputError, match=r"DGL is not installed: .* graph\.build_csr"):
        build(coords, "window:2", patch_size=256)
    with pytest.raises(InputError, match="DGL is not installed"):
        _ = batch.graph.dgl
    with pytest.raises(InputError, match="backend 'dgl' cannot run here: DGL is not installed"):
        mil_zoo.kernels.segment_attention_pool(batch.features, batch.features, batch.offsets, backend="dgl")
    options = ["--models", "srmil,mean", "--folds", "2", "--epochs", "1", "--set", "srmil.hidden=8"]
    sys.argv = ["mil-zoo", "bench", "--dataset", str(table), *options, "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.mark.timeout(900)  # compiles kernels where the cache is cold
def test_everything_but_the_door_works_without_dgl(bag_table, tmp_path):
    in_fresh_interpreter(use_everything_without_dgl, bag_table, tmp_path / "run")
    assert (tmp_path / "run" / "table.md").read_text().count("srmil") >= 1


def train_a_step():
    """Whether a training step on a graph of patches loads DGL."""
    bags = [mil_zoo.Bag(features=torch.rand(9, 4), coords=torch.rand(9, 2), patch_size=1, label=0)]
    batch = mil_zoo.BagBatch.from_bags(bags, graph="window:2")
    mil_zoo.create_aggregator("srmil", in_dim=4, hidden=8).losses(batch)["loss"].backward()
    return "dgl" in sys.modules


def test_training_does_not_load_dgl():
    assert not in_fresh_interpreter(train_a_step)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ((3, 13, 1), "its wheels stop at Python 3.12 and this is Python 3.13, so use an environment with Python 3.10"),
        ((3, 12, 1), "install it with pip install 'dgl>=2.1,<3'"),
    ],
)
def test_the_door_says_why_and_what_to_do(monkeypatch, version, sentence):
    monkeypatch.setitem(sys.modules, "dgl", None)
    monkeypatch.setattr(sys, "version_info", version)
    _dgl._loaded.cache_clear()
    try:
        with pytest.raises(InputError) as caught:
            build([[0.0, 0.0]], "window:2", patch_size=1.0)
    finally:
        _dgl._loaded.cache_clear()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def why_dgl_is_not_there(folder):
    sys.path.insert(0, str(folder))
    return _dgl.why_not()


def test_a_dgl_that_fails_to_load_says_how_it_failed(monkeypatch, tmp_path):
    (tmp_path / "dgl").mkdir()
    (tmp_path / "dgl" / "__init__.py").write_text("raise OSError('libdgl.so: undefined symbol')")
    reason = in_fresh_interpreter(why_dgl_is_not_there, tmp_path)
    assert "DGL cannot be imported (OSError: libdgl.so: undefined symbol)" in reason


@needs_dgl
def test_the_door_gives_the_same_graph():
    coords = make_bag(30, 3).coords
    csr, graph = build_csr(coords, "window:2", 256.0), build(coords, "window:2", 256.0)
    assert graph.idtype == torch.int32
    indptr, indices, _ = graph.adj_tensors("csc")
    assert indptr.equal(csr.indptr)
    assert indices.equal(csr.indices)
    src, dst = graph.edges()  # edge ids are positions in the CSR
    assert src.equal(csr.indices)
    assert dst.long().equal(csr.destinations)


@needs_dgl
def test_a_builder_may_return_a_dgl_graph():
    @register_graph("ring")
    def ring(coords):
        from mil_zoo._dgl import dgl

        nodes = torch.arange(len(coords))
        return dgl.graph((nodes, nodes.roll(1)))

    try:
        graph = mil_zoo.graph.build_csr(np.zeros((4, 2)), "ring")
    finally:
        del GRAPHS._entries["ring"]
    assert graph.indices.reshape(4, 3).tolist() == [[0, 1, 3], [0, 1, 2], [1, 2, 3], [0, 2, 3]]


def test_dgl_is_imported_in_one_place():
    package = Path(mil_zoo.__file__).parent
    lines = [
        (path.name, line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import dgl", "from dgl"))
    ]
    assert lines == [("_dgl.py", "from dgl import DGLGraph as DGLGraph")]
