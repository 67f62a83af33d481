"""The tutorial of CONTRIBUTING.md, run as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import needs_dgl

from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.testing import check_aggregator

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The code blocks of one kind: in Python the aggregator, its check, and an aggregator from dgl.nn."""
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def test_the_tutorial_runs_as_it_stands(tmp_path):
    (aggregator, check, *_), (command, *_) = blocks("python"), blocks("bash")
    assert len(aggregator.splitlines()) <= 30
    (tmp_path / "my_mil.py").write_text(aggregator)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for arguments in ([sys.executable, "-c", check], ["bash", "-ec", command]):
        done = subprocess.run(arguments, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "my_first_run" / "table.csv")
    assert list(table["aggregator"]) == ["my_mil", "abmil"]
    assert (tmp_path / "my_first_run" / "figures" / "figure3-my_mil.png").exists()


@needs_dgl
def test_an_aggregator_of_dgl_layers_runs_as_it_stands(tmp_path, bag_table):
    plugin, out = tmp_path / "my_gat.py", tmp_path / "run"
    plugin.write_text(blocks("python")[2])
    check = "from my_gat import MyGAT\nfrom mil_zoo.testing import check_aggregator\ncheck_aggregator(MyGAT)"
    options = ["--models", "my_gat,mean", "--folds", "2", "--epochs", "1", "--set", "my_gat.width=8"]
    bench = [Path(sys.executable).parent / "mil-zoo", "bench", "--plugin", plugin, "--dataset", bag_table, *options]
    for command in ([sys.executable, "-c", check], [*bench, "--out", out]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(pd.read_csv(out / "table.csv")["aggregator"]) == ["my_gat", "mean"]
    assert (out / "figures" / "figure3-my_gat.png").exists()


def test_a_check_that_fails_says_which_and_why():
    class Forgetful(MeanPooling):
        def forward(self, batch):
            output = super().forward(batch)
            output.logits = output.logits + len(batch)  # depends on the bags beside it
            return output

    with pytest.raises(
        AssertionError, match="Forgetful fails a_bag_gives_the_same_answer_alone_as_in_a_batch: logits of a bag"
    ):
        check_aggregator(Forgetful)
