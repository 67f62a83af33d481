"""The registry of figures: a file that registers one is all that it takes to add it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave

from mil_zoo.errors import InputError
from mil_zoo.files import write_bytes
from mil_zoo.registry import Registry
from mil_zoo.report.figures.look import DPI, drawing
from mil_zoo.report.load import Results
from mil_zoo.report.names import file_stem

_LOG = logging.getLogger("mil_zoo")


MOST_POINTS = 20_000  # of a figure that is written as SVG too
QUOTED = "@=,%"  # stay in the names of files: a kind of figure may have quoted its parts already


@dataclass(frozen=True)
class Captioned:
    """A figure with a caption of its own.

    Attributes:
        figure: what was drawn.
        caption: what its numbers are.
        on_page: whether the page shows it; not where its panels stand there one by one.
    """

    figure: Figure
    caption: str
    on_page: bool = True


Draw = Callable[[Results], Mapping[str, Figure | Captioned]]


@dataclass(frozen=True)
class FigureKind:
    """A figure of the registry.

    Attributes:
        name: its key, and what a task names it by.
        draw: makes the figures of a run by file name, without the ending, those that need another caption than the
            kind's as :class:`Captioned`; {} where the results do not allow it.
        task: whether only tasks that name it have it (a ROC curve needs class probabilities).
        place: where it stands in the list of files, smallest first.
        page: where it stands on the page.
        caption: what its numbers are, in a sentence or two.
    """

    name: str
    draw: Draw
    task: bool
    place: float
    page: float
    caption: str


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn.

    Attributes:
        path: the PNG file.
        png: its bytes.
        svg: those of the SVG file beside it; None of a figure of many points.
        page: where it stands on the page, smallest first.
        caption: what its numbers are; "" where nobody said.
        on_page: whether the page shows it.
    """

    path: Path
    png: bytes
    svg: bytes | None
    page: float
    caption: str = ""
    on_page: bool = True

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


FIGURES: Registry[FigureKind] = Registry("figure", package="mil_zoo.report.figures")


def register_figure(
    name: str, *, task: bool = False, place: float = 1000, page: float = 1000, caption: str = ""
) -> Callable[[Draw], Draw]:
    """Decorator: registers a function that draws figures of a run, which are then written and stand on the page.

    ::

        @register_figure("sizes")
        def draw(results):
            figure = Figure(layout="constrained")
            figure.subplots().hist([trial.n_test for trial in results.trials])
            return {"sizes": figure}

    Args:
        name: lowercase letters, digits and ``_``.
        task: see :class:`FigureKind`.
        place: see :class:`FigureKind`.
        page: see :class:`FigureKind`.
        caption: see :class:`FigureKind`.

    Raises:
        InputError: the name is taken, or is no name.
    """

    def decorate(draw: Draw) -> Draw:
        FIGURES.register(name)(FigureKind(name, draw, task, place, page, caption))
        return draw

    return decorate


def draw_figures(results: Results, names: list[str] | None = None) -> list[Drawing]:
    """Draws every figure that the results and the task allow into ``figures/`` of the run directory, as PNG and SVG.

    Models without attention are left out of the attention figures, which say so. Without a finished trial nothing is
    drawn. A figure whose code fails is left out, and the log says why; the others are drawn.

    Args:
        results: of a run.
        names: keys of the registry; None for all.

    Raises:
        InputError: an unknown name, or what was asked for cannot be drawn.
    """
    kinds = [FIGURES.get(name) for name in (FIGURES if names is None else names)]
    drawings: list[Drawing] = []
    for kind in sorted(kinds, key=lambda kind: kind.place):
        if kind.task and kind.name not in results.task.figures:
            continue
        with drawing():
            for stem, drawn in _drawn(kind, results).items():
                path = results.path / "figures" / f"{file_stem(stem, QUOTED)}.png"
                png, svg = save(drawn.figure, path)
                drawings.append(Drawing(path, png, svg, kind.page, drawn.caption, drawn.on_page))
    return drawings


def _drawn(kind: FigureKind, results: Results) -> dict[str, Captioned]:
    """The figures of a kind; none where drawing them fails, which the log says."""
    try:
        figures = {
            name: what if isinstance(what, Captioned) else Captioned(what, kind.caption)
            for name, what in dict(kind.draw(results)).items()
        }
        if odd := next((what for what in figures.items() if not isinstance(what[1].figure, Figure)), None):
            raise TypeError(f"{odd[0]!r} is of the type {type(odd[1].figure).__name__} and no matplotlib Figure")
    except InputError:  # what the user asked for cannot be drawn
        raise
    except Exception as error:  # whatever the code of a plugin raises
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno})"
        _LOG.warning("the figure %s is left out, since drawing it failed: %s", kind.name, what)
        return {}
    return figures


def save(figure: Figure, path: Path) -> tuple[bytes, bytes | None]:
    """Writes a figure as PNG, and as SVG beside it, and returns the bytes of both.

    A figure of more than ``MOST_POINTS`` points has no SVG, which would be large and slow to show: None. A file of an
    earlier report is then removed.
    """
    picture = BytesIO()
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would draw twice: once to lay the panels out, and again
    imsave(picture, canvas.buffer_rgba(), format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, picture.getvalue())
    beside = path.with_suffix(".svg")
    if _points(figure) > MOST_POINTS:
        beside.unlink(missing_ok=True)
        return picture.getvalue(), None
    drawn = BytesIO()
    figure.set_layout_engine("none")  # panels stay where they are in the PNG
    with mpl.rc_context({"svg.hashsalt": "mil-zoo"}):  # ids within the file are the same each time
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    write_bytes(beside, drawn.getvalue())
    return picture.getvalue(), drawn.getvalue()


def _points(figure: Figure) -> int:
    """How many points the lines, markers and areas of a figure have."""
    count = 0
    for axes in figure.axes:
        count += len(axes.patches) + sum(np.size(line.get_xdata()) for line in axes.lines)
        for collection in axes.collections:
            count += np.size(collection.get_offsets()) // 2
            count += sum(np.size(path.vertices) // 2 for path in collection.get_paths())
    return count
