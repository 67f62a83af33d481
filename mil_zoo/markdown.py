"""Text within Markdown."""

from __future__ import annotations

import re


def escape_markdown(text: str) -> str:
    """``text`` on one line, with what Markdown would read as its own escaped; GitHub's reads formulas between dollars.

    A line break would end the row of a table, the item of a list or the heading that the text stands in.
    """
    return _MARKDOWN.sub(r"\\\g<0>", unbroken(text))


def unbroken(text: str) -> str:
    """``text`` with a space in place of each line break."""
    return _BREAK.sub(" ", text)


_BREAK = re.compile(r"\s*[\n\r]\s*")


# Underlines within a word are letters, and brackets mean a link before a parenthesis only.
_MARKDOWN = re.compile(r"[|<*`\\$]|(?<![^\W_])_|_(?![^\W_])|\](?=\()|&(?=#?\w+;)|~(?=~)")
