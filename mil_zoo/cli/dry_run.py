"""``mil-zoo bench --dry-run``: which trials would run, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from mil_zoo.cli.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from mil_zoo.bench.plan import Plan


def show_dry_run(plan: Plan, out: Path, jobs: int, console: Console) -> None:
    """Lists the trials that ``out`` does not hold, and what they would take."""
    from rich.table import Table

    from mil_zoo.bench.forecast import SAMPLE, forecast
    from mil_zoo.bench.run_directory import RunDirectory

    done = {row["trial"] for row in RunDirectory(out).trials() if row["status"] == "ok"}
    left = [trial.id for trial in plan.trials if trial.id not in done]
    with console.status("Measuring a few steps"):
        estimates = forecast(plan, done)
    for trial in left:
        click.echo(trial)
    header = ("model", "trials to run", "epochs", "a trial", "of it figure 3", "together")
    table = Table(*header, title=escape(plan.dataset.card.title))
    for found in estimates:
        a_trial, together = (duration(found.seconds * number) for number in (1, found.trials))
        recording = f"{found.recording:.0%}" if found.seconds == found.seconds else ""
        reason = escape(found.reason) or a_trial
        table.add_row(escape(found.label), str(found.trials), str(found.epochs), reason, recording, together)
    console.print(table)
    known = [found for found in estimates if found.trials and found.seconds == found.seconds]
    whole = sum(found.seconds * found.trials for found in known) / jobs
    least = max((found.seconds for found in known), default=0.0)
    console.print(
        f"{len(left)} trials to run, {len(done)} done. About {duration(max(whole, least))} with --jobs {jobs}, from "
        f"one step and one evaluation of {SAMPLE} slides a model on {plan.suite.threads} threads: expect it within a "
        "factor of two, more where the trials get in each other's way.",
        highlight=False,
    )
