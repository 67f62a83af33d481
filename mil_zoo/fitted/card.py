"""The model card of a trained aggregator: what it predicts, from which slides, how well, and where that ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mil_zoo import __version__
from mil_zoo.config import yaml_text
from mil_zoo.fitted.model import Fitted
from mil_zoo.markdown import escape_markdown
from mil_zoo.tasks import Task


def model_card(fitted: Fitted) -> str:
    """The text of ``README.md``: a YAML header as model hubs read it, and Markdown."""
    facts, paper = fitted.facts, type(fitted.aggregator).paper
    data = facts.data or "the user's own bags"
    header = {
        "library_name": "mil-zoo",
        "tags": [
            "model_hub_mixin",
            "pytorch_model_hub_mixin",
            "multiple-instance-learning",
            "computational-pathology",
            fitted.name,
        ],
    }
    made = f"`{fitted.name}`"
    if paper is not None:
        made += f" ({paper.title}, {paper.year}, {paper.url})"
    parts = [
        f"---\n{yaml_text(header)}---",
        f"# {fitted.name} on {escape_markdown(data)}",
        f"The multiple-instance-learning aggregator {made}, trained by mil-zoo {__version__} for the task "
        f"`{fitted.task.name}`. It takes the patch features of a whole slide, `[N, {fitted.in_dim}]`, and "
        f"predicts {_predicted(fitted.task)}.",
        "## Use",
        '```python\nimport mil_zoo\n\nfitted = mil_zoo.load("FOLDER")\nprediction = '
        "fitted.predict([bag])[0]\nprint(prediction.words, prediction.probabilities)\n```",
        "## Data and splits",
        _bullets(_data(fitted)),
        "## Scores",
        _scores(fitted),
        "## Limits",
        _bullets(_limits(fitted)),
    ]
    return "\n\n".join(parts) + "\n"


def classes_of_columns(task: Task) -> dict[str, str]:
    """Of which class each column of probabilities is; {} of a task without classes, or without their names."""
    columns = [name for name in task.prediction_columns if name.startswith("prob_")]
    return dict(zip(columns, getattr(task, "classes", ()), strict=False))


def _predicted(task: Task) -> str:
    classes = classes_of_columns(task)
    named = {name: f" ({escape_markdown(of)})" for name, of in classes.items()}
    return ", ".join(f"`{name}`{named.get(name, '')}" for name in task.prediction_columns)


def _data(fitted: Fitted) -> list[str]:
    facts = fitted.facts
    features = f"the set `{facts.features}`" if facts.features else "an encoder that was not named"
    data = escape_markdown(facts.data) or "bags given in Python, without a name"
    lines = [f"Data: {data}. Features: of {features}."]
    lines.append(
        f"Trained on {len(facts.train)} slides; the checkpoint was chosen on {len(facts.val)} others"
        + (f" ({escape_markdown(facts.selection)})." if facts.selection else ".")
    )
    if fitted.standardiser is not None:
        projected = "projected on principal axes" if fitted.standardiser.axes is not None else "standardised"
        lines.append(f"Features are {projected} of the training slides' features, which the folder holds.")
    if facts.trial:
        lines.append(f"Exported from {escape_markdown(facts.trial)}.")
    return lines


def _scores(fitted: Fitted) -> str:
    facts = fitted.facts
    scored = {"validation slides": facts.val_scores, "test slides": facts.test_scores}
    known = {part: scores for part, scores in scored.items() if scores}
    if not known:
        return "No score was recorded."
    titles = {metric.name: metric.title for metric in fitted.task.metrics}
    rows = [["metric", *known], ["---", *["---:"] * len(known)]]
    for name in dict.fromkeys([*facts.test_scores, *facts.val_scores]):
        rows.append([escape_markdown(titles.get(name, name)), *(_number(part.get(name)) for part in known.values())])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    chosen = "The checkpoint was chosen by the validation slides, so their scores are too good."
    below = [chosen] * bool(facts.val_scores)
    below += ["No test slides were scored."] * (not facts.test_scores)
    return f"{table}\n\n{' '.join(below)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def _limits(fitted: Fitted) -> list[str]:
    facts = fitted.facts
    lines = list(map(escape_markdown, facts.warnings))
    if facts.simulated and not any("simulated" in line.lower() for line in lines):
        lines.append("The slides were simulated: nothing it predicts of tissue means anything.")
    lines += [
        f"It reads features of the encoder it was trained with. Those of another one with {fitted.in_dim} "
        "dimensions give predictions without meaning, and nothing notices.",
        "Of the slides named in `config.json` as `train` and `val` its predictions say nothing.",
        "Scores on other hospitals, scanners and populations than those of the data are unknown.",
        "It is for research and no medical device.",
    ]
    return lines


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {one_line}" for one_line in (" ".join(line.split()) for line in lines))
