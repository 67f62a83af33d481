"""No training step waits for the device: proven on a CPU, whose tensors are watched as if they lay on a GPU."""

import inspect
import sys
import traceback

import pytest
import torch
from helpers import make_batch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mil_zoo import create_aggregator, list_aggregators
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.kernels import backends, devices

# Triton's interpreter takes seconds for the full widths, which decide nothing here.
NARROW = {
    "embed_dim": 32, "attention_dim": 16, "hidden": 32, "hidden_dim": 16, "head_hidden": 16, "att_dim": 16,
    "transf_att_dim": 32, "ff_dim": 32, "head_dim": 8, "neighbour_dim": 32, "pool_dim": 16, "joint_dim": 16,
    "state_dim": 4,
}  # fmt: skip

READS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal.default")


class WaitedFor(AssertionError):
    pass


class Watch(TorchDispatchMode):
    """Follows tensors that stand for the device's through every operation, and raises at one that reads their values.

    What is made from nothing counts as the device's where the call names one (``Factories``), else as the host's until
    it meets a tensor of the device.
    """

    def __init__(self, tensors):
        super().__init__()
        for tensor in tensors:
            tensor.on_device = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        watched = any(getattr(x, "on_device", False) for x in tensors)
        if watched and not interpreting():
            self.check(function, args, kwargs or {})
        result = function(*args, **(kwargs or {}))
        if watched:
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    x.on_device = True
        return result

    def check(self, function, args, kwargs):
        name = str(function).removeprefix("aten.")
        by_mask = "index" in name and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1:2])
            if "index." in name or "index_put" in name
        )
        unsized = name.startswith("repeat_interleave") and kwargs.get("output_size") is None
        if by_mask or unsized or name.startswith(READS):
            raise WaitedFor(f"{name} waits for the device")


class Factories(TorchFunctionMode):
    """Marks what is made on a device that the call names."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if kwargs and kwargs.get("device") is not None and isinstance(result, torch.Tensor):
            result.on_device = True
        return result


def interpreting():
    """Whether Triton's interpreter is at work, which reads what a GPU's kernels would."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("triton/runtime/interpreter.py"):
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Ops run their GPU kernels, and what only a CPU may read is not read."""
    monkeypatch.setattr(backends, "_PREFERENCE", {"cpu": ("triton", "reference")})
    monkeypatch.setattr(devices, "runs_ahead", lambda device: True)
    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, guarded(getattr(torch.Tensor, name)))


def guarded(method):
    def read(self, *args, **kwargs):
        if getattr(self, "on_device", False) and not interpreting():
            raise WaitedFor(f"{method.__name__} waits for the device")
        return method(self, *args, **kwargs)

    return read


@pytest.mark.parametrize("name", list_aggregators())
def test_a_training_step_does_not_wait_for_the_device(name, like_a_gpu):
    torch.manual_seed(0)
    options = {
        key: width for key, width in NARROW.items() if key in inspect.signature(AGGREGATORS.get(name)).parameters
    }
    aggregator = create_aggregator(name, in_dim=8, **options).train()
    batch = make_batch([8, 13], 8, type(aggregator).graph)
    if batch.graph is not None:
        batch.graph.csr.transposed  # noqa: B018  made where the graph was built, before it moves
        assert batch.graph.csr.long_rows is None
    on_device = [*aggregator.parameters(), batch.features, batch.offsets, batch.labels, batch.targets, batch.coords]
    optimizer = torch.optim.AdamW(aggregator.parameters())
    waited = None
    with Factories(), Watch([x for x in on_device if x is not None]):
        try:
            loss = aggregator.losses(batch)["loss"]
            loss.backward()
        except WaitedFor as error:
            places = [f for f in traceback.extract_tb(error.__traceback__) if "/mil_zoo/" in f.filename]
            waited = f"{places[-1].filename}:{places[-1].lineno}: {error}"
    assert waited is None
    optimizer.step()
