"""``mil-zoo data leaks``."""

from __future__ import annotations

from pathlib import Path

import click

from mil_zoo.markdown import escape_markdown


@click.command(
    epilog="""\b
Examples:
  mil-zoo data leaks splits/
  mil-zoo data leaks gigassl_lung_splits.npz bracs_slides.csv --markdown > leaks.md
"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--patients", type=click.Path(path_type=Path), help="csv with slide_id and patient_id (or case_id).")
@click.option("--markdown", is_flag=True, help="Print a table for a document.")
def leaks(files: tuple[Path, ...], patients: Path | None, markdown: bool) -> int:
    """Say which splits in FILES share patients between train, val and test; exit code 1 where one does.

    FILES are split files of CLAM, torchmil or Giga-SSL, tables with a column a split, or folders of them.
    """
    from mil_zoo.data.splits.leaks import report_leaks

    reports = [report for file in files for report in report_leaks(file, patients)]
    header = [
        "Splits",
        "Number",
        "Train / val / test",
        "Patients by",
        "Leaky",
        "In train and test",
        "In val and another",
    ]
    rows = [
        [
            report.name,
            str(report.splits),
            " / ".join(map(str, report.sizes)),
            report.known or "unknown (slides)",
            f"{report.leaky} of {report.splits}" + _range(report.counts),
            _people(report.shared),
            _people(report.with_val),
        ]
        for report in reports
    ]
    if markdown:
        for cells in (header, ["---"] * len(header), *rows):
            click.echo(f"| {' | '.join(map(escape_markdown, cells))} |")
    else:
        _print(header, rows)
    return int(any(report.shared or report.with_val for report in reports))


def _range(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return f", {low} to {high} patients each" if low < high else f", {low} patients each" if high else ""


def _people(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "0"


def _print(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
