"""The hand-written pages of the site and the README: their code runs as it stands, and what they state is so."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import needs_dgl

from mil_zoo.aggregators.mean_max import MeanPooling
from mil_zoo.aggregators.registry import AGGREGATORS
from mil_zoo.bench.run_directory import RunDirectory
from mil_zoo.data.layouts.base import LAYOUTS
from mil_zoo.graph import GRAPHS
from mil_zoo.metrics import registry as metrics
from mil_zoo.registry import PLUGINS
from mil_zoo.report.figures.registry import FIGURES
from mil_zoo.report.load import Results
from mil_zoo.testing import CHECKS, check_aggregator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
RECIPES = ["aggregator", "metric", "layout", "graph", "kernel"]
PAGES = ["kernels.md", "guide/annotations.md", "guide/graphs.md", "guide/python.md"]


def blocks(path: Path) -> list[tuple[str, str]]:
    """The python and bash blocks of a page, in their order: ``(kind, code)``."""
    return re.findall(r"(?m)^```(python|bash)\n(.*?)^```", path.read_text(encoding="utf-8"), re.S)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """A folder of its own; what the pages register and import is gone after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PLUGINS, "files", list(PLUGINS.files))
    monkeypatch.setattr(metrics, "_METRICS", {task: dict(known) for task, known in metrics._METRICS.items()})
    for registry in (AGGREGATORS, FIGURES, GRAPHS, LAYOUTS):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def run_page(path: Path, run_cli) -> None:
    """Saves the blocks that name a file, and runs the other ones, Python in one namespace."""
    space: dict = {}
    for kind, code in blocks(path):
        if kind == "bash":
            for line in code.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "mil-zoo", line
                code_, _, err = run_cli(*arguments)
                assert code_ == 0, f"{line}\n{err}"
                forget_plugins(arguments)
        elif named := re.match(r"# (\w+\.py)\n", code):
            Path(named[1]).write_text(code)
        else:
            exec(compile(code, str(path), "exec"), space)


def forget_plugins(arguments: list[str]) -> None:
    """A reader's next command is a new process."""
    for i, argument in enumerate(arguments):
        if argument == "--plugin":
            sys.modules.pop(f"mil_zoo_plugin_{Path(arguments[i + 1]).stem}", None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_as_it_stands(recipe, run_cli, tmp_path, monkeypatch, bag_table):
    # The benches of the recipes run on a small table instead of the demo's slides, which take longer.
    def small(*arguments):
        extra = ["--dataset", bag_table] if arguments[0] == "bench" else []
        fresh(monkeypatch)
        return run_cli(*arguments, *extra)

    fresh(monkeypatch)
    run_page(DOCS / "extend" / f"{recipe}.md", small)
    if recipe == "aggregator":
        table = pd.read_csv(tmp_path / "my_first_run" / "table.csv")
        assert list(table["aggregator"]) == ["my_mil", "abmil"]
        first = next(code for kind, code in blocks(DOCS / "extend" / "aggregator.md") if kind == "python")
        assert len(first.splitlines()) <= 30
    if recipe == "metric":
        assert "npv_mean" in pd.read_csv(tmp_path / "with_npv" / "table.csv")
    if recipe == "graph":
        config = (tmp_path / "with_ring" / "config.yaml").read_text(encoding="utf-8")
        assert "ring:2" in config


def fresh(monkeypatch) -> None:
    """The registries as a new process would have them: a recipe is imported as a module and passed as a plugin."""
    for registry, package in ((AGGREGATORS, "my_mil"), (GRAPHS, "ring"), (LAYOUTS, "rows")):
        registry._entries.pop(package, None)
    metrics._METRICS["classification"].pop("npv", None)
    PLUGINS.files.clear()


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_as_it_stands(page):
    space: dict = {}
    for kind, code in blocks(DOCS / page):
        if kind == "python":
            exec(compile(code, page, "exec"), space)


def test_the_python_of_the_readme_runs_as_it_stands(capsys):
    (code,) = [code for kind, code in blocks(README) if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("slide_2") == 4
    assert Path("my_model").is_dir()


@needs_dgl
def test_the_aggregator_of_dgl_layers_runs_as_it_stands(bag_table, run_cli):
    (code,) = re.findall(r"```\{code-block\} python\n(.*?)```", (DOCS / "extend" / "aggregator.md").read_text(), re.S)
    Path("my_gat.py").write_text(code)
    from my_gat import MyGAT

    check_aggregator(MyGAT)
    AGGREGATORS._entries.pop("my_gat")
    options = ["--models", "my_gat,mean", "--folds", "2", "--epochs", "1", "--set", "my_gat.width=8"]
    code, _, err = run_cli("bench", "--plugin", "my_gat.py", "--dataset", bag_table, *options, "--out", "run")
    assert code == 0, err
    assert list(pd.read_csv("run/table.csv")["aggregator"]) == ["my_gat", "mean"]


def test_the_figure_of_the_recipe_is_drawn(bag_table, run_cli):
    run_cli("bench", "--models", "mean", "--dataset", bag_table, "--folds", 2, "--epochs", 1, "--out", "run")
    space: dict = {}
    (code,) = [code for kind, code in blocks(DOCS / "extend" / "figure.md") if kind == "python"]
    exec(code, space)
    drawn = space["draw"](Results.load("run"))
    assert list(drawn) == ["sizes"]
    assert drawn["sizes"].axes[0].patches


def test_every_command_of_the_pages_exists_with_its_options():
    """Each ``mil-zoo`` line of a page names a command and options that it has."""
    import click

    from mil_zoo.cli import cli

    def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
        found = cli
        while words and isinstance(found, click.Group):
            found, words = found.get_command(click.Context(found), words[0]), words[1:]
            assert found is not None
        return found, words

    pages = [README, *DOCS.glob("*.md"), *DOCS.glob("guide/*.md"), *DOCS.glob("extend/*.md")]
    looked_at = 0
    for page in pages:
        for kind, code in blocks(page):
            for line in code.replace("\\\n", " ").splitlines() if kind == "bash" else []:
                words = shlex.split(line, comments=True)
                if "mil-zoo" not in words or words[0] in ("docker", "pip"):
                    continue
                command, rest = command_of(words[words.index("mil-zoo") + 1 :])
                known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
                for word in rest:
                    if word.startswith("--"):
                        assert word.split("=")[0] in known, f"{page.name}: {line}"
                looked_at += 1
    assert looked_at > 30


def test_every_link_between_pages_leads_somewhere_in_the_sources():
    """They are read there too: pages that only the site has are not linked."""
    kept = subprocess.run(["git", "ls-files"], cwd=DOCS.parent, capture_output=True, text=True, check=False).stdout
    pages = [README, *DOCS.glob("*.md"), *(path for part in ("guide", "extend") for path in (DOCS / part).glob("*.md"))]
    found = 0
    for page in pages:
        text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))  # no code
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
            place = (page.parent / target).resolve()
            assert place.exists(), f"{page}: {target}"
            if kept and place.is_file():
                assert place.relative_to(DOCS.parent).as_posix() in kept.splitlines(), f"{page}: {target} is generated"
            found += 1
    assert found > 40


def test_the_readme_names_every_aggregator_by_family():
    # A fresh interpreter: no aggregators of other tests.
    code = "from mil_zoo.aggregators.catalogue import describe_aggregators as d\n"
    code += "for about in d().values(): print(about.family, about.name)"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    families: dict[str, list[str]] = {}
    for line in lines:
        family, _, name = line.rpartition(" ")
        families.setdefault(family, []).append(name)
    zoo = README.read_text(encoding="utf-8").partition("## The zoo")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"(?m)^\| ([a-z ]+) \| (.*) \|$", zoo))
    listed = {family: re.findall(r"`(\w+)`", rows[family]) for family in families}
    assert listed == {family: sorted(names) for family, names in families.items()}
    assert set(rows) - set(families) == {"family", "without labels", "probes"}


def test_the_settings_of_kept_runs_are_those_that_the_runs_wrote():
    kept = sorted((ROOT / "benchmarks/results").rglob("config.yaml"))
    assert len(kept) > 20
    assert all(RunDirectory(path.parent).config for path in kept)  # an InputError where the checksum differs


def test_the_results_of_the_readme_are_those_of_the_kept_runs():
    section = README.read_text(encoding="utf-8").partition("## Results")[2].partition("\n## ")[0]
    folders = re.findall(r"`(zoo_crchisto|zoo_musk1|elephant|tiger)`", section)
    assert folders == ["zoo_crchisto", "zoo_musk1", "elephant", "tiger"]
    kept = [pd.read_csv(ROOT / "benchmarks/results" / name / "table.csv").set_index("aggregator") for name in folders]
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.+) \|$", section)
    assert len(rows) == 8
    for name, cells in rows:
        for cell, table in zip(cells.split(" | "), kept, strict=True):
            mean, sd = (float(number) for number in cell.split(" ± "))
            assert mean == pytest.approx(table.loc[name, "auc_mean"], abs=5.1e-4)
            assert sd == pytest.approx(table.loc[name, "auc_sd"], abs=5.1e-4)
            assert table.loc[name, "trials_ok"] == 10


def test_links_between_files_of_the_repository_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("guide/*.md"), *DOCS.glob("extend/*.md")]:
        text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" in link or re.match(r"(\.\./)?(zoo|datasets)/", link):
                continue
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_a_check_that_fails_says_which_and_why():
    class Forgetful(MeanPooling):
        def forward(self, batch):
            output = super().forward(batch)
            output.logits = output.logits + len(batch)  # depends on the bags beside it
            return output

    with pytest.raises(
        AssertionError, match="Forgetful fails a_bag_gives_the_same_answer_alone_as_in_a_batch: logits of a bag"
    ):
        check_aggregator(Forgetful)

    class Broken(MeanPooling):
        def forward(self, batch):
            raise RuntimeError("boom")

    with pytest.raises(AssertionError, match="Broken fails gives_one_row_of_finite_logits_a_bag: RuntimeError: boom"):
        check_aggregator(Broken)


def test_checks_that_pass_say_what_was_checked(capsys):
    check_aggregator(MeanPooling)
    said = capsys.readouterr().out
    assert said.startswith(f"MeanPooling passes {len(CHECKS) - 2} checks of an aggregator: gives one row of finite ")
    assert ", the order of instances is without effect, " in said
    assert said.endswith(
        "; not checked: dropout can be switched off (it has no option *_drop or dropout), attention sums to one in "
        "each bag (it gives no attention).\n"
    )
