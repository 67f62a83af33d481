"""Spaces of settings that an aggregator is tuned over, as ``search:`` in its YAML and in a suite's declares them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mil_zoo.config import from_mapping, read_shipped, shipped_names
from mil_zoo.errors import InputError, did_you_mean

USUAL = {"learning_rate": "learning_rate", "weight_decay": "weight_decay"}  # of a model that declares nothing


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included.

    Attributes:
        low: the smallest.
        high: the largest.
        log: drawn evenly on a logarithmic scale.
        whole: whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"low must be below high, both finite, not {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise InputError(f"a logarithmic range begins above 0, not at {self.low:g}")
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise InputError(f"whole numbers lie between whole numbers, not {self.low:g} and {self.high:g}")


@dataclass(frozen=True)
class Dimension:
    """A setting and what it may be: a range of numbers, or one of several values.

    Attributes:
        name: an option of the constructor or a training setting.
        range: None where ``choices`` are listed.
        choices: empty where there is a range.
    """

    name: str
    range: Range | None = None
    choices: tuple[Any, ...] = ()

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of real numbers."""
        if self.range is None:
            return len(self.choices)
        return self.range.high - self.range.low + 1 if self.range.whole else math.inf

    @property
    def examples(self) -> list[Any]:
        """Values that stand for all: every choice, or both ends of a range and what lies between them."""
        if self.range is None:
            return list(self.choices)
        low, high = self.range.low, self.range.high
        return [int(low), int(high)] if self.range.whole else [low, (low + high) / 2, high]

    def settings(self) -> Any:
        """What a YAML file says of it."""
        return list(self.choices) if self.range is None else dataclasses.asdict(self.range)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of its own."""
        if self.range is None:
            return any(value == each and type(value) is type(each) for each in self.choices)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.range.low <= value <= self.range.high


Space = Sequence[Dimension]


def space_size(space: Space) -> float:
    """How many configurations there are."""
    return math.prod(dimension.size for dimension in space)


def declared_space(name: str, suite_search: Mapping[str, Any], known: Collection[str]) -> tuple[Dimension, ...]:
    """What a model is tuned over: its shipped space, changed by the suite's.

    Args:
        name: registry key.
        suite_search: "model.option", or "option" for all models that have it, to a range: a list of values, a mapping
            with ``low`` and ``high`` (and ``log``, ``whole``), the name of a shared range, or None to leave it alone.
        known: what can be set of the model.

    Raises:
        InputError: an option that the model lacks, a range that is none, or nothing is left.
    """
    shipped = read_shipped("aggregators", name) if name in shipped_names("aggregators") else {}
    declared = [(f"search of {name}", key, given) for key, given in shipped.get("search", USUAL).items()]
    for key, given in suite_search.items():
        owner, _, option = key.rpartition(".")
        if owner == name or (not owner and option in known):
            declared.append((f"search {key}", option, given))
    space: dict[str, Dimension] = {}
    for where, option, given in declared:
        if option not in known:
            raise InputError(f"{where}: {name} has no option {option!r}{did_you_mean(option, known)}")
        if given is None:
            space.pop(option, None)
        else:
            space[option] = _dimension(option, given, f"{where}: {option}")
    if not space:
        raise InputError(f"--tune: nothing of {name} is left to search; give it a range under search, or leave it out")
    return tuple(space.values())


def _dimension(option: str, given: Any, where: str) -> Dimension:
    if isinstance(given, str):
        shared = read_shipped("search", "shared")
        if given not in shared:
            raise InputError(f"{where}: no shared range is called {given!r}{did_you_mean(given, shared)}")
        given = shared[given]
    if isinstance(given, Mapping):
        try:
            return Dimension(option, from_mapping(Range, given, where))
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    if not isinstance(given, list | tuple) or len(given) < 2 or len({repr(value) for value in given}) < len(given):
        raise InputError(f"{where} must be low and high, or a list of two or more different values, not {given!r}")
    return Dimension(option, choices=tuple(given))
