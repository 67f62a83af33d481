"""Aggregators over the datasets of several runs: mean ranks, critical difference, what differs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_zoo.errors import InputError, no_line
from mil_zoo.files import write_text, writing
from mil_zoo.metrics import Metric
from mil_zoo.report.figures.look import WIDTH, drawing, plain
from mil_zoo.report.figures.registry import save
from mil_zoo.report.load import Results
from mil_zoo.report.tables.table import Table
from mil_zoo.report.tables.text import count, one_line, p_value
from mil_zoo.report.test_parts import why_undefined
from mil_zoo.stats import FriedmanNemenyi, friedman_nemenyi, holm, wilcoxon_test


def scores_by_dataset(runs: Sequence[Results], metric: str) -> pd.DataFrame:
    """Mean of ``metric`` over the splits of each dataset (rows, by title) and ``aggregator[@grid]`` (columns).

    Runs of one dataset add their aggregators up. NaN where an aggregator has no finished trial on a dataset.

    Raises:
        InputError: an aggregator is in two runs of one dataset, or these have different splits.
    """
    rows: dict[str, dict[str, float]] = {}
    splits: dict[str, tuple[str, Results]] = {}
    for run, name in zip(runs, dataset_names(runs), strict=True):
        split = run.config.split.hash
        known = splits.setdefault(name, (split, run))
        if known[0] != split:
            raise InputError(
                f"{known[1].path} and {run.path} split {name} differently; compare runs of the same splits"
            )
        for label, summary in run.summaries(metric).items():
            if label in rows.setdefault(name, {}):
                raise InputError(f"{label} is in two runs of {name} ({run.path} is one); name one of them")
            rows[name][label] = summary.mean
    return pd.DataFrame.from_dict(rows, orient="index")


def dataset_names(runs: Sequence[Results]) -> list[str]:
    """What the dataset of each run is called; runs of one dataset have one name, and of two never the same.

    Two paths that end alike keep as much as tells them apart. Datasets of one title that share no slide are told apart
    by the folders of their runs.
    """
    titles = [run.config.dataset.title for run in runs]
    shown = dict(zip(titles, (run.dataset_title for run in runs), strict=True))
    for full, name in shown.items():
        if list(shown.values()).count(name) > 1:
            shown[full] = "/".join(full.replace("\\", "/").split("/")[-2:])
    cohorts: dict[str, list[tuple[set[str], str]]] = {}  # of each title: their slides, and what they are called
    places = []
    for run, title in zip(runs, titles, strict=True):
        known, slides = cohorts.setdefault(title, []), _slides_of(run)
        same = [i for i, (others, _) in enumerate(known) if not slides or not others or slides & others]
        places.append(same[0] if same else len(known))
        if not same:
            known.append((slides, f"{shown[title]} ({run.path.resolve().name})"))
    return [
        shown[title] if len(cohorts[title]) == 1 else cohorts[title][place][1]
        for title, place in zip(titles, places, strict=True)
    ]


def _slides_of(run: Results) -> set[str]:
    """The slides of a run; empty where its folder holds tables only."""
    table = run.run.table("splits.csv", ["slide_id"])
    return set() if table is None else set(table["slide_id"])


def write_ranking(
    runs: Sequence[Results],
    out: Path,
    metric: str | None = None,
    models: Sequence[str] | None = None,
    title: str | None = None,
) -> list[Path]:
    """Writes ``ranking.csv|md|tex``, ``differences.csv`` and, of three aggregators, ``critical_difference.png``.

    Args:
        runs: finished or not; at least two datasets in all.
        out: folder to write into.
        metric: what ranks; None for the lead metric of the runs.
        models: aggregators to rank; None for all that every dataset has a score of.
        title: of the figure and the caption; None for the metric and the number of datasets.

    Raises:
        InputError: runs of different tasks or without the metric, fewer than two datasets, fewer than two aggregators
            in common, or one of ``models`` without a score.
    """
    if title is not None and (fault := no_line(title)):
        raise InputError(f"title {fault}")
    by = _metric_of(runs, metric)
    scores = scores_by_dataset(runs, by.name)
    for run, name in zip(runs, dataset_names(runs), strict=True):
        if name not in scores.index or scores.loc[name].isna().all():
            raise InputError(_why_unscored(run, by, name))
    table, left_out = _ranked(scores, models)
    ranks = table.rank(axis=1, ascending=not by.higher_is_better).mean()
    table = table[ranks.sort_values(kind="stable").index]
    towards = 1 if by.higher_is_better else -1
    result = friedman_nemenyi(towards * table) if table.shape[1] > 2 else None
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    rows.append(["Mean rank", *(f"{ranks[label]:.2f}" for label in table)])
    lines = _notes(runs, by, table, left_out, result)
    shown = Table(["Dataset", *table], rows, lines, ruled=frozenset([len(rows) - 1]))
    tidy = table.rename_axis("dataset").reset_index().melt("dataset", var_name="aggregator", value_name=by.name)
    written = {
        "ranking.csv": Table.of(tidy.assign(mean_rank=tidy["aggregator"].map(ranks))).csv(),
        "ranking.md": shown.markdown(),
        "ranking.tex": shown.latex(title or f"{by.title} and mean ranks"),
        "differences.csv": Table.of(_differences(table)).csv(),
    }
    paths = [out / name for name in written]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
        if result is not None:
            with drawing():
                figure = diagram(result, list(table), title or f"{by.title} over {len(table)} datasets", lines[0])
                save(figure, out / "critical_difference.png")
            paths.append(out / "critical_difference.png")
    return paths


def _metric_of(runs: Sequence[Results], name: str | None) -> Metric:
    tasks = dict.fromkeys(run.task.name for run in runs)
    if len(tasks) > 1:
        raise InputError(f"the runs are of different tasks ({', '.join(tasks)}); compare runs of one")
    name = name or runs[0].lead.name
    found = [run.metric(name) for run in runs]  # each has it, or says so
    return found[0]


def _why_unscored(run: Results, metric: Metric, name: str) -> str:
    """Why a dataset ranks nothing."""
    if not any(run.finished.values()):
        return f"{run.path} holds no finished trial; leave it out, or start the bench again"
    why = why_undefined(run, metric.name)
    return f"{metric.title} is undefined on {name} for every aggregator{why}; leave {run.path} out, or rank by another"


def _ranked(scores: pd.DataFrame, models: Sequence[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """The scores that every dataset has, and the aggregators that are left out since one lacks theirs."""
    scores = _chosen(scores, models)
    left_out = [str(label) for label in scores if scores[label].isna().any()]
    table = scores.drop(columns=left_out)
    if len(table) < 2 or table.shape[1] < 2:
        raise InputError(
            f"ranks need at least 2 datasets and 2 aggregators with a score on all of them, not "
            f"{count(len(table), 'dataset')} and {count(table.shape[1], 'aggregator')} ({', '.join(table) or 'none'})"
        )
    return table, left_out


def diagram(result: FriedmanNemenyi, labels: list[str], title: str, note: str) -> Figure:
    """Demšar's critical-difference diagram: mean ranks on a line, best at the left; bars join what does not differ.

    Args:
        result: of the aggregators ``labels``, in their order.
    """
    k, groups = len(labels), result.groups()
    order = np.argsort(result.ranks, kind="stable")
    half = -(-k // 2)
    step, first = 0.34, 0.5 + 0.2 * len(groups)
    height = first + step * half + 0.2
    figure = Figure(figsize=(WIDTH, 0.75 * height + 1.1), layout="constrained")
    axes = figure.subplots()
    margin = 0.32 * (k - 1)
    axes.set(xlim=(1 - margin, k + margin), ylim=(height, -1.0))
    axes.set_axis_off()
    axes.hlines(0, 1, k, color="0.1", linewidth=1)
    for rank in range(1, k + 1):
        axes.vlines(rank, -0.12, 0, color="0.1", linewidth=1)
        axes.text(rank, -0.2, str(rank), ha="center", va="bottom", fontsize=7)
    shown = min(result.critical_difference, k - 1)
    axes.hlines(-0.72, 1, 1 + shown, color="0.1", linewidth=1.2)
    axes.vlines([1, 1 + shown], -0.79, -0.65, color="0.1", linewidth=1.2)
    wide = " (wider than the scale)" if shown < result.critical_difference else ""
    axes.text(1 + shown / 2, -0.8, f"CD = {result.critical_difference:.2f}{wide}", ha="center", va="bottom", fontsize=7)
    for i, j in enumerate(order):
        left = i < half
        y = first + step * (i if left else k - 1 - i)
        end = 1 - 0.04 * k if left else k + 0.04 * k
        axes.plot([result.ranks[j], result.ranks[j], end], [0, y, y], color="0.35", linewidth=0.9)
        label = plain(labels[j])
        text = f"{label}  {result.ranks[j]:.2f}" if left else f"{result.ranks[j]:.2f}  {label}"
        axes.text(end, y, f" {text} ", ha="right" if left else "left", va="center")
    for row, group in enumerate(groups):
        y = 0.22 + 0.2 * row
        ends = result.ranks[group].min() - 0.04, result.ranks[group].max() + 0.04
        axes.hlines(y, *ends, color="#0173b2", linewidth=3.5, capstyle="round")
    figure.suptitle(plain(f"Mean ranks of {title}"))
    figure.supxlabel(
        f"{note} Bars join aggregators whose mean ranks do not differ (Nemenyi, 5 %).", fontsize=7, wrap=True
    )
    return figure


def _chosen(scores: pd.DataFrame, models: Sequence[str] | None) -> pd.DataFrame:
    if models is None:
        return scores
    if len(set(models)) < len(models):
        raise InputError(f"--models must name each aggregator once, not {','.join(models)}")
    for label in models:
        if label not in scores or scores[label].isna().any():
            without = [name for name in scores.index if label not in scores or np.isnan(scores.loc[name, label])]
            raise InputError(
                f"{label} has no score on {', '.join(map(str, without))}; leave it out of --models or run it"
            )
    return scores[list(models)]


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    """Wilcoxon's test of every pair over datasets, Holm-adjusted."""
    rows = []
    for a, b in itertools.combinations(table, 2):
        difference = table[a] - table[b]
        rows.append(
            {"a": a, "b": b, "mean_difference": difference.mean(), "p_wilcoxon": wilcoxon_test(difference.tolist())}
        )
    pairs = pd.DataFrame(rows)
    return pairs.assign(p_holm=holm(pairs["p_wilcoxon"]))


def _folds_left_out(run: Results, metric: Metric, name: str) -> list[str]:
    """Whose mean is not over all test folds."""
    splits = max((len({trial.split for trial in trials}) for trials in run.finished.values()), default=0)
    few: dict[int, list[str]] = {}
    for label, summary in run.summaries(metric.name).items():
        if 0 < summary.n < splits:
            few.setdefault(summary.n, []).append(label)
    why = why_undefined(run, metric.name)
    return [f"{name}: over {n} of {splits} test folds{why}: {', '.join(labels)}." for n, labels in few.items()]


def _p(value: float) -> str:
    """ "= 0.012" or "< 0.001", as it follows a p."""
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _notes(
    runs: Sequence[Results],
    metric: Metric,
    table: pd.DataFrame,
    left_out: list[str],
    result: FriedmanNemenyi | None,
) -> list[str]:
    lines = []
    if result is not None:
        lines.append(
            f"Friedman's test over {len(table)} datasets: chi2 = {result.chi2:.2f}, p {_p(result.p_chi2)}; Iman "
            f"and Davenport's F = {result.f:.2f}, p {_p(result.p_f)}; critical difference "
            f"{result.critical_difference:.2f}."
        )
        if result.p_f >= 0.05:
            lines.append("The aggregators do not rank differently (p >= 0.05): no pair should be called better.")
    lines.append(
        f"{metric.title}, mean over test folds; rank 1 is best, ties share their mean rank. Pairs: differences.csv "
        "(Wilcoxon over datasets, Holm)."
    )
    if len(table) < 10:
        lines.append(f"{len(table)} datasets are few: only large and consistent differences can be seen (Demšar 2006).")
    if left_out:
        lines.append(f"Left out, since a dataset has no score of them: {', '.join(left_out)}.")
    for run, name in zip(runs, dataset_names(runs), strict=True):
        split, settings = run.config.split, run.config.model_settings.values()
        budgets = sorted({model.training["epochs"] for model in settings if "epochs" in model.training})
        trained = (
            f"epochs {', '.join(map(str, budgets))}" if budgets else "how models were trained, the files do not say"
        )
        lines.append(f"{name}: {split.kind}, {split.repeats} x {split.folds} folds; {trained}.")
        lines += _folds_left_out(run, metric, name)
        planned = run.config.planned_trials // len(run.config.model_settings)
        finished = {label: sum(trial.ok for trial in trials) for label, trials in run.groups.items()}
        few = [f"{label} {ok}" for label, ok in finished.items() if run.trials and label in table and ok < planned]
        if few:
            lines.append(
                f"{name}: of {planned} trials a model {', '.join(few)} finished; the scores are means over these."
            )
        lines += [one_line(warning) for warning in run.config.dataset.warnings]
    return lines
