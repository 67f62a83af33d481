"""The one exception a user's input can cause, and the wording helpers it needs."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unicodedata import category


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what, where, and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), as schedulers tell it before they kill; it ends as by Ctrl-C."""


def as_path(value: Any, argument: str, takes: str) -> Path:
    """``value`` as a path.

    Args:
        value: what somebody gave.
        argument: the name of the argument, for the sentence.
        takes: what it takes, for the sentence ("the folder that a bench wrote").

    Raises:
        InputError: it is neither a path nor text.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{argument} is a path, {takes}, not {value!r:.60}")
    return Path(value)


def no_line(text: str) -> str:
    """Why a text is no line for headings and tables, as the end of a sentence; "" where it is one."""
    if not text.strip():
        return f"must be some text, not {text!r}"
    if any(category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in text):
        return f"must be one line without control characters, not {text!r:.60}"
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'abmil'?"`` for a near match of ``name``, else the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(match) for match in near) + "?"
    return "; known: " + (", ".join(known) if known else "none")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that nothing is registered under, with the near names; a file of the user's may have it."""
    near = did_you_mean(name, known)
    own = "{} a file of yours registers it, pass --plugin FILE.py (in Python, import it)"
    return InputError(f"unknown {kind} {name!r}{near}" + own.format(" If" if near.endswith("?") else "; if"))


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "write to a file system that takes larger files",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "choose a folder that can be written",
    errno.EIO: "check the disk",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def not_written(place: Path | str, error: OSError, then: str = "") -> InputError:
    """What could not be written, why in the system's words, and the remedy that fits this reason.

    Args:
        place: file or folder.
        error: as it was raised.
        then: what is kept and what to do once that is mended; the end of the sentence.
    """
    why = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "mend that")
    return InputError("; ".join(filter(None, [f"writing to {place} failed ({why})", remedy, then])))
