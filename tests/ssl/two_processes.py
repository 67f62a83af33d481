"""One step and a short pretraining in float64, by whatever processes run this: ``two_processes.py OUT``."""

import sys
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with processes():
        main(Path(sys.argv[1]))
