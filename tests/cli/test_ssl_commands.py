"""``mil-zoo pretrain``, ``embed`` and ``probe``."""

import numpy as np
import pandas as pd
import torch

SMALL = ("--epochs", 2, "--batch-size", 16, "--set", "out_dim=8", "--set", "projection_dim=4", "--set", "views=3")


def test_from_slides_to_scores(run_cli, bag_table, tmp_path):
    out = tmp_path / "pretrained"
    # The coordinates of this table are off any grid and it has no patch size.
    command = ("pretrain", "--dataset", bag_table, *SMALL, "--set", "downsample=10", "--out", out)
    code, text, err = run_cli(*command)
    assert code == 0, err
    assert "kNN accuracy" in text
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt",
        "config.yaml",
        "curve.csv",
        "curve.png",
        "curve.svg",
        "encoder.safetensors",
    }
    code, _, err = run_cli("embed", out / "encoder.safetensors", "--dataset", bag_table, "--out", tmp_path / "emb")
    assert code == 0, err
    assert np.load(tmp_path / "emb" / "embeddings.npy").shape == (40, 8)
    labels = pd.DataFrame({"ID": [f"slide_{i:02d}" for i in range(40)], "label": ["no", "yes"] * 20})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    arguments = ("--labels", tmp_path / "labels.csv", "--repeats", 1, "--out", tmp_path / "probe")
    code, text, err = run_cli("probe", tmp_path / "emb", *arguments)
    assert code == 0, err
    assert "no, yes" in text
    assert "Not run, more than the training slides: 100, 50" in text
    rows = pd.read_csv(tmp_path / "probe" / "probe.csv")
    assert list(rows["regime"]) == ["full"] * 5 + ["25%"] * 5
    assert "| full | 32 | 8 | 5 |" in (tmp_path / "probe" / "probe.md").read_text()


def test_a_probe_of_the_test_slides_of_a_trial(run_cli, bag_table, tmp_path):
    bench = (
        "bench",
        "--dataset",
        bag_table,
        "--models",
        "abmil",
        "--folds",
        2,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    )
    assert run_cli(*bench)[0] == 0
    trial = tmp_path / "run" / "trials" / "abmil-r0-f0-s0"
    tested = pd.read_csv(trial / "predictions.csv").query("split == 'test'")
    scanners = pd.DataFrame({"slide_id": tested["slide_id"], "label": ["old", "new"] * (len(tested) // 2)})
    scanners.to_csv(tmp_path / "scanners.csv", index=False)
    out = tmp_path / "probe"
    probe = ("probe", trial, "--labels", tmp_path / "scanners.csv", "--folds", 2, "--repeats", 1, "--regimes", "full")
    code, _, err = run_cli(*probe, "--out", out)
    assert code == 0, err
    rows = pd.read_csv(out / "probe.csv")
    assert list(rows["regime"]) == ["full", "full"]
    assert "| full | 10 | 10 | 2 |" in (out / "probe.md").read_text()

    scanners[["slide_id"]].assign(label="one").to_csv(tmp_path / "one.csv", index=False)
    code, _, err = run_cli("probe", trial, "--labels", tmp_path / "one.csv", "--folds", 2)
    assert (code, err.count("\n")) == (2, 1), err


def test_only_named_slides_and_another_backbone(run_cli, bag_table, tmp_path):
    (tmp_path / "train.txt").write_text("slide_03\nslide_01\n\nslide_07\n")
    backbone = ("--backbone", "abmil", "--set", "abmil.embed_dim=8", "--epochs", 1, "--slides", tmp_path / "train.txt")
    code, _, err = run_cli("pretrain", "--dataset", bag_table, *backbone, "--out", tmp_path / "run")
    assert code == 0, err
    encoder = tmp_path / "run" / "encoder.safetensors"
    embed = ("embed", encoder, "--dataset", bag_table, "--slides", tmp_path / "train.txt", "--out", tmp_path / "emb")
    assert run_cli(*embed)[0] == 0
    assert np.load(tmp_path / "emb" / "ids.npy").tolist() == ["slide_03", "slide_01", "slide_07"]
    code, _, err = run_cli(*embed)  # what lies there may be of another encoder, or of a trial
    assert (code, "emb/embeddings.npy exists; choose another --out, or delete it" in err) == (2, True)


def test_weights_of_a_resnet(run_cli, bag_table, tmp_path):
    torch.save({"layer4.0.conv1.weight": torch.zeros(8, 5, 3, 3)}, tmp_path / "resnet.pth")
    command = ("pretrain", "--dataset", bag_table, *SMALL, "--set", "downsample=10", "--weights")
    code, _, err = run_cli(*command, tmp_path / "resnet.pth", "--out", tmp_path / "run")
    assert (code, "here it is [9, 6, 8]" in err) == (2, True)
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    code, _, err = run_cli(*command, tmp_path / "evil.pth", "--out", tmp_path / "run")
    assert (code, "no weights that can be read safely" in err) == (2, True)


def test_mistakes_are_one_sentence(run_cli, bag_table, tmp_path):
    (tmp_path / "ids.txt").write_text("slide_99\n")
    for arguments, message in (
        (("pretrain",), "pass either --dataset or --store"),
        (("pretrain", "--dataset", bag_table, "--slides", tmp_path / "ids.txt"), "has no slide 'slide_99'"),
        (("pretrain", "--dataset", bag_table, "--set", "instance=3"), "did you mean 'instances'"),
        (("pretrain", "--dataset", bag_table, "--out", tmp_path / "run"), "needs a patch size for every slide"),
        (("pretrain", "--store", tmp_path), "is no store of augmentations"),
        (("embed", tmp_path / "x", "--dataset", bag_table, "--out", tmp_path), "no such file"),
        (("probe", tmp_path), "embeddings.npy: no such file"),
    ):
        code, _, err = run_cli(*arguments)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
