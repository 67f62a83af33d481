"""Options and parsing that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mil_zoo.errors import InputError


def comma_list(convert: Callable[[str], Any] = str) -> Callable[..., Any]:
    """A click callback that splits ``a,b`` and converts each part."""

    def parse(_: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            found = [convert(part.strip()) for part in value.split(",") if part.strip()]
        except ValueError:
            raise InputError(f"--{param.name} {value!r}: write for instance --{param.name} 0,1,2") from None
        return _some(found, param, value)

    return parse


def with_underscores(name: str) -> str:
    """A name as it is registered: ``integrated-gradients``, as papers write it, is ``integrated_gradients``."""
    return name.replace("-", "_")


def comma_paths(_: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """A click callback that splits ``a,b`` of names and paths; a comma within a path that is there belongs to it."""
    if value is None:
        return None
    found, parts = [], value.split(",")
    while parts:
        lengths = range(len(parts), 1, -1)
        whole = next((n for n in lengths if os.path.exists(",".join(parts[:n]).strip())), 1)
        found.append(",".join(parts[:whole]).strip())
        parts = parts[whole:]
    return _some([each for each in found if each], param, value)


def _some(found: list[Any], param: click.Parameter, value: str) -> list[Any]:
    if not found:
        raise InputError(f"{param.opts[0]} {value!r} names nothing; give a value, or leave it out")
    return found


def as_one_value(options: type[Any]) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Decorator below ``@click.option``: passes the command's parameters as one value.

    Args:
        options: the dataclass of that value; its fields are named as click's parameters.
    """

    def decorate(command: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(**parameters: Any) -> Any:
            return command(options(**parameters))

        return called

    return decorate


def outcome_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say what is predicted, for :func:`told_task`."""
    return _TASK(survival_options(command))


def survival_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options that say which columns hold a survival outcome, and what is in them."""
    for option in reversed(_OUTCOME):
        command = option(command)
    return command


_TASK = click.option(
    "--task",
    metavar="NAME[:KEY=VALUE,...]",
    help="What is predicted: a registered task and its settings.  [default: the card's, else classification]",
)
_OUTCOME = (
    click.option("--time", metavar="COLUMN", help="Survival: column of the times, with --event or --censorship."),
    click.option("--event", metavar="COLUMN", help="Survival: column that is 1 where the event happened."),
    click.option(
        "--censorship", metavar="COLUMN", help="Survival: column that is 1 where a patient is censored, instead."
    ),
    click.option(
        "--event-values", callback=comma_list(), metavar="TEXT=1,TEXT=0", help="What texts there mean: died=1."
    ),
    click.option("--event-as-named", is_flag=True, default=None, help="Trust --event or --censorship, not the name."),
    click.option(
        "--time-unit", type=click.Choice(["days", "months", "years"]), help="Of the times.  [default: the name's]"
    ),
)


def told_task(given: Mapping[str, Any]) -> dict[str, object] | None:
    """What is predicted, as far as the options say; None where they say nothing.

    Args:
        given: the values of ``outcome_options`` by click's names of them, perhaps among others.
    """
    from mil_zoo.bench.suite import parse_task

    settings = {"unit": "time_unit"} | {
        name: name for name in ("time", "event", "censorship", "event_values", "event_as_named")
    }
    told = {name: given[option] for name, option in settings.items() if given[option] is not None}
    if given["task"] is not None:
        return {**parse_task(given["task"]), **told}
    return {"name": "survival", **told} if told else None


def load_plugins(_: click.Context, __: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """A click callback that imports plugin files before anything looks a name up."""
    from mil_zoo.registry import load_plugin

    for path in paths:
        load_plugin(path)
    return paths


plugin_option = click.option(
    "--plugin",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=load_plugins,
    help="Python file that registers aggregators, graphs, metrics, tasks, layouts or protocols; it is run. Repeatable.",
)
