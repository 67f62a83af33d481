"""What replayed training steps stand on, as far as a CPU shows it; the replay itself is checked on a GPU.

The CPU is told to be a device that runs ahead. A step is noted, then taken once more with the draws that
``Draws.again`` makes, as a CUDA graph would: the numbers must be those of the step alone.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from helpers import make_bag, make_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mil_zoo import create_aggregator, list_aggregators
from mil_zoo.aggregators.abmil import ABMIL
from mil_zoo.aggregators.base import Progress
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.kernels import CSR, backends, devices
from mil_zoo.kernels.draws import Draws, draw_seed, from_host
from mil_zoo.train.replay import Replays, _batch_of, _tensors

CPU = torch.device("cpu")
REPLAYABLE = [name for name in list_aggregators() if vars(AGGREGATORS.get(name)).get("replayable")]
NARROW = {"embed_dim": 32, "attention_dim": 16, "hidden": 32, "head_dim": 8, "hidden_dim": 16, "state_dim": 4}
SIZES = [8, 13]


@pytest.fixture
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, "_PREFERENCE", {"cpu": ("reference",)})
    monkeypatch.setattr(devices, "runs_ahead", lambda device: True)


def made(name):
    torch.manual_seed(0)
    options = {
        key: width for key, width in NARROW.items() if key in inspect.signature(AGGREGATORS.get(name)).parameters
    }
    aggregator = create_aggregator(name, in_dim=8, **options).train()
    return aggregator, make_batch(SIZES, 8, type(aggregator).graph)


def other(batch, graph=None):
    """Other bags of the same sizes, whose graphs have as many edges."""
    bags = []
    for features, coords, label in zip(
        batch.features.split(SIZES), batch.coords.split(SIZES), batch.labels.tolist(), strict=True
    ):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
        if graph == "knn:8":  # on a grid the order of patches decides between equal distances
            order = order.sort().values
        patches = {"features": -features[order], "coords": coords[order], "patch_size": 256.0}
        bags.append(Bag(**patches, label=1 - label, slide_id=f"other {label}"))
    return BagBatch.from_bags(bags, graph=graph)


def asks_for_a_bare_graph(batch):
    """Whether a step that was taken with ``batch`` did."""
    return batch.graph is not None and "without_self_loops" in vars(batch.graph.csr)


def step(aggregator, batch):
    """Losses and gradients of a step that leaves the aggregator as it was."""
    kept = {name: value.clone() for name, value in aggregator.state_dict().items()}
    aggregator.zero_grad(set_to_none=True)
    losses = aggregator.losses(batch)
    losses["loss"].backward()
    aggregator.load_state_dict(kept)
    gradients = {name: p.grad for name, p in aggregator.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()} | gradients


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    assert [name for name in expected if not got[name].equal(expected[name])] == []


@pytest.mark.parametrize("name", REPLAYABLE)
def test_a_step_with_draws_made_again_is_the_step_itself(name, like_a_gpu):
    aggregator, batch = made(name)
    bags = other(batch, type(aggregator).graph)
    torch.manual_seed(3)
    first, second = step(aggregator, batch), step(aggregator, bags)
    after = torch.rand(4)
    draws = Draws(CPU)
    torch.manual_seed(3)
    with draws.noting():
        assert_equal(step(aggregator, batch), first)
    draws.make_places()
    draws.again()
    with draws.recording():
        assert_equal(step(aggregator, _batch_of(_tensors(bags, asks_for_a_bare_graph(batch))[0], batch)), second)
    assert torch.rand(4).equal(after)


class Trace(TorchDispatchMode):
    """Notes every operation with its numbers and the sizes of its tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        self.calls.append([str(function), *(x.shape if isinstance(x, torch.Tensor) else str(x) for x in leaves)])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", REPLAYABLE)
def test_a_replayable_step_does_the_same_work_for_other_bags_at_another_time(name, like_a_gpu, monkeypatch):
    if name == "srmil":  # whose selections of a graph the reference has to cut to their size
        monkeypatch.setattr(backends, "_PREFERENCE", {"cpu": ("numba", "reference")})
    aggregator, batch = made(name)
    draws, traces = Draws(CPU), []
    with draws.noting():
        step(aggregator, batch)
    draws.make_places()
    others = other(batch, type(aggregator).graph)
    for bags, progress in ((batch, Progress(0, 10, 20)), (others, Progress(150, 10, 20))):
        bags = _batch_of(_tensors(bags, bare=asks_for_a_bare_graph(batch))[0], bags)
        aggregator.progress = progress
        draws.again()
        with draws.recording(), Trace() as trace:
            step(aggregator, bags)
        traces.append(trace.calls)
    assert len(traces[0]) > 10
    assert traces[0] == traces[1]


def test_most_of_the_zoo_is_replayable_and_a_subclass_has_to_say_so():
    assert {"abmil", "transmil", "dsmil", "clam_sb", "srmil"} <= set(REPLAYABLE)
    # Their steps change with the progress of the training, or they keep something on the host.
    assert not {"dgrmil", "mhim", "attrimil"} & set(REPLAYABLE)

    class Own(ABMIL):
        pass

    assert Replays.serve(ABMIL(4, 2), "cuda")
    assert not Replays.serve(Own(4, 2), "cuda")
    assert not Replays.serve(ABMIL(4, 2), "cpu")


def noted(function):
    """What ``function`` draws from seed 0 while it is noted, and the places made for its draws."""
    draws = Draws(CPU)
    torch.manual_seed(0)
    with draws.noting():
        values = function()
    draws.make_places()
    return draws, values


def test_draws_are_made_again_in_their_order():
    def drawn():
        return [
            draw_seed(),
            from_host(lambda: torch.randperm(5), CPU),
            draw_seed(),
            from_host(lambda: torch.rand(2), CPU),
        ]

    torch.manual_seed(0)
    alone = [drawn() for _ in range(3)]
    draws, first = noted(drawn)
    assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(alone[0], first, strict=True))
    for expected in alone[1:]:
        draws.again()
        with draws.recording():
            assert all(torch.equal(torch.as_tensor(a), b) for a, b in zip(expected, drawn(), strict=True))


def test_a_step_that_could_not_be_recorded_draws_for_itself_again():
    torch.manual_seed(0)
    expected = [draw_seed() for _ in range(2)]
    draws, first = noted(draw_seed)  # and then the recording failed
    with draws.noting():
        second = draw_seed()
    assert [int(first), int(second)] == expected


def test_a_step_that_draws_otherwise_when_it_is_recorded_is_an_error():
    draws = Draws(CPU)
    with draws.noting():
        draw_seed()
    draws.make_places()
    with pytest.raises(RuntimeError, match="drew 1 times and then 0 times"), draws.recording():
        pass
    with pytest.raises(RuntimeError, match="drew 1 times and then once more"), draws.recording():
        draw_seed(), draw_seed()
    assert isinstance(draw_seed(), int)


def test_batches_of_the_same_sizes_share_a_recording_and_others_do_not():
    batch = make_batch(SIZES, 8, "window:1")
    key = _tensors(batch)[1]
    assert _tensors(other(batch, "window:1"))[1] == key
    assert _tensors(make_batch([13, 8], 8, "window:1"))[1] != key
    assert _tensors(make_batch(SIZES, 8, None))[1] != key
    assert _tensors(replace(batch, weights=torch.ones(2)))[1] != key
    assert _tensors(replace(batch, features=batch.features.half()))[1] != key


def test_a_batch_is_made_of_its_tensors_alone():
    batch = make_batch(SIZES, 8, "window:1")
    tensors, _ = _tensors(batch)
    again = _batch_of({name: tensor.clone() for name, tensor in tensors.items()}, batch)
    assert again.features.equal(batch.features)
    assert again.targets.equal(batch.targets)
    csr, expected = again.graph.csr, batch.graph.csr
    assert csr.indices.equal(expected.indices)
    assert csr.transposed.edge.equal(expected.transposed.edge)
    assert (csr.problem, csr.long_rows, csr.transposed.long_rows) == (None, None, None)
    assert (again.lengths, again.graph.num_nodes) == (batch.lengths, batch.graph.num_nodes)


def test_graphs_with_long_rows_are_not_recorded():
    n = 1100
    hub = CSR.from_edges(torch.arange(n), torch.zeros(n, dtype=torch.int64), n)
    bag = make_bag(n, 4, 0, seed=0)
    batch = BagBatch.from_bags([bag])
    batch.graph = type(make_batch([4], 4, "window:1").graph).batch([hub])
    assert _tensors(batch)[1] is None
