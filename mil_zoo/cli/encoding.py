"""Text on a console of any encoding: what cannot be shown as it is is spelled with other letters, without an error."""

from __future__ import annotations

import codecs
import sys
import unicodedata

_SPELLED = {
    "±": "+-",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "…": "...",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MULTIPLICATION SIGN}": "x",
    "·": "-",
    "•": "*",
    "━": "=",
    "─": "-",
    "╸": "=",
    "╺": "=",
}


def spelled(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: the characters that the encoding lacks in letters that every one has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for character in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        text += _SPELLED.get(character) or plain or "?"
    return text, error.end


def show_anywhere() -> None:
    """Lets standard output and error take any text, and threads start where Python was left without an excepthook."""
    sys.excepthook = getattr(sys, "excepthook", None) or sys.__excepthook__
    codecs.register_error("mil_zoo.spelled", spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="mil_zoo.spelled")
