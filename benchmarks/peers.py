"""Training steps, evaluation and an epoch beside torchmil's on the same bags: ``python benchmarks/peers.py``.

Needs torchmil, which the extra ``benchmark`` brings. Both sides take the same widths, one bag a
step, no dropout, AdamW, and take turns in one process: A B A B. A ratio is the median of those of neighbouring turns,
above 1 where this package is faster. ``--processor`` counts the process's CPU time instead of the wall's: of use on a
machine where something else runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu.common import random_batch

from mil_zoo import Bag, create_aggregator

DIM, EMBED = 1024, 512
OPTIONS = {
    "abmil": {"embed_dim": EMBED},
    "clam_sb": {"dropout": 0.0},
    "dsmil": {},
    "transmil": {"dropout": 0.0},
    "dtfd": {},
}


def main() -> None:
    """Prints the table row by row, and writes it where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 10_000], help="instances of a bag")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.processor else time.perf_counter
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    lines = [
        f"mil-zoo and torchmil {version('torchmil')}, torch {torch.__version__}, {machine}, "
        f"{arguments.threads} threads, {'CPU' if arguments.processor else 'wall'} time; medians of {arguments.rounds}.",
        "",
        "| what | mil-zoo (ms) | torchmil (ms) | times faster | smallest | largest |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        for size in arguments.sizes:
            for what, ours, theirs in _sides(name, size):
                title = f"{name}, {what}, N = {size}"
                try:
                    lines.append(_row(title, ours, theirs, arguments.rounds, clock))
                except RuntimeError as error:  # CLAM's smooth loss in torchmil 1.0.2 fails for some draws of weights
                    lines.append(f"| {title} | - | {str(error)[:80]} | | | |")
                print(lines[-1], flush=True)
    lines.append(_row("abmil, three epochs of 18 + 6 slides of 1 000 to 12 000", *_epochs(), 2, clock))
    print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("# Steps beside torchmil's\n\n" + "\n".join(lines) + "\n")


def _row(what: str, ours: Callable, theirs: Callable, rounds: int, clock: Callable[[], float]) -> str:
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        pair = []
        for step in (ours, theirs):
            start = clock()
            step()
            pair.append(1e3 * (clock() - start))
        times.append((pair[0], pair[1]))
    times = times[1:]  # the first turn compiles and allocates
    ratios = [b / a for a, b in times]
    a, b = (statistics.median(side) for side in zip(*times, strict=True))
    return f"| {what} | {a:.3g} | {b:.3g} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"


def _embed() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, EMBED), nn.ReLU())


def _peer(name: str) -> nn.Module:
    from torchmil import models

    shape = (DIM,)
    made: nn.Module = {
        "abmil": lambda: models.ABMIL(shape, att_dim=128, feat_ext=_embed()),
        "clam_sb": lambda: models.CLAM_SB(shape, att_dim=256, gated=True, k_sample=8, feat_ext=_embed()),
        "dsmil": lambda: models.DSMIL(shape, att_dim=128, nonlinear_q=True),
        "transmil": lambda: models.TransMIL(shape, att_dim=512, n_heads=8, feat_ext=_embed()),
        "dtfd": lambda: models.DTFDMIL(shape, att_dim=128, n_groups=4, distill_mode="afs", feat_ext=_embed()),
    }[name]()
    return made


def _sides(name: str, size: int) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    torch.manual_seed(0)
    batch = random_batch(size, DIM, torch.device("cpu"), graph=False)
    ours = create_aggregator(name, in_dim=DIM, num_classes=1, **OPTIONS[name])
    theirs, x, y = _peer(name), batch.features[None], batch.labels.float()
    training = [
        _training_step(ours.train(), lambda: ours.losses(batch)["loss"]),
        _training_step(theirs.train(), lambda: sum(theirs.compute_loss(y, x)[1].values())),
    ]
    evaluation = [_evaluation(ours, lambda: ours(batch)), _evaluation(theirs, lambda: theirs.predict(x))]
    return [("training step", *training), ("evaluation", *evaluation)]


def _training_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def step() -> None:
        module.train()
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def _evaluation(module: nn.Module, forward: Callable[[], object]) -> Callable[[], None]:
    def step() -> None:
        module.eval()
        with torch.inference_mode():
            forward()

    return step


def _epochs() -> tuple[Callable[[], object], Callable[[], object]]:
    """Three epochs of ``fit`` with its defaults, and of torchmil's Trainer."""
    from torch.utils.data import DataLoader
    from torchmil.data import collate_fn
    from torchmil.utils.trainer import Trainer

    from mil_zoo.train.config import TrainingConfig
    from mil_zoo.train.loop import fit

    sizes = torch.linspace(1000, 12_000, 24).int().tolist()
    slides = [Bag(features=torch.randn(n, DIM), label=i % 2, slide_id=f"s{i}") for i, n in enumerate(sizes)]
    items = [{"X": bag.features, "Y": torch.tensor(bag.label)} for bag in slides]
    loaders = [DataLoader(part, 1, shuffle=True, collate_fn=collate_fn) for part in (items[:18], items[18:])]
    model, peer = create_aggregator("abmil", in_dim=DIM, **OPTIONS["abmil"]), _peer("abmil")
    trainer = Trainer(peer, torch.optim.AdamW(peer.parameters()), device="cpu", disable_pbar=True, verbose=False)
    ours = partial(fit, model, slides[:18], slides[18:], TrainingConfig(epochs=3), device="cpu")
    return ours, partial(trainer.train, 3, *loaders)


if __name__ == "__main__":
    main()
