"""Two processes of ``torchrun`` against one process on the same batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import relative_error

sys.path.insert(0, str(Path(__file__).parent))
import two_processes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, two_processes.__file__, str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.set_default_dtype(torch.float64)
    try:
        two_processes.main(one)
    finally:
        torch.set_default_dtype(torch.float32)
    return one, two


@pytest.mark.parametrize("backbone", list(two_processes.BACKBONES))
def test_two_processes_are_one(folders, backbone):
    one, two = folders
    expected = torch.load(one / f"{backbone}-0.pt", weights_only=True)
    assert {"loss", "curve", "grad/projector.0.weight", "buffer/projector.2.running_var"} <= set(expected)
    for rank in (0, 1):
        got = torch.load(two / f"{backbone}-{rank}.pt", weights_only=True)
        assert set(got) == set(expected)
        for name, value in expected.items():
            if name.startswith("grad/") and value.abs().max() < 1e-12:
                # A shift of all scores of a softmax has no effect: its gradient is rounding on both sides.
                assert got[name].abs().max() < 1e-12, name
            else:
                assert relative_error(got[name], value) < 1e-9, (name, relative_error(got[name], value))
    assert (two / backbone / "encoder.safetensors").exists()
