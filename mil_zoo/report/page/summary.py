"""The findings of a run, one sentence each: what stands at the top of its page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mil_zoo.metrics import Metric, inside
from mil_zoo.report.load import Results
from mil_zoo.report.page.slides import Slide
from mil_zoo.report.tables.comparison_tables import why_none_is_bold
from mil_zoo.report.tables.encoders import PATIENTS
from mil_zoo.report.tables.pairs import best, chances
from mil_zoo.report.tables.recipes import changed_recipes, unequal_budgets
from mil_zoo.report.tables.scores import score_table
from mil_zoo.report.tables.skew_table import skew_table
from mil_zoo.report.tables.text import count, short
from mil_zoo.report.test_parts import why_undefined


def findings(results: Results, slides: Sequence[Slide]) -> list[str]:
    """What the run found, the most important first; [] for a run without a finished trial."""
    found: list[str] = []
    if results.metrics and any(results.finished.values()):
        found += [*_score(results, results.lead), *unequal_budgets(results), *_other_settings(results)]
    return [*found, *_attention(results), *_alignment(results), *_worst(slides)]


def _score(results: Results, metric: Metric) -> list[str]:
    table = score_table(results).dropna(subset=[f"{metric.name}_mean"])
    if table.empty:
        why = why_undefined(results, metric.name)
        return [f"{metric.title} is undefined in every trial{why}: no model can be called better than another by it."]
    order = table.sort_values(f"{metric.name}_mean", ascending=metric.higher_is_better is False)
    top, others = order.iloc[0], list(order["aggregator"])[1:]
    low, high = (top[f"{metric.name}_{end}"] for end in ("low", "high"))
    interval = " (no interval: all test sets have this value)" if top[f"{metric.name}_sd"] == 0 else ""
    if not np.isnan(low):
        interval = f" (95 % interval {_within(metric, low):.3f} to {_within(metric, high):.3f})"
    which = "highest" if metric.higher_is_better is not False else "lowest"
    said = (
        f"{top['aggregator']} has the {which} mean {inside(metric.title)}, {top[f'{metric.name}_mean']:.3f}{interval}"
    )
    if not others:
        return [f"{said}; no other model was trained, so it is compared with nothing."]
    last = order.iloc[-1]
    said = f"{said}; {last['aggregator']} has the {_OTHER[which]}, {last[f'{metric.name}_mean']:.3f}."
    return [said, *_differences(results, metric)]


def _other_settings(results: Results) -> list[str]:
    """How models were trained otherwise than by the recipes of their papers, where that is known."""
    changed = changed_recipes(results)
    if not changed:
        return []
    return [
        f"Trained otherwise than by the authors' recipes: {'; '.join(changed)}. Scores are of these settings, not of "
        "what the models can do."
    ]


_OTHER = {"highest": "lowest", "lowest": "highest"}


def _within(metric: Metric, value: float) -> float:
    return float(np.clip(value, *metric.bounds))


def _differences(results: Results, lead: Metric) -> list[str]:
    """By which metrics who can be the best, and that nobody differs by the leading one where that is so."""
    trained = [label for label, trials in results.finished.items() if trials]
    if len(trained) < 2:
        return []
    members = best(results)
    if not members:
        note = why_none_is_bold(results)
        return [note[:1].upper() + note[1:]]
    said = [] if lead.name in members else [f"By {inside(lead.title)}, {why_none_is_bold(results, [lead])}"]
    titles: dict[str, list[str]] = {}
    for metric, patients in itertools.product(
        sorted(results.headline, key=lambda metric: metric != lead), (False, True)
    ):
        can = sorted(label for label in members.get(metric.name, ()) if label.endswith(PATIENTS) == patients)
        if can:
            out = [label for label in chances(results, metric, patients)[0] if label not in can]
            verdict = (
                f"{_list(can)} can be the best; {_list(out)} cannot ({'is' if len(out) == 1 else 'are'} worse than "
                "another one, with 95 % confidence for all of them together)."
            )
            titles.setdefault(verdict, []).append(inside(metric.title))
    return [*said, *(f"By {_list(of)}, {verdict}" for verdict, of in titles.items())]


def _attention(results: Results) -> list[str]:
    table = skew_table(results)
    if table.empty or "n_x_max_median" not in table:
        return []
    table = table.dropna(subset=["n_x_max_median"]).sort_values("n_x_max_median", ascending=False)
    if table.empty:
        return []
    parts = [f"{row.aggregator} {short(row.n_x_max_median)}" for row in table.itertuples()]
    return [
        "The most attended instance of a test slide gets this many times the attention that it would get were all "
        f"alike (median): {', '.join(parts)}."
    ]


def _alignment(results: Results) -> list[str]:
    table = skew_table(results)
    if table.empty or "mass_ratio_median" not in table:
        return []
    table = table.dropna(subset=["mass_ratio_median"]).sort_values("mass_ratio_median", ascending=False)
    if table.empty:
        return []
    parts = [f"{row.aggregator} {short(row.mass_ratio_median)}" for row in table.itertuples()]
    return [f"Positive instances get this many times the attention of their share (median): {', '.join(parts)}."]


def _worst(slides: Sequence[Slide]) -> list[str]:
    always = [slide for slide in slides if slide.wrong == slide.trials > 0]
    if not any(slide.wrong for slide in slides):
        return []
    some = sum(slide.wrong > 0 for slide in slides)
    return [
        f"{count(some, 'test slide')} of {len(slides)} {'is' if some == 1 else 'are'} predicted wrong by at least one "
        f"trial, {len(always)} by all that tested {'it' if len(always) == 1 else 'them'}; the worst is "
        f"{slides[0].slide_id}."
    ]


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
