"""Files that may be packed by gzip, read whole and never larger than text of people is."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

from mil_zoo.errors import InputError

_MOST_BYTES = 2**30
_MAGIC = b"\x1f\x8b"


def unpacked(path: Path) -> bytes:
    """The content of a file, unpacked where it is packed, whatever it is called.

    Raises:
        InputError: it unpacks to more than 1 GiB.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    content = path.read_bytes()
    if path.suffix.lower() != ".gz" and not content.startswith(_MAGIC):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path} unpacks to more than 1 GiB, which no such file needs; check it")
    return content
