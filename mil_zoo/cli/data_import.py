"""``mil-zoo data import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import comma_list, outcome_options, plugin_option, told_task
from mil_zoo.errors import InputError


@click.command(
    "import",
    epilog="""\b
Examples:
  mil-zoo data import camelyon16 c16.store --root /data/camelyon16
  mil-zoo data import /data/trident_processed my.store --labels labels.csv --features uni_v1 --graph window:2
  mil-zoo bench --dataset my.store --models srmil,abmil
An interrupted import goes on when the same command is started again; a complete store is checked.
""",
)
@click.argument("source", metavar="SRC")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of a card's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option("--labels", type=click.Path(path_type=Path), help="csv (slide_id, label[, patient_id]) of the labels.")
@outcome_options
@click.option("--features", help="Which set of features, where SRC holds those of several encoders.")
@click.option("--layout", help="How SRC is laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run whatever code a pickle of features holds; your own files only.")
@click.option("--allow-missing", is_flag=True, help="Pack the slides that have features where the labels name more.")
@click.option("--dtype", default="fp16", show_default=True, help="Of the stored features: fp16, bf16 or fp32.")
@click.option("--graph", "graphs", callback=comma_list(), help="Graphs to build once and keep, such as window:2.")
@plugin_option
def import_store(
    source: str,
    out: Path,
    root: Path | None,
    labels: Path | None,
    features: str | None,
    layout: str | None,
    allow_pickle: bool,
    allow_missing: bool,
    dtype: str,
    graphs: list[str] | None,
    plugin: tuple[Path, ...],
    **outcome: Any,
) -> int:
    """Pack the dataset SRC (a card, a folder of slides, a bag table) into the store OUT, for fast random access.

    A store is a few memory-mapped files: reading one slide touches no other. Everything that takes --dataset takes it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mil_zoo.data.dataset import open_dataset
    from mil_zoo.data.packed.store import PackedStore, is_complete
    from mil_zoo.data.packed.writer import import_dataset
    from mil_zoo.data.source import DatasetSource

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        if is_complete(out):
            store = PackedStore.open(out)
            task = progress.add_task("checking", total=len(store.entries))
            damaged = store.damaged(lambda slide: progress.advance(task))
            if damaged:
                raise InputError(
                    f"{out}: the bytes of {len(damaged)} slides are not those that were written "
                    f"({', '.join(damaged[:5])}); delete the store and import it again"
                )
            progress.stop()
            console.print(
                f"{out} is complete, and every checksum is right: {_facts(store)}", markup=False, highlight=False
            )
            return 0
        dataset = open_dataset(
            DatasetSource(
                source,
                root,
                labels,
                features=features,
                layout=layout,
                allow_pickle=allow_pickle,
                allow_missing=allow_missing,
            ).with_task(told_task(outcome))
        )
        task = progress.add_task("importing", total=len(dataset.bags))
        try:
            store = import_dataset(dataset, out, dtype, graphs or [], lambda slide: progress.advance(task))
        except OSError as error:
            raise InputError(
                f"writing {out} failed ({error}); the slides written so far are kept: free some space and start the "
                "same command again"
            ) from error
    console.print(f"{out}: {_facts(store)}", markup=False, highlight=False)
    return 0


def _facts(store: object) -> str:
    head, entries = store.head, store.entries  # type: ignore[attr-defined]
    size = sum(file.stat().st_size for file in store.path.iterdir())  # type: ignore[attr-defined]
    instances = sum(entry["n"] for entry in entries)
    return (
        f"{len(entries)} slides, {instances:,} instances of {head['dim']} features in {head['dtype']}, "
        f"graphs {', '.join(head['graphs']) or 'none'}, {size / 2**20:,.1f} MiB"
    )
