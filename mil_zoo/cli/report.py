"""``mil-zoo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import comma_list


@click.command(
    epilog="""\b
Examples:
  mil-zoo report runs/demo-20260102-030405
  mil-zoo report runs/mine --slides tumor_001,normal_017
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--slide-images",
    type=click.Path(path_type=Path),
    help="Folder of whole-slide images named after slide ids, shown below the attention maps of the page.",
)
@click.option(
    "--maps-mib",
    type=float,
    default=24.0,
    show_default=True,
    help="Size of the attention maps in the page, worst first.",
)
@click.option("--slides", callback=comma_list(), help="Test slides of the attention maps.  [default: two typical ones]")
def report(run: Path, slide_images: Path | None, maps_mib: float, slides: list[str] | None) -> None:
    """Redraw all tables and figures of RUN from its files alone, and the page report.html that holds them all.

    The page opens from disk in any browser: tables that sort and copy as LaTeX, figures, every test slide, worst
    errors first, with zoomable attention maps, warnings and provenance.
    """
    from rich.console import Console

    show(run, Console(), slide_images, maps_mib, slides)


def show(
    path: Path,
    console: Any,
    slide_images: Path | None = None,
    maps_mib: float = 24.0,
    slides: list[str] | None = None,
) -> None:
    """Writes and prints the tables of the run in ``path``, draws its figures and page, and says where they are."""
    with console.status("Drawing tables and figures"):
        from mil_zoo.bench.run_directory import RunDirectory
        from mil_zoo.report.heatmap import draw_attention_maps
        from mil_zoo.report.html import write_html
        from mil_zoo.report.learning_curve import write_learning_curve
        from mil_zoo.report.plots import draw_figures
        from mil_zoo.report.pretraining import draw_pretrainings
        from mil_zoo.report.tables import rich_table, write_tables

        run = RunDirectory.open(path)
        tables = write_tables(run)
        figures = draw_figures(run) + draw_attention_maps(run, slides) + draw_pretrainings(run)
        for path_ in write_learning_curve(run):
            (figures if path_.suffix == ".png" else tables).append(path_)
        page = write_html(run, slide_images, maps_mib)
    console.print(rich_table(run))
    console.print(f"Tables:  {', '.join(str(table) for table in tables)}", highlight=False, soft_wrap=True)
    console.print(
        f"Figures: {path / 'figures'} ({', '.join(figure.name for figure in figures)})", highlight=False, soft_wrap=True
    )
    console.print(f"Page:    {page}", highlight=False, soft_wrap=True)
