"""``mil-zoo report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mil_zoo.bench.memory import heap_set_aside
from mil_zoo.cli.options import comma_list, plugin_option
from mil_zoo.cli.progress import telling, working
from mil_zoo.errors import InputError
from mil_zoo.files import write_text, writing


@click.command(
    epilog="""\b
Examples:
  mil-zoo report runs/demo-20260102-030405
  mil-zoo report runs/mine --slides tumor_001,normal_017
  mil-zoo report runs/mine --control abmil --title "Hospital A"
  mil-zoo report runs/mine --by site,sex --groups patients.csv
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
@click.option("--control", metavar="MODEL", help="Compare the others with this one: k - 1 tests instead of all pairs.")
@click.option(
    "--by", callback=comma_list(), metavar="COLUMN,...", help="Score groups of patients: site, sex, stage ..."
)
@click.option(
    "--groups",
    type=click.Path(path_type=Path),
    help="csv of these columns, by slide_id or patient_id.  [default: what the run knows]",
)
@click.option("--title", help="Of the dataset, in headings and captions.  [default: its own]")
@plugin_option
def report(
    run: Path,
    slide_images: Path | None,
    maps_mib: float,
    slides: list[str] | None,
    control: str | None,
    by: list[str] | None,
    groups: Path | None,
    title: str | None,
    plugin: tuple[Path, ...],
) -> None:
    """Redraw all tables and figures of RUN from its files alone, and the page report.html that holds them all.

    The page opens from disk in any browser: tables that sort and copy as LaTeX, figures, every test slide, worst
    errors first, with zoomable attention maps, warnings and provenance.
    """
    from rich.console import Console

    if not 0 <= maps_mib < float("inf"):
        raise InputError(f"--maps-mib must be 0 or more and finite, not {maps_mib:g}")
    if by:
        write_groups(run, by, groups)
    elif groups is not None:
        raise InputError("--groups is the table of --by; name its columns there")
    show(
        run,
        Console(),
        slide_images=slide_images,
        maps_mib=maps_mib,
        slides=slides,
        title=title,
        control=control,
    )


def write_groups(run: Path, by: Sequence[str], groups: Path | None) -> None:
    """Keeps the groups of a run's slides in its ``groups.csv``, which every later report shows too."""
    from mil_zoo.bench.run_directory import RunDirectory
    from mil_zoo.data.labels.groups import read_groups
    from mil_zoo.report.subgroups import FILE

    kept = RunDirectory(run)
    slides, covariates = (
        kept.table("splits.csv", ["slide_id", "patient_id"]),
        kept.table("covariates.csv", ["patient_id"]),
    )
    if slides is None:
        raise InputError(f"{run} has no splits.csv, which says whose its slides are; pass the --out folder of a bench")
    known: dict[str, dict[str, str]] = {}
    if covariates is not None:
        table = covariates.set_index("patient_id")
        known = {str(name): {str(who): str(value) for who, value in table[name].items()} for name in table}
    names = list(zip(slides["slide_id"], slides["patient_id"], strict=True))
    made = read_groups(by, names, groups, known)
    with writing(run):
        write_text(run / FILE, made.to_csv(index=False, lineterminator="\n"))
        for figure in (run / "figures").glob("subgroups-*"):  # of other groups, which the report no longer has
            figure.unlink()


def show(
    path: Path,
    console: Any,
    *,
    slide_images: Path | None = None,
    maps_mib: float = 24.0,
    slides: Sequence[str] | None = None,
    title: str | None = None,
    control: str | None = None,
) -> None:
    """Writes and prints the tables of the run in ``path``, draws its figures and page, and says where they are."""
    with telling(console), working(console, "Drawing tables and figures"), heap_set_aside():
        from mil_zoo.report.figures import draw_figures
        from mil_zoo.report.load import Results
        from mil_zoo.report.page import write_page
        from mil_zoo.report.tables import terminal_scores, write_tables

        results = Results.load(path, slides, title, control)
        results.run.refuse_links()
        if not results.trials and (path / "table.csv").exists():
            raise InputError(
                f"{path} keeps the tables of a run without its trials (trials.jsonl), from which tables are made: "
                "they are left as they are"
            )
        with writing(path, f"the results are kept: start mil-zoo report {path} again"):
            tables = write_tables(results)
            drawings = draw_figures(results)
            page = write_page(results, drawings, slide_images, maps_mib)
    console.print(terminal_scores(results).terminal())
    figures = ", ".join(drawing.path.name for drawing in drawings) or "none"
    for line in (
        f"Tables:  {path} ({', '.join(table.name for table in tables)})",
        f"Figures: {path / 'figures'} ({figures})",
        f"Page:    {page}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
