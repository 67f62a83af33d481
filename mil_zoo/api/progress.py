"""Bars that show how far a training is, on terminals and in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(text: str, total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """Shows a bar while the body runs; yields what moves it on by one, with a few words on what was reached.

    A log, which is no terminal, shows nothing.

    Args:
        text: what is being done.
        total: of the steps.
        shown: whether there is a bar at all.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[reached]}"),
    )
    visible = shown and (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, disable=not visible) as progress:
        task = progress.add_task(text, total=total, reached="")
        yield lambda reached: progress.update(task, advance=1, reached=reached)
