"""How numbers and tables are written: csv, Markdown, LaTeX."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

BOLD, END = "\x02", "\x03"
"""Stand around what is bold in a cell until the format of the table is known."""


def short(value: float) -> str:
    """Three significant digits, thousands with a comma, "-" for NaN."""
    return "-" if np.isnan(value) else f"{float(f'{value:.3g}'):,.10g}"


def p_value(value: float) -> str:
    """A p-value to three decimals, "-" for NaN."""
    if np.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def bold(text: str) -> str:
    """``text``, to be bold in whatever format the table gets."""
    return f"{BOLD}{text}{END}"


def csv(table: pd.DataFrame) -> str:
    """Ten significant digits, no index."""
    return table.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is left-aligned, the others right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bullets(lines: list[str]) -> str:
    """A Markdown list."""
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)


_LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    BOLD: r"\textbf{",
    END: "}",
}


def escape_latex(text: str) -> str:
    """``text`` with LaTeX's own characters escaped."""
    return "".join(_LATEX.get(char, char) for char in text)


def escape_markdown(text: str) -> str:
    """``text`` with Markdown's own characters escaped."""
    return re.sub(r"([|<*`\\])", r"\\\1", text).replace(BOLD, "**").replace(END, "**")
