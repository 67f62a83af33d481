"""The tutorial of CONTRIBUTING.md, run as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.testing import check_aggregator

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_tutorial_runs_as_it_stands(tmp_path):
    (aggregator, check), (command,) = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S) for kind in ("python", "bash"))
    assert len(aggregator.splitlines()) <= 30
    (tmp_path / "my_mil.py").write_text(aggregator)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for arguments in ([sys.executable, "-c", check], ["bash", "-ec", command]):
        done = subprocess.run(arguments, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "my_first_run" / "table.csv")
    assert list(table["aggregator"]) == ["my_mil", "abmil"]
    assert (tmp_path / "my_first_run" / "figures" / "figure3-my_mil.png").exists()


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
