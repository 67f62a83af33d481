"""``mil-zoo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(epilog="\b\nExample:\n  mil-zoo report runs/demo-20260102-030405\n")
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Redraw all tables and figures of RUN from its files alone."""
    from rich.console import Console

    show(run, Console())


def show(path: Path, console: Any) -> None:
    """Writes and prints the tables of the run in ``path``, draws its figures, and says where they are."""
    with console.status("Drawing tables and figures"):
        from mil_zoo.bench.store import RunDirectory
        from mil_zoo.report.heatmap import draw_attention_maps
        from mil_zoo.report.learning_curve import write_learning_curve
        from mil_zoo.report.plots import draw_figures
        from mil_zoo.report.pretraining import draw_pretrainings
        from mil_zoo.report.tables import rich_table, write_tables

        run = RunDirectory.open(path)
        tables = write_tables(run)
        figures = draw_figures(run) + draw_attention_maps(run) + draw_pretrainings(run)
        for path_ in write_learning_curve(run):
            (figures if path_.suffix == ".png" else tables).append(path_)
    console.print(rich_table(run))
    console.print(f"Tables:  {', '.join(str(table) for table in tables)}", highlight=False, soft_wrap=True)
    console.print(
        f"Figures: {path / 'figures'} ({', '.join(figure.name for figure in figures)})", highlight=False, soft_wrap=True
    )
