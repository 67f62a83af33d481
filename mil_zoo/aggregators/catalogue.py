"""Describes each aggregator without building it, for lists, which must not wait for torch."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mil_zoo.errors import unknown
from mil_zoo.registry import ENTRY_POINT_GROUP
from mil_zoo.source_index import NotLiteral, Registered, registered_in

PAPER_FIELDS = ("title", "year", "url", "code", "licence")


@dataclass(frozen=True)
class Description:
    """Holds what ``mil-zoo models`` shows of an aggregator.

    Attributes:
        name: registry key.
        docstring: of its class.
        options: of its constructor and their defaults (``inspect.Parameter.empty`` where there is none).
        family: pooling, attention, transformer, state space, spatial, or other.
        graph: the graph spec that it needs, or None.
        needs_coords: whether it needs coordinates besides.
        has_stages: whether it learns something before its training.
        paper: title, year, url, code and licence of its ``Paper``; empty without one.
        loads_published: whether the weights of the authors' own implementation load.
    """

    name: str
    docstring: str
    options: dict[str, Any]
    family: str
    graph: str | None
    needs_coords: bool
    has_stages: bool
    paper: Mapping[str, Any]
    loads_published: bool


def describe_aggregators(with_plugins: bool = False) -> dict[str, Description]:
    """Describes all aggregators, by name.

    Those of this package are read from their source, within a tenth of a second. Where plugins are involved, or where
    the source does not state a value literally, the classes are imported and asked.

    Args:
        with_plugins: plugin files were loaded. Installed plugins (entry points) are noticed here.
    """
    if not with_plugins and not importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entries = registered_in("mil_zoo.aggregators", "register_aggregator")
            return {name: _from_source(entry) for name, entry in entries.items()}
        except NotLiteral:
            pass
    return describe_classes()


def describe_classes() -> dict[str, Description]:
    """Describes all aggregators by asking the registered classes."""
    from mil_zoo.aggregators.base import Aggregator
    from mil_zoo.aggregators.registry import AGGREGATORS, aggregator_options

    return {
        name: Description(
            name=name,
            docstring=inspect.getdoc(cls) or "",
            options=aggregator_options(name),
            family=cls.family,
            graph=cls.graph,
            needs_coords=cls.needs_coords,
            has_stages=cls.prepare is not Aggregator.prepare,
            paper={field: getattr(cls.paper, field) for field in PAPER_FIELDS} if cls.paper else {},
            loads_published=cls.loads_published(),
        )
        for name in AGGREGATORS
        for cls in [AGGREGATORS.get(name)]
    }


def find_description(name: str, descriptions: Mapping[str, Description]) -> Description:
    """Returns one of ``descriptions``; an ``InputError`` offers the near names on a miss."""
    if name not in descriptions:
        raise unknown("aggregator", name, descriptions)
    return descriptions[name]


def _from_source(entry: Registered) -> Description:
    stated = entry.attribute("paper") or {}
    values = {i: value for i, value in enumerate(PAPER_FIELDS) if i in stated}
    paper = dict.fromkeys(PAPER_FIELDS) | {field: stated[i] for i, field in values.items()}
    paper |= {field: value for field, value in stated.items() if isinstance(field, str)}
    if entry.overrides("loads_published", base="Aggregator"):
        raise NotLiteral(f"{entry.name}.loads_published")
    return Description(
        name=entry.name,
        docstring=entry.docstring,
        options={key: value for key, value in entry.parameters.items() if key not in ("in_dim", "num_classes", "task")},
        family=entry.attribute("family") or "other",
        graph=entry.attribute("graph"),
        needs_coords=bool(entry.attribute("needs_coords")),
        has_stages=entry.overrides("prepare", base="Aggregator"),
        paper=paper if stated else {},
        loads_published=bool(stated) and paper["code"] is not None,
    )
