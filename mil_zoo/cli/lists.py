"""``mil-zoo datasets``, ``mil-zoo graphs``."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from mil_zoo.cli.options import plugin_option


@click.command()
def datasets() -> None:
    """List the data cards: what each holds and where its files are expected."""
    from rich.console import Console
    from rich.table import Table

    from mil_zoo.data.card import list_cards, read_card

    table = Table("name", "title", "kind", "bags", "classes", "files below --root", title="Datasets")
    for name in list_cards():
        card = read_card(name)
        table.add_row(
            name, card.title, card.kind, str(card.bags or ""), ", ".join(card.classes), card.path or "none needed"
        )
    Console().print(table)


@click.command()
@plugin_option
def graphs(plugin: tuple[Path, ...]) -> None:
    """List the patch-graph builders. All graphs are symmetrised by union and have one self-loop a patch."""
    from rich.console import Console
    from rich.table import Table

    from mil_zoo.graph import GRAPHS

    table = Table("spec", "over", "edges", title="Graphs")
    for name in GRAPHS:
        builder = GRAPHS.get(name)
        positional = [
            parameter.name
            for parameter in list(inspect.signature(builder.function).parameters.values())[1:]
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        numbers = [argument for argument in positional if argument not in ("patch_size", "features")]
        summary = (inspect.getdoc(builder.function) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
        table.add_row(f"{name}:{','.join(numbers)}".rstrip(":"), builder.over, summary)
    Console().print(table)
