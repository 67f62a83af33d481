"""Fills the template of the page with the tables, figures, slides and settings of a run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup

from mil_zoo.files import write_text
from mil_zoo.report.figures import Drawing
from mil_zoo.report.load import Results
from mil_zoo.report.page.maps import MAPS_MIB, slide_maps
from mil_zoo.report.page.slides import slides_note, worst_first
from mil_zoo.report.page.summary import findings
from mil_zoo.report.tables import Document, Table, documents
from mil_zoo.report.tables.sentences import collapsed
from mil_zoo.report.tables.table import as_cell
from mil_zoo.report.tables.text import KINDS, count, one_line, short

_FILES = ("page.html", "documents.html", "section.html", "page.css", "page.js")
PROSE = 60  # letters of a cell, from which on a column holds sentences
WIDE = 1.5  # width over height of a figure, from which on it has a row of the page for itself
SMALL = 150 * 1024  # bytes of an SVG that the page takes instead of the PNG
ATTENTION, REST = 70, 100  # places of figures: those from the first to the second are about attention
_PART = {"skew": "attention", "explanations": "attention", "cost": "costs", "reporting": "costs"}  # of documents
_TRIALS = {
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


def write_page(
    results: Results,
    drawings: Sequence[Drawing] = (),
    slide_images: Path | None = None,
    maps_mib: float = MAPS_MIB,
) -> Path:
    """Writes ``report.html`` into the run directory.

    It begins with what was found, a sentence each, and holds every table (they sort, and copy as LaTeX and csv), every
    figure, each test slide with the predictions of all models, worst errors first, zoomable attention maps of the first
    of them, two models beside each other where wanted, warnings, trials and settings. It loads nothing, and names that
    hold markup are text.

    Args:
        results: of the run.
        drawings: its figures.
        slide_images: a folder with whole-slide images named after slide ids, shown below the attention maps; needs
            OpenSlide (``pip install 'mil-zoo[openslide]'``).
        maps_mib: attention maps are added, worst slide first, up to this size.

    Returns:
        The file written.
    """
    slides = worst_first(results)
    maps = slide_maps(results, [slide.slide_id for slide in slides], slide_images, maps_mib * 2**20)
    colours = (255 * mpl.colormaps["coolwarm"](np.linspace(0, 1, 256))[:, :3]).round().astype(int)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"{', '.join(results.groups)} on {results.dataset_title}",
            version=results.config.version,
            facts=_facts(results),
            findings=findings(results, slides),
            warnings=[*results.config.dataset.warnings, *collapsed(results), *_failures(results)],
            parts=_parts(documents(results), drawings),
            models=list(results.groups),
            slides=[(slide, maps.place.get(slide.slide_id)) for slide in slides],
            slides_note=slides_note(results, slides, maps.place),
            trials=_grid(_trials(results)),
            config=results.config.to_yaml(),
            meta={
                "maps": maps.facts,
                "attention": ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in colours.tolist()],
                "truth": ["#d1d1d1", "#d65f00"],
            },
            maps=maps.packed,
        )
    )
    path = results.path / "report.html"
    write_text(path, text)
    return path


def write_documents(path: Path, title: str, made: Sequence[Document], links: Sequence[tuple[str, str]] = ()) -> Path:
    """Writes tables alone as a page, which loads nothing either.

    Args:
        path: the file.
        title: its heading.
        made: the tables.
        links: names and addresses of further pages.

    Returns:
        The file written.
    """
    from mil_zoo import __version__

    template = _environment().get_template("documents.html")
    part = _parts(made, ())["scores"]
    write_text(path, template.render(title=title, version=__version__, part=part, links=links, meta={"maps": []}))
    return path


def _environment() -> jinja2.Environment:
    files = resources.files("mil_zoo.report") / "page"
    sources = {name: (files / name).read_text(encoding="utf-8") for name in _FILES}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"css": Markup(sources["page.css"]), "js": Markup(sources["page.js"])}
    return environment


def _parts(made: Sequence[Document], drawings: Sequence[Drawing]) -> dict[str, dict[str, Any]]:
    """Tables and figures of the page's parts: scores first, then attention, then what is beside the point.

    A sentence that belongs under several tables stands under the first of them only.
    """
    said: set[str] = set()
    parts: dict[str, dict[str, Any]] = {
        name: {"documents": [], "figures": []} for name in ("scores", "attention", "costs")
    }
    for document in made:
        of = parts[_PART.get(document.name, "scores")]
        tables: list[dict[str, Any]] = []
        for i, table in enumerate(document.tables):
            below = [*table.notes, *(document.notes if i == len(document.tables) - 1 else [])]
            tables.append(
                {
                    "heading": table.title,
                    **_grid(table),
                    "notes": [note for note in below if note not in said],
                }
            )
            said.update(below)
        of["documents"].append({"title": document.title, "tables": tables})
    for drawing in sorted(drawings, key=lambda each: each.page):
        if drawing.on_page:
            of = parts["attention" if ATTENTION <= drawing.page < REST else "scores"]
            shown = {"name": drawing.name, "caption": drawing.caption, "data": _image(drawing), "wide": _wide(drawing)}
            of["figures"].append(shown)
    return parts


def _grid(table: Table) -> dict[str, Any]:
    """Header, rows and how each column looks: words begin at the left, sentences go on in further lines."""
    longest = [max((len(as_cell(row[i]).text) for row in table.rows), default=0) for i in range(len(table.header))]
    looks = []
    for i, (number, length) in enumerate(zip(table.of_numbers, longest, strict=True)):
        kinds = ["text"] * (i > 0 and not number) + ["prose"] * (length > PROSE and not number)
        looks.append(Markup(f' class="{" ".join(kinds)}"' if kinds else ""))
    return {"header": table.header, "rows": table.html(), "looks": looks}


def _wide(drawing: Drawing) -> bool:
    """Whether a figure is so wide that it takes the whole width of the page."""
    width, height = (int.from_bytes(drawing.png[at : at + 4], "big") for at in (16, 20))  # the header of a PNG
    return width > WIDE * height


def _image(drawing: Drawing) -> str:
    """The address that holds a figure: its SVG, or the PNG where the SVG is not small."""
    if drawing.svg is not None and len(drawing.svg) <= SMALL:
        kind, data = "svg+xml", drawing.svg
    else:
        kind, data = "png", drawing.png
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _facts(results: Results) -> list[tuple[str, str]]:
    dataset, split = results.config.dataset, results.config.split
    ok = sum(trial.ok for trial in results.trials)
    return [
        ("Data", KINDS[dataset.kind]),
        ("Patients" if dataset.patient_rule == "packed" else "Slides", _number(dataset.bags)),
        ("Instances", _number(dataset.instances)),
        ("Features", "-" if dataset.in_dim is None else str(dataset.in_dim)),
        ("Classes", ", ".join(dataset.classes) or "-"),
        ("Split", f"{split.kind}, {count(split.folds, 'fold')}, {count(split.repeats, 'repeat')}"),
        ("Trials", f"{ok} of {len(results.trials)} finished"),
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _failures(results: Results) -> list[str]:
    counts = {label: len(trials) - len(results.finished[label]) for label, trials in results.groups.items()}
    return [f"{n} of {len(results.groups[label])} trials of {label} failed." for label, n in counts.items() if n]


def _trials(results: Results) -> Table:
    rows = [[_text(getattr(trial, name)) for name in _TRIALS] for trial in results.trials]
    return Table(list(_TRIALS.values()), rows)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return short(value) if isinstance(value, float) else one_line(value)
