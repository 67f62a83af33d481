"""``mil-zoo bench``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from mil_zoo.cli.options import comma_list, plugin_option
from mil_zoo.errors import InputError


@click.command(
    epilog="""\b
Examples:
  mil-zoo bench --models srmil,abmil
  mil-zoo bench --models srmil,abmil --dataset crchisto --root DATA
  mil-zoo bench --models abmil,mean --dataset bags.npz --folds 5 --epochs 30
  mil-zoo bench --models abmil,mymil --plugin my_mil.py --set mymil.width=64
Start the same command with the same --out again to continue an interrupted run.
"""
)
@click.option("--suite", help="Settings to start from, see configs/suites.  [default: the dataset's own, else demo]")
@click.option("--models", callback=comma_list(), help="Aggregators to compare, comma-separated (see mil-zoo models).")
@click.option("--dataset", metavar="CARD|TABLE.npz", help="A data card (see mil-zoo datasets) or a bag table.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder of the dataset's files.  [default: $MIL_ZOO_REAL_DATA]"
)
@click.option("--folds", type=int, help="Parts of the cross-validation.")
@click.option("--repeats", type=int, help="Repetitions of it.")
@click.option("--seeds", callback=comma_list(int), help="Seeds of each fold, comma-separated.")
@click.option("--epochs", type=int, help="Budget for all aggregators.  [default: the suite's or each one's own]")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="srmil.mask_rate=0.5, or learning_rate=1e-4 for all."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.  [default: runs/<suite>-<time>]")
@plugin_option
def bench(
    suite: str | None,
    models: list[str] | None,
    dataset: str | None,
    root: Path | None,
    folds: int | None,
    repeats: int | None,
    seeds: list[int] | None,
    epochs: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    plugin: tuple[Path, ...],
) -> int:
    """Compare aggregators on a dataset.

    Every aggregator trains on the same folds; its checkpoint is chosen on validation patients that are in neither train
    nor test. Writes tables (csv, md, tex), figure 3 and the attention maps into the run directory.
    """
    from rich.console import Console

    console = Console()
    with console.status("Loading torch and DGL"):
        from mil_zoo.bench.plan import make_plan, parse_overrides, read_suite

    with console.status("Opening the dataset"):
        chosen = read_suite(
            suite,
            models=models,
            dataset=dataset,
            folds=folds,
            repeats=repeats,
            seeds=seeds,
            epochs=epochs,
            overrides=parse_overrides(settings),
        )
        plan = make_plan(chosen, root)
    card = plan.dataset.card
    if out is None:
        out = Path("runs") / f"{suite or card.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(
        f"[bold]{card.title}[/]: {len(plan.dataset.bags)} bags, {sum(map(len, plan.dataset.bags)):,} instances of "
        f"{plan.dataset.in_dim} features; {len(plan.trials)} trials into {out}",
        highlight=False,
    )
    rows = _run(plan, out, console)
    failures = [row for row in rows if row["status"] != "ok"]
    for row in failures:
        console.print(f"[red]failed[/] {row['trial']}: {row['reason']}", highlight=False)
    if len(failures) < len(rows):
        from mil_zoo.cli.report import show

        show(out, console)
    return 1 if failures else 0


def _run(plan: Any, out: Path, console: Any) -> list[dict[str, Any]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mil_zoo.bench.runner import run_plan

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    epochs = {trial.id: trial.model.training.epochs for trial in plan.trials}
    rows: list[dict[str, Any]] = []
    with Progress(*columns, console=console) as progress:
        # SRMIL's epochs take many times ABMIL's, so what is left is told for each model and not for the sum of epochs.
        bars = {
            model.name: progress.add_task(
                model.name, total=sum(e for t, e in epochs.items() if t.startswith(f"{model.name}-r"))
            )
            for model in plan.models
        }

        def on_epoch(trial: Any, row: dict[str, Any]) -> None:
            progress.update(bars[trial.model.name], advance=1)

        def on_result(row: dict[str, Any]) -> None:
            rows.append(row)
            name = row["aggregator"]
            finished = sum(epochs[done["trial"]] for done in rows if done["aggregator"] == name)
            progress.update(bars[name], completed=finished)

        try:
            run_plan(plan, out, on_epoch=on_epoch, on_result=on_result)
        except KeyboardInterrupt:
            progress.stop()
            console.print(
                f"Interrupted after {len(rows)} of {len(plan.trials)} trials; they are kept. The same command with "
                f"--out {out} continues.",
                highlight=False,
            )
            raise
        except OSError as error:
            raise InputError(
                f"writing the run failed ({error}); {len(rows)} of {len(plan.trials)} trials are kept in {out}; "
                "free some space and start the same command again"
            ) from error
    return rows
