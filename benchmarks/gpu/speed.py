"""Time and memory of steps and epochs beside plain PyTorch, and where both the host and the device spend them."""

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

from gpu import ops, plain
from gpu.common import Check, measure, random_bag, random_batch, serving, synchronise
from mil_zoo import Aggregator, Bag, BagBatch, create_aggregator, list_aggregators
from mil_zoo.train.config import TrainingConfig
from mil_zoo.train.loop import fit
from mil_zoo.train.replay import Replays

BF16 = torch.bfloat16


def compile_all(check: Check) -> None:
    """What ``ops`` and ``steps`` are made of is compiled, so that they need not wait for it."""
    check = replace(check, untimed=True)
    todo = [(what, function) for what, function in ops.cases(check) if "pyg" not in what]
    todo += [(name, partial(_step, check, name, 100)) for name in STEPS]
    for _, (what, function) in check.mine(todo):
        check.attempt(what, function)


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
            run = partial(measure, check, what, by, _training_step(module.train(), loss, cast), precision=precision)
            check.attempt(what, run)
            what = f"{name} evaluation, N = {n}, D = {check.dim}"
            check.attempt(what, partial(_evaluation, check, what, by, module, logits, cast, precision))
            if by == "mil_zoo" and Replays.serve(model, str(device)):
                what = f"{name} training step, N = {n}, D = {check.dim}"
                run = partial(measure, check, what, "mil_zoo, replayed", _replayed(model.train(), batch, cast))
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
    measure(check, what, by, step, precision=precision)


def _training_step(module: nn.Module, loss: Callable[[], Tensor], cast: Callable) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with cast():
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def kernels(check: Check) -> None:
    """Which kernels the device runs in a replayed training step, longest first."""
    if check.device.type != "cuda":
        check.report("kernels", skipped="no CUDA device")
        return
    for name, precision in (
        ("abmil", "float32"), ("clam_sb", "float32"), ("dsmil", "float32"), ("transmil", "float32"),
        ("srmil", "float32"), ("srmil", "bfloat16"), ("mambamil", "float32"),
    ):  # fmt: skip
        check.attempt(f"kernels of {name}", partial(_kernels, check, name, precision))


def _kernels(check: Check, name: str, precision: str, calls: int = 5) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    model = create_aggregator(name, in_dim=check.dim, **OPTIONS.get(name, {})).to(check.device).train()
    batch = random_batch(60 if check.quick else 10_000, check.dim, check.device, graph=type(model).graph is not None)
    step = _replayed(model, batch, partial(torch.autocast, "cuda", BF16, enabled=precision == "bfloat16"))
    for _ in range(4):
        step()
    synchronise(check.device)
    with recorded(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            step()
        synchronise(check.device)
    events = [event for event in found.key_averages() if event.device_time_total]
    events.sort(key=lambda event: -event.device_time_total)
    check.report(
        f"{name} training step, {precision}, replayed",
        device_ms=sum(event.device_time_total for event in events) / calls / 1e3,
        launches=sum(event.count for event in events) / calls,
        longest={event.key[:100]: round(event.device_time_total / calls / 1e3, 4) for event in events[:12]},
    )


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
