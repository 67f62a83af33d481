"""One more metric, one more figure: a file each, and nothing else changes."""

import pytest
import yaml

from mil_zoo.report.load import Results

METRIC = '''
import mil_zoo

@mil_zoo.register_metric("miss_rate", title="Miss rate", higher_is_better=False)
def miss_rate(labels, probabilities, weights=None):
    """Share of the positive slides that are called negative."""
    import numpy as np
    missed, positive = probabilities[:, 1] < 0.5, labels == 1
    weights = np.ones(len(labels)) if weights is None else weights
    return float(np.average(missed[positive], weights=weights[positive]))
'''
FIGURE = '''
from matplotlib.figure import Figure
from mil_zoo.report.figures import register_figure

@register_figure("sizes")
def draw(results):
    """``sizes``: the number of test slides of every trial."""
    figure = Figure(layout="constrained")
    figure.subplots().hist([trial.n_test for trial in results.trials])
    return {"sizes": figure}
'''


def scores(value, miss):
    return {"accuracy": value, "balanced_accuracy": value, "auc": value, "f1": value, "miss_rate": miss}


@pytest.fixture
def run(write):
    """Five folds of two aggregators with a metric of a plugin, in which the second is better."""
    values = {"abmil": [0.30, 0.32, 0.35, 0.31, 0.32], "mean": [0.1, 0.11, 0.16, 0.12, 0.13]}

    def files(row, folder):
        (folder / "predictions.csv").write_text(
            "slide_id,patient_id,split,label,prob_0,prob_1\n"
            f"a{row['fold']},,test,1,0.2,0.8\nb{row['fold']},,test,0,0.7,0.3\n"
        )
        (folder / "epochs.csv").write_text(
            "epoch,loss,train_accuracy,val_accuracy,val_auc,val_miss_rate,seconds,selected\n1,0.5,1,1,1,0.25,1,1\n"
        )

    rows = [
        write.row(model, fold, metrics=scores(0.9, miss))
        for model, part in values.items()
        for fold, miss in enumerate(part)
    ]
    return write.run(rows, list(values), files)


@pytest.fixture
def report(apart, run_cli):
    """Reports a run with plugins, which no other test meets: ``code, out, err``."""

    def report(run, *plugins, command="report", more=()):
        options = [text for plugin in plugins for text in ("--plugin", str(plugin))]
        return apart(run_cli, command, *(more or [run.path]), *options)

    return report


def test_a_metric_of_a_plugin_stands_everywhere(run, tmp_path, report):
    (tmp_path / "miss.py").write_text(METRIC)
    code, out, err = report(run, tmp_path / "miss.py")
    assert code == 0, err
    table = (run.path / "table.md").read_text()
    assert "| Aggregator | Accuracy | Balanced accuracy | AUC | F1 | Miss rate | Trials |" in table
    assert "**0.124** ± " in table  # the smaller is the better
    assert "**0.320**" not in table
    assert "Miss\n" not in out
    assert "Miss" in out
    assert "| Miss rate | abmil | mean | 0.196 [" in (run.path / "comparisons.md").read_text()
    assert "miss_rate_mean" in (run.path / "table.csv").read_text()
    assert "Miss rate" in (run.path / "report.html").read_text()
    assert "val_miss_rate" not in table


def test_a_metric_whose_plugin_is_missing_is_named(run, report):
    code, _, err = report(run)
    assert code == 0, err
    table = (run.path / "table.md").read_text()
    assert "Miss rate |" not in table
    assert "Not shown, since nothing registers it now: miss_rate (pass --plugin the file that does)." in table


def test_compare_ranks_by_a_metric_of_a_plugin_in_its_direction(run, write, tmp_path, report):
    (tmp_path / "miss.py").write_text(METRIC)
    rows = [write.row(model, metrics=scores(0.9, miss)) for model, miss in (("abmil", 0.4), ("mean", 0.2))]
    other = write.run_at(tmp_path / "other", rows, ["abmil", "mean"], title="other")
    more = [run.path, other.path, "--metric", "miss_rate", "--out", tmp_path / "out"]
    code, _, err = report(run, tmp_path / "miss.py", command="compare", more=more)
    assert code == 0, err
    text = (tmp_path / "out" / "ranking.md").read_text()
    assert "| Dataset | mean | abmil |" in text
    assert "| Mean rank | 1.00 | 2.00 |" in text


@pytest.mark.figures
def test_a_figure_of_a_plugin_is_drawn_and_on_the_page(run, tmp_path, report):
    (tmp_path / "sizes.py").write_text(FIGURE)
    (tmp_path / "miss.py").write_text(METRIC)
    code, out, err = report(run, tmp_path / "sizes.py", tmp_path / "miss.py")
    assert code == 0, err
    assert "sizes.png" in out
    assert (run.path / "figures" / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert 'alt="sizes"' in (run.path / "report.html").read_text()


BROKEN = """
from mil_zoo.report.figures import register_figure

@register_figure("{name}")
def draw(results):
    {body}
"""


@pytest.mark.figures
def test_a_figure_that_fails_costs_itself_alone(run, tmp_path, report):
    bodies = {
        "raises": "raise KeyError('no [bold]column[/]')",
        "nothing": "return None",
        "text": "return {'text': 'a text'}",
        "escapes": "from matplotlib.figure import Figure; return {'../../<b>': Figure()}",
    }
    plugins = []
    for name, body in bodies.items():
        plugins.append(tmp_path / f"fails_{name}.py")
        plugins[-1].write_text(BROKEN.format(name=name, body=body))
    (tmp_path / "sizes.py").write_text(FIGURE)
    code, out, err = report(run, *plugins, tmp_path / "sizes.py")
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert "the figure raises is left out, since drawing it failed: KeyError: 'no [bold]column[/]'" in told
    assert "(fails_raises.py, line 6)" in told
    assert "the figure nothing is left out, since drawing it failed: TypeError" in told
    assert "'text' is of the type str and no matplotlib Figure" in told
    assert (run.path / "figures" / "sizes.png").is_file()
    assert (run.path / "figures" / "..%2F..%2F%3Cb%3E.png").is_file()
    assert [path.name for path in tmp_path.rglob("*.png") if path.parent != run.path / "figures"] == []
    assert "<b>.png" not in (run.path / "report.html").read_text()


TASK = '''
from dataclasses import dataclass
import numpy as np
import mil_zoo
from mil_zoo.tasks import Task, register_task

@register_task("counting")
@dataclass(frozen=True)
class Counting(Task):
    """How many instances of a kind a bag holds."""

    target_columns = ("cells",)
    select = "error"
    width = 1
    prediction_columns = ("expected",)

@mil_zoo.register_metric("error", title="Mean error", higher_is_better=False, task="counting")
def error(targets, predictions, weights=None):
    """Mean absolute difference."""
    return float(np.average(np.abs(targets - predictions), weights=weights))
'''


@pytest.mark.figures
def test_a_task_of_a_plugin_is_reported_without_classes(write, tmp_path, report):
    def files(row, folder):
        lines = ["slide_id,patient_id,split,cells,expected", "a,p,test,3,2.5", "b,p,test,7,8.5"]
        (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
        (folder / "epochs.csv").write_text("epoch,loss,train_error,val_error,seconds,selected\n1,0.5,2,3,1,1\n")

    values = {"abmil": [1.5, 2.5, 3.5, 2.0, 3.0], "mean": [11.6, 12.4, 13.5, 12.0, 13.0]}
    rows = [
        write.row(model, fold, metrics={"error": value}, val_metrics={"error": value})
        for model, part in values.items()
        for fold, value in enumerate(part)
    ]
    run = write.run(rows, list(values), files, classes=[])
    (run.path / "config.yaml").write_text(yaml.safe_dump(run.config | {"task": {"name": "counting"}}))
    (tmp_path / "counting.py").write_text(TASK)
    code, _, err = report(run, tmp_path / "counting.py")
    assert code == 0, err
    table = (run.path / "table.md").read_text()
    assert "| Aggregator | Mean error | Trials |" in table
    assert "| abmil | **2.500** ± 0.791 [" in table
    assert "| mean | 12.500 ± 0." in table
    assert "shown within their bounds" in table
    assert {path.stem for path in run.path.glob("figures/*.png")} == {"metrics", "training"}
    page = (run.path / "report.html").read_text()
    assert "each model&#39;s column is its mean expected" in page
    assert "<td>a</td><td>p</td><td>3</td>" in page


PUBLISHED = """
from mil_zoo.report.across_runs import literature
number = literature.PublishedNumber(
    dataset="small", aggregator="mean", published_as="Mean (somebody)", metric="miss_rate", value=0.2,
    protocol="5-fold CV", source="Somebody 2026",
)
literature.published_numbers = lambda: [number]
"""


def test_a_published_number_of_a_metric_of_a_plugin_stands_beside_ours(run, tmp_path, report):
    (tmp_path / "miss.py").write_text(METRIC)
    dataset = Results.load(run.path).config.dataset.name
    (tmp_path / "numbers.py").write_text(PUBLISHED.replace('"small"', repr(dataset)))
    code, _, err = report(
        run, tmp_path / "miss.py", tmp_path / "numbers.py", command="published", more=[run.path, "--out", tmp_path]
    )
    assert code == 0, err
    page = (tmp_path / "published.md").read_text()
    assert "| Mean (somebody) | Miss rate | 0.200 | 5-fold CV | mean | 0.124 ± 0.023 [" in page
    assert "-0.076 |" in page
