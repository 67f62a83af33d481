"""Trained aggregators as ONNX models; exporting checks each against torch on bags of several sizes."""

import functools

import numpy as np
import pytest
import torch
from helpers import make_bag

import mil_zoo
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.data.labelled import Standardiser
from mil_zoo.fitted import Fitted

DIM = 8
SMALL = {
    "abmil": {"embed_dim": 16, "gated": True},
    "abmilx": {"embed_dim": 16},
    "acmil": {"embed_dim": 16},
    "clam_mb": {"embed_dim": 16},
    "clam_sb": {"embed_dim": 16},
    "dsmil": {},
    "ibmil": {"embed_dim": 16},
    "ilra": {"embed_dim": 16},
    "max": {"embed_dim": 16},
    "mean": {"embed_dim": 16},
    "mhim": {"embed_dim": 16},
    "mlp": {"hidden": 16},
    "topk": {"embed_dim": 16},
    "vit": {"embed_dim": 16, "num_layers": 1},
    "wikg": {"embed_dim": 16},
}

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def translations_read_once():
    """PyTorch reads its table of translations to ONNX, 500 functions, anew for each export: 2 s of each."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    read = registration.ONNXRegistry.from_torchlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(functools.cache(read)))
        yield


def made(name: str, **more: object) -> Fitted:
    torch.manual_seed(0)
    options = SMALL.get(name, {})
    return Fitted(mil_zoo.create_aggregator(name, DIM, **options).eval(), name, options, **more)


def run(path, bag):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"features": bag.features.numpy()}), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_the_model_computes_what_torch_does(name, tmp_path):
    fitted = made(name)
    path = mil_zoo.export_onnx(fitted, tmp_path / "model.onnx")
    for size in (1, 5, 200):
        bag = make_bag(size, DIM)
        found, expected = run(path, bag), fitted.predict([bag])[0]
        np.testing.assert_allclose(found["prediction"][0], expected.probabilities, rtol=1e-4, atol=1e-5)
        if expected.attention is not None and found["attention"].ndim == 1:
            np.testing.assert_allclose(found["attention"], expected.attention, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [None, torch.eye(DIM + 3, dtype=torch.float64)[:, 3:]], ids=["scaled", "projected"])
def test_features_are_scaled_within_the_model(tmp_path, axes):
    dim = DIM if axes is None else len(axes)
    scaling = Standardiser(*(torch.full((dim,), value, dtype=torch.float64) for value in (0.5, 2.0)), axes)
    fitted, bag = made("mean", standardiser=scaling), make_bag(30, dim)
    found = run(fitted.to_onnx(tmp_path / "model.onnx"), bag)["prediction"][0]
    np.testing.assert_allclose(found, fitted.predict([bag])[0].probabilities, rtol=1e-4)
    if axes is None:
        assert not np.allclose(found, made("mean").predict([bag])[0].probabilities, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS.names() if AGGREGATORS.get(name).graph])
def test_an_aggregator_with_a_graph_says_that_it_has_one(name, tmp_path):
    fitted = Fitted(mil_zoo.create_aggregator("mean", DIM), name, graph=AGGREGATORS.get(name).graph)
    with pytest.raises(mil_zoo.InputError, match=f"{name} needs the graph of a slide's patches"):
        mil_zoo.export_onnx(fitted, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


REFUSED = [name for name in AGGREGATORS.names() if AGGREGATORS.get(name).not_in_onnx]


@pytest.mark.parametrize("name", REFUSED)
def test_an_aggregator_that_cannot_be_exported_says_why(name, tmp_path):
    fitted = Fitted(mil_zoo.create_aggregator(name, DIM, embed_dim=16), name)
    with pytest.raises(mil_zoo.InputError) as refused:
        mil_zoo.export_onnx(fitted, tmp_path / "model.onnx")
    assert str(refused.value) == (
        f"{name} cannot be exported to ONNX: {AGGREGATORS.get(name).not_in_onnx}; use Fitted.predict, or another "
        "aggregator"
    )
    assert not list(tmp_path.iterdir())


def test_every_aggregator_without_a_graph_is_exported_or_says_why_not():
    known = {name: AGGREGATORS.get(name) for name in AGGREGATORS.names()}
    ours = {name: found for name, found in known.items() if found.__module__.startswith("mil_zoo.")}  # and no plugin's
    without = {name for name, found in ours.items() if not found.graph}
    assert set(SMALL) | set(REFUSED) == without


@pytest.mark.parametrize("name", ["dtfd", "s4mil"])  # the others take longer to fail
def test_what_cannot_be_traced_is_one_sentence(name, tmp_path, monkeypatch, capfd):
    fitted = made(name)
    monkeypatch.setattr(type(fitted.aggregator), "not_in_onnx", "")
    with pytest.raises(
        mil_zoo.InputError, match=rf"{name} cannot be exported to ONNX: torch cannot trace .*; use Fitted"
    ):
        mil_zoo.export_onnx(fitted, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mil_zoo.fitted.onnx._installed", lambda name: name != "onnxscript")
    with pytest.raises(mil_zoo.InputError, match=r"\(onnxscript\); install them with: pip install 'mil-zoo\[onnx\]'"):
        mil_zoo.export_onnx(made("mean"), tmp_path / "model.onnx")
