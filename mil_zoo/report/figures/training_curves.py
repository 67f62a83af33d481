"""Loss and validation scores while the aggregators train."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mil_zoo.metrics import inside
from mil_zoo.report.figures.look import WIDTH, band, colours_of, legend, level, title, widths
from mil_zoo.report.figures.registry import register_figure
from mil_zoo.report.figures.series import band_note, majority, trained
from mil_zoo.report.load import Results


@register_figure(
    "training",
    place=40,
    page=50,
    caption="The training loss, and the scores on the validation slides, on which checkpoints are chosen. Losses of "
    "different models sum different terms and do not compare.",
)
def draw(results: Results) -> dict[str, Figure]:
    """``training``: the training loss, and of each headline metric its course on the validation slides."""
    shown, colours = trained(results), colours_of(results)
    width = widths(list(shown))
    if not shown:
        return {}
    names = {f"val_{metric.name}": f"validation {inside(metric.title)}" for metric in reversed(results.headline)}
    known = {
        name for name in names for part in shown.values() if name in part.epochs and part.epochs[name].notna().any()
    }
    panels = {"loss": "training loss"} | {name: what for name, what in names.items() if name in known}
    share = majority(results)
    chance = {"val_auc": (0.5, "chance")} if share is not None else {}
    if share is not None:
        chance["val_accuracy"] = (share, "majority class")
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    for axes, (name, ylabel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, part in shown.items():
            if name in part.epochs:  # a pretraining without labels is not validated
                band(axes, part.epochs, name, colours[label], width[label])
        axes.set(title=ylabel, xlabel="epoch")
        if name in chance and axes.lines:
            level(axes, *chance[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(title(results, "Training"))
    note = band_note(shown.values(), "") + "Losses of different models sum different terms."
    if missing := [what for name, what in names.items() if name not in known]:
        note += f" Without a value in any epoch, so not shown: {', '.join(missing)}."
    legend(figure, {label: colours[label] for label in shown}, note)
    return {"training": figure}
