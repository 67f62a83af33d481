"""Bars that show how far a training is, on terminals and in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape


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
    if shown and console.is_jupyter:
        yield _in_notebook(text, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[reached]}"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(text, total=total, reached="")
        yield lambda reached: progress.update(task, advance=1, reached=reached)


def _in_notebook(text: str, total: int) -> Callable[[str], None]:
    """The same in a notebook, by IPython alone: rich would need ipywidgets there."""
    from IPython.display import display

    done = 0

    def look(reached: str) -> dict[str, str]:
        words = f"{text} {done}/{total} {reached}".rstrip()
        html = f'<progress value="{done}" max="{total}" aria-label="{escape(text)}"></progress> {escape(words)}'
        return {"text/plain": words, "text/html": html}

    handle = display(look(""), raw=True, display_id=True)

    def move(reached: str) -> None:
        nonlocal done
        done += 1
        handle.update(look(reached), raw=True)

    return move
