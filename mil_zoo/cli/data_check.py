"""``mil-zoo data show`` and ``mil-zoo data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import comma_list, outcome_options, plugin_option, told_task
from mil_zoo.files import write_text, writing
from mil_zoo.markdown import escape_markdown

_SHOWN = 12  # findings and slides named on the screen; --csv has all
_EXAMPLES = 5  # slides named with a finding


@click.command()
@click.argument("card")
def show(card: str) -> None:
    """Tell all about the dataset called CARD: source, licence, counts, label rule, split, traps, how to obtain it."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.table import Table

    from mil_zoo.data.card import read_card

    described = read_card(card)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in described.facts().items():
        table.add_row(name, escape(value))
    console = Console()
    console.print(f"[bold]{escape(described.title)}[/]  ({escape(described.name)})\n", highlight=False)
    console.print(table, highlight=False)
    console.print()
    console.print(Markdown(described.text.partition("\n")[2]))


@click.command(
    epilog="""\b
What is checked, for every slide: that its file can be read and holds what it declares, the shape of features and
coordinates, NaN, the step of the coordinates against the patch size, isolated and repeated patches, identical content
under two ids; and its annotations: readable, of this slide and level, with a lesion. Then labels without slides, slides
without labels, patients with two labels or on two sides of a split, and the counts of the card. Exit code 0: nothing
has to be mended; 1: something has.

\b
Examples:
  mil-zoo data check camelyon16 --root /data/camelyon16
  mil-zoo data check /data/my_features --labels labels.csv --csv slides.csv
  mil-zoo data check /data/my_features --labels labels.csv --time os_days --event os_event
"""
)
@click.argument("dataset", metavar="CARD|DIR|FILE")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of a card's files.")
@click.option("--labels", type=click.Path(path_type=Path), help="csv: slide_id, label[, patient_id or case_id, split].")
@outcome_options
@click.option("--features", callback=comma_list(), help="Sets of features (encoders), comma-separated.  [default: all]")
@click.option("--layout", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option("--allow-missing", is_flag=True, help="Slides of the labels without features are no error.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write one row a slide to this file.")
@click.option("--markdown", is_flag=True, help="Print the report as Markdown.")
@plugin_option
def check(
    dataset: str,
    root: Path | None,
    labels: Path | None,
    features: list[str] | None,
    layout: str | None,
    allow_pickle: bool,
    allow_missing: bool,
    csv_path: Path | None,
    markdown: bool,
    plugin: tuple[Path, ...],
    **outcome: Any,
) -> int:
    """Read every slide of a dataset once and say what is wrong with it: a card's, or any folder or file of features."""
    import pandas as pd
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mil_zoo.data.check import check_dataset
    from mil_zoo.data.source import DatasetSource

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("slides", total=None)
        reports = check_dataset(
            DatasetSource(
                dataset,
                root,
                labels,
                layout=layout,
                allow_pickle=allow_pickle,
                allow_missing=allow_missing,
            ).with_task(told_task(outcome)),
            features=features,
            on_slide=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    for report in reports:
        if markdown:
            click.echo(as_markdown(report))
        else:
            _print(report, Console())
    if csv_path is not None:
        rows = [report.slides.assign(features=report.features) for report in reports]
        with writing(csv_path):
            write_text(csv_path, pd.concat(rows).to_csv(index=False, lineterminator="\n"))
        console.print(f"One row a slide: {csv_path}", markup=False, highlight=False)
    return 0 if all(report.ok for report in reports) else 1


def _print(report: Any, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(show_header=False, title=escape(report.title))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in report.summary().items():
        table.add_row(name, escape(value))
    console.print(table, highlight=False)
    findings = Table("", Column("what", overflow="fold"), "how many", Column("which", overflow="fold"))
    for finding in report.findings[:_SHOWN]:
        colour = "red" if finding.level == "error" else "yellow"
        findings.add_row(
            f"[{colour}]{finding.level}[/]",
            escape(finding.text),
            str(len(finding.slides) or ""),
            escape(_named(finding)),
        )
    if report.findings:
        console.print(findings, highlight=False)
    if len(report.findings) > _SHOWN:
        console.print(f"... and {len(report.findings) - _SHOWN} more (--csv FILE names every slide)", highlight=False)
    console.print("[green]nothing to mend[/]" if report.ok else "[red]mend the errors[/]")


def as_markdown(report: Any) -> str:
    """A report as Markdown: a table of facts, then the findings."""
    title = report.title + (f" ({report.features})" if report.features else "")
    lines = [f"### {escape_markdown(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {escape_markdown(value)} |" for name, value in report.summary().items()]
    lines += [""]
    for finding in report.findings:
        which = f" ({len(finding.slides)}: {_named(finding)})" if finding.slides else ""
        lines.append(f"- **{finding.level}**: {escape_markdown(finding.text + which)}")
    lines.append("- nothing to mend" if report.ok else "- to be mended")
    return "\n".join(lines) + "\n"


def _named(finding: Any) -> str:
    return ", ".join(finding.slides[:_EXAMPLES]) + (", ..." if len(finding.slides) > _EXAMPLES else "")
