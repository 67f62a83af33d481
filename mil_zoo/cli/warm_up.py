"""``mil-zoo warm-up``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mil_zoo.cli.options import plugin_option

if TYPE_CHECKING:
    from pathlib import Path

FEATURES, INSTANCES = 32, 200  # of the tiny bags: kernels are compiled for types, whatever the sizes


@click.command("warm-up", epilog="\b\nExamples:\n  mil-zoo warm-up\n  mil-zoo warm-up abmil srmil")
@click.argument("models", nargs=-1)
@plugin_option
def warm_up(models: tuple[str, ...], plugin: tuple[Path, ...]) -> None:
    """Compile the kernels of MODELS ahead, or of all aggregators, so that no first run waits for them.

    Every aggregator predicts and trains on two tiny random bags. Compiled CPU kernels are kept on disk for the runs to
    come; on a machine with a GPU this compiles nothing for it.
    """
    import time

    from rich.console import Console
    from rich.progress import track

    from mil_zoo.aggregators.registry import AGGREGATORS, list_aggregators

    names = list(models) or list_aggregators()
    for name in names:
        AGGREGATORS.get(name)  # an unknown name is an error before anything is compiled
    start = time.monotonic()
    console = Console(stderr=True)
    for done, name in enumerate(track(names, "compiling kernels", console=console, transient=True), start=1):
        _step(name)
        if not console.is_terminal:
            click.echo(f"{name}: ready ({done} of {len(names)})")
    click.echo(f"The kernels of {len(names)} aggregators are compiled ({time.monotonic() - start:.0f} s).")


def _step(name: str) -> None:
    """Predicts and trains once on two bags of random features on a patch grid."""
    import torch

    from mil_zoo.aggregators.registry import create_aggregator
    from mil_zoo.data.bag import Bag, BagBatch

    generator = torch.Generator().manual_seed(0)
    side = int(INSTANCES**0.5) + 1
    coords = 256.0 * torch.cartesian_prod(torch.arange(side), torch.arange(side))[:INSTANCES]
    bags = [
        Bag(
            features=torch.randn(INSTANCES, FEATURES, generator=generator),
            coords=coords,
            patch_size=256,
            label=label,
            slide_id=f"tiny {label}",
        )
        for label in (0, 1)
    ]
    aggregator = create_aggregator(name, FEATURES, 2)
    batch = BagBatch.from_bags(bags, graph=type(aggregator).graph)
    aggregator.train().losses(batch)["loss"].backward()
    with torch.inference_mode():
        aggregator.eval()(batch)
