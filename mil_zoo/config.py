"""Typed configuration: dataclasses from YAML and ``key=value`` overrides, with errors that name the nearest key."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mil_zoo.errors import InputError, did_you_mean

C = TypeVar("C")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, is not YAML, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a YAML text that came from ``where``."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{where} must hold a mapping of names to values, not a {type(content).__name__}")
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
    """Builds the dataclass ``cls`` from ``mapping``, checking every key and type.

    Args:
        where: what the mapping is, for messages ("configs/aggregators/srmil.yaml").

    Raises:
        InputError: an unknown key (the nearest valid one is offered), a missing key, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise InputError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in mapping:
            raise InputError(f"{where}: the key {name!r} is missing")
    return cls(**{key: convert(value, hints[key], f"{where}: {key}") for key, value in mapping.items()})


def convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``, or an ``InputError`` that says what was expected.

    YAML reads ``1e-4`` (no dot) as text: where a number is expected, such text is a number.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in (arg for arg in args if arg is not type(None)):
            try:
                return convert(value, option, where)
            except InputError as error:
                failure = error
        raise failure
    if origin is typing.Literal:
        if value in args:
            return value
        raise InputError(f"{where} must be one of {', '.join(map(repr, args))}, not {value!r}")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a mapping, not {value!r}")
        return from_mapping(hint, value, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, not {value!r}")
        return origin(convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a mapping, not {value!r}")
        return {str(key): convert(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InputError(f"{where} must be a number, not {value!r}") from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{where} must be of type {hint.__name__}, not {value!r}")


def parse_override(text: str) -> tuple[list[str], Any]:
    """``"srmil.mask_rate=0.5"`` as ``(["srmil", "mask_rate"], 0.5)``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} must look like srmil.mask_rate=0.5")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text!r}: {value!r} is not a YAML value") from None
    if isinstance(parsed, str):
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key.strip().split("."), parsed
