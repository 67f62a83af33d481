"""What the options of an aggregator take: read from its constructor's annotations, checked before any training."""

from __future__ import annotations

import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from mil_zoo.errors import InputError

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "None"}
_SIZES = ("dim", "hidden", "heads", "layers")  # of layers, which have some width


def check_options(make: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
    """Refuses values that what makes an aggregator, its class or a function, does not take.

    Checked are annotations of numbers, texts, choices and their unions; that whole numbers are not negative, and sizes
    not 0; and dropout rates, which kernels scale by 1 / (1 - rate).

    Raises:
        InputError: the message names the option and what it takes.
    """
    try:
        kinds = get_type_hints(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
    except Exception:  # of a user's own, whose annotations may name what is not there
        kinds = {}
    for option, value in options.items():
        kind = kinds.get(option, Any)
        if not _fits(value, kind):
            raise InputError(f"{name}: {option} must be {_in_words(kind)}, not {value!r}")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            continue
        if option.endswith(("dropout", "_drop")) and option != "mask_drop" and not 0 <= value < 1:
            raise InputError(f"{name}: {option} must be at least 0 and below 1, not {value}")
        least = 1 if option.endswith(_SIZES) else 0
        if int in _parts(kind) and float not in _parts(kind) and value < least:
            raise InputError(f"{name}: {option} must be {least} or more, not {value}")


def declared_options(classes: Sequence[type]) -> dict[str, Any]:
    """Names and defaults of what the constructor of ``classes[0]`` takes, but for ``in_dim`` and ``num_classes``.

    Where it passes ``**kwargs`` on, the parameters of the next class's constructor are among them, with ``...`` for a
    default, and so on.
    """
    options: dict[str, Any] = {}
    makers = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)]
    for make in makers:
        own = inspect.signature(make).parameters.values()
        for parameter in own:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                options.setdefault(parameter.name, parameter.default if make is makers[0] else ...)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return {name: default for name, default in options.items() if name not in ("self", "in_dim", "num_classes")}


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if len(_parts(kind)) > 1:
        return any(_fits(value, part) for part in _parts(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    truth = isinstance(value, bool | np.bool_)
    if kind is int:
        return isinstance(value, numbers.Integral) and not truth
    if kind is float:
        return isinstance(value, numbers.Real) and not truth and math.isfinite(value)
    if kind is bool:
        return truth
    return isinstance(value, kind) if kind in _WORDS else True


def _in_words(kind: Any) -> str:
    words = []
    for part in _parts(kind):
        if get_origin(part) is Literal:
            choices = ", ".join(map(repr, get_args(part)))
            words.append(f"one of {choices}" if len(get_args(part)) > 1 else choices)
        else:
            words.append(_WORDS.get(part, str(part)))
    return " or ".join(words)
