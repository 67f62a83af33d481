"""Checkpoint files of the authors' repositories, with the names and wrappings that their scripts write."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from helpers import Golden, assert_close
from safetensors.torch import save_file

from mil_zoo import BagBatch, InputError, create_aggregator

DSMIL = {"in_dim": 24}
CLAM = {"in_dim": 24, "embed_dim": 32, "attention_dim": 16}


def tensors(name):
    return {key: torch.from_numpy(value) for key, value in Golden(name).parameters.items()}


def assert_loads(path, golden_name, name, **options):
    aggregator, golden = create_aggregator(name, **options).eval(), Golden(golden_name)
    aggregator.load_published(path)
    with torch.no_grad():
        assert_close(aggregator(BagBatch.from_bags([golden.bag()])).logits, golden["logits_eval"], "logits")


def renamed(parameters, *replacements):
    for old, new in replacements:
        parameters = {key.replace(old, new): value for key, value in parameters.items()}
    return parameters


# What the scripts of each repository save, from their code: github binli123/dsmil-wsi (train_tcga.py: the state dict;
# attention_map.py also uses "i_classifier.fc.weight" for "i_classifier.fc.0.weight", beside a feature extractor),
# mahmoodlab/CLAM (core_utils.py: the state dict; its eval_utils.py removes ".module" and "instance_loss_fn"; without
# dropout the attention is layer 2 of attention_net), hrzhang1123/DTFD-MIL (Main_DTFD_MIL.py: a dict of state dicts),
# dazhangyu123/ACMIL and WonderLandxD/WiKG (under "model"), szc19990412/TransMIL (a Lightning checkpoint).
FILES = {
    "dsmil": ("dsmil", "dsmil", DSMIL, lambda p: p),
    "dsmil with a value layer": ("dsmil_v", "dsmil", DSMIL | {"passing_v": True}, lambda p: p),
    "dsmil end to end": (
        "dsmil",
        "dsmil",
        DSMIL,
        lambda p: (
            p
            | {"i_classifier.feature_extractor.conv1.weight": torch.zeros(2, 3, 7, 7)}
            | {f"i_classifier.fc.{part}": p[f"i_classifier.fc.0.{part}"] for part in ("weight", "bias")}
        ),
    ),
    "clam_sb": ("clam_sb", "clam_sb", CLAM, lambda p: p | {"instance_loss_fn.labels": torch.tensor([0, 1])}),
    "clam_sb without dropout": (
        "clam_sb",
        "clam_sb",
        CLAM | {"dropout": 0.0},
        lambda p: renamed(p, ("attention_net.3.", "attention_net.2.")),
    ),
    "clam_mb on several GPUs": (
        "clam_mb",
        "clam_mb",
        CLAM,
        lambda p: renamed(p, ("attention_net.", "attention_net.module.")),
    ),
    "acmil": (
        "acmil",
        "acmil",
        {"in_dim": 24, "embed_dim": 32, "attention_dim": 16, "n_token": 3},
        lambda p: {"model": p, "optimizer": {"state": {}}, "epoch": 3},
    ),
    "wikg": ("wikg", "wikg", {"in_dim": 24, "embed_dim": 32}, lambda p: {"model": p}),
    "transmil": (
        "transmil",
        "transmil",
        {"in_dim": 24, "embed_dim": 32},
        lambda p: {"state_dict": {f"model.{key}": value for key, value in p.items()}, "epoch": 3},
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_what_the_authors_scripts_save_loads_by_path(case, tmp_path):
    golden, name, options, wrap = FILES[case]
    torch.save(wrap(tensors(golden)), tmp_path / "checkpoint.pth")
    assert_loads(tmp_path / "checkpoint.pth", golden, name, **options)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_four_state_dicts_of_dtfd_load_by_path(tmp_path, parallel):
    parts = {}
    for key, value in tensors("dtfd_afs").items():
        module, _, rest = key.partition(".")
        parts.setdefault(module, {})["module." * parallel + rest] = value
    assert set(parts) == {"classifier", "attention", "dim_reduction", "att_classifier"}
    torch.save(parts, tmp_path / "best_model.pth")
    aggregator = create_aggregator("dtfd", in_dim=24, embed_dim=32, attention_dim=16)
    aggregator.load_published(tmp_path / "best_model.pth")
    assert_close(aggregator.embed.weight.detach(), Golden("dtfd_afs").parameters["dim_reduction.fc1.weight"])


@pytest.mark.parametrize(("golden", "name", "options"), [("dsmil", "dsmil", DSMIL), ("clam_sb", "clam_sb", CLAM)])
def test_safetensors_load_by_path(tmp_path, golden, name, options):
    save_file(tensors(golden), tmp_path / "aggregator.safetensors")
    assert_loads(str(tmp_path / "aggregator.safetensors"), golden, name, **options)


def test_a_wrong_file_is_one_sentence_that_names_it(tmp_path):
    torch.save({"model": tensors("dsmil"), "config": argparse.Namespace(lr=1e-4)}, tmp_path / "objects.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save(tensors("clam_sb"), tmp_path / "clam.pth")
    torch.save(tensors("dsmil_linear"), tmp_path / "linear.pth")
    two = tensors("dsmil") | {"i_classifier.fc.weight": torch.zeros(2, 24)}
    torch.save(two, tmp_path / "two.pth")
    torch.save({"i_classifier.fc.0.weight": torch.zeros(2, 24)}, tmp_path / "half.pth")
    aggregator = create_aggregator("dsmil", **DSMIL)
    before = {key: value.clone() for key, value in aggregator.state_dict().items()}
    for file, message in {
        "absent.pth": "no such checkpoint file",
        "objects.pth": "Python objects beside its tensors",
        "page.pth": "not a checkpoint that torch.save wrote",
        "page.safetensors": "not a safetensors file",
        "list.pth": "holds a list where a state dict was expected",
        "clam.pth": "no place for 'attention_net.0.weight'",
        "linear.pth": "no place for 'b_classifier.q.weight'",
        "two.pth": "two different tensors for instance_classifier.weight",
        "half.pth": "lack bag_classifier.bias",
    }.items():
        with pytest.raises(InputError, match=message) as raised:
            aggregator.load_published(tmp_path / file)
        assert str(raised.value).startswith(str(tmp_path / file))
        assert "\n" not in str(raised.value)
    assert all(torch.equal(before[key], value) for key, value in aggregator.state_dict().items())


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    with open(tmp_path / "trap.pth", "wb") as file:
        pickle.dump({"w": Trap()}, file)
    with pytest.raises(InputError):
        create_aggregator("dsmil", **DSMIL).load_published(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_where_there_is_no_authors_code_that_is_said():
    with pytest.raises(InputError, match="no authors' implementation is known for MeanPooling"):
        create_aggregator("mean", in_dim=4).load_published_state_dict({"classifier.weight": np.zeros((2, 4))})


def test_other_sizes_are_named(tmp_path):
    torch.save(tensors("clam_sb"), tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"shape \[32, 24\], here \[512, 24\]; create the aggregator with the same"):
        create_aggregator("clam_sb", in_dim=24).load_published(tmp_path / "c.pth")
