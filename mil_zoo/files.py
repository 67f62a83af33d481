"""Files that appear under their name only when they are complete, and sentences for what is no file or not written."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mil_zoo.errors import InputError, not_written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside ``path`` to write to; what lies there in the end replaces ``path``.

    Nobody ever reads half a file: the new one is on the disk before it takes the name. Two processes that write one
    file do not disturb each other. Where writing fails, ``path`` stays as it was and the new file is removed.

    Raises:
        InputError: ``path`` is a link.
        OSError: as writing does.
    """
    refuse_link(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        with open(partial, "ab") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the name that means something to whoever reads the message
        raise


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` as a whole, in UTF-8 and with the line ends of ``text``; half a surrogate pair as ``\\ud800``."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``path`` as a whole."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def refuse_link(path: Path) -> None:
    """Raises an ``InputError`` where ``path`` is a link: writing through it would change a file somewhere else."""
    if path.is_symlink():
        raise InputError(f"{path} is a link, which nothing is written through; delete it, or put the file in its place")


def refuse_pipe(path: Path) -> None:
    """Raises an ``InputError`` where ``path`` is a pipe or a device: opened, it would wait for a writer."""
    with suppress(OSError):  # what reads it says what is wrong
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path} is a pipe or a device and no file; write what it gives into a file")


@contextmanager
def writing(place: Path | str, then: str = "") -> Iterator[None]:
    """Turns what the system says against writing into one sentence, see :func:`mil_zoo.errors.not_written`."""
    try:
        yield
    except OSError as error:
        raise not_written(place, error, then) from error
