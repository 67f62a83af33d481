"""``mil-zoo datasets``, ``mil-zoo graphs``."""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path

import click

from mil_zoo.cli.options import plugin_option


@click.command()
def datasets() -> None:
    """List the data cards: what each holds and where its files are expected."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from mil_zoo.data.card import list_cards, read_card

    name_column = Column("name", no_wrap=True, min_width=max(map(len, list_cards())))  # what is typed stays whole
    others = (Column(each, overflow="fold") for each in ("title", "kind", "bags", "classes", "files below --root"))
    table = Table(name_column, *others, title="Datasets")
    for name in list_cards():
        card = read_card(name)
        table.add_row(
            *map(escape, (name, card.title, card.kind, str(card.bags or ""))),
            escape(", ".join(card.classes)),
            escape(card.path or "none needed"),
        )
    Console().print(table)


@click.command()
@plugin_option
def graphs(plugin: tuple[Path, ...]) -> None:
    """List the patch-graph builders. All graphs are symmetrised by union and have one self-loop a patch."""
    from rich.console import Console
    from rich.table import Table

    table = Table("spec", "over", "edges", title="Graphs")
    for name, (over, parameters, docstring) in _describe_graphs(with_plugins=bool(plugin)).items():
        numbers = [argument for argument in parameters[1:] if argument not in ("patch_size", "features")]
        summary = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "")
        table.add_row(f"{name}:{','.join(numbers)}".rstrip(":"), over, summary)
    Console().print(table)


def _describe_graphs(with_plugins: bool) -> dict[str, tuple[str, list[str], str]]:
    """Of each builder what it reads, its positional parameters and its docstring; from source where that is enough."""
    from mil_zoo.registry import ENTRY_POINT_GROUP
    from mil_zoo.source_index import registered_in

    if not with_plugins and not importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        return {
            name: (
                entry.keywords.get("over", "coords"),
                [parameter for parameter in entry.parameters if parameter not in entry.keyword_only],
                entry.docstring,
            )
            for name, entry in registered_in("mil_zoo.graph", "register_graph").items()
        }
    from mil_zoo.graph import GRAPHS

    return {
        name: (
            builder.over,
            [
                parameter.name
                for parameter in inspect.signature(builder.function).parameters.values()
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            ],
            inspect.getdoc(builder.function) or "",
        )
        for name in GRAPHS
        for builder in [GRAPHS.get(name)]
    }
