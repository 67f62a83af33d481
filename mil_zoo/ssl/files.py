"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside ``path`` to write to; what lies there in the end replaces ``path``."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    os.replace(partial, path)
