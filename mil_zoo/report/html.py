"""``report.html``: a run as one page that needs nothing but a browser, also years later and without a network."""

from __future__ import annotations

import base64
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup, escape

from mil_zoo.report.html_maps import slide_maps
from mil_zoo.report.results import dataset_title, finished, trials_by_aggregator
from mil_zoo.report.text import BOLD, END, read_markdown, short

if TYPE_CHECKING:
    from mil_zoo.bench.run_directory import RunDirectory

MAPS_MIB = 24.0  # of attention maps in a page: what a browser opens at once
_TITLES = {"table": "Comparison", "comparisons": "Paired comparisons", "skew": "Attention"}
_TRIAL_COLUMNS = {
    "trial": "Trial",
    "status": "Status",
    "selected_epoch": "Chosen epoch",
    "epochs": "Epochs",
    "seconds_per_epoch": "s / epoch",
    "peak_mem_mib": "Peak memory (MiB)",
    "n_train": "Train",
    "n_val": "Val",
    "n_test": "Test",
    "reason": "Reason",
}


def write_html(run: RunDirectory, slide_images: Path | None = None, maps_mib: float = MAPS_MIB) -> Path:
    """Writes ``report.html`` from the tables, figures and trials that lie in the run directory.

    It holds every table (they sort, and copy as LaTeX and csv), every figure, each test slide with the predictions of
    all models, worst errors first, zoomable attention maps of the first of them, warnings, trials and settings. It
    loads nothing, and names that hold markup are text.

    Args:
        run: a run whose tables and figures are written.
        slide_images: a folder with whole-slide images named after slide ids, shown below the attention maps; needs
            OpenSlide (``pip install 'mil-zoo[openslide]'``).
        maps_mib: attention maps are added, worst slide first, up to this size.

    Returns:
        The file written.
    """
    config = run.config
    groups = trials_by_aggregator(run)
    slides = _slides(run, groups)
    maps = slide_maps(run, groups, [slide["slide_id"] for slide in slides], slide_images, maps_mib * 2**20)
    for slide in slides:
        slide["map"] = maps.place.get(slide["slide_id"])
    colours = (255 * mpl.colormaps["coolwarm"](np.linspace(0, 1, 256))[:, :3]).round().astype(int)
    page = _environment().get_template("page.html")
    text = page.render(
        title=f"{', '.join(groups)} on {dataset_title(run)}",
        version=config["version"],
        facts=_facts(config, groups),
        warnings=[*config["dataset"]["warnings"], *_failures(groups)],
        documents=_documents(Path(run.path)),
        figures=[
            {"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode()}
            for path in sorted(Path(run.path).glob("figures/*.png"), key=_figure_place)
        ],
        models=list(groups),
        slides=slides,
        slides_note=_slides_note(slides, maps.place),
        trials=_trials(groups),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        meta={
            "maps": maps.facts,
            "attention": ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in colours.tolist()],
            "truth": ["#d1d1d1", "#d65f00"],
        },
        maps=maps.packed,
    )
    path = Path(run.path) / "report.html"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _environment() -> jinja2.Environment:
    files = resources.files("mil_zoo.report") / "page"
    sources = {name: (files / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["marked"] = _marked
    environment.globals |= {"css": Markup(sources["page.css"]), "js": Markup(sources["page.js"])}
    return environment


def _marked(text: str) -> Markup:
    """``text`` as HTML, with what is bold bold, and an interval or a spread at its end in small letters."""
    html = str(escape(text)).replace(BOLD, "<b>").replace(END, "</b>")
    return Markup(re.sub(r"(?<=\S) (\[[^\[\]]*\]|\([^()]*\))(</b>)?$", r"\2 <small>\1</small>", html))


def _facts(config: dict[str, Any], groups: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    dataset, split = config["dataset"], config["split"]
    trials = [trial for group in groups.values() for trial in group]
    return [
        ("Data", str(dataset["kind"])),
        ("Slides", f"{dataset['bags']:,}" if "bags" in dataset else "-"),
        ("Instances", f"{dataset['instances']:,}" if "instances" in dataset else "-"),
        ("Features", str(dataset.get("in_dim", "-"))),
        ("Classes", ", ".join(dataset["classes"])),
        ("Split", f"{split['kind']}: {split['repeats']} x {split['folds']}"),
        ("Trials", f"{len(finished(trials))} of {len(trials)} finished"),
    ]


def _failures(groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    counts = {label: len(trials) - len(finished(trials)) for label, trials in groups.items()}
    return [f"{count} of {len(groups[label])} trials of {label} failed." for label, count in counts.items() if count]


def _documents(folder: Path) -> list[dict[str, Any]]:
    """Every Markdown file of the run as tables and notes, the comparison first."""
    names = list(_TITLES)
    paths = sorted(
        folder.glob("*.md"), key=lambda path: (names.index(path.stem) if path.stem in names else 99, path.stem)
    )
    return [
        {"title": _TITLES.get(path.stem, path.stem), "parts": read_markdown(path.read_text(encoding="utf-8"))}
        for path in paths
    ]


def _figure_place(path: Path) -> tuple[int, str]:
    order = ["figure3", "metrics", "training", "skew"]
    return (order.index(path.stem) if path.stem in order else len(order), path.stem)


def _slides(run: RunDirectory, groups: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every test slide with what each model says of it, the worst predicted first."""
    parts = []
    for label, trials in groups.items():
        for trial in finished(trials):
            rows = run.predictions(trial["trial"]).query("split == 'test'")
            scores = rows.filter(regex=r"^prob_\d+$").astype(float).to_numpy()
            truth = scores[np.arange(len(rows)), rows["label"].to_numpy(dtype=int)]
            parts.append(
                pd.DataFrame(
                    {
                        "slide_id": rows["slide_id"].to_numpy(),
                        "patient_id": rows["patient_id"].fillna("").to_numpy(),
                        "label": rows["label"].to_numpy(dtype=int),
                        "model": label,
                        "truth": truth,
                        "wrong": scores.argmax(1) != rows["label"].to_numpy(dtype=int),
                    }
                )
            )
    if not parts:
        return []
    table = pd.concat(parts)
    names = run.config["dataset"]["classes"]
    slides: list[dict[str, Any]] = []
    for (slide_id, patient, label), rows in table.groupby(["slide_id", "patient_id", "label"], sort=True):
        of_model = {model: part for model, part in rows.groupby("model")}
        slides.append(
            {
                "slide_id": slide_id,
                "patient_id": patient,
                "label": names[label] if label < len(names) else str(label),
                "wrong": int(rows["wrong"].sum()),
                "trials": len(rows),
                "loss": float(-np.log(rows["truth"].clip(lower=1e-12)).mean()),
                "probabilities": [
                    None
                    if model not in of_model
                    else {"value": of_model[model]["truth"].mean(), "wrong": of_model[model]["wrong"].mean() > 0.5}
                    for model in groups
                ],
            }
        )
    slides.sort(key=lambda slide: (-slide["loss"], slide["slide_id"]))
    for place, slide in enumerate(slides):
        slide["place"] = len(slides) - place  # what the column "Wrong" sorts by
    return slides


def _slides_note(slides: list[dict[str, Any]], place: dict[str, int]) -> str:
    note = (
        "Test slides, the worst predicted first (mean log-loss over all trials); each model's column is the mean "
        "probability it gives the true class, red where most of its trials are wrong."
    )
    if not place:
        return note + " There are no attention maps: no model has attention, or no slide coordinates."
    if len(place) < len(slides):
        return f"{note} Attention maps are here for {len(place)} of the {len(slides)} slides (--maps-mib for more)."
    return f"{note} A row opens the slide's attention maps."


def _trials(groups: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows = [[_text(trial.get(column)) for column in _TRIAL_COLUMNS] for group in groups.values() for trial in group]
    return {"header": list(_TRIAL_COLUMNS.values()), "rows": rows}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return short(value) if isinstance(value, float) else re.sub(r"\s+", " ", str(value))
