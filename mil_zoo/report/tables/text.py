"""How numbers and plain texts are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mil_zoo.markdown import escape_markdown, unbroken

KINDS = {  # of data, as the card states it
    "real": "real slides",
    "simulated": "simulated slides",
    "table": "bags from a feature table, not slides",
    "own": "the user's own features (no card says whether they are of real slides)",
    "predictions": "predictions from files, scored again; nothing was trained here",
}


def short(value: float) -> str:
    """Three significant digits, thousands with a comma, "-" for NaN."""
    return "-" if np.isnan(value) else f"{float(f'{value:.3g}'):,.10g}"


def fixed(value: float, form: str = ".3f") -> str:
    """``value`` in a format of fixed decimals, "-" for NaN; what rounds to 0 has no minus."""
    return "-" if np.isnan(value) else f"{round(float(value), int(form[-2])) + 0.0:{form}}"


def interval(low: float, high: float, form: str = ".2f") -> str:
    """The ends of an interval, each as :func:`fixed` writes it; where they are NaN that there is none."""
    return "(no interval)" if np.isnan(low) else f"[{fixed(low, form)}, {fixed(high, form)}]"


def difference_interval(low: float, high: float, bounds: tuple[float, float], form: str = ".3f") -> str:
    """As :func:`interval`, cut where no two values of a metric within ``bounds`` differ by more."""
    span = bounds[1] - bounds[0]
    low, high = np.clip([low, high], -span, span)
    return interval(low, high, form)


def detectable(value: float) -> str:
    """A detectable difference to three decimals; "-" for NaN, "none" where it is infinite: none is found."""
    return "none" if np.isinf(value) else fixed(value)


def p_value(value: float) -> str:
    """A p-value to three decimals, "-" for NaN."""
    if np.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def sentence(text: str) -> str:
    """``text`` on one line, ending as a sentence does."""
    text = one_line(text)
    return text if text.endswith((".", "!", "?")) else text + "."


def one_line(text: object) -> str:
    """``text`` with every run of white space as one space."""
    return " ".join(str(text).split())


def count(number: int, what: str) -> str:
    """``number`` of ``what``, in the plural where it is not one."""
    return f"{number} {what}" + "s" * (number != 1)


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)


_LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


def escape_latex(text: str) -> str:
    """``text`` on one line, with LaTeX's own characters escaped: two line breaks in a cell would be an error."""
    return "".join(_LATEX.get(char, char) for char in unbroken(text))
