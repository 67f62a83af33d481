"""Time and memory: ops beside their floors and the best public forms, steps and epochs beside plain PyTorch."""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpu import plain
from gpu.common import (
    Check,
    peak_mib,
    random_bag,
    random_batch,
    random_inputs,
    serving,
    synchronise,
    timed,
    window_graph,
)
from mil_zoo import Aggregator, Bag, BagBatch, create_aggregator, list_aggregators
from mil_zoo.kernels import (
    dropout_linear,
    graph_attention,
    graph_dot_attention,
    graph_softmax_sum,
    graph_sum,
    residual_norm_prelu,
    seeded_dropout,
    segment_attention_pool,
    segment_reduce,
    selective_scan,
)
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.replay import Replays

FP32, BF16 = torch.float32, torch.bfloat16


def _measure(
    check: Check, what: str, by: str, step: Callable, bytes_: float = 0, operations: float = 0, **more: Any
) -> None:
    """Reports a timed step beside its floor: bytes to move and operations to do, at the rates that were measured."""
    if check.untimed:
        step()
        return
    facts, precision = check.facts(), "bfloat16" if more.get("precision") == "bfloat16" else "float32"
    spent = timed(step, check.device)
    seconds = max(
        bytes_ / facts.get("bytes_per_second", float("inf")),
        operations / facts.get(f"{precision}_operations_per_second", float("inf")),
    )
    floor = {"floor_ms": 1e3 * seconds, "times_the_floor": spent["milliseconds"] / (1e3 * seconds)} if seconds else {}
    check.report(what, by=by, **spent, **floor, peak_mib=peak_mib(step, check.device), **more)


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def _bytes(function: Callable[..., Tensor], inputs: list[Tensor], *constants: Tensor) -> int:
    """Read inputs and write outputs once; for backward read the gradient, write those of the inputs."""
    with torch.no_grad():
        out = function(*inputs)
    return 2 * sum(x.nbytes for x in [*inputs, out]) + sum(x.nbytes for x in constants)


def compile_all(check: Check) -> None:
    """What ``ops`` and ``steps`` are made of is compiled, so that they need not wait for it."""
    check = replace(check, untimed=True)
    todo = [(what, function) for what, function in _ops(check) if "pyg" not in what]
    todo += [(name, partial(_step, check, name, 100)) for name in STEPS]
    for _, (what, function) in check.mine(todo):
        check.attempt(what, function)


def ops(check: Check) -> None:
    """The ops, forward and backward."""
    for what, function in _ops(check):
        check.attempt(what, function)


def _ops(check: Check) -> list[tuple[str, Callable[[], None]]]:
    todo: list[tuple[str, Callable[[], None]]] = []
    for n in (100,) if check.small else (10_000, 1_000_000):
        for case in ("triton", "triton, dropout", "triton, bfloat16", "pyg", "reference"):
            if n > 10_000 and case in ("pyg", "reference"):
                continue  # tensors of all edges: 25 GB each
            todo.append((f"graph_attention N={n}", partial(_graph_attention, check, n, case)))
    for case in ("triton", "reference"):
        todo.append(("graph_dot_attention", partial(_graph_dot_attention, check, case)))
    for case in ("triton", "triton, bfloat16", "padded"):
        todo.append(("segment_attention_pool", partial(_pool, check, case)))
    for case in ("triton", "torch"):
        todo.append(("dropout_linear", partial(_dropout_linear, check, case)))
        todo.append(("seeded_dropout", partial(_seeded_dropout, check, case)))
        todo.append(("residual_norm_prelu", partial(_residual_norm_prelu, check, case)))
    for reduce in ("sum", "max", "logsumexp"):
        for case in ("triton", "reference"):
            todo.append((f"segment_reduce {reduce}", partial(_segment_reduce, check, reduce, case)))
    for case in ("triton", "triton, bfloat16", "doubling"):
        todo.append(("selective_scan", partial(_selective_scan, check, case)))
    for case in ("triton", "sparse"):
        todo.append(("graph_sum", partial(_graph_sum, check, case)))
    for case in ("triton", "reference"):
        todo.append(("graph_softmax_sum", partial(_graph_softmax_sum, check, case)))
    return todo


def _graph_attention(check: Check, n: int, case: str) -> None:
    device, graph = check.device, window_graph(n, check.device)
    graph.transposed  # noqa: B018  made once for a graph, not at each step
    p, dtype = 0.15 if "dropout" in case else 0.0, BF16 if "bfloat16" in case else FP32
    function = _pyg(graph, device) if case == "pyg" else partial(_attend, graph, p, case.partition(",")[0])
    inputs = random_inputs(device, dtype, (n, 4, 64), (n, 4), (n, 4))
    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices)
    _measure(check, f"graph_attention, N = {n}, window:2, 4 x 64", case, _with_gradients(function, inputs), bytes_)
    if case == "triton":
        with torch.no_grad():
            forward = sum(x.nbytes for x in [*inputs, inputs[0], graph.indptr, graph.indices])
            _measure(check, f"graph_attention forward, N = {n}", case, lambda: function(*inputs), forward)


def _attend(graph, p: float, backend: str, *inputs: Tensor) -> Tensor:
    return graph_attention(*inputs, graph, dropout_p=p, seed=1, backend=backend)


def _pyg(graph, device: torch.device) -> Callable[..., Tensor]:
    from torch_geometric.nn import GATConv

    gat = GATConv(1, 64, 4, add_self_loops=False, bias=False).to(device)
    edges = torch.stack([graph.indices.long(), graph.destinations])

    def function(feat: Tensor, src_score: Tensor, dst_score: Tensor) -> Tensor:
        alpha = gat.edge_updater(edges, alpha=(src_score, dst_score), edge_attr=None, size=None)
        return gat.propagate(edges, x=(feat, feat), alpha=alpha, size=None)

    return function


def _graph_dot_attention(check: Check, case: str) -> None:
    n = 100 if check.small else 10_000
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, *[(n, 4, 64)] * 3)

    def function(*x: Tensor) -> Tensor:
        return graph_dot_attention(*x, graph, backend=case)

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices)
    _measure(check, f"graph_dot_attention, N = {n}, window:2, 4 x 64", case, _with_gradients(function, inputs), bytes_)


def _bags(check: Check) -> Tensor:
    """64 sizes, 100 to 30 000 instances, evenly on a logarithmic scale."""
    ends = (10, 20) if check.small else (100, 30_000)
    return torch.from_numpy(np.geomspace(*ends, 64).astype(np.int64))


def _pool(check: Check, case: str) -> None:
    sizes, width, device = _bags(check), 512, check.device
    size, longest = int(sizes.sum()), int(sizes.max())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(device)
    packed = 2 * 4 * (size * (1 + width) + 64 * width) + offsets.nbytes
    if case == "padded":
        mask = (torch.arange(longest) < sizes[:, None])[:, :, None].to(device)
        inputs = random_inputs(device, FP32, (64, longest, 1), (64, longest, width))

        def function(scores: Tensor, values: Tensor) -> Tensor:
            return torch.bmm(values.transpose(1, 2), scores.masked_fill(~mask, -torch.inf).softmax(1))
    else:
        dtype = BF16 if "bfloat16" in case else FP32
        inputs = random_inputs(device, dtype, (size, 1), (size, width))
        packed = packed // (2 if dtype == BF16 else 1)

        def function(scores: Tensor, values: Tensor) -> Tensor:
            return segment_attention_pool(scores, values, offsets, backend="triton")[0]

    what = f"segment_attention_pool, 64 bags, {size} instances, 512 features"
    _measure(check, what, case, _with_gradients(function, inputs), packed)


def _segment_reduce(check: Check, reduce: str, case: str) -> None:
    sizes = _bags(check)[::4]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(check.device)
    inputs = random_inputs(check.device, FP32, (int(sizes.sum()), 512))

    def function(values: Tensor) -> Tensor:
        return segment_reduce(values, offsets, reduce, backend=case)

    what = f"segment_reduce {reduce}, 16 bags, {int(sizes.sum())} instances, 512 features"
    _measure(check, what, case, _with_gradients(function, inputs), _bytes(function, inputs, offsets))


def _selective_scan(check: Check, case: str) -> None:
    """MambaMIL's recurrence on one bag: gate, direct path, bias and softplus."""
    n, channels, states = (20, 32, 16) if check.quick else (200 if check.small else 10_000, 512, 16)
    dtype = BF16 if "bfloat16" in case else FP32
    shapes = [(n, channels)] * 2 + [(channels, states)] + [(n, states)] * 2 + [(channels,), (n, channels), (channels,)]
    u, delta, A, *rest = random_inputs(check.device, dtype, *shapes)
    inputs = [u, delta, (-A.detach().abs() - 0.1).requires_grad_(), *rest]

    def function(*x: Tensor) -> Tensor:
        return plain.scan_by_doubling(*x) if case == "doubling" else selective_scan(*x, softplus=True, backend="triton")

    bytes_ = _bytes(function, inputs)
    what = f"selective_scan, {n} instances, {channels} channels, {states} states"
    _measure(check, what, case, _with_gradients(function, inputs), bytes_)


def _graph_sum(check: Check, case: str) -> None:
    n, width = 100 if check.small else 100_000, 256
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, (n, width))
    ones = torch.ones(graph.num_edges, device=check.device)
    matrix = torch.sparse_csr_tensor(graph.indptr, graph.indices, ones, (n, n))

    def function(x: Tensor) -> Tensor:
        return matrix @ x if case == "sparse" else graph_sum(x, graph, backend="triton")

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices, graph.indptr, graph.indices)
    _measure(check, f"graph_sum, N = {n}, window:2, {width}", case, _with_gradients(function, inputs), bytes_)


def _graph_softmax_sum(check: Check, case: str) -> None:
    n, width = 100 if check.small else 10_000, 256
    graph = window_graph(n, check.device)
    graph.transposed  # noqa: B018
    inputs = random_inputs(check.device, FP32, (n, width), (1,))

    def function(x: Tensor, t: Tensor) -> Tensor:
        return graph_softmax_sum(x, t, graph, backend=case)

    bytes_ = _bytes(function, inputs, graph.indptr, graph.indices, graph.indptr, graph.indices)
    _measure(check, f"graph_softmax_sum, N = {n}, window:2, {width}", case, _with_gradients(function, inputs), bytes_)


def _dropout_linear(check: Check, case: str) -> None:
    """SRMIL's first layer: three copies of the rows, two thirds of two of them the token."""
    n = 100 if check.small else 10_000
    index = torch.arange(n).repeat(3)
    index[: 2 * n][torch.rand(2 * n) < 0.7] = -1
    index = index.to(check.device)
    x, weight, token = random_inputs(check.device, FP32, (n, check.dim), (520, check.dim), (check.dim,))
    drop = nn.Dropout(0.11)

    def function(x: Tensor, weight: Tensor, token: Tensor) -> Tensor:
        if case == "torch":
            rows = torch.where((index < 0)[:, None], token, x.index_select(0, index.clamp(min=0)))
            return drop(rows) @ weight.T
        return dropout_linear(x, weight, index=index, token=token, dropout_p=0.11, seed=1, backend="triton")[0]

    operations = 3 * 2 * 3 * n * check.dim * 520
    step = _with_gradients(function, [x, weight, token])
    _measure(check, f"dropout_linear, 3 x {n} rows, 1024 to 520", case, step, operations=operations)


def _seeded_dropout(check: Check, case: str) -> None:
    n = 100 if check.small else 100_000
    (x,) = random_inputs(check.device, FP32, (n, 512))
    drop = nn.Dropout(0.25)

    def function(x: Tensor) -> Tensor:
        return drop(x) if case == "torch" else seeded_dropout(x, 0.25, seed=1, backend="triton")

    _measure(check, f"seeded_dropout, {n} x 512", case, _with_gradients(function, [x]), 4 * x.nbytes)


def _residual_norm_prelu(check: Check, case: str) -> None:
    n = 100 if check.small else 100_000
    shapes = [(n, 256), (n, 256), (256,), (256,), (256,), (1,)]
    inputs = random_inputs(check.device, FP32, *shapes)

    def function(x: Tensor, residual: Tensor, *vectors: Tensor) -> Tensor:
        backend = "reference" if case == "torch" else "triton"
        return residual_norm_prelu(x, residual, *vectors, backend=backend)

    step = _with_gradients(function, inputs)
    _measure(check, f"residual_norm_prelu, {n} x 256", case, step, 7 * inputs[0].nbytes)


STEPS = ("abmil", "clam_sb", "srmil", "dsmil", "transmil", "clam_mb", "acmil", "ilra", "rrt", "wikg")
STEPS += ("mambamil", "s4mil", "vit", "gtp", "patchgcn", "camil", "attrimil", "mhim", "dtfd", "sm_transformer")
OPTIONS = {"abmil": {"embed_dim": 512}}


def steps(check: Check) -> None:
    """Training steps (losses, gradients, fused AdamW) and evaluation of one bag; float32 and bfloat16."""
    n = 60 if check.quick else 10_000
    for name in STEPS[: 5 if check.quick else None]:
        check.attempt(name, partial(_step, check, name, n))


def _step(check: Check, name: str, n: int) -> None:
    device = check.device
    torch.manual_seed(0)
    model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {})).to(device)
    batch = random_batch(n, check.dim, device, graph=type(model).graph is not None)
    yardsticks = {
        "abmil": lambda: plain.PlainABMIL(check.dim), "clam_sb": lambda: plain.PlainCLAM(check.dim),
        "dsmil": lambda: plain.PlainDSMIL(check.dim), "srmil": lambda: plain.PlainSRMIL(model),
    }  # fmt: skip
    sides: list[tuple[str, nn.Module, Callable, Callable]] = [
        ("mil_zoo", model, lambda: model.losses(batch)["loss"], lambda: model(batch).logits)
    ]
    if name in yardsticks:
        other = yardsticks[name]().to(device)
        given = (batch,) if name == "srmil" else (batch.features,)
        loss = partial(other.loss, *given) if name == "srmil" else partial(other.loss, batch.features, batch.labels)
        sides.append(("plain PyTorch", other, loss, partial(other.logits, *given)))
    for by, module, loss, logits in sides:
        for precision in ("float32", "bfloat16"):
            cast = partial(torch.autocast, device.type, BF16, enabled=precision == "bfloat16")
            what = f"{name} training step, N = {n}, D = {check.dim}"
            run = partial(_measure, check, what, by, _training_step(module.train(), loss, cast), precision=precision)
            check.attempt(what, run)
            what = f"{name} evaluation, N = {n}, D = {check.dim}"
            check.attempt(what, partial(_evaluation, check, what, by, module, logits, cast, precision))
            if by == "mil_zoo" and Replays.serve(model, str(device)):
                what = f"{name} training step, N = {n}, D = {check.dim}"
                run = partial(_measure, check, what, "mil_zoo, replayed", _replayed(model.train(), batch, cast))
                check.attempt(what, partial(run, precision=precision))


def _replayed(model: Aggregator, batch: BagBatch, cast: Callable) -> Callable[[], None]:
    """A training step as ``fit`` takes it from the third time on that a slide comes."""

    def forward_and_backward(batch: BagBatch) -> dict[str, Tensor]:
        with cast():
            losses = model.losses(batch)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}

    replays = Replays(model, forward_and_backward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        replays(batch)
        optimizer.step()

    return step


def _evaluation(
    check: Check, what: str, by: str, module: nn.Module, logits: Callable, cast: Callable, precision: str
) -> None:
    def step() -> None:
        with torch.inference_mode(), cast():
            logits()

    module.eval()
    _measure(check, what, by, step, precision=precision)


def _training_step(module: nn.Module, loss: Callable[[], Tensor], cast: Callable) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with cast():
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def waits(check: Check) -> None:
    """Which steps wait for the device: torch says so at the operation that does."""
    if check.device.type != "cuda":
        check.report("waiting for the device", skipped="no CUDA device")
        return
    for name in list_aggregators():
        check.attempt(f"{name} waits", partial(_waits, check, name))


def _waits(check: Check, name: str) -> None:
    import warnings

    model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {})).to(check.device).train()
    batch = random_batch(1000, check.dim, check.device, graph=type(model).graph is not None)
    step = _training_step(model, lambda: model.losses(batch)["loss"], partial(torch.autocast, "cuda", enabled=False))
    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = sorted(
        {f"{w.filename.rpartition('mil_zoo/')[2]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)}
    )
    check.report(f"{name} training step waits for the device", times=len(caught), at=places)


def profile(check: Check) -> None:
    """Where the host spends the time of handing steps over, function by function, into ``profile-<name>.txt``."""
    for name in ("abmil", "clam_sb", "dsmil", "srmil"):
        check.attempt(f"{name} profile", partial(_profile, check, name))


def _profile(check: Check, name: str, steps_: int = 50) -> None:
    model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {})).to(check.device).train()
    batch = random_batch(200, check.dim, check.device, graph=type(model).graph is not None)
    step = _training_step(model, lambda: model.losses(batch)["loss"], partial(torch.autocast, "cuda", enabled=False))
    for _ in range(3):
        step()
    synchronise(check.device)
    profiler = cProfile.Profile()
    start = time.perf_counter()
    for _ in range(steps_):
        step()
    synchronise(check.device)
    seconds = (time.perf_counter() - start) / steps_
    profiler.enable()
    for _ in range(steps_):
        step()
    synchronise(check.device)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(45)
    (check.out / f"profile-{name}.txt").write_text(text.getvalue())
    check.report(f"{name} training step, N = 200, handed over", seconds_a_step=seconds)


def epoch(check: Check) -> None:
    """An epoch of ``fit``: 18 training and 6 validation slides of 1 000 to 12 000 instances."""
    for by in ("mil_zoo", "mil_zoo, not replayed", "plain PyTorch loop"):
        check.attempt(f"epoch by {by}", partial(_epoch, check, "abmil", by))
    for by in ("mil_zoo", "mil_zoo, not replayed"):
        check.attempt(f"epoch of SRMIL by {by}", partial(_epoch, check, "srmil", by))


def _slides(check: Check) -> list[Bag]:
    ends = (10, 60) if check.quick else (1000, 12_000)
    sizes = np.linspace(*ends, 24).astype(int)
    return [random_bag(n, check.dim, i) for i, n in enumerate(sizes)]


def _epoch(check: Check, name: str, by: str) -> None:
    slides, memory = _slides(check), {}
    train, val = slides[:18], slides[18:]
    what, device = f"epoch of {name}, 18 + 6 slides of 1 000 to 12 000", str(check.device)
    if by.startswith("mil_zoo"):
        ends = [time.perf_counter()]
        model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {}))
        # The first three epochs are unlike the others: steps are noted, then recorded; of the last the training set is
        # looked at for figure 3.
        given: dict[str, Any] = {"graph": type(model).graph, "device": device}
        with serving(by == "mil_zoo"):
            config = TrainingConfig(epochs=4 if check.quick else 10, record="end")
            fit(model, train, val, config, on_epoch=lambda row: ends.append(_now(check, memory)), **given)
        seconds = float(np.median(np.diff(ends)[3:-1])) if not check.quick else ends[-1] - ends[-2]
    else:
        model = plain.PlainABMIL(check.dim).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            for bag in train:
                loss = model.loss(bag.features.to(device), torch.tensor([bag.label], device=device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
            with torch.no_grad():
                for bag in slides:
                    model.logits(bag.features.to(device)).softmax(1).cpu()
            times.append(time.perf_counter() - start)
        seconds = float(np.median(times[1:]))
    moved = sum(bag.features.nbytes for bag in slides)
    check.report(what, by=by, milliseconds=1e3 * seconds, mib_of_all_bags=moved / 2**20, **memory)


def _now(check: Check, memory: dict[str, float]) -> float:
    """The time; notes what of the device's memory torch has reserved, and what is used beside."""
    if check.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory["mib_reserved"] = torch.cuda.memory_reserved() / 2**20
        memory["mib_beside"] = (total - free) / 2**20 - memory["mib_reserved"]
    return time.perf_counter()
