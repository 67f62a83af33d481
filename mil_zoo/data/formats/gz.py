"""Files that may be packed by gzip, read whole and never larger than what they hold needs."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

from mil_zoo.errors import InputError

_MAGIC = b"\x1f\x8b"


def unpacked(path: Path, most_mib: int, enough: str) -> bytes:
    """The content of a file, unpacked where it is packed, whatever it is called.

    Args:
        path: the file.
        most_mib: that it may unpack to: a small file can unpack to gigabytes.
        enough: for what that is enough, for the sentence.

    Raises:
        InputError: it unpacks to more than ``most_mib``.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    content = path.read_bytes()
    if path.suffix.lower() != ".gz" and not content.startswith(_MAGIC):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        content = file.read(most_mib * 2**20 + 1)
    if len(content) > most_mib * 2**20:
        raise InputError(
            f"{path} unpacks to more than {most_mib} MiB, enough for {enough}; check it, and unpack it where it "
            "is right"
        )
    return content
