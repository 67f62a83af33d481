"""Text within Markdown."""

from __future__ import annotations

import re


def escape_markdown(text: str) -> str:
    """``text`` with what Markdown would read as its own escaped; GitHub's reads formulas between dollars, too."""
    return _MARKDOWN.sub(r"\\\g<0>", text)


# Underlines within a word are letters, and brackets mean a link before a parenthesis only.
_MARKDOWN = re.compile(r"[|<*`\\$]|(?<![^\W_])_|_(?![^\W_])|\](?=\()|&(?=#?\w+;)|~(?=~)")
