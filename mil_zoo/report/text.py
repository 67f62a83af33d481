"""How numbers and tables are written: csv, Markdown, LaTeX."""

from __future__ import annotations

import re
from typing import Any

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


def read_markdown(text: str) -> list[dict[str, Any]]:
    """The tables of a text that :func:`markdown` and :func:`bullets` made, with what stands above and below each.

    Returns:
        one a table: ``heading`` (the text above it, or ""), ``header`` and ``rows`` (text cells) and ``notes`` (the
        list items below it). What is bold is between :data:`BOLD` and :data:`END`.
    """
    parts: list[dict[str, Any]] = []
    heading = ""
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [_unescape(cell) for cell in re.split(r"(?<!\\) \| ", line[2:].removesuffix(" |"))]
            if not parts or parts[-1]["notes"] or heading:
                parts.append({"heading": heading, "header": cells, "rows": [], "notes": []})
                heading = ""
            elif not set("".join(cells)) <= set("-: "):
                parts[-1]["rows"].append(cells)
        elif line.startswith("- ") and parts:
            parts[-1]["notes"].append(_unescape(line[2:]))
        elif line.strip():
            heading = _unescape(line.strip().lstrip("# "))
    return parts


def _unescape(text: str) -> str:
    text = re.sub(r"(?<!\\)\*\*(.+?)(?<!\\)\*\*", rf"{BOLD}\1{END}", text)
    return re.sub(r"\\([|<*`\\])", r"\1", text)
