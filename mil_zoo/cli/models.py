"""``mil-zoo models``."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mil_zoo.cli.options import plugin_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from mil_zoo.aggregators.catalogue import Description
    from mil_zoo.bench.cost import Cost

FAMILIES = ("pooling", "attention", "spatial", "transformer", "state space", "other")  # in the order of the lists
COLUMNS = (
    "name",
    "paper",
    "year",
    "parameters",
    "needs",
    "eval",
    "training step",
    "authors' code",
    "parity",
    "AUC",
)


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
    if name is not None and name not in described and measure is None:
        _show_protocol(Console(), name, plugin)
        return
    if name is not None:  # an unknown name is an error before anything is measured
        described = {name: find_description(name, described)}
    if measure is not None:
        _measure(list(described), measure, threads, plugin)
    costs = read_costs(measure)
    if name is not None:
        _show(Console(), described[name], costs.get(name), plugin)
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
    from mil_zoo.bench.evidence import read_evidence

    parameters = count_parameters(about.name) if cost is None else cost.parameters
    title, year = (about.paper["title"], str(about.paper["year"])) if about.paper else ("", "")
    code = (about.paper["licence"] or "no licence stated") if about.paper.get("code") else "none"
    evidence = read_evidence().get(about.name)
    parity = "-" if evidence is None or evidence.parity_error is None else f"{evidence.parity_error:.0e}"
    auc = "-" if evidence is None or evidence.auc is None else f"{evidence.auc:.3f}"
    return (about.name, title, year, f"{parameters:,}", _needs(about), *_measured(cost), code, parity, auc)


def _needs(about: Description) -> str:
    graph = (about.graph,) if about.graph else ()
    coords = ("coordinates",) if about.needs_coords else ()
    stages = ("two stages",) if about.has_stages else ()
    return ", ".join(graph + coords + stages) or "features"


def families(described: Mapping[str, Description]) -> dict[str, list[Description]]:
    """The aggregators by family, in the order of the lists; a plugin's own families come last."""
    found = {about.family for about in described.values()}
    order = [*FAMILIES, *sorted(found - set(FAMILIES))]
    return {
        family: [about for about in described.values() if about.family == family] for family in order if family in found
    }


def _measured(cost: Cost | None) -> tuple[str, str]:
    if cost is None:
        return "-", "-"

    def cell(ms: float | None, mib: float | None) -> str:
        if ms is None or mib is None:
            return "-"
        return f"{ms:,.0f} ms, {f'{mib:,.0f}' if mib >= 1 else '< 1'} MiB"

    return cell(cost.eval_ms, cost.eval_mib), cell(cost.train_ms, cost.train_mib)


def conditions(costs: dict[str, Cost]) -> str:
    from mil_zoo.bench.cost import FEATURES, INSTANCES
    from mil_zoo.bench.evidence import PARITY, SCORE

    dates: dict[str, list[str]] = {}
    for cost in costs.values():
        if cost.machine:
            dates.setdefault(cost.machine, []).append(cost.date)
    machines = [f"{machine}, {' to '.join(sorted({min(days), max(days)}))}" for machine, days in sorted(dates.items())]
    return (
        f"Models as mil-zoo bench trains them, {FEATURES} features, two classes. Median time, and peak memory above "
        f"weights, optimiser state, bag and graph, for one bag of {INSTANCES:,} instances: a prediction, and a "
        f"training step with its update. {'Measured on ' + '; '.join(machines) + '. ' if machines else ''}"
        f"The authors' code is compared with and never copied; its weights load. Parity: {PARITY} AUC: {SCORE}"
    )


def _print_markdown(described: Mapping[str, Description], costs: dict[str, Cost]) -> None:
    for family, members in families(described).items():
        click.echo(f"**{family.capitalize()}**\n")
        click.echo(f"| {' | '.join(COLUMNS)} |\n|---|---|---|---:|---|---:|---:|---|---:|---:|")
        for about in members:
            _, title, *cells = row_of(about, costs.get(about.name))
            link = f"[{title}]({about.paper['url']})" if about.paper else ""
            click.echo(f"| {' | '.join([f'`{about.name}`', link, *cells])} |")
        click.echo()
    click.echo(f"({conditions(costs)})")


def _print_table(console: Console, described: Mapping[str, Description], costs: dict[str, Cost]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mil_zoo.config import shipped_names

    table = Table(title="Aggregators", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = conditions(costs), "left"
    shown = ("name", "parameters", "needs", "eval ms", "step ms", "parity", "AUC")
    for column in shown:
        table.add_column(column, justify="left" if column in ("name", "needs") else "right", no_wrap=True)
    for family, members in families(described).items():
        table.add_row(f"[bold]{escape(family)}[/]")
        for about in members:
            name, _, _, parameters, needs, evaluation, step, _, *found = row_of(about, costs.get(about.name))
            times = (cell.partition(" ms")[0] for cell in (evaluation, step))
            table.add_row(*map(escape, (name, parameters, needs, *times, *found)))
    console.print(table)
    others = ", ".join(name for name in shipped_names("aggregators") if name not in described)
    console.print(f"Beside them mil-zoo bench --models takes {others}: no aggregators, but rows of the same tables.")
    console.print("mil-zoo models NAME: what one computes, its options, its training.", highlight=False)


def _show(console: Console, about: Description, cost: Cost | None, plugins: tuple[Path, ...]) -> None:
    from rich.markup import escape

    name = about.name
    description, arguments = split_docstring(about.docstring)
    _, title, year, parameters, needs, evaluation, step, code, *found = row_of(about, cost)

    def say(text: str = "") -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"[bold]{name}[/]  {escape(title)}{', ' + year if year else ''}")
    if about.paper:
        say("  ".join(filter(None, (about.paper["url"], about.paper["code"]))) + f"  (licence: {code})")
    say()
    say(re.sub(r"(?m)^(Source|Deviations):", r"[bold]\1:[/]", escape(description)))
    say(f"\n[bold]Family:[/] {escape(about.family)}. [bold]Needs:[/] {escape(needs)}.")
    times = "Time and memory are not measured; --measure FILE.csv does it."
    if cost is not None:
        times = f"Eval {evaluation}; training step {step}."
    shown = [f"{what} {value}" for what, value in zip(("Parity", "AUC"), found, strict=True) if value != "-"]
    say(f"[bold]Cost:[/] {parameters} parameters. {times} {', '.join(shown)}{'.' if shown else ''}".rstrip())
    if cost is not None:
        say(f"({conditions({name: cost})})")
    say()
    _print_options(console, name, about.options, arguments)
    _print_training(console, name)
    say("[bold]Use it[/]")
    first = next(iter(about.options), None)
    setting = f" --set {name}.{first}=..." if first else ""
    say(escape(f"  mil-zoo bench{_plugged(plugins)} --models {name}{setting}"))
    say(f'  aggregator = mil_zoo.create_aggregator("{name}", in_dim=1024, num_classes=2)')
    if about.loads_published:
        say('  aggregator.load_published("checkpoint.pth")  # of the authors\' own code; .pth, .pt or .safetensors')


def _plugged(plugins: tuple[Path, ...]) -> str:
    return "".join(f" --plugin {shlex.quote(str(path))}" for path in plugins)


def _show_protocol(console: Console, name: str, plugins: tuple[Path, ...]) -> None:
    """Tells of a model that is no aggregator."""
    from rich.markup import escape

    from mil_zoo.train.protocols import PROTOCOLS, model_options

    options = model_options(name)  # an error where there is none of this name
    description, arguments = split_docstring(inspect.getdoc(PROTOCOLS.get(name)) or "")
    console.print(f"[bold]{name}[/]\n\n{escape(description)}\n", highlight=False, soft_wrap=True)
    _print_options(console, name, options, arguments)
    _print_training(console, name)
    use = escape(f"mil-zoo bench{_plugged(plugins)} --models {name}")
    console.print(f"[bold]Use it[/]\n  {use}", highlight=False, soft_wrap=True)


def _print_options(console: Console, name: str, options: Mapping[str, Any], arguments: dict[str, str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    recipe = _recipe(name).get("options", {})  # holds what differs from the constructor alone
    table = Table("option", "default", "what it is", title=f"--set {name}.OPTION=VALUE")
    for option, default in options.items():
        shown = {inspect.Parameter.empty: "required", ...: "as its base"}.get(default, str(default))
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
