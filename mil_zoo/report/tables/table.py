"""A table as a value, and how it is written: csv, Markdown, LaTeX, HTML and the terminal. Nothing reads these back."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from mil_zoo.markdown import escape_markdown
from mil_zoo.report.tables.text import bullets, escape_latex

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console, ConsoleOptions


@dataclass(frozen=True)
class Cell:
    """A cell of more than one part.

    Attributes:
        text: the value.
        spread: its standard deviation, behind "±"; "" without one.
        below: what belongs to it in small letters, an interval for instance; each stands on a line of its own where
            there is room for lines.
        bold: whether the value is bold.
    """

    text: str
    spread: str = ""
    below: tuple[str, ...] = ()
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table with the sentences that belong under it.

    Attributes:
        header: a name a column.
        rows: a cell a column: a :class:`Cell`, text, or in a table of numbers a number (NaN and None are empty).
        notes: sentences.
        title: a heading above it; "" without one.
        ruled: rows that a line stands above, where a format has lines.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    title: str = ""
    ruled: frozenset[int] = frozenset()

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Table:
        """The numbers of a data frame."""
        columns = [frame[name].tolist() for name in frame]
        return cls([str(name) for name in frame], list(zip(*columns, strict=True)))

    @property
    def of_numbers(self) -> list[bool]:
        """Which columns hold numbers, most of whose cells begin with one and go on without words; never the first."""
        columns = [[as_cell(row[i]).text.strip() for row in self.rows] for i in range(len(self.header))]
        said = [[bool(_NUMBER.match(text)) for text in column if text not in ("", "-")] for column in columns]
        return [i > 0 and 2 * sum(known) >= len(known) for i, known in enumerate(said)]

    def csv(self) -> str:
        """Comma-separated values with ten significant digits; the notes are left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(zip(*map(_numbers, zip(*self.rows, strict=True)), strict=True))
        return text.getvalue()

    def markdown(self) -> str:
        """A pipe table, its columns of numbers right-aligned, with the notes as a list."""
        heading = f"## {escape_markdown(self.title)}\n\n" if self.title else ""
        header, *rows = ([_markdown(as_cell(cell)) for cell in row] for row in (self.header, *self.rows))
        lines = [header, ["---:" if number else "---" for number in self.of_numbers], *rows]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return heading + table + ("\n" + bullets(self.notes) if self.notes else "")

    def latex(self, caption: str) -> str:
        """A floating table with its notes; needs the packages booktabs and graphicx.

        A value and its interval stand in lines of their own: side by side, four metrics are wider than a page. What is
        wider still (long names of variants) is scaled down to the width of the text.

        Args:
            caption: plain text.
        """
        body: list[str] = []
        spaced = any(as_cell(cell).below for row in self.rows for cell in row)
        for i, row in enumerate(self.rows):
            if i in self.ruled:
                body.append(r"\midrule")
            elif spaced and i:
                body.append(r"\addlinespace")
            body += [" & ".join(line) + r" \\" for line in _latex_lines([as_cell(cell) for cell in row])]
        text = [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\footnotesize" + (r"\setlength{\tabcolsep}{4pt}" if spaced else ""),
            rf"\caption{{{escape_latex(caption)}.}}",
            r"\setbox0=\hbox{%",
            rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in self.of_numbers)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, self.header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi",
            r"\par\medskip\raggedright",
            *(escape_latex(note) + r"\par" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(text) + "\n"

    def html(self) -> list[list[Markup]]:
        """The rows as escaped HTML, what stands below a value in small letters behind it."""
        return [[_html(as_cell(cell)) for cell in row] for row in self.rows]

    def terminal(self) -> OnTerminal:
        """For a console, with the notes below; what stands below a value is on lines of its own."""
        return OnTerminal(self)


@dataclass(frozen=True)
class OnTerminal:
    """A table as a console prints it: columns that do not fit its width stand in a further table below."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """One table or more, then the notes; of a table without rows they say all."""
        from rich.text import Text

        if not self.table.rows and self.table.notes:
            yield Text("\n".join(self.table.notes))
            return
        body = [[_terminal(as_cell(cell)) for cell in row] for row in self.table.rows]
        columns = [[name, *(row[i] for row in body)] for i, name in enumerate(self.table.header)]
        needed = [max(map(_longest_part, column)) for column in columns]
        needed[0] = min(_FIRST, max(map(_longest_line, columns[0])))
        parts: list[list[int]] = [[]]
        for i in range(1, len(columns)):
            if parts[-1] and needed[0] + sum(needed[k] + 1 for k in [*parts[-1], i]) > options.max_width:
                parts.append([])
            parts[-1].append(i)
        for number, part in enumerate(parts):
            yield from [""] * bool(number)
            shown = [0, *part]
            right = [self.table.of_numbers[i] for i in shown]
            yield _drawn([columns[i] for i in shown], [needed[i] for i in shown], right, options.max_width)
        yield Text("\n" + "\n".join(self.table.notes))


_NUMBER = re.compile(r"[<>=≤≥±+\u2212-]?\s?\d(?!.*[^\W\d_]{4})")  # and no word behind it

_FIRST = 10  # letters of a line that the first column has at least; longer names go on in further ones


def _drawn(
    columns: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool], width: int
) -> rich.table.Table:
    """Columns of at least these widths, some of them right-aligned.

    What is left of ``width`` goes to those with longer lines, the first before; its names break between their words.
    """
    from rich import box
    from rich.markup import escape as escape_markup
    from rich.table import Table as RichTable

    left = width - sum(widths) - len(widths) + 1
    drawn = RichTable(box=box.SIMPLE, padding=0, show_edge=False)
    room = max(widths[0], min(max(map(_longest_line, columns[0])), widths[0] + left))
    columns = [[_broken(name, room) for name in columns[0]], *columns[1:]]
    for i, (column, least) in enumerate(zip(columns, widths, strict=True)):
        more = max(0, min(left, max(map(_longest_line, column)) - least))
        left -= more
        drawn.add_column(
            escape_markup(column[0]), justify="right" if right[i] else "left", overflow="fold", width=least + more
        )
    for row in zip(*(cells for _, *cells in columns), strict=True):
        drawn.add_row(*map(escape_markup, row))
    return drawn


def _broken(name: str, width: int) -> str:
    """A name in lines that end behind its words, at ``_`` or another sign, where they are wider."""
    lines = [""]
    for word in re.findall(r"[^_@=,:+/ -]+[_@=,:+/ -]*|[_@=,:+/ -]+", name):
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _longest_line(text: str) -> int:
    """Letters of the longest line."""
    return max(map(len, text.split("\n")))


def _longest_part(text: str) -> int:
    """Letters of the longest part that stays on one line: a word, a number with it, or an interval."""
    return max(map(len, re.findall(r"\[[^\]]*\]|\d+ [A-Z]+|\S+", text)), default=0)


@dataclass(frozen=True)
class Document:
    """Several tables that are read together, one file and one section of the page.

    Attributes:
        name: of the file, without its ending.
        title: what the page calls it.
        tables: in their order.
        notes: sentences under the last of them.
        heading: above the first of them, in the file; "" without one.
    """

    name: str
    title: str
    tables: Sequence[Table]
    notes: Sequence[str] = field(default_factory=list)
    heading: str = ""

    def markdown(self) -> str:
        """The text of the Markdown file."""
        parts = [f"# {escape_markdown(self.heading)}\n"] if self.heading else []
        parts += [table.markdown() for table in self.tables]
        return "\n".join([*parts, *[bullets(self.notes)] * bool(self.notes)])


def as_cell(value: Any) -> Cell:
    """A cell as it is, and any other value as one of text."""
    return value if isinstance(value, Cell) else Cell(str(value))


def _numbers(column: Sequence[Any]) -> Sequence[Any]:
    kinds = set(map(type, column))
    if kinds == {float}:  # as below, of millions of numbers in half of the time
        return ["" if value != value else f"{value:.10g}" for value in column]
    return column if kinds <= {int, str} else [_number(value) for value in column]


def _number(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.10g}"
    return "" if value is None or value is pd.NA else value


def _markdown(cell: Cell) -> str:
    text = f"**{escape_markdown(cell.text)}**" if cell.bold else escape_markdown(cell.text)
    spread = f" ± {cell.spread}" if cell.spread else ""
    return text + escape_markdown(spread + "".join(f" {line}" for line in cell.below))


def _latex_lines(cells: Sequence[Cell]) -> list[list[str]]:
    """The lines of a row, a text a column each."""
    first = []
    for cell in cells:
        text = rf"\textbf{{{escape_latex(cell.text)}}}" if cell.bold else escape_latex(cell.text)
        first.append(text + (escape_latex(f" ± {cell.spread}") if cell.spread else ""))
    height = max(len(cell.below) for cell in cells)
    below = [[*map(escape_latex, cell.below), *[""] * (height - len(cell.below))] for cell in cells]
    return [first, *map(list, zip(*below, strict=True))] if height else [first]


def _html(cell: Cell) -> Markup:
    text = Markup("<b>{}</b>").format(cell.text) if cell.bold else escape(cell.text)
    spread = f" ± {cell.spread}" if cell.spread else ""
    small = Markup("").join(Markup(" <small>{}</small>").format(line) for line in cell.below)
    return text + escape(spread) + small


def _terminal(cell: Cell) -> str:
    return "\n".join([cell.text + (f"±{cell.spread}" if cell.spread else ""), *cell.below])
