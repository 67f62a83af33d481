"""Tables and figures drawn from a run directory alone: nothing here predicts, and nothing imports torch."""

import contextlib
import os
import sys

if "MPLBACKEND" in os.environ and "matplotlib" not in sys.modules:
    # Figures are written as files and need no backend of a window; one that matplotlib does not know would end it here.
    _backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib

        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = _backend  # as it does itself: a notebook's own plots need it
    finally:
        os.environ["MPLBACKEND"] = _backend
