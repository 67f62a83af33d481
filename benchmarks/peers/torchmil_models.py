"""torchmil's models without dropout, and its trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peer import DIM, EMBED, Peer
from torch import Tensor, nn

from mil_zoo import Bag, create_aggregator

NAMES = ("abmil", "clam_sb", "dsmil", "transmil", "dtfd")


def find(name: str) -> Peer:
    """The peer of our aggregator ``name``.

    Raises:
        ImportError: torchmil is not installed.
    """
    from torchmil import models

    def embed() -> nn.Module:
        return nn.Sequential(nn.Linear(DIM, EMBED), nn.ReLU())

    shape = (DIM,)
    options, make = {
        "abmil": ({"embed_dim": EMBED}, lambda: models.ABMIL(shape, att_dim=128, feat_ext=embed())),
        "clam_sb": (
            {"dropout": 0.0},
            lambda: models.CLAM_SB(shape, att_dim=256, gated=True, k_sample=8, feat_ext=embed()),
        ),
        "dsmil": ({}, lambda: models.DSMIL(shape, att_dim=128, nonlinear_q=True)),
        "transmil": ({"dropout": 0.0}, lambda: models.TransMIL(shape, att_dim=512, n_heads=8, feat_ext=embed())),
        "dtfd": ({}, lambda: models.DTFDMIL(shape, att_dim=128, n_groups=4, distill_mode="afs", feat_ext=embed())),
    }[name]
    module = make()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum(module.compute_loss(y.float(), x[None])[1].values())

    return Peer(options, module, loss, lambda x: module.predict(x[None]), num_classes=1)


def epochs() -> tuple[Callable[[], object], Callable[[], object]]:
    """Three epochs of ABMIL: of ``fit`` with its defaults, and of torchmil's Trainer."""
    from torch.utils.data import DataLoader
    from torchmil.data import collate_fn
    from torchmil.utils.trainer import Trainer

    from mil_zoo.train.config import TrainingConfig
    from mil_zoo.train.loop import fit

    sizes = torch.linspace(1000, 12_000, 24).int().tolist()
    slides = [Bag(features=torch.randn(n, DIM), label=i % 2, slide_id=f"s{i}") for i, n in enumerate(sizes)]
    items = [{"X": bag.features, "Y": torch.tensor(bag.label)} for bag in slides]
    loaders = [DataLoader(part, 1, shuffle=True, collate_fn=collate_fn) for part in (items[:18], items[18:])]
    peer = find("abmil")
    model = create_aggregator("abmil", in_dim=DIM, num_classes=1, **peer.options)
    optimizer = torch.optim.AdamW(peer.module.parameters())
    trainer = Trainer(peer.module, optimizer, device="cpu", disable_pbar=True, verbose=False)
    ours = partial(fit, model, slides[:18], slides[18:], TrainingConfig(epochs=3), device="cpu")
    return ours, partial(trainer.train, 3, *loaders)
