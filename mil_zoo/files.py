"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside ``path`` to write to; what lies there in the end replaces ``path``.

    Nobody ever reads half a file: the new one is on the disk before it takes the name. Two processes that write one
    file do not disturb each other. Where writing fails, ``path`` stays as it was and the new file is removed.

    Raises:
        OSError: as writing does.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` as a whole, in UTF-8 and with the line ends of ``text``."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
