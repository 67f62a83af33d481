"""Large bags: SRMIL trained on 2 x 10^5 patches and evaluated on 10^6."""

from __future__ import annotations

from functools import partial

import torch

from gpu.common import Check, peak_mib, random_batch, timed
from gpu.speed import _training_step
from mil_zoo import create_aggregator


def run(check: Check) -> None:
    """Time and peak memory, the features included in the latter's second number."""
    train, evaluate = (400, 900) if check.quick else (200_000, 1_000_000)
    for precision in ("float32", "bfloat16"):
        check.attempt("srmil training", partial(_train, check, train, precision))
    for name in ("srmil", "abmil", "transmil"):
        check.attempt(f"{name} evaluation", partial(_evaluate, check, name, evaluate))


def _train(check: Check, n: int, precision: str) -> None:
    model = create_aggregator("srmil", in_dim=check.dim).to(check.device).train()
    batch = random_batch(n, check.dim, check.device, graph=True)
    cast = partial(torch.autocast, check.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    step = _training_step(model, lambda: model.losses(batch)["loss"], cast)
    spent = timed(step, check.device, warm_up=1)
    extra = peak_mib(step, check.device)
    check.report(
        f"srmil training step, N = {n}",
        by="mil_zoo",
        precision=precision,
        **spent,
        peak_mib=extra,
        features_mib=batch.features.nbytes / 2**20,
    )


def _evaluate(check: Check, name: str, n: int) -> None:
    model = create_aggregator(name, in_dim=check.dim).to(check.device).eval()
    batch = random_batch(n, check.dim, check.device, graph=type(model).graph is not None)

    def step() -> None:
        with torch.inference_mode():
            model(batch)

    spent = timed(step, check.device, warm_up=1)
    extra = peak_mib(step, check.device)
    check.report(
        f"{name} evaluation, N = {n}", by="mil_zoo", **spent, peak_mib=extra, features_mib=batch.features.nbytes / 2**20
    )
