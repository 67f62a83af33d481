"""Two processes, as ``torchrun`` starts them, against one process on the same batch."""

import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import relative_error

from mil_zoo.bench.processes import fresh_interpreters

sys.path.insert(0, str(Path(__file__).parent))
import two_processes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, fresh_interpreters()) as started:
        started_as = two_processes.as_torchrun_starts_it
        for process in [started.submit(started_as, rank, port, two) for rank in (0, 1)]:
            process.result()
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
