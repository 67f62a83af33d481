"""``mil-zoo models``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mil_zoo.cli.options import plugin_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from mil_zoo.aggregators.catalogue import Description
    from mil_zoo.bench.cost import Cost

COLUMNS = ("name", "paper", "year", "parameters", "graph", "eval", "training step", "official weights")


@click.command(epilog="\b\nExamples:\n  mil-zoo models\n  mil-zoo models srmil\n  mil-zoo models --measure here.csv")
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the list as a Markdown table (the site's is made so).")
@click.option(
    "--measure",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    help="Measure time and memory on this machine (of NAME, or of all) into FILE.csv, which keeps its other rows, and "
    "show those. Without it, the measurements that the package ships are shown.",
)
@click.option("--threads", default=2, show_default=True, help="Threads to measure with.")
@plugin_option
def models(name: str | None, markdown: bool, measure: Path | None, threads: int, plugin: tuple[Path, ...]) -> None:
    """List the aggregators, or tell all about the one called NAME: what it computes, its paper, its options."""
    from rich.console import Console

    from mil_zoo.aggregators.catalogue import describe_aggregators, find_description
    from mil_zoo.bench.cost import read_costs

    described = describe_aggregators(with_plugins=bool(plugin))
    if name is not None:  # an unknown name is an error before anything is measured
        described = {name: find_description(name, described)}
    if measure is not None:
        _measure(list(described), measure, threads, plugin)
    costs = read_costs(measure)
    if name is not None:
        _show(Console(), described[name], costs.get(name))
    elif markdown:
        _print_markdown(described, costs)
    else:
        _print_table(Console(), described, costs)


def _measure(names: list[str], path: Path, threads: int, plugins: tuple[Path, ...]) -> None:
    from rich.console import Console
    from rich.progress import track

    from mil_zoo.bench import cost

    costs = cost.read_costs(path)
    for key in track(names, "measuring", console=Console(stderr=True)):
        costs[key] = cost.measure(key, threads, plugins)
        cost.write_costs(costs.values(), path)


def row_of(about: Description, cost: Cost | None) -> tuple[str, ...]:
    from mil_zoo.bench.cost import count_parameters

    parameters = count_parameters(about.name) if cost is None else cost.parameters
    title, year = (about.paper["title"], str(about.paper["year"])) if about.paper else ("", "")
    weights = "load" if about.loads_published else "none"
    return (about.name, title, year, f"{parameters:,}", about.graph or "none", *_measured(cost), weights)


def _measured(cost: Cost | None) -> tuple[str, str]:
    if cost is None:
        return "not measured", "not measured"

    def cell(ms: float | None, mib: float | None) -> str:
        if ms is None or mib is None:
            return "not measured"
        return f"{ms:,.0f} ms, {f'{mib:,.0f}' if mib >= 1 else '< 1'} MiB"

    return cell(cost.eval_ms, cost.eval_mib), cell(cost.train_ms, cost.train_mib)


def conditions(costs: dict[str, Cost]) -> str:
    from mil_zoo.bench.cost import FEATURES, INSTANCES

    dates: dict[str, list[str]] = {}
    for cost in costs.values():
        if cost.machine:
            dates.setdefault(cost.machine, []).append(cost.date)
    machines = [f"{machine}, {' to '.join(sorted({min(days), max(days)}))}" for machine, days in sorted(dates.items())]
    return (
        f"Models as mil-zoo bench trains them, {FEATURES} features, two classes. Median time, and peak memory above "
        f"weights, optimiser state, bag and graph, for one bag of {INSTANCES:,} instances: a prediction, and a "
        f"training step with its update. {'Measured on ' + '; '.join(machines) + '.' if machines else ''}"
    ).strip()


def _print_markdown(described: Mapping[str, Description], costs: dict[str, Cost]) -> None:
    click.echo(f"| {' | '.join(COLUMNS)} |\n|---|---|---|---:|---|---:|---:|---|")
    for key, about in described.items():
        _, title, *cells = row_of(about, costs.get(key))
        link = f"[{title}]({about.paper['url']})" if about.paper else ""
        click.echo(f"| {' | '.join([f'`{key}`', link, *cells])} |")
    click.echo(f"\n({conditions(costs)})")


def _print_table(console: Console, described: Mapping[str, Description], costs: dict[str, Cost]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Aggregators", caption=conditions(costs), caption_justify="left")
    for column in COLUMNS:
        right = column in ("year", "parameters", "eval", "training step")
        table.add_column(column, justify="right" if right else "left", no_wrap=column in ("name", "parameters"))
    for key, about in described.items():
        table.add_row(*map(escape, row_of(about, costs.get(key))))
    console.print(table)
    console.print("mil-zoo models NAME: what one computes, its options, its training.", highlight=False)


def _show(console: Console, about: Description, cost: Cost | None) -> None:
    from rich.markup import escape

    name = about.name
    description, arguments = split_docstring(about.docstring)
    _, title, year, parameters, graph, evaluation, step, _ = row_of(about, cost)

    def say(text: str = "") -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"[bold]{name}[/]  {escape(title)}{', ' + year if year else ''}")
    if about.paper:
        say("  ".join(filter(None, (about.paper["url"], about.paper["code"]))))
    say()
    say(re.sub(r"(?m)^(Source|Deviations):", r"[bold]\1:[/]", escape(description)))
    say(f"\n[bold]Cost:[/] {parameters} parameters, graph {graph}. Eval {evaluation}; training step {step}.")
    if cost is not None:
        say(f"({conditions({name: cost})})")
    say()
    _print_options(console, about, arguments)
    _print_training(console, name)
    say("[bold]Use it[/]")
    first = next(iter(about.options), None)
    setting = f" --set {name}.{first}=..." if first else ""
    say(f"  mil-zoo bench --models {name}{setting}")
    say(f'  aggregator = mil_zoo.create_aggregator("{name}", in_dim=1024, num_classes=2)')
    if about.loads_published:
        say('  aggregator.load_published("checkpoint.pth")  # of the authors\' own code; .pth, .pt or .safetensors')


def _print_options(console: Console, about: Description, arguments: dict[str, str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    recipe = _recipe(about.name).get("options", {})  # holds what differs from the constructor alone
    table = Table("option", "default", "what it is", title=f"--set {about.name}.OPTION=VALUE")
    for option, default in about.options.items():
        shown = "required" if default is inspect.Parameter.empty else str(default)
        shown += f" ({recipe[option]} in the benchmark)" if option in recipe else ""
        table.add_row(*map(escape, (option, shown, arguments.get(option, ""))))
    console.print(table)


def _print_training(console: Console, name: str) -> None:
    import textwrap

    from mil_zoo.config import read_shipped_text, shipped_names

    training = ", ".join(f"{key} {value}" for key, value in _recipe(name).get("training", {}).items())
    source = "the package's defaults; there is no recipe for it"
    if name in shipped_names("aggregators"):
        comments = [row for row in read_shipped_text("aggregators", f"{name}.yaml").splitlines() if row.startswith("#")]
        source = " ".join(row.lstrip("# ") for row in comments)
    console.print(f"[bold]Training[/] {training}".rstrip(), highlight=False, soft_wrap=True)
    console.print(textwrap.fill(source, 100), highlight=False, markup=False, soft_wrap=True)
    console.print()


def _recipe(name: str) -> dict[str, Any]:
    from mil_zoo.config import read_shipped, shipped_names

    return read_shipped("aggregators", name) if name in shipped_names("aggregators") else {}


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """A Google docstring as its description, in plain text, and what it says of each argument."""
    text = text.replace("``", "").replace("::\n", ":\n")
    description, _, rest = text.partition("\nArgs:\n")
    block = rest.partition("\nRaises:")[0]
    entries = re.findall(r"(?m)^    (\w+): (.*(?:\n     +.*)*)", block)
    arguments = {name: " ".join(what.split()) for name, what in entries}
    return description.strip(), {
        name: what for name, what in arguments.items() if name not in ("in_dim", "num_classes")
    }
