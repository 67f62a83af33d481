"""``mil-zoo probe``."""

from __future__ import annotations

from pathlib import Path

import click

from mil_zoo.cli.options import comma_list
from mil_zoo.errors import InputError
from mil_zoo.files import write_text, writing


@click.command(
    epilog="""\b
Examples:
  mil-zoo probe embeddings --labels labels.csv                        # own splits: full, 25 %, 100, 50 slides
  mil-zoo probe runs/mine/trials/abmil-r0-f0-s0 --labels sites.csv    # the test slides of a trial
  mil-zoo probe TCGA_encoded_t5e1000 --labels lung.csv --splits splitdirs/lung
  mil-zoo probe embeddings --splits gigassl_lung_splits.npz           # labels and published splits in one file
"""
)
@click.argument("embeddings", type=click.Path(path_type=Path))
@click.option(
    "--labels", type=click.Path(path_type=Path), help="csv: ID (or slide_id), label[, case_id (or patient_id)]."
)
@click.option(
    "--splits",
    type=click.Path(path_type=Path),
    help="Folder of split_<k>.csv (train, test), of one such folder a regime, or a bundle .npz.  [default: own splits]",
)
@click.option("--folds", type=int, default=5, show_default=True, help="Own splits: test parts of a repeat.")
@click.option("--repeats", type=int, default=2, show_default=True, help="Own splits: shuffles.")
@click.option(
    "--regimes", callback=comma_list(), help="Own splits: training slides to use.  [default: full,25%,100,50]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Own splits: of the shuffles.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for probe.csv (a row a split) and probe.md.")
def probe(
    embeddings: Path,
    labels: Path | None,
    splits: Path | None,
    folds: int,
    repeats: int,
    regimes: list[str] | None,
    seed: int,
    out: Path | None,
) -> None:
    """Classify the slide embeddings in the folder EMBEDDINGS with a linear probe, over splits.

    Logistic regression with C = 10 and balanced classes, nothing chosen on test slides. Published splits run as they
    are, and the table says how many patients they have on both sides.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mil_zoo.report.tables.probe_table import probe_table
    from mil_zoo.ssl.embed import read_embeddings
    from mil_zoo.ssl.probe import probe as run
    from mil_zoo.ssl.probe_splits import (
        REGIMES,
        own_splits,
        read_bundle_labels,
        read_label_table,
        read_probe_splits,
        splits_named_as,
    )

    console = Console()
    values, slide_ids = read_embeddings(embeddings)
    if labels is not None:
        table = read_label_table(labels)
    elif splits is not None and splits.suffix == ".npz":
        table = read_bundle_labels(splits)
    else:
        raise InputError("pass --labels, a csv with the columns ID and label (a bundle .npz of --splits has its own)")
    table = table.named_as(slide_ids, labels or splits)
    if splits is not None:
        chosen = splits_named_as(read_probe_splits(splits), slide_ids, splits)
    else:
        known = [slide_id for slide_id in slide_ids if slide_id in table.labels]
        if not known:
            raise InputError(f"{labels} has no label for any of the {len(slide_ids)} slides of {embeddings}")
        chosen = own_splits(table, known, folds, repeats, regimes or REGIMES, seed)
    with Progress(console=console) as progress:
        bar = progress.add_task("Splits", total=len(chosen))
        rows = run(
            values,
            slide_ids,
            table.labels,
            table.patients,
            chosen,
            on_split=lambda done: progress.update(bar, completed=done),
        )
    shown = probe_table(rows)
    console.print(f"Linear probe of {embeddings}: {', '.join(table.classes)}", markup=False, highlight=False)
    console.print(shown.terminal())
    dropped = [regime for regime in regimes or REGIMES if splits is None and regime not in set(rows["regime"])]
    if dropped:
        console.print(f"Not run, more than the training slides: {', '.join(dropped)}.", markup=False, highlight=False)
    if out is not None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "probe.csv", rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
            write_text(out / "probe.md", shown.markdown())
        console.print(f"Tables: {out / 'probe.csv'}, {out / 'probe.md'}", markup=False, highlight=False, soft_wrap=True)
