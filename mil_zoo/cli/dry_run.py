"""``mil-zoo bench --dry-run``: which trials would run, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from mil_zoo.cli.progress import duration

_LIKELY, _AGREE = 0.85, 0.5  # AUC, and the correlation of two models' errors on the same slides

if TYPE_CHECKING:
    from rich.console import Console

    from mil_zoo.bench.plan import Plan


def show_dry_run(plan: Plan, out: Path, jobs: int, console: Console) -> bool:
    """Lists the trials that ``out`` does not hold, and what they would take; whether a model failed when measured."""
    from rich.table import Table

    from mil_zoo.bench.forecast import SAMPLE, forecast
    from mil_zoo.bench.run_directory import RunDirectory
    from mil_zoo.report.tables.text import count

    done = {row["trial"] for row in RunDirectory(out).trials() if row["status"] == "ok"}
    left = [trial.id for trial in plan.trials if trial.id not in done]
    with console.status("Measuring a few steps"):
        estimates = forecast(plan, done)
    for trial in left:
        click.echo(trial)
    header = ("model", "trials to run", "epochs", "a trial", "figure 3 of it", "together")
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
        f"one step and one evaluation of {SAMPLE} slides a model on {count(plan.suite.threads, 'thread')}: expect it "
        "within a factor of two, more where the trials get in each other's way.",
        highlight=False,
    )
    if sentence := detectable(plan):
        console.print(sentence, markup=False, highlight=False)
    return any(found.failed for found in estimates)


def detectable(plan: Plan) -> str:
    """What difference in AUC the plan can be expected to find, as a sentence; "" without two classes or two models."""
    import numpy as np

    from mil_zoo.data.splits.split import patient_key
    from mil_zoo.report.tables.pairs import ENOUGH, FEW
    from mil_zoo.stats import area_error, design_error, detectable_difference

    models, slides = len(plan.models), {slide.slide_id: slide for slide in plan.dataset.bags.slides}
    tests = {
        tuple(sorted({(patient_key(slides[slide]), slides[slide].label) for slide in split.test}))
        for split in plan.splits
    }
    positives, negatives = (float(np.mean([sum(label == c for _, label in test) for test in tests])) for c in (1, 0))
    if models < 2 or len(plan.dataset.card.classes) != 2 or not positives or not negatives:
        return ""
    sd = area_error(_LIKELY, positives, negatives)
    n_train = float(np.mean([len(split.train) for split in plan.splits]))
    n_test = float(np.mean([len(split.test) for split in plan.splits]))
    if len(tests) > 1:
        se, df = design_error(sd, len(tests), n_train, n_test, _AGREE), len(tests) - 1.0
    else:
        se, df = float(sd * np.sqrt(2 * (1 - _AGREE))), np.inf
    least = detectable_difference(se, df, comparisons=models - 1)
    found = (
        f"Four times in five this design finds a difference of {least:.2f} in AUC from the best or a control, and "
        "smaller ones less often"
        if least <= 1
        else "No difference in AUC, however large, is found four times in five by this design"
    )
    if 1 < len(tests) < ENOUGH:
        found = f"No difference in AUC, however large, is found by this design: {FEW}"
    sets = f"{len(tests)} test sets" if len(tests) > 1 else "1 test set"
    return (
        f"{found} ({sets} of {positives:.0f} positive and {negatives:.0f} negative patients, {models} "
        f"models; AUCs near {_LIKELY} whose errors correlate by {_AGREE} are assumed)."
    )
