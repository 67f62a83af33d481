"""``mil-zoo compare``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mil_zoo.cli.options import comma_list, plugin_option


@click.command(
    epilog="""\b
Examples:
  mil-zoo compare runs/musk1 runs/elephant runs/tiger runs/crchisto
  mil-zoo compare runs/classic/* --metric accuracy --models abmil,srmil,mean --out ranking
  mil-zoo compare runs/luad-kfold runs/luad-site      # what folds that share hospitals flatter
"""
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metric", help="What ranks the aggregators.  [default: the one that the task selects by]")
@click.option("--models", callback=comma_list(), help="Aggregators to rank.  [default: those on every dataset]")
@click.option("--title", help="Of the figure and the caption.  [default: the metric and the number of datasets]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write into.  [default: runs/compare-<time>]")
@plugin_option
def compare(
    runs: tuple[Path, ...],
    metric: str | None,
    models: list[str] | None,
    title: str | None,
    out: Path | None,
    plugin: tuple[Path, ...],
) -> None:
    """Rank aggregators over the datasets of several RUNS.

    Writes the table of scores and mean ranks, Friedman's test, the critical-difference diagram (Nemenyi) and Wilcoxon's
    test of every pair, Holm-adjusted (Demsar 2006). Needs two datasets or more; runs of one dataset add up. A folder
    that holds a run's config.yaml and table.csv only will do. Of survival it draws the concordance of every model in
    every cohort too, a forest plot (cohorts.png, and cohorts.csv, .md and .tex).

    Of two runs of one dataset, one of them with --split site, it writes the site gap instead: what each aggregator
    loses where no hospital is on two sides (site_gap.csv, .md and .tex).
    """
    from rich.console import Console

    from mil_zoo.report.across_runs.forest import write_forest
    from mil_zoo.report.across_runs.ranking import write_ranking
    from mil_zoo.report.across_runs.site_gap import site_pair, write_site_gap
    from mil_zoo.report.load import Results

    console = Console()
    out = out or Path("runs") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    loaded = [Results.load(run) for run in runs]
    if pair := site_pair(loaded):
        paths = write_site_gap(*pair, out)
    else:
        paths = [*write_ranking(loaded, out, metric, models, title), *write_forest(loaded, out)]
    shown = next(path for path in paths if path.suffix == ".md")
    console.print(shown.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Written: {', '.join(str(path) for path in paths)}", markup=False, highlight=False, soft_wrap=True)
