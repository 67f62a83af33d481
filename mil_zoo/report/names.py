"""Names of files that stand for slides and aggregators."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

_LONGEST = 160  # characters: file systems end at 255 bytes, and a prefix and an ending are added


def file_stem(name: str, safe: str = "") -> str:
    """``name`` as the name of a file: percent-quoted, and where it is too long cut and ended by a hash of the whole.

    Args:
        name: any text.
        safe: characters that stay as they are.
    """
    quoted = quote(name, safe=safe)
    return quoted if len(quoted) <= _LONGEST else f"{quoted[: _LONGEST - 13]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Twelve hexadecimal digits that stand for ``text``."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
