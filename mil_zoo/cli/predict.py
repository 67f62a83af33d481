"""``mil-zoo predict``."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from mil_zoo.cli.options import comma_list, plugin_option, with_underscores
from mil_zoo.cli.predicted_files import FILES, files_of, stem_of, write_attention, write_classes, write_explanations
from mil_zoo.cli.progress import telling
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_link, writing
from mil_zoo.report.names import file_stem

SIMULATED = "the model was trained on simulated slides"
SHOWN = 3  # reasons why slides failed, and notes on others; all of them are in the table


class SlideReader(NamedTuple):
    """A slide that is still to be read.

    Attributes:
        name: of the slide; of a source that cannot be opened, of that.
        source: where it comes from.
        read: gives its bag.
    """

    name: str
    source: str
    read: Callable[[], Any]


@click.command(
    epilog="""\b
Examples:
  mil-zoo predict --run runs/c16 --model srmil slide_001.h5 slide_002.h5
  mil-zoo predict --run runs/c16 --model srmil /data/trident_processed --features uni_v1 --write geojson
  mil-zoo predict --run runs/c16 --model abmil --trial abmil-r0-f2-s0 my.store --write none
  mil-zoo predict --run runs/c16 --model abmil slide_001.h5 --explain attention,gradient,occlusion
"""
)
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Run directory of a bench.")
@click.option("--model", required=True, help="Which of its models: aggregator or aggregator@grid.")
@click.option("--trial", help="One trial alone.  [default: the mean over all finished trials of the model]")
@click.option("--features", help="Which set of features, where a folder holds those of several encoders.")
@click.option("--layout", help="How the files are laid out.  [default: told from what lies there]")
@click.option("--allow-pickle", is_flag=True, help="Run the code in pickled features; for files of your own only.")
@click.option(
    "--write", default="csv,png,geojson", show_default=True, callback=comma_list(), help="Attention files, or none."
)
@click.option(
    "--explain",
    callback=comma_list(with_underscores),
    metavar="NAME,...",
    help="Score the instances by these explainers: attention, gradient, integrated_gradients, "
    "integrated_gradients_mean, occlusion, random.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("predictions"), show_default=True)
@plugin_option
def predict(
    slides: tuple[str, ...],
    run: Path,
    model: str,
    trial: str | None,
    features: str | None,
    layout: str | None,
    allow_pickle: bool,
    write: list[str],
    explain: list[str] | None,
    out: Path,
    plugin: tuple[Path, ...],
) -> int:
    """Predict SLIDEs (feature files, folders of them, packed stores, bag tables) with a model of a run.

    Writes OUT/probabilities.csv and, for each slide, its attention as csv, as a png map, and as GeoJSON that QuPath
    opens on the slide; with --explain what every explainer says of each patch as csv, and their maps beside each other
    as png. OUT/classes.csv says of which class prob_0, prob_1 ... are. A slide that cannot be read is a row with its
    reason. Slides pass one at a time.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    wanted = [] if write == ["none"] else write
    if unknown := sorted(set(wanted) - set(FILES)):
        raise InputError(f"--write takes {', '.join(FILES)} or none, not {', '.join(unknown)}")
    console = Console()
    with console.status("Loading torch and the weights"):
        from mil_zoo.bench.predictor import Predictor
        from mil_zoo.data.prefetch import map_ahead
        from mil_zoo.diagnostics.explanations import EXPLAINERS
        from mil_zoo.report.tables.text import count

        for name in explain or ():
            EXPLAINERS.get(name)
            if (explain or []).count(name) > 1:
                raise InputError(f"--explain must name each explainer once, not {','.join(explain or [])}")
        predictor = Predictor(run, model, trial)
    _check_order(features, predictor.members[0].facts.features)
    found = list(_slides(slides, features, layout, allow_pickle))
    table, unfinished = out / "probabilities.csv", out / "probabilities.unfinished.csv"
    for path in (table, unfinished, out / "classes.csv"):
        refuse_link(path)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    failures, noted, trained_on = Counter[str](), Counter[str](), 0
    taken: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        telling(console),
        writing(out, f"the rows so far are in {unfinished}"),
        Progress(*columns, console=console) as progress,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        task = progress.add_task("predicting", total=len(found))
        rows = csv.DictWriter(file, _columns(predictor), lineterminator="\n")
        rows.writeheader()
        for slide, bag in zip(found, map_ahead(_reading, iter(found)), strict=True):
            row = _row(slide, bag, predictor, wanted, explain or [], out, taken)
            rows.writerow(row)
            file.flush()
            (noted if row["status"] == "ok" else failures).update([row["reason"]] * bool(row["reason"]))
            trained_on += bool(row.get("trained_on"))
            progress.advance(task)
    with writing(out):
        os.replace(unfinished, table)  # an earlier table stays until this one is whole
        classes = write_classes(out / "classes.csv", predictor.task)
    console.print(
        f"{len(found) - failures.total()} of {count(len(found), 'slide')} predicted by "
        f"{count(len(predictor.trials), 'trial')} of {model}: {table}{classes}",
        markup=False,
        highlight=False,
    )
    for what, reasons, style in (("Failed", failures, "red"), ("Noted", noted, "yellow")):
        for reason, number in reasons.most_common(SHOWN):
            console.print(f"{what}, {count(number, 'slide')}: {reason}", style=style, markup=False, highlight=False)
        if len(reasons) > SHOWN:
            console.print(f"[{style}]{len(reasons) - SHOWN} further reasons are in the column reason[/]")
    if earlier := [path for path in files_of(out) if path.stem.casefold() not in taken]:
        console.print(
            f"{count(len(earlier), 'file')} in {out}: of slides of an earlier prediction, which are not in the table",
            style="yellow",
            markup=False,
            highlight=False,
        )
    if trained_on:
        were = "was a training or validation slide" if trained_on == 1 else "were training or validation slides"
        console.print(
            f"[yellow]{count(trained_on, 'slide')} {were} of some of these trials: what is predicted there says "
            "nothing of new slides (column trained_on)[/]"
        )
    if predictor.packed:
        console.print("[dim]Each slide is predicted alone; in training all slides of a patient were one bag.[/]")
    console.print("[dim]Training slides are told by their names: under another name one is not marked (trained_on).[/]")
    return 1 if failures else 0


def _check_order(asked: str | None, trained: str | None) -> None:
    """Refuses sets of features side by side in another order than the model was trained on: their width is the same."""
    if asked and trained and asked != trained and sorted(asked.split("+")) == sorted(trained.split("+")):
        raise InputError(f"the model was trained on features in another order; pass --features {trained}")


def _columns(predictor: Any) -> list[str]:
    values = predictor.task.prediction_columns
    spreads = [f"sd_{i}" for i in range(len(values))]
    return [
        "slide_id",
        "source",
        "status",
        "reason",
        _words(predictor),
        *values,
        *spreads,
        "members",
        "trained_on",
        "instances",
    ]


def _words(predictor: Any) -> str:
    """The column of the prediction in words: "predicted", unless the task calls a number so."""
    return "words" if "predicted" in predictor.task.prediction_columns else "predicted"


def _slides(
    texts: tuple[str, ...], features: str | None, layout: str | None, allow_pickle: bool
) -> Iterator[SlideReader]:
    """Every slide. Only names are listed."""
    from mil_zoo.data.bags import SlideFile
    from mil_zoo.data.open import contents_of, locate
    from mil_zoo.data.source import DatasetSource

    for text in texts:
        source = DatasetSource(text, features=features, layout=layout, allow_pickle=allow_pickle)
        try:
            contents = contents_of(locate(source), source)
        except InputError as error:
            if len(texts) == 1:
                raise
            yield SlideReader(Path(text).stem, text, partial(_refused, error))
            continue
        for slide in contents.bags.slides:
            where = str(slide.path) if type(slide) is SlideFile else f"{text}#{slide.slide_id}"
            yield SlideReader(slide.slide_id, where, slide.read)
        for path, problem in contents.unreadable.items():
            yield SlideReader(path.stem, str(path), partial(_refused, InputError(problem)))


def _refused(error: InputError) -> Any:
    raise error


def _reading(slide: SlideReader) -> Any:
    """The bag, or what is wrong with it."""
    try:
        return slide.read()
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{slide.source} cannot be read ({error})")


def _row(
    slide: SlideReader,
    bag: Any,
    predictor: Any,
    wanted: list[str],
    explain: list[str],
    out: Path,
    taken: dict[str, str],
) -> dict[str, Any]:
    if isinstance(bag, InputError):
        return {"slide_id": slide.name, "source": slide.source, "status": "failed", "reason": str(bag)}
    try:
        prediction = predictor.predict(bag)
        scores = predictor.explain(prediction, explain) if explain else {}
    except (InputError, RuntimeError, MemoryError) as error:  # an isolated or giant slide costs itself alone
        return {"slide_id": bag.slide_id, "source": slide.source, "status": "failed", "reason": str(error)}
    row = {
        "slide_id": bag.slide_id,
        "source": slide.source,
        "status": "ok",
        _words(predictor): prediction.words,
        "members": len(predictor.trials),
        "trained_on": prediction.trained_on,
        "instances": len(bag),
    }
    row |= {
        name: repr(float(mean)) for name, mean in zip(predictor.task.prediction_columns, prediction.values, strict=True)
    }
    row |= {f"sd_{i}": f"{sd:.3g}" for i, sd in enumerate(prediction.spread)}
    stem = stem_of(bag.slide_id, slide.source, taken)
    warning = SIMULATED if predictor.simulated else ""
    caption = f"{bag.slide_id}, {predictor.model}: {predictor.task.caption(prediction.values)}"
    caption += f" ({warning})" * bool(warning)
    for earlier in files_of(out, stem):  # of another model, perhaps
        earlier.unlink()
    said = [*[warning] * bool(warning), *_unpredicted(prediction, predictor)]
    if (wanted or explain) and stem != file_stem(bag.slide_id):
        said.append(f"files are called {stem}.*, since another slide has the same name")
    if prediction.attention is not None:
        said += write_attention(prediction, caption, warning, wanted, out / "attention" / stem)
    elif wanted:
        said.append("the model has no attention")
    if absent := [each for each in explain if each not in scores]:
        said.append(f"no explanation by {', '.join(absent)}: the model has none")
    if scores:
        said += write_explanations(scores, bag, caption, "png" in wanted, out / "explanations" / stem)
    row["reason"] = "; ".join(said)
    return row


def _unpredicted(prediction: Any, predictor: Any) -> list[str]:
    """Why numbers of a prediction are missing: those of one reason together."""
    members, reasons = len(predictor.trials), dict[tuple[int, str], list[str]]()
    for column, number in zip(predictor.task.prediction_columns, prediction.unpredicted.tolist(), strict=True):
        if number:
            reasons.setdefault((number, predictor.task.unpredicted(column)), []).append(column)
    return [
        f"no {', '.join(columns)}: {number} of {members} trials predict none" + (f" ({why})" if why else "")
        for (number, why), columns in reasons.items()
    ]
