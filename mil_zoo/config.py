"""Typed configuration: dataclasses from YAML and ``key=value`` overrides, with errors that name the nearest key.

The types are checked by pydantic; what it finds is said in this package's words."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mil_zoo.errors import InputError, did_you_mean
from mil_zoo.files import refuse_pipe

C = TypeVar("C")
_MOST_VALUES = 1_000_000
_MOST_LEVELS = 100  # of lists and mappings in each other
_MOST_BITS = 1024  # of a whole number: as large as the largest float
_SHOWN = 300  # characters of a value that a message repeats


_BOOL = "tag:yaml.org,2002:bool"
_MERGE = "tag:yaml.org,2002:merge"


# The loader in C reads the configuration of a run in a tenth of the time; some builds of PyYAML lack it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader with three rules of YAML 1.2: ``1e-4`` is a number, ``off`` or ``no`` is a text, and no key
    stands twice.

    YAML 1.1 reads a text and a truth value, and PyYAML keeps the last of two values of one key.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in keys:
                    problem = f"{key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                keys.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _BOOL]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which puts in quotes what either set of rules would not read as text: a class may be called ``1e0``."""


_Dumper.add_representer(  # a next-line character would come back as a blank
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if "\x85" in text else None),
)
for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, is not YAML, or holds something other than a mapping.
    """
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def yaml_text(settings: Mapping[str, Any]) -> str:
    """The YAML text of plain values, in their order, that :func:`parse_yaml` reads as they are."""
    return str(yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a YAML text that came from ``where``."""
    try:
        content = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month, a number of 5000 digits
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())[:_SHOWN]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{where} must hold a mapping of names to values, not a {type(content).__name__}")
    return content


def _load(text: str) -> Any:
    """The value in a YAML text; a ``ValueError`` where its anchors make it huge or endless, or it is nested deeply."""
    content = yaml.load(text, _Loader)
    sizes: dict[int, float] = {}  # of each list and mapping that was seen, by its identity

    def size(value: Any, level: int = 0) -> float:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ValueError("a whole number in it is too large to be written")
        if not isinstance(value, dict | list):
            return 1
        if level > _MOST_LEVELS:
            raise ValueError(f"lists and mappings in it lie more than {_MOST_LEVELS} deep in each other")
        if id(value) not in sizes:
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = math.inf  # until it is known: what holds itself has no end
            sizes[id(value)] = 1 + sum(size(part, level + 1) for part in parts)
        return sizes[id(value)]

    if size(content) > _MOST_VALUES:
        raise ValueError(f"its anchors stand for more than {_MOST_VALUES:,} values; write it out")
    return content


def shipped_names(folder: str) -> list[str]:
    """Names (without ``.yaml``) of the files shipped in ``folder``: "suites", "aggregators", "data_cards"."""
    return sorted(entry.name[:-5] for entry in _folder(folder).iterdir() if entry.name.endswith(".yaml"))


def read_shipped(folder: str, name: str) -> dict[str, Any]:
    """The mapping in the shipped ``folder/name.yaml``; an ``InputError`` offers the near names where there is none."""
    known = shipped_names(folder)
    if name not in known:
        kind = {"data_cards": "dataset", "suites": "suite"}.get(folder, folder.rstrip("s"))
        raise InputError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")
    return parse_yaml((_folder(folder) / f"{name}.yaml").read_text(encoding="utf-8"), f"{folder}/{name}.yaml")


def read_shipped_text(folder: str, name: str) -> str:
    """The text of a shipped file, for instance ``("data_cards", "demo.md")``."""
    return str((_folder(folder) / name).read_text(encoding="utf-8"))


def _folder(folder: str) -> Any:
    if folder == "data_cards":
        return resources.files("mil_zoo._data_cards")
    return resources.files("mil_zoo._configs") / folder


def from_mapping(cls: type[C], mapping: Mapping[str, Any], where: str) -> C:
    """Builds the dataclass ``cls`` from ``mapping``; pydantic checks every key and type, strictly.

    Values are what YAML and JSON know: a list becomes the tuple, a text the ``Path`` that the annotation asks for, and
    a whole number a float; nothing else is converted.

    Args:
        cls: a dataclass; its ``__post_init__`` may raise an ``InputError`` of its own.
        mapping: names of its fields to values.
        where: what the mapping is, for messages ("configs/aggregators/srmil.yaml").

    Raises:
        InputError: an unknown key (the nearest valid one is offered), a missing key, or a value of the wrong type (all
            that the field takes are named).
    """
    from pydantic import ValidationError

    try:
        text = json.dumps({where: _plain(mapping)})
    except RecursionError:
        raise InputError(f"{where} is nested too deeply, or holds itself; write its values out") from None
    try:
        adapter: Any = _adapter(cls)  # type: ignore[arg-type]
        built: C = adapter.validate_json(text)[where]
    except ValidationError as error:
        raise _first_fault(cls, mapping, where, error) from None
    return built


@functools.cache
def _adapter(cls: type) -> Any:
    """What validates ``{where: mapping}``: a dataclass takes the rules over from the mapping around it."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(dict[str, cls], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))  # type: ignore[valid-type]


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: mappings, lists, texts, numbers, true, false and null; anything else as its text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
"""What a field takes, in words, by pydantic's name of the fault."""


def _first_fault(cls: type, mapping: Mapping[str, Any], where: str, error: Any) -> InputError:
    """The first fault that pydantic found, as one sentence. Of a union it finds one in every branch: all are told."""
    faults = error.errors(include_url=False)
    first, places = faults[0], [_place(mapping, fault["loc"][1:]) for fault in faults]
    keys, value = places[0]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    if first["type"] == "value_error":
        raised = first["ctx"]["error"]
        return raised if isinstance(raised, InputError) else InputError(f"{where}: {raised}")
    if first["type"] in ("unexpected_keyword_argument", "missing") and isinstance(first["loc"][-1], str):
        *parents, key = first["loc"][1:]
        place = ": ".join([where, *map(str, parents)])
        if first["type"] == "missing":
            return InputError(f"{place}: the key {key!r} is missing")
        return InputError(f"{place}: unknown key {key!r}{did_you_mean(key, _fields(cls, parents))}")
    if first["type"] in ("missing", "too_long", "too_short"):  # of a list of a fixed length
        keys, value = _place(mapping, first["loc"][1 : 2 if first["type"] == "missing" else None])
        return InputError(f"{where}: {'.'.join(map(str, keys))} has the wrong number of values: {value!r}")
    here = [fault for fault, place in zip(faults, places, strict=True) if place[0] == keys]
    choices = [choice for fault in here if fault["type"] == "literal_error" for choice in _choices(fault)]
    words = [_EXPECTED.get(fault["type"], fault["msg"]) for fault in here if fault["type"] != "literal_error"]
    if len(keys) == 1 and type(None) in typing.get_args(typing.get_type_hints(cls)[str(keys[0])]):
        words.append("null")
    if len(choices) > 1:
        words.insert(0, f"one of {', '.join(choices)}")
    else:
        words += choices
    return InputError(f"{where}: {path} must be {' or '.join(dict.fromkeys(words))}, not {value!r}")


def _place(value: Any, location: Sequence[int | str]) -> tuple[list[int | str], Any]:
    """The keys of ``location`` that lead into ``value``, and what they lead to; what follows names a union's branch."""
    keys: list[int | str] = []
    for key in location:
        try:
            value = value[key]
        except (LookupError, TypeError):
            break
        keys.append(key)
    return keys, value


def _choices(fault: Mapping[str, Any]) -> list[str]:
    return str(fault["ctx"]["expected"]).replace(" or ", ", ").split(", ")


def _fields(cls: Any, parents: Sequence[int | str]) -> list[str]:
    """Names of the fields of ``cls``, or of the dataclass that its fields called ``parents`` hold."""
    for parent in parents:
        hint = typing.get_type_hints(cls).get(str(parent))
        cls = next(each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each))
    return [field.name for field in dataclasses.fields(cls)]


def parse_override(text: str) -> tuple[list[str], Any]:
    """``"srmil.mask_rate=0.5"`` as ``(["srmil", "mask_rate"], 0.5)``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} must look like srmil.mask_rate=0.5")
    try:
        parsed = _load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        raise InputError(f"--set {key}: {shown!r} is not a YAML value") from None
    return key.strip().split("."), parsed
