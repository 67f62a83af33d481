"""``mil-zoo published``."""

from __future__ import annotations

from pathlib import Path

import click

from mil_zoo.cli.options import plugin_option


@click.command(epilog="\b\nExample:\n  mil-zoo published runs/musk1 runs/tiger --out published\n")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@plugin_option
def published(runs: tuple[Path, ...], out: Path, plugin: tuple[Path, ...]) -> None:
    """Set published numbers beside those of RUNS.

    Writes a page and a csv: each published number that can be recomputed from the data of this repository, with its
    protocol and source, and ours with its interval.
    """
    from rich.console import Console

    from mil_zoo.report.across_runs.literature import published_numbers, write_published
    from mil_zoo.report.load import Results

    results = [Results.load(run) for run in runs]
    paths = write_published(results, out)
    known = sorted({number.dataset for number in published_numbers()})
    for run in results:
        if (name := run.config.dataset.name) not in known:
            line = f"Nothing beside {run.path}: no number is known of the dataset {name!r}, but of {', '.join(known)}."
            Console().print(line, markup=False, highlight=False, soft_wrap=True)
    Console().print(f"Written: {', '.join(str(path) for path in paths)}", markup=False, highlight=False, soft_wrap=True)
