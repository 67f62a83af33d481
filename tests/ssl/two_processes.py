"""One step and a short pretraining in float64, by whatever processes run this."""

import os
from pathlib import Path

import numpy as np
import torch
from helpers import make_bag

from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.ssl.distributed import average_gradients, processes, world
from mil_zoo.ssl.pretrain import build, pretrain
from mil_zoo.ssl.views import BagSource, draw_views

SLIDES = 7  # an odd number: the processes' shares differ
BACKBONES = {"sparse": {"out_dim": 8}, "abmil": {"backbone": "abmil", "options": {"embed_dim": 8}}}


def one_step(source: BagSource, config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics of a step on all slides."""
    rank, size = world()
    torch.manual_seed(0)
    contrast = build(6, config, source)
    own = np.array_split(np.arange(SLIDES), size)[rank]
    pairs = [draw_views(source, int(slide), config.instances, [0, 1]) for slide in own]
    views = [contrast.encoder.batch([pair[i] for pair in pairs], "cpu") for i in (0, 1)]
    loss, spread = contrast(*views)
    loss.backward()
    average_gradients(contrast.parameters())
    return (
        {"loss": loss.detach(), "spread": spread}
        | {f"grad/{name}": p.grad for name, p in contrast.named_parameters() if p.grad is not None}
        | {f"buffer/{name}": buffer for name, buffer in contrast.named_buffers()}
    )


def main(out: Path) -> None:
    bags = [make_bag(30, 6, seed=i) for i in range(SLIDES)]
    source = BagSource([bag.with_features(bag.features.double()) for bag in bags])
    for name, options in BACKBONES.items():
        config = PretrainConfig(epochs=3, batch_size=4, projection_dim=5, instances=9, warmup_epochs=1, **options)
        result = one_step(source, config)
        encoder, rows = pretrain(source, 6, config, folder=out / name)
        result |= {f"trained/{key}": value for key, value in encoder.state_dict().items()}
        result["curve"] = torch.tensor([row["loss"] for row in rows])
        torch.save(result, out / f"{name}-{world()[0]}.pt")


def as_torchrun_starts_it(rank: int, port: int, out: Path) -> None:
    """``main`` with the environment that ``torchrun`` gives the processes that it starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with processes():
        main(out)
