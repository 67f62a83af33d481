"""``mil-zoo models``, ``mil-zoo datasets``, ``mil-zoo graphs``."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from mil_zoo.cli.options import plugin_option


@click.command(epilog="\b\nExamples:\n  mil-zoo models\n  mil-zoo models srmil\n")
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the list as a Markdown table (the README's is made so).")
@plugin_option
def models(name: str | None, markdown: bool, plugin: tuple[Path, ...]) -> None:
    """List the aggregators, or tell all about the one called NAME: what it computes, its paper, its options."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mil_zoo.aggregators.base import AGGREGATORS, aggregator_options, create_aggregator

    console = Console()
    if name is not None:
        cls = AGGREGATORS.get(name)
        console.print(f"[bold]{name}[/]\n\n{escape(inspect.getdoc(cls) or '')}\n", highlight=False)
        if cls.paper:
            console.print(
                f"{cls.paper.title}, {cls.paper.year}: {cls.paper.url} {cls.paper.code or ''}\n", soft_wrap=True
            )
        table = Table("option", "default", title=f"--set {name}.OPTION=VALUE")
        for option, default in aggregator_options(name).items():
            table.add_row(option, str(default))
        console.print(table)
        return
    rows = []
    for key in AGGREGATORS:
        cls = AGGREGATORS.get(key)
        parameters = sum(p.numel() for p in create_aggregator(key).parameters())
        title, year, url = (cls.paper.title, str(cls.paper.year), cls.paper.url) if cls.paper else ("", "", "")
        rows.append((key, f"[{title}]({url})" if markdown else title, year, cls.graph or "none", f"{parameters:,}"))
    if markdown:
        click.echo("| name | paper | year | graph | parameters |\n|---|---|---|---|---:|")
        for key, *cells in rows:
            click.echo(f"| {' | '.join([f'`{key}`', *cells])} |")
        return
    table = Table("name", "paper", "year", "graph", "parameters", title="Aggregators (1024 features, two classes)")
    for row in rows:
        table.add_row(*row)
    console.print(table)


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
