"""``mil-zoo pretrain``."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mil_zoo.cli.options import plugin_option
from mil_zoo.cli.progress import telling
from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.files import refuse_pipe

if TYPE_CHECKING:
    from mil_zoo.ssl.views import ViewSource


@click.command(
    epilog="""\b
Examples:
  mil-zoo pretrain --dataset demo --epochs 60 --set out_dim=128
  mil-zoo pretrain --dataset camelyon16 --root DATA --slides train.txt
  mil-zoo pretrain --store AUGMENTATIONS --weights resnet18.pth
  mil-zoo pretrain --dataset demo --backbone abmil --set abmil.embed_dim=256
  torchrun --no-python --nproc_per_node 4 mil-zoo pretrain --store AUGMENTATIONS --out RUN
Start the same command with the same --out again to continue an interrupted pretraining.
"""
)
@click.option("--dataset", metavar="CARD|TABLE.npz|DIR", help="Slides to learn from (see mil-zoo datasets).")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Slides with several pre-computed augmentations: tiles/<slide>/<a>.npy and coordinates/<slide>/<a>.npy.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the dataset's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option(
    "--slides",
    type=click.Path(path_type=Path),
    help="Text file of slide ids, one a line: use only these (no test ones).",
)
@click.option("--features", help="Which set of features, where a folder holds those of several encoders.")
@click.option("--layout", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option("--backbone", help="sparse (the sparse slide encoder) or a registered aggregator.  [default: sparse]")
@click.option("--weights", type=click.Path(path_type=Path), help="ResNet18 of torchvision: start from its layer4.")
@click.option("--epochs", type=int, help="Passes over the slides.  [default: 1000]")
@click.option("--batch-size", type=int, help="Slides of a step, all processes together.  [default: 256]")
@click.option("--instances", type=int, help="Random instances of a view (T).  [default: 5]")
@click.option("--seed", type=int, help="Of weights, order and views.  [default: 0]")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="learning_rate=0.01, or abmil.embed_dim=256."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: runs/pretrain-<time>]")
@plugin_option
def pretrain(
    dataset: str | None,
    store: Path | None,
    root: Path | None,
    slides: Path | None,
    features: str | None,
    layout: str | None,
    allow_pickle: bool,
    backbone: str | None,
    weights: Path | None,
    epochs: int | None,
    batch_size: int | None,
    instances: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    plugin: tuple[Path, ...],
) -> None:
    """Learn slide embeddings without labels: two random views of a slide must agree (Giga-SSL).

    Writes encoder.safetensors, checkpoint.pt, curve.csv and curve.png into the --out folder. Labels of the dataset are
    only looked at, for the curve of kNN accuracy.
    """
    from rich.console import Console

    from mil_zoo.ssl.distributed import processes, world

    with processes() as device:
        console = Console(quiet=world()[0] > 0)  # of several processes the first speaks
        with console.status("Opening the data"):
            source, in_dim, about = open_source(store, slides, dataset, root, features, layout, allow_pickle)
        chosen = {
            "backbone": backbone,
            "epochs": epochs,
            "batch_size": batch_size,
            "instances": instances,
            "seed": seed,
        }
        config = _config({key: value for key, value in chosen.items() if value is not None}, settings)
        if out is None:
            if world()[1] > 1:
                raise InputError("several processes need one folder for their results: pass --out")
            out = Path("runs") / f"pretrain-{time.strftime('%Y%m%d-%H%M%S')}"
        _run(source, in_dim, about, config, weights, out, device, console)


def open_source(
    store: Path | None,
    slides: Path | None,
    dataset: str | None,
    root: Path | None,
    features: str | None,
    layout: str | None,
    allow_pickle: bool,
) -> tuple[ViewSource, int, dict[str, Any]]:
    """The slides that the options name, their feature dimension, and what else a pretraining needs of them."""
    from mil_zoo.data.dataset import open_slides
    from mil_zoo.data.judge import judge_shapes, raise_errors
    from mil_zoo.data.labelled import Standardiser
    from mil_zoo.data.labels.names import match_names
    from mil_zoo.data.splits.split import patient_key
    from mil_zoo.ssl.pretrain import Monitor
    from mil_zoo.ssl.views import AugmentationStore, BagSource

    if (dataset is None) == (store is None):
        raise InputError("pass either --dataset or --store")
    wanted = None if slides is None else _read_ids(slides)
    if store is not None:
        augmentations = AugmentationStore(store, wanted)
        return augmentations, augmentations.in_dim, {"title": store.name}
    opened = open_slides(str(dataset), root=root, features=features, layout=layout, allow_pickle=allow_pickle)
    bags = opened.bags
    if wanted is not None:
        known = bags.slide_ids
        meant = match_names(wanted, known, str(slides))
        for slide_id in wanted:
            if slide_id not in meant:
                raise InputError(f"{slides}: the dataset has no slide {slide_id!r}{did_you_mean(slide_id, known)}")
        bags = bags.select(list(dict.fromkeys(meant[slide_id] for slide_id in wanted)))
    raise_errors(judge_shapes(bags))
    about: dict[str, Any] = {
        "title": opened.card.title,
        "standardiser": Standardiser.fit(bags) if opened.card.standardise else None,
    }
    if any(label is not None for label in bags.labels):
        labels = [-1 if label is None else label for label in bags.labels]
        about["monitor"] = Monitor(labels, [patient_key(slide) for slide in bags.slides])
    return BagSource(bags), opened.in_dim, about


def _read_ids(path: Path) -> list[str]:
    refuse_pipe(path)
    try:
        ids = list(
            dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable text file ({error}); write one slide id a line") from error
    if not ids:
        raise InputError(f"{path} names no slide; write one slide id a line")
    return ids


def _config(chosen: dict[str, Any], settings: tuple[str, ...]) -> Any:
    from mil_zoo.config import from_mapping, parse_override
    from mil_zoo.ssl.config import PretrainConfig

    options: dict[str, Any] = {}
    for text in settings:
        path, value = parse_override(text)
        if len(path) == 2 and path[0] == chosen.get("backbone"):
            options[path[1]] = value
        elif len(path) == 1 and path[0] in {field.name for field in dataclasses.fields(PretrainConfig)}:
            chosen[path[0]] = value
        else:
            known = [field.name for field in dataclasses.fields(PretrainConfig)]
            raise InputError(f"--set {text}: no setting of a pretraining{did_you_mean('.'.join(path), known)}")
    return from_mapping(PretrainConfig, {**chosen, "options": options}, "pretraining")


def _run(
    source: ViewSource,
    in_dim: int,
    about: dict[str, Any],
    config: Any,
    weights: Path | None,
    out: Path,
    device: Any,
    console: Any,
) -> None:
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mil_zoo.report.figures.pretraining_curves import draw_pretraining
    from mil_zoo.ssl.distributed import world
    from mil_zoo.ssl.pretrain import pretrain

    title = about.pop("title")
    console.print(
        f"[bold]{escape(title)}[/]: {len(source.slide_ids)} slides of {in_dim} features into {escape(str(out))}",
        highlight=False,
    )
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console) as progress:
        bar = progress.add_task("", total=config.epochs, last="")

        def on_epoch(row: dict[str, Any]) -> None:
            last = f"loss {row['loss']:.3f}, spread {row['spread']:.2f}"
            progress.update(bar, completed=row["epoch"], last=last)

        start = _start_from(weights)
        given = {"start": start, "folder": out, "device": device, "on_epoch": on_epoch}
        try:
            with telling(console):
                _, rows = pretrain(source, in_dim, config, **given, **about)
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"Interrupted. The same command with --out {out} continues from the last checkpoint.", markup=False
            )
            raise
    if world()[0] > 0:
        return
    figure = draw_pretraining(out, f"Pretraining of {config.backbone} on {title}, {len(source.slide_ids)} slides")
    last = rows[-1]
    knn = f", kNN accuracy {last['knn_accuracy']:.3f}" if "knn_accuracy" in last else ""
    chance = last.get("chance", math.inf)
    if not last["loss"] < 1.05 * chance:
        console.print(
            f"[yellow]The loss ended at {last['loss']:.3f}, and telling views apart by chance costs "
            f"{chance:.3f}: nothing was learned. Lower the learning rate (--set learning_rate=...) or raise the "
            "temperature.[/]"
        )
    console.print(
        f"Loss {last['loss']:.3f}, spread of the embeddings {last['embedding_spread']:.2f}{knn}\n"
        f"Encoder: {out / 'encoder.safetensors'}\nCurves:  {figure}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _start_from(weights: Path | None) -> Any:
    """What changes a fresh encoder: nothing, or the ResNet18 in the file ``weights``."""
    from mil_zoo.ssl.encoder import SparseSlideEncoder

    def start(encoder: Any) -> None:
        if weights is None:
            return
        if not isinstance(encoder.backbone, SparseSlideEncoder):
            raise InputError("--weights starts the sparse encoder; leave it out for an aggregator")
        encoder.backbone.load_torchvision_layer4(_read_weights(weights))

    return start


def _read_weights(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    refuse_pipe(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception as error:
        raise InputError(f"{path} holds no weights that can be read safely ({error}); save a state_dict") from error
