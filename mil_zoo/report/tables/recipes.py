"""How the models of a run were trained beside their authors' recipes, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mil_zoo.bench.results import ModelSettings
from mil_zoo.config import read_shipped, shipped_names
from mil_zoo.report.load import Results


def unequal_budgets(results: Results) -> list[str]:
    """A sentence where models of the run were given other numbers of epochs than others."""
    given = {model.training.get("epochs") for model in results.config.model_settings.values()} - {None}
    if len(given) < 2:
        return []
    return [
        "The models were given different numbers of epochs: a difference between them may be that of their budgets."
    ]


def changed_recipes(results: Results) -> list[str]:
    """What differs from the authors' recipes, a phrase a setting, without what a grid varies.

    "epochs 7 instead of 100 to 200 (abmil, clam_sb)"; learning rates as multiples. The names are left out where it is
    every model of the run.
    """
    models = results.config.model_settings
    changed: dict[str, dict[str, tuple[Any, Any]]] = defaultdict(dict)
    for label, model in models.items():
        if label.partition("@")[0] in shipped_names("aggregators"):
            for name, before in (model.replaced or {}).items():
                changed[name][label] = _now(model).get(name), before
    said = []
    for name, pairs in changed.items():
        now, before = zip(*pairs.values(), strict=True)
        how = f"{_several(now)} instead of {_several(before)}"
        if name == "learning_rate":
            how = f"{_several([one / other for one, other in pairs.values()])} times theirs"
        named = [*by_model(dict.fromkeys(pairs))]
        of = f" ({', '.join(named) if len(named) < 6 else f'{len(named)} models'})" if len(pairs) < len(models) else ""
        said.append(f"{name} {how}{of}")
    return said


def _now(model: ModelSettings) -> dict[str, Any]:
    return {"graph": model.graph, **model.training, **model.options}


def _several(values: Sequence[Any]) -> str:
    """Values as they are written: of numbers the least and the largest."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        ends = sorted({_value(float(value)): value for value in values}.items(), key=lambda end: end[1])
        return " to ".join(dict.fromkeys((ends[0][0], ends[-1][0])))
    return " or ".join(dict.fromkeys(map(_value, values)))


def _changes(results: Results) -> str:
    """What the suite or the command line changed of the recipes, in words."""
    models = results.config.model_settings
    if any(model.replaced is None for model in models.values()):  # a run of before
        return "with what the suite or the command line changes"
    changes: dict[str, list[str]] = defaultdict(list)
    for label, model in models.items():
        for name, before in (model.replaced or {}).items():
            changes[f"{name} {_value(_now(model).get(name))} instead of {_value(before)}"].append(label)
    found = [f"{change} ({', '.join(labels)})" for change, labels in changes.items()]
    return f"but for what the suite or the command line changes: {', '.join(found)}" if found else "unchanged"


def _value(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def settings_sentence(results: Results) -> str:
    """Whether settings were searched for, and what was changed of the recipes."""
    tuning = results.config.tuning
    if tuning is None:
        models = dict.fromkeys(label.partition("@")[0] for label in results.config.model_settings)
        own = [model for model in models if model not in shipped_names("aggregators")]
        others = f"; {', '.join(own)} without a recipe, by {_DEFAULTS}" if own else ""
        start = f"authors' recipe (configs/aggregators){others}" if len(own) < len(models) else _DEFAULTS
        return f"Settings: {start}, {_changes(results)}; none was tuned."
    judged = f"{tuning.inner_folds} inner folds" if tuning.inner_folds else "its validation slides"
    return (
        f"Settings: every aggregator tuned, N = {tuning.configurations} configurations, its recipe first, inside the "
        f"training part of each trial on {judged} ({tuning.sampler}, Optuna {tuning.optuna}). The recipe is the "
        f"authors', {_changes(results)}."
    )


_DEFAULTS = "the defaults of model and trainer"


def short_budgets(budgets: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Model, epochs and its recipe's epochs where the budget is less than half of these."""
    shipped = shipped_names("aggregators")
    found = []
    for label, epochs in budgets.items():
        name = label.partition("@")[0]
        recipe = read_shipped("aggregators", name).get("training", {}).get("epochs") if name in shipped else None
        if recipe is not None and epochs < recipe / 2:
            found.append((label, epochs, recipe))
    return found


def by_model(of_label: Mapping[str, Any]) -> dict[str, Any]:
    """One entry a model instead of one for each of its variants, where these agree."""
    values = defaultdict(set)
    for label, value in of_label.items():
        values[label.partition("@")[0]].add(value)
    return {
        (model if len(values[model := label.partition("@")[0]]) == 1 else label): value
        for label, value in of_label.items()
    }
