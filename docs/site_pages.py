"""Writes the pages of the site that are made from the package: one an aggregator, one a data card, and their lists.

They lie in ``zoo/``, ``datasets/`` and ``_generated/`` (not kept in git). Every build rewrites those that changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from mil_zoo.aggregators.catalogue import Description, describe_aggregators
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.bench.cost import Cost, count_parameters, read_costs
from mil_zoo.cli.models import COLUMNS, conditions, families, row_of, split_docstring
from mil_zoo.config import read_shipped_text, read_yaml, shipped_names
from mil_zoo.data.card import list_cards, read_card

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("real", "table", "own")  # slides first, then bags from other tables, then what is simulated
PUBLISHED = """aggregator.load_published("checkpoint.pth")  # weights of the authors' code"""
GOLDEN_NAMES = {"smabmil": "sm_abmil", "smtransformer": "sm_transformer", "mhim2": "mhim", "stamp_vit": "vit"}


def write(docs: Path) -> None:
    """Writes all generated pages below ``docs``."""
    described = describe_aggregators()
    costs = read_costs()
    parity = read_parity(described)
    scores = read_scores()
    pages = {f"zoo/{name}.md": zoo_page(about, costs.get(name), parity, scores) for name, about in described.items()}
    pages["zoo/index.md"] = zoo_index(described, costs)
    pages |= {f"datasets/{name}.md": dataset_page(name) for name in list_cards()}
    pages["datasets/index.md"] = datasets_index()
    pages |= {
        "_generated/ops.md": ops_table(),
        "_generated/results.md": results_text(),
        "_generated/onnx.md": onnx_text(),
    }
    for name, text in pages.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for folder in ("zoo", "datasets", "_generated"):
        for path in (docs / folder).glob("*.md"):
            if f"{folder}/{path.name}" not in pages:
                path.unlink()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("\n", " ") for cell in line) + " |" for line in lines) + "\n"


def zoo_index(described: Mapping[str, Description], costs: Mapping[str, Cost]) -> str:
    """The list of the zoo, as ``mil-zoo models`` prints it, with a link to each page."""
    parts = []
    for family, members in families(described).items():
        rows = []
        for about in members:
            _, title, *cells = row_of(about, costs.get(about.name))
            paper = f"[{title}]({about.paper['url']})" if about.paper else ""
            rows.append([f"[`{about.name}`]({about.name}.md)", paper, *cells])
        parts.append(f"## {family.capitalize()}\n\n{table(COLUMNS, rows)}")
    tables = "\n".join(parts)
    entries = "\n".join(described)
    return f"""# Zoo

mil-zoo holds {len(described)} aggregators. Each page tells what one computes, where it departs from its paper, how it
is trained, how near it comes to its authors' code, and what it costs. `mil-zoo models NAME` prints the same.

{tables}
{conditions(dict(costs))}

```{{toctree}}
:hidden:

{entries}
```
"""


def onnx_text() -> str:
    """Which aggregators can be ONNX models, and why the others cannot."""
    known = {name: AGGREGATORS.get(name) for name in AGGREGATORS.names()}
    graph = [f"`{name}`" for name, cls in known.items() if cls.graph]
    exported = [f"`{name}`" for name, cls in known.items() if not cls.graph and not cls.not_in_onnx]
    reasons = [(f"`{name}`", cls.not_in_onnx) for name, cls in known.items() if cls.not_in_onnx]
    why = table(("aggregator", "why not"), reasons)
    return f"""Exported are {", ".join(exported)}.

The others say why not. {", ".join(graph)} need the graph of a slide's patches, which is built outside the model.
Of the rest:

{why}"""


def zoo_page(about: Description, cost: Cost | None, parity: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The page of one aggregator."""
    name = about.name
    _, arguments = split_docstring(about.docstring)
    links = ""
    if about.paper:
        code = about.paper["code"]
        links = f"[{about.paper['title']}]({about.paper['url']}), {about.paper['year']}"
        links += f" · [the authors' code]({code})" if str(code).startswith("http") else ""
    options = [
        [f"`{option}`", "required" if default is inspect.Parameter.empty else f"`{default}`", arguments.get(option, "")]
        for option, default in about.options.items()
    ]
    recipe = "It has no recipe of its own and is trained with the package's defaults."
    if name in shipped_names("aggregators"):
        lines = read_shipped_text("aggregators", f"{name}.yaml").splitlines()
        first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        why = " ".join(line.lstrip("# ") for line in lines[:first])
        recipe = f"{why}\n\n```yaml\n" + "\n".join(lines[first:]) + "\n```"
    return f"""# `{name}`

{links}

```{{eval-rst}}
{documented(about)}
```

## Use it

```bash
mil-zoo bench --models {name},abmil
```

```python
aggregator = mil_zoo.create_aggregator("{name}", in_dim=1024, num_classes=2)
{PUBLISHED if about.loads_published else ""}
```

## Options

`--set {name}.OPTION=VALUE` sets one.

{table(("option", "default", "what it is"), options) if options else "It has none."}

## Training recipe

{recipe}

## Cost

{cost_text(name, about, cost)}

## Parity with the authors' code

{parity_text(name, parity)}

## Results

{scores_text(name, scores)}
"""


def documented(about: Description) -> str:
    """The docstring without its arguments, whose headings (Source, Deviations) are bold."""
    text = about.docstring.partition("\nArgs:\n")[0]
    text = re.sub(r"(?m)^(Source|Deviations):", r"**\1.**", text)
    # Bars around a norm would be a substitution of reStructuredText, outside of literals.
    return re.sub(r"(?m)(``.+?``|^ .*$)|\|", lambda found: found[1] or r"\|", text)


def cost_text(name: str, about: Description, cost: Cost | None) -> str:
    """What one prediction and one step cost, and where it was measured."""
    parameters = count_parameters(name) if cost is None else cost.parameters
    _, _, _, _, needs, evaluation, step, *_ = row_of(about, cost)
    where = conditions({name: cost}) if cost is not None else ""
    return (
        f"It has {parameters:,} parameters. It is of the family *{about.family}* and needs: {needs}. "
        f"A prediction costs {measured(evaluation)}, a training step {measured(step)}.\n\n{where}"
    )


def measured(cell: str) -> str:
    """A cell of the zoo's table in a sentence."""
    return "what nobody measured yet" if cell == "-" else cell


def read_parity(described: Mapping[str, Description]) -> pd.DataFrame:
    """The rows of ``parity.md``: aggregator, golden values, what was compared, the largest relative error."""
    rows = []
    text = (RESULTS / "parity.md").read_text(encoding="utf-8")
    for golden, compared, error in re.findall(r"(?m)^\| `(\w+)` \| (.+?) \| ([\d.e+-]+) \|$", text):
        fits = [own for start, own in GOLDEN_NAMES.items() if golden.startswith(start)]
        fits = fits or sorted((name for name in described if golden.startswith(name)), key=len)
        rows.append((fits[-1] if fits else "", golden, compared, float(error)))
    return pd.DataFrame(rows, columns=["aggregator", "golden", "compared", "error"])


def parity_text(name: str, parity: pd.DataFrame) -> str:
    """The largest error of each golden file of an aggregator."""
    own = parity[parity["aggregator"] == name]
    if own.empty:
        return (
            "No row of `benchmarks/results/parity.md` is about it. Where its authors published code, `make parity` "
            "compares it and writes one."
        )
    rows = [
        [f"`{golden}`", len(part), f"{part['error'].max():.1e}", part.loc[part["error"].idxmax(), "compared"]]
        for golden, part in own.groupby("golden")
    ]
    return (
        "Outputs, loss terms and gradients were compared with those of the authors' own code, from the same weights. "
        "A test fails above 1e-4.\n\n" + table(("golden values", "comparisons", "largest relative error", "of"), rows)
    )


def read_scores() -> pd.DataFrame:
    """A row for each aggregator of each run in ``benchmarks/results`` that compares several."""
    parts = []
    for path in sorted(RESULTS.glob("*/table.csv")):
        part, settings = pd.read_csv(path), read_yaml(path.with_name("config.yaml"))
        if not {"aggregator", "accuracy_mean", "auc_mean"} <= set(part.columns):
            continue
        data = settings["dataset"]
        title = data["title"] + (" (simulated)" if data["simulated"] else "")
        order = len(KINDS) if data["simulated"] else KINDS.index(data["kind"])
        parts.append(part.assign(folder=path.parent.name, data=title, order=order))
    return pd.concat(parts).sort_values(["order", "folder"], kind="stable")


def scores_text(name: str, scores: pd.DataFrame) -> str:
    """The scores of an aggregator on real data and simulated slides, and its figure 3 where one was kept."""
    own = scores[scores["aggregator"] == name]
    if own.empty:
        return "No run in `benchmarks/results/` trained it yet."
    rows = [
        [row.data, f"{row.accuracy_mean:.3f}", f"{row.auc_mean:.3f}", row.trials_ok, f"`{row.folder}`"]
        for row in own.itertuples()
    ]
    text = table(("data", "accuracy", "AUC", "trials", "folder"), rows)
    text += (
        "\nThe numbers are means over the test folds of runs kept in `benchmarks/results/`; the "
        "[results](../results.md) have their intervals and tests. Numbers of different rows are of different data.\n"
    )
    for folder in own["folder"]:
        of_it, of_all = RESULTS / folder / f"figure3-{name}.png", RESULTS / folder / "figure3.png"
        figure = of_it if of_it.is_file() else of_all
        if figure.is_file():
            title = own.loc[own["folder"] == folder, "data"].iloc[0]
            return f"""{text}
```{{figure}} ../../{figure.relative_to(ROOT).as_posix()}
:alt: Attention skew of {name} on {title}

Figure 3 of {"this aggregator" if figure == of_it else "all aggregators of the run"} on {title}.
```
"""
    return text


def datasets_index() -> str:
    """The list of the data cards."""
    rows = []
    for name in list_cards():
        card = read_card(name)
        rows.append([f"[`{name}`]({name}.md)", card.title, card.kind, card.bags or "", ", ".join(card.classes)])
    entries = "\n".join(list_cards())
    return f"""# Datasets

A data card says what a dataset is: its classes, label rule, counts, split, licence and traps. mil-zoo checks the files
at hand against the card before anything is trained. `mil-zoo data show NAME` prints a card.

{table(("name", "title", "kind", "bags", "classes"), rows)}
```{{toctree}}
:hidden:

{entries}
```
"""


def dataset_page(name: str) -> str:
    """The page of one data card: its text, then its facts."""
    card = read_card(name)
    text = card.text.replace("](../", "](../../")
    facts = table(("fact", "value"), ((key, value.replace("|", "\\|")) for key, value in card.facts().items()))
    return f"{text.rstrip()}\n\n## Facts\n\n{facts}"


def ops_table() -> str:
    """Which backends each op has."""
    from mil_zoo.kernels import __all__ as public
    from mil_zoo.kernels.backends import backend_status, ops_of

    of_backend = {name: ops_of(name) for name in backend_status()}
    ops = [name for name in public if any(name in ops for ops in of_backend.values())]
    rows = [[f"`{op}`", *("yes" if op in has else "" for has in of_backend.values())] for op in ops]
    return table(("op", *(f"`{name}`" for name in of_backend)), rows)


def results_text() -> str:
    """The table of every run in ``benchmarks/results`` with its notes, those on real data first."""
    parts = []
    for path in sorted(RESULTS.glob("*/table.md")):
        if not (path.with_name("config.yaml")).is_file():
            continue
        data = read_yaml(path.with_name("config.yaml"))["dataset"]
        title = data["title"] + (" (simulated)" if data["simulated"] else "")
        shown, _, notes = path.read_text(encoding="utf-8").partition("\n\n")
        text = f"## {title}: `{path.parent.name}`\n\n{shown}\n\n{notes.strip()}\n"
        parts.append((bool(data["simulated"]), path.parent.name, text))
    return "\n".join(text for *_, text in sorted(parts))
