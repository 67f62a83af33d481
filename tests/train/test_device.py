"""How batches get to a device: the same batches, in the same order, whichever it is."""

import itertools

import numpy as np
import pytest
import torch
from helpers import make_bag

from mil_zoo import create_aggregator
from mil_zoo.kernels import devices
from mil_zoo.train import device as train_device
from mil_zoo.train import steps
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.device import batches_on, room_on
from mil_zoo.train.steps import Steps


def groups():
    bags = [make_bag(n, 4, seed=n) for n in (3, 8, 5, 2, 7)]
    return [bags[:2], bags[2:3], bags[3:]]


def test_batches_come_in_order_with_their_bags():
    for (bags, batch), expected in zip(batches_on("cpu", groups(), "window:2"), groups(), strict=True):
        assert [len(bag) for bag in bags] == [len(bag) for bag in expected] == list(batch.lengths)
        assert batch.features.equal(torch.cat([bag.features for bag in expected]))
        assert batch.graph.csr.num_dst == len(batch.features)


def test_a_gpus_batches_are_pinned_one_ahead(monkeypatch):
    """With a GPU that is not there: what is pinned, and in which order batches come."""
    pinned, used = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(len(self)) or self.clone())
    monkeypatch.setattr(train_device.BagBatch, "to", lambda self, device: self)
    monkeypatch.setattr(train_device.torch, "device", lambda name: _Gpu)
    for bags, batch in batches_on("cuda", iter(groups())):
        used.append(len(batch.features))
        assert used == [11, 5, 9][: len(used)]
        assert batch.features.equal(torch.cat([bag.features for bag in bags]))
    assert pinned == [11, 5, 9]


class _Gpu:
    type = "cuda"


def test_what_is_drawn_on_the_cpu_moves_pinned(monkeypatch):
    moves = []

    class Pinned:
        def to(self, device, non_blocking):
            moves.append(non_blocking)
            return self

    tensor = torch.arange(3)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: Pinned())
    assert isinstance(devices.to_device(tensor, torch.device("cuda")), Pinned)
    assert moves == [True]
    assert devices.to_device(tensor, torch.device("cpu")) is tensor


def test_values_are_not_read_where_work_runs_ahead(monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda holds: asserted.append(bool(holds)))
    with pytest.raises(devices.InputError, match="no such row"):
        devices.require(torch.tensor(False), lambda: "no such row")
    monkeypatch.setattr(devices, "runs_ahead", lambda device: True)
    devices.require(torch.tensor(False), lambda: "no such row")
    assert asserted == [False]
    mask = torch.tensor([True, False, True, True, False])
    assert devices.positions(mask, 3).tolist() == [0, 2, 3]


def test_bags_stay_on_a_gpu_that_has_room_and_is_not_shared(monkeypatch):
    gigabytes = {"free": 60, "total": 80, "reserved": 19}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes["free"], gigabytes["total"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: gigabytes["reserved"])
    assert room_on("cuda")
    gigabytes["reserved"] = 10  # another process has the rest
    assert not room_on("cuda")
    gigabytes.update(free=39, reserved=41)
    assert not room_on("cuda")


def test_kept_batches_are_the_ones_that_would_be_read(monkeypatch):
    bags = [make_bag(5 + i, 4, label=i % 2, seed=i) for i in range(6)]

    def sums(keeping, room):
        monkeypatch.setattr(steps, "room_on", lambda device: next(room))
        aggregator = create_aggregator("mean", in_dim=4)
        config = TrainingConfig(sampling="balanced")
        taken = Steps.of(aggregator, bags, config, graph=None, seed=1, device="cpu")
        taken.kept = {} if keeping else None
        orders = [np.random.default_rng(k).integers(0, 6, 9) for k in range(3)]
        return [[float(batch.features.sum()) for batch in taken._batches(order)] for order in orders]

    expected = sums(False, iter(()))
    assert sums(True, itertools.cycle([True])) == expected
    assert sums(True, itertools.cycle([True, False, False])) == expected
