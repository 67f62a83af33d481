"""The command line: each sub-command lives in its own file and is imported when it is called."""

from __future__ import annotations

import importlib
import itertools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from mil_zoo import __version__
from mil_zoo.cli.encoding import show_anywhere
from mil_zoo.errors import InputError, Terminated, did_you_mean

_COMMANDS = {
    "bench": ("bench", "Compare aggregators by cross-validation: tables, figures, attention diagnostics."),
    "report": ("report", "Redraw the tables and figures of a run from its files."),
    "compare": ("compare", "Rank aggregators over several runs: critical-difference diagram, paired tests."),
    "predict": ("predict", "Predict slides with a model of a run; attention for QuPath."),
    "export": ("export", "Write a trained model of a run as one folder, for mil_zoo.load and model hubs; ONNX."),
    "data": ("data", "Show what a dataset is, check the files at hand, pack them for speed."),
    "pretrain": ("pretrain", "Learn slide embeddings without labels (Giga-SSL)."),
    "embed": ("embed", "Embed slides with a pretrained encoder."),
    "probe": ("probe", "Classify slide embeddings with a linear probe over splits."),
    "rescore": ("rescore", "Score published predictions again; name what cannot be right."),
    "published": ("published", "Set published numbers beside those of runs."),
    "models": ("models", "List the aggregators, or tell all about one."),
    "datasets": ("lists", "List the datasets that have a card."),
    "graphs": ("lists", "List the patch-graph builders."),
    "doctor": ("doctor", "Say what works on this machine, what is missing, and how to mend it."),
    "warm-up": ("warm_up", "Compile the kernels ahead, so that no first run waits for them."),
}


class _LazyGroup(click.Group):
    """Lists its commands without importing them, so that ``--help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mil_zoo.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in _COMMANDS:
            raise InputError(f"unknown command {args[0]!r}{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  mil-zoo bench --models srmil,abmil",
)
@click.version_option(__version__, prog_name="mil-zoo")
def cli() -> None:
    """The zoo and benchmark of multiple-instance-learning aggregators for whole-slide images."""


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raises an ``InputError`` for an empty argument: as a path it would mean the folder that one is in."""
    for before, argument in itertools.pairwise(["mil-zoo", *arguments]):
        if not argument.strip():
            raise InputError(f"what follows {before} is empty, as an unset variable of the shell is; give a value")


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Lets SIGTERM raise :class:`Terminated` meanwhile, where nobody else listens to it; gives what was heard."""
    heard: list[int] = []  # libraries make other errors of the one that is raised

    def end(number: int, frame: object) -> NoReturn:
        heard.append(number)
        raise Terminated

    here = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if here:
        signal.signal(signal.SIGTERM, end)
    try:
        yield heard
    finally:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def console() -> None:
    """``mil-zoo`` and ``python -m mil_zoo``: :func:`main`, where a bench fills the cores unless told."""
    main(jobs="auto")


def main(jobs: str = "1") -> None:
    """Runs the command in ``sys.argv``.

    Exit codes: 0 done, 1 a trial failed, 2 wrong input, 130 interrupted, 143 ended by SIGTERM.

    Args:
        jobs: default of ``bench --jobs``. A script of one's own that calls this gets one trial at a time, since worker
            processes import that script again, and with it this call.
    """
    show_anywhere()
    heard: list[int] = []
    try:
        _refuse_empty(sys.argv[1:])
        with _listening() as heard:
            code = cli(standalone_mode=False, default_map={"bench": {"jobs": jobs}})
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        click.echo(f"mil-zoo: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # of a file that ends early, which click takes for a keyboard's
            raise error.__cause__ from None
        click.echo(f"\nmil-zoo: {'ended by SIGTERM' if heard else 'interrupted'}", err=True)
        sys.exit(143 if heard else 130)
