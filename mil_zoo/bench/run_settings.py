"""Whether a run directory holds a run of the same settings: else it cannot be continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mil_zoo.errors import InputError

SHOWN = 5  # differences between two runs that a message lists


def refuse_other_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises an ``InputError`` that says what differs where the run at ``path`` has other settings, or other data."""
    known = [(settings.get("dataset") or {}).get("digests") or {} for settings in (old, new)]
    changed = [name for name in known[1] if known[0].get(name, known[1][name]) != known[1][name]]
    if changed and old["dataset"]["name"] == new["dataset"]["name"]:
        raise InputError(
            f"{path}: the data changed since this run began (other {' and '.join(changed)}); choose another --out, or "
            "bring the data back"
        )
    differences = _differences(_comparable(old), _comparable(new))
    if differences:
        # The title follows from the models, the hash of the splits from how they are drawn: said where nothing else is.
        told = [line for line in differences if not line.startswith(("title:", "split.hash:"))] or differences
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise InputError(
            f"{path} holds a run of other settings ({'; '.join(told[:SHOWN])}{more}); choose another --out or repeat "
            "its settings"
        )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with plugins by file name and content; digests of the data are compared before, and what recipes
    had says nothing of the run."""
    plugins = settings.get("plugins") or {}
    dataset = {name: value for name, value in (settings.get("dataset") or {}).items() if name != "digests"}
    models = {
        label: {name: value for name, value in model.items() if name != "replaced"}
        for label, model in (settings.get("model_settings") or {}).items()
    }
    plugins = {Path(file).name: digest for file, digest in plugins.items()}
    return {**settings, "dataset": dataset, "plugins": plugins, "model_settings": models}


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where}: {_short(old)} there, {_short(new)} now"]


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
