"""The one exception a user's input can cause, and the wording helpers it needs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what, where, and what to do.

    The command line prints it without a traceback and exits with 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'abmil'?"`` for a near match of ``name``, else the list of what is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(match) for match in near) + "?"
    return "; known: " + (", ".join(known) if known else "none")
