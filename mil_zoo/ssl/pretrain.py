"""Pretraining: two views of every slide must agree (SimCLR on slides, as Giga-SSL does)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mil_zoo.config import read_yaml, yaml_text
from mil_zoo.data.labelled import Standardiser
from mil_zoo.errors import InputError
from mil_zoo.files import write_bytes, write_text, writing
from mil_zoo.ssl.config import PretrainConfig
from mil_zoo.ssl.distributed import average_gradients, world
from mil_zoo.ssl.embed import embed_slides
from mil_zoo.ssl.model import Contrast, SlideEncoder, spread
from mil_zoo.ssl.probe import knn_accuracy
from mil_zoo.ssl.views import ViewSource, draw_views
from mil_zoo.train.steps import Diverged

Row = dict[str, Any]
MONITORED = 10  # how often embeddings are looked at during a pretraining
MONITOR_VIEWS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Monitor:
    """Labels for the kNN-accuracy curve; they are looked at and never learned from.

    Attributes:
        labels: class of each slide of the source; -1 where unknown.
        patients: of each slide; neighbours of the same patient do not vote.
    """

    labels: Sequence[int]
    patients: Sequence[str]


def pretrain(
    source: ViewSource,
    in_dim: int,
    config: PretrainConfig,
    *,
    standardiser: Standardiser | None = None,
    start: Callable[[SlideEncoder], None] = lambda encoder: None,
    monitor: Monitor | None = None,
    folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> tuple[SlideEncoder, list[Row]]:
    """Learns a slide encoder without labels.

    Under ``torchrun`` each process takes its share of every batch; batch statistics, loss and gradients are those of
    one process on the whole batch. Everything random is keyed by seed, epoch and slide, so an interrupted pretraining
    goes on as if it had not been interrupted.

    Args:
        source: the slides, at least two.
        in_dim: feature dimension D.
        config: backbone, views, loss, schedule.
        standardiser: of the features; it becomes part of the encoder.
        start: changes the fresh encoder, for instance ``load_torchvision_layer4`` of its backbone.
        monitor: labels for the kNN-accuracy curve.
        folder: where checkpoints (``checkpoint.pt``), the curve (``curve.csv``) and in the end ``encoder.safetensors``
            go; a pretraining of the same settings that lies there is continued. None writes nothing.
        checkpoint_seconds: least time between checkpoints.
        device: where to compute.
        on_epoch: called with each row of the result as it comes.

    Returns:
        the encoder in eval mode, and one row an epoch: "epoch", "loss", "chance" (what the loss is where views are told
        apart by chance), "spread" (of the projections, see ``spread``), "learning_rate", "seconds", and in some epochs,
        of the slide embeddings, "embedding_spread", "knn_accuracy" and "majority" (what always saying the most frequent
        class would have).

    Raises:
        Diverged: the loss is not finite.
        InputError: fewer than two slides, more processes than slides in a batch, or another pretraining in ``folder``.
    """
    rank, size = world()
    slides = len(source.slide_ids)
    steps = max(1, min(math.ceil(slides / config.batch_size), slides // 2))  # no step of a single slide
    if slides < 2:
        raise InputError(f"pretraining tells slides apart, so it needs at least two, not {slides}")
    if slides // steps < size:
        raise InputError(f"{size} processes share batches of {slides // steps} slides; start fewer processes")
    torch.manual_seed(config.seed)
    contrast = build(in_dim, config, source, standardiser, start).to(device)
    optimizer = torch.optim.Adam(contrast.parameters(), lr=0.0, weight_decay=config.weight_decay)
    rows: list[Row] = []
    kept = "the same settings and folder continue from the last checkpoint"
    if folder is not None:
        with writing(folder):
            _claim(folder, settings_of(source, in_dim, config))
        rows = _resume(folder, contrast, optimizer, device)
    saved = time.monotonic()
    for epoch in range(len(rows) + 1, config.epochs + 1):
        row = _epoch(contrast, optimizer, source, config, epoch, steps, torch.device(device))
        if epoch % max(1, config.epochs // MONITORED) == 0 or epoch == config.epochs:
            row |= _look(contrast.encoder, source, monitor, device)
        rows.append(row)
        on_epoch(row)
        due = epoch == config.epochs or time.monotonic() - saved >= checkpoint_seconds
        if folder is not None and rank == 0 and due:
            with writing(folder, kept):
                _save(folder, contrast, optimizer, rows)
            saved = time.monotonic()
    if folder is not None and rank == 0:
        with writing(folder, kept):
            contrast.encoder.save(folder / "encoder.safetensors")
    return contrast.encoder.eval(), rows


def build(
    in_dim: int,
    config: PretrainConfig,
    source: ViewSource,
    standardiser: Standardiser | None = None,
    start: Callable[[SlideEncoder], None] = lambda encoder: None,
) -> Contrast:
    """A fresh encoder with a projector that fits its embeddings; a trial embedding also shows what bags lack."""
    encoder = SlideEncoder(in_dim, config, standardiser)
    start(encoder)
    with torch.no_grad():
        views = draw_views(source, 0, config.instances, [config.seed])
        embedding_dim = encoder.eval()(encoder.batch(views, "cpu")).shape[1]
    return Contrast(encoder, embedding_dim).train()


def learning_rate(config: PretrainConfig, step: int, steps: int, slides: int) -> float:
    """The rate of a step: linear from 0 over the warm-up, then a cosine to 0.

    Args:
        config: rate, warm-up and epochs.
        step: number of the step, from 0.
        steps: steps of an epoch.
        slides: slides of an epoch; the rate is in proportion to the slides of a step.
    """
    top = config.learning_rate * slides / steps / 256
    warmup = min(config.warmup_epochs, config.epochs // 2) * steps
    if step < warmup:
        return top * step / max(1, warmup - 1)
    return top * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.epochs * steps - warmup)))


def _epoch(
    contrast: Contrast,
    optimizer: torch.optim.Optimizer,
    source: ViewSource,
    config: PretrainConfig,
    epoch: int,
    steps: int,
    device: torch.device,
) -> Row:
    begin = time.perf_counter()
    rank, size = world()
    contrast.train()
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0]))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(source.slide_ids))
    low = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    totals = np.zeros(3)
    for number, batch in enumerate(np.array_split(order, steps)):
        rate = learning_rate(config, (epoch - 1) * steps + number, steps, len(order))
        for group in optimizer.param_groups:
            group["lr"] = rate
        own = np.array_split(batch, size)[rank]
        pairs = [draw_views(source, int(slide), config.instances, [config.seed, epoch]) for slide in own]
        views = [contrast.encoder.batch([pair[i] for pair in pairs], device) for i in (0, 1)]
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            loss, spreading = contrast(*views)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss became {loss.item()} in epoch {epoch}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(contrast.parameters())
        optimizer.step()
        totals += len(batch) * np.array([loss.item(), spreading.item(), math.log(2 * len(batch) - 1)])
    loss_mean, spread_mean, chance = (totals / len(order)).tolist()
    return {
        "epoch": epoch,
        "loss": loss_mean,
        "chance": chance,
        "spread": spread_mean,
        "learning_rate": rate,
        "seconds": time.perf_counter() - begin,
    }


def _look(
    encoder: SlideEncoder, source: ViewSource, monitor: Monitor | None, device: torch.device | str
) -> dict[str, float]:
    embeddings = embed_slides(encoder, source, views=MONITOR_VIEWS, device=device)
    found = {"embedding_spread": spread(embeddings).item()}
    if monitor is not None:
        found["knn_accuracy"] = knn_accuracy(embeddings.numpy(), monitor.labels, monitor.patients)
        known = [label for label in monitor.labels if label >= 0]
        found["majority"] = max(map(known.count, set(known))) / len(known) if known else float("nan")
    return found


def settings_of(source: ViewSource, in_dim: int, config: PretrainConfig) -> dict[str, Any]:
    """What ``config.yaml`` of a pretraining holds: all that its result depends on, as plain values."""
    ids = "\n".join(source.slide_ids)
    return {
        "pretraining": dataclasses.asdict(config),
        "in_dim": in_dim,
        "slides": len(source.slide_ids),
        "slides_hash": hashlib.sha256(ids.encode()).hexdigest()[:12],
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings into ``folder``, or checks that those there are the same."""
    path = folder / "config.yaml"
    if path.exists():
        there = read_yaml(path)
        old, new = ({**part.pop("pretraining", {}), **part} for part in (there, dict(settings)))
        changed = [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new if old.get(key) != new.get(key)]
        if changed:
            raise InputError(
                f"{folder} holds a pretraining of other settings ({'; '.join(changed[:5])}); choose another --out or "
                "repeat its settings"
            )
    elif world()[0] == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml_text(settings))


def _save(folder: Path, contrast: Contrast, optimizer: torch.optim.Optimizer, rows: list[Row]) -> None:
    state = {"contrast": contrast.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
    content = io.BytesIO()
    torch.save(state, content)  # straight into a file it says no reason where that fails
    write_bytes(folder / "checkpoint.pt", content.getvalue())
    curve: str = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(folder / "curve.csv", curve)


def _resume(
    folder: Path, contrast: Contrast, optimizer: torch.optim.Optimizer, device: torch.device | str
) -> list[Row]:
    """Loads the checkpoint in ``folder``, if there is one, and returns the rows of the epochs it has done."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        contrast.load_state_dict(state["contrast"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise InputError(f"{path} is not a checkpoint of this pretraining ({error}); choose another --out") from error
    rows: list[Row] = state["rows"]
    return rows
