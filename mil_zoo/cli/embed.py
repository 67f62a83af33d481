"""``mil-zoo embed``."""

from __future__ import annotations

from pathlib import Path

import click

from mil_zoo.cli.options import plugin_option
from mil_zoo.errors import InputError
from mil_zoo.files import writing

EMBEDDINGS = ("embeddings.npy", "ids.npy")


@click.command(
    epilog="""\b
Example:
  mil-zoo embed runs/pretrain-20260102-030405/encoder.safetensors --dataset demo --out embeddings
"""
)
@click.argument("encoder", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="CARD|TABLE.npz|DIR", help="Slides to embed (see mil-zoo datasets).")
@click.option("--store", type=click.Path(path_type=Path), help="Slides of a store of augmentations instead.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the dataset's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option("--slides", type=click.Path(path_type=Path), help="Text file of slide ids, one a line: embed only these.")
@click.option("--features", help="Which set of features, where a folder holds those of several encoders.")
@click.option("--layout", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option("--views", type=int, help="Random views (R) whose mean embeds a slide.  [default: the encoder's, 50]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the views.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for embeddings.npy and ids.npy.")
@plugin_option
def embed(
    encoder: Path,
    dataset: str | None,
    store: Path | None,
    root: Path | None,
    slides: Path | None,
    features: str | None,
    layout: str | None,
    allow_pickle: bool,
    views: int | None,
    seed: int,
    out: Path,
    plugin: tuple[Path, ...],
) -> None:
    """Embed slides with ENCODER, the encoder.safetensors of a pretraining.

    Writes embeddings.npy (float32 [slides, dimensions]) and ids.npy, the two files of the Giga-SSL authors. An OUT that
    holds some already is left as it is.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mil_zoo.cli.pretrain import open_source
    from mil_zoo.ssl.embed import embed_slides, write_embeddings
    from mil_zoo.ssl.model import SlideEncoder
    from mil_zoo.train.device import default_device

    for name in EMBEDDINGS:  # what made them is not known: perhaps another encoder, or a trial of a run
        if (path := out / name).exists() or path.is_symlink():
            raise InputError(f"{path} exists; choose another --out, or delete it")
    console = Console()
    with console.status("Opening the data"):
        source, _, _ = open_source(store, slides, dataset, root, features, layout, allow_pickle)
        device = default_device()
        loaded = SlideEncoder.load(encoder).to(device)
    with Progress(console=console) as progress:
        bar = progress.add_task("Slides", total=len(source.slide_ids))
        embeddings = embed_slides(
            loaded,
            source,
            views=views,
            seed=seed,
            device=device,
            on_slide=lambda done: progress.update(bar, completed=done),
        )
    with writing(out):
        write_embeddings(out, embeddings.numpy(), source.slide_ids)
    console.print(
        f"{len(embeddings)} slides x {embeddings.shape[1]} in {out}/embeddings.npy, names in {out}/ids.npy",
        markup=False,
        highlight=False,
    )
