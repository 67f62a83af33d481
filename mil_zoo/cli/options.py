"""Options and parsing that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
            return [convert(part.strip()) for part in value.split(",") if part.strip()]
        except ValueError:
            raise InputError(f"--{param.name} {value!r}: write for instance --{param.name} 0,1,2") from None

    return parse


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
