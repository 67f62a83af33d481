"""``mil-zoo rescore``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import comma_list, plugin_option, survival_options


@click.command(
    epilog="""\b
Examples:
  mil-zoo rescore risks.csv --cohort patients.csv --published published.csv --by cohort --out rescored
  mil-zoo rescore abmil.csv transmil.npz --columns patient_id=case,score=p_tumour
  mil-zoo rescore table_of_the_paper.csv --by dataset
"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--cohort", type=click.Path(path_type=Path), help="Table of who should be there: patient_id, fold, labels."
)
@click.option("--published", type=click.Path(path_type=Path), help="Table of published numbers: model, fold, value.")
@click.option("--by", callback=comma_list(), metavar="COLUMN,...", help="Score each group of these columns for itself.")
@click.option(
    "--columns",
    callback=comma_list(),
    metavar="OURS=THEIRS,...",
    help="Columns called otherwise: risk=hazard,fold=split.",
)
@click.option("--metric", help="Shown beside the published numbers.  [default: C, or AUC]")
@survival_options
@click.option("--logits", is_flag=True, help="The scores are log-odds of class 1, not probabilities.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("rescored"), show_default=True, help="Folder.")
@plugin_option
def rescore(
    files: tuple[Path, ...],
    cohort: Path | None,
    published: Path | None,
    by: list[str] | None,
    columns: list[str] | None,
    metric: str | None,
    time: str | None,
    event: str | None,
    censorship: str | None,
    event_values: list[str] | None,
    event_as_named: bool | None,
    time_unit: str | None,
    logits: bool,
    out: Path,
    plugin: tuple[Path, ...],
) -> None:
    """Score predictions that others published again, and name what cannot be right in them.

    FILES (csv or npz) hold a row a patient or slide: model, fold, patient_id or slide_id, and label with score or
    prob_0, prob_1 ..., or time, event and risk. Writes rescore.csv (a row a model and fold, beside the published
    number), and the tables, intervals, paired tests and page of a bench. Tables of published accuracies without
    predictions are checked for values that no number of slides gives.
    """
    from rich.console import Console

    from mil_zoo.cli.progress import working
    from mil_zoo.cli.report import show
    from mil_zoo.files import writing
    from mil_zoo.report.rescore import Columns, parse_columns
    from mil_zoo.report.rescore import rescore as score_again

    outcome: dict[str, Any] = {"time": time, "event": event, "censorship": censorship, "unit": time_unit}
    outcome |= {"event_values": event_values, "event_as_named": event_as_named}
    told = Columns(parse_columns(columns or []), tuple(by or []), outcome, logits)
    console = Console()
    with working(console, "Scoring again"), writing(out, "start the same command again"):
        found = score_again(files, out, told, cohort, published, metric)
    for run in found.runs:
        show(run, console)
    for table in found.document.tables:
        console.print(table.terminal())
    written = ", ".join(str(path) for path in found.files)
    console.print(f"Written: {written}", markup=False, highlight=False, soft_wrap=True)
