"""Grids of settings: how ``--grid srmil.mask_rate=0,0.1,...,0.9`` becomes variants of an aggregator."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote

from mil_zoo.config import parse_override
from mil_zoo.errors import InputError

_MOST_VALUES = 1000  # that one "..." stands for

Point = tuple[str, dict[str, Any]]
"""A variant: its name, ``mask_rate=0.1,graph=knn:8``, and the settings it changes."""


def parse_grids(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``["srmil.mask_rate=0,0.1,...,0.3"]`` as ``{"srmil.mask_rate": [0, 0.1, 0.2, 0.3]}``."""
    grids: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key or key.count(".") > 1:
            raise InputError(f"--grid {text!r} must look like srmil.mask_rate=0,0.1,...,0.9 or learning_rate=1e-4,1e-3")
        if key in grids:
            raise InputError(f"--grid {key} is given twice; write all of its values in one")
        grids[key] = parse_values(values, f"--grid {key}")
    return grids


def parse_values(text: str, where: str) -> list[Any]:
    """Comma-separated values, read as YAML; ``a,b,...,z`` counts from a to z in steps of b - a, both included.

    Args:
        text: for instance ``0,0.1,...,0.9`` or ``window:2,knn:8``.
        where: what the values are of, for messages.

    Raises:
        InputError: an empty value, or a range that is not one of numbers or never meets its end.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{where}={text!r} holds an empty value; write for instance 0,0.1,...,0.9")
    written: list[str] = []
    for i, part in enumerate(parts):
        written += _between(parts, i, f"{where}={text!r}") if part == "..." else [part]
    return [parse_override(f"value={part}")[1] for part in written]


def points(grids: Mapping[str, Any], model: str, known: Collection[str]) -> list[Point]:
    """Every combination of the grids that concern ``model``; ``[("", {})]`` where none does.

    Args:
        grids: "model.option", or "option" for all models that have it, to its values: a list, a text for
            :func:`parse_values`, or a mapping of names to settings that change together.
        model: registry key.
        known: options, training settings and "graph", as far as the model has them.

    Raises:
        InputError: a grid without values or with two of the same name.
    """
    axes = []
    for key, values in grids.items():
        owner, _, option = key.rpartition(".")
        if owner == model or (not owner and (isinstance(values, Mapping) or option in known)):
            axes.append([(f"{option}={name}", settings) for name, settings in _axis(key, option, values).items()])
    return [
        (",".join(name for name, _ in chosen), {k: v for _, settings in chosen for k, v in settings.items()})
        for chosen in itertools.product(*axes)
    ]


def _axis(key: str, option: str, values: Any) -> dict[str, dict[str, Any]]:
    if isinstance(values, str):
        values = parse_values(values, f"grid {key}")
    if isinstance(values, Mapping):
        axis = {quote(str(name), safe=":"): dict(settings or {}) for name, settings in values.items()}
    elif isinstance(values, list):
        axis = {_name(value): {option: value} for value in values}
    else:
        raise InputError(f"grid {key} must be a list of values or a mapping of names to settings, not {values!r}")
    if not axis or len(axis) < len(values):
        raise InputError(f"grid {key} must name each of its values once, not {values!r}")
    return axis


def _name(value: Any) -> str:
    """A value as it stands in the name of a trial, which is also the name of a folder."""
    return quote(f"{value:.10g}" if isinstance(value, float) else str(value), safe=":")


def _between(parts: list[str], i: int, where: str) -> list[str]:
    """What ``...`` at ``parts[i]`` stands for, without the numbers on either side."""
    try:
        before, first, last = (Decimal(parts[i + offset]) for offset in (-2, -1, 1) if i > 1)
    except (ValueError, IndexError, InvalidOperation):
        raise InputError(f"{where}: '...' needs two numbers before and one after it, as in 0,0.1,...,0.9") from None
    if not (before.is_finite() and first.is_finite() and last.is_finite()):
        raise InputError(f"{where}: '...' stands between finite numbers, not {before}, {first} and {last}")
    step = first - before
    if step != 0 and abs(last - first) > _MOST_VALUES * abs(step):
        raise InputError(f"{where}: more than {_MOST_VALUES} values; take larger steps")
    if step == 0 or (last - first) % step != 0 or (last - first) / step < 1:
        raise InputError(f"{where}: steps of {step} from {first} never meet {last}")
    return [str(first + n * step) for n in range(1, int((last - first) / step))]
