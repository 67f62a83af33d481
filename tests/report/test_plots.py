import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from mil_zoo.report.figures import draw_figures, registry
from mil_zoo.report.figures.look import grid_shape, palette
from mil_zoo.report.load import Results
from mil_zoo.report.tables import score_table

ALL = ["figure3", "skew", "metrics", "training", "roc", "pr", "calibration", "ablation"]


@pytest.fixture
def draw(monkeypatch):
    """Makes the figures of a run and returns them by name.

    Turning them into pictures takes most of the time: ``saved`` names those of which it is done, each then checked.
    """

    def draw(run, *names, saved=()):
        figures, save = {}, registry.save

        def keep(figure, path):
            figures[path.stem] = figure
            return save(figure, path) if path.stem in saved else (b"", None)

        monkeypatch.setattr(registry, "save", keep)
        paths = [drawing.path for drawing in draw_figures(Results.load(run), list(names or ALL))]
        monkeypatch.undo()
        assert [path.name for path in paths] == [f"{name}.png" for name in figures]
        assert set(saved) <= set(figures)
        for path in (path for path in paths if path.stem in saved):
            assert path.parent == run.path / "figures"
            picture = path.read_bytes()
            assert picture.startswith(b"\x89PNG\r\n\x1a\n")
            assert len(picture) > 2_000
            assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
        return figures

    return draw


def texts(figure):
    """Every text of a figure."""
    return " ".join(
        text.get_text().replace("\n", " ") for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))
    )


def test_every_figure_of_a_run(make_run, draw):
    own = ["figure3", "figure3-abmil", "figure3-srmil", "skew", "metrics", "training", "roc", "pr", "calibration"]
    figures = draw(make_run(models=("abmil", "srmil", "mean"), simulated=True), saved=own)
    assert list(figures) == own
    axes = {name: len(figure.axes) for name, figure in figures.items()}
    # Panel (c) has a second part, which says how many slides count.
    assert axes == {"figure3": 5, "figure3-abmil": 5, "figure3-srmil": 5, "skew": 3, "metrics": 4, "training": 3} | {
        "roc": 1, "pr": 1, "calibration": 6,
    }  # fmt: skip
    for figure in figures.values():
        assert "(simulated slides)" in figure.get_suptitle()
    assert "Without attention, so not shown: mean." in texts(figures["figure3"])
    assert "Without attention, so not shown: mean." in texts(figures["skew"])
    for part in ("mean", "abmil", "srmil"):
        assert part in texts(figures["metrics"])
        assert part in texts(figures["training"])


def test_real_slides_are_not_called_simulated(make_run, draw):
    assert not any("simulated" in texts(figure) for figure in draw(make_run(folds=1)).values())


def test_panels_show_the_recorded_numbers(make_run, draw):
    run = make_run(models=("abmil",), folds=2, epochs=3)
    accuracy, high, positives, counted, maxima = draw(run, "figure3")["figure3-abmil"].axes
    skews = [run.skew(f"abmil-r0-f{fold}-s0") for fold in range(2)]
    for epoch in (1, 2, 3):
        now = [skew[(skew["split"] == "train") & (skew["epoch"] == epoch)] for skew in skews]

        def values(name, now=now):
            return np.concatenate([part.loc[part["name"] == name, "value"] for part in now])

        drawn = [run.epochs(f"abmil-r0-f{fold}-s0")["train_accuracy"][epoch - 1] for fold in range(2)]
        assert at(accuracy.lines[2], epoch) == pytest.approx(np.mean(drawn))
        assert at(high.lines[2], epoch) == pytest.approx((values("high_count") > 0).mean())
        assert at(positives.lines[0], epoch) == pytest.approx(values("top1_positive").mean())
        assert at(positives.lines[1], epoch) == pytest.approx(values("top5_positive").mean())
        held = values("high_positive")
        assert at(counted.lines[0], epoch) == pytest.approx(len(held) / len(values("top1_positive")))
        if len(held):
            assert at(positives.lines[2], epoch) == pytest.approx(held.mean())
    assert (values("high_count") > 0).any()
    largest = [skew.loc[(skew["split"] == "test") & (skew["name"] == "max_attention"), "value"] for skew in skews]
    steps = maxima.lines[0].get_xdata()
    assert sorted(steps[np.isfinite(steps)]) == pytest.approx(sorted(np.concatenate(largest)))
    assert maxima.get_xscale() == "log"


def at(line, epoch):
    """Height of a curve at an epoch."""
    x, y = line.get_data()
    return y[list(x).index(epoch)]


def test_an_aggregator_keeps_its_colour(make_run, draw):
    figures = draw(make_run(models=("mean", "abmil", "srmil"), folds=1), "figure3", "training")
    colour = to_rgb(palette(["mean", "abmil", "srmil"])["srmil"])
    assert to_rgb(figures["figure3-srmil"].axes[0].lines[0].get_color()) == colour
    assert to_rgb(figures["figure3"].axes[0].lines[1].get_color()) == colour
    assert to_rgb(figures["training"].axes[0].lines[2].get_color()) == colour


@pytest.mark.parametrize("number", [2, 10, 14])
def test_colours_are_all_different(number):
    labels = [f"srmil@mask_rate={i}" for i in range(number)]
    assert len(set(palette(labels).values())) == number


def test_one_trial_of_one_epoch_without_labels(make_run, draw):
    figures = draw(make_run(models=("abmil",), folds=1, epochs=1, slides=3, labels=False), "figure3")
    accuracy, _, maxima = figures["figure3-abmil"].axes  # no panel for labels that there are not
    assert accuracy.lines[0].get_marker() == "o"
    assert maxima.get_title().startswith("(c)")
    assert "trials" not in texts(figures["figure3-abmil"])


def test_seven_aggregators(make_run, draw):
    models = ("abmil", "srmil", "transmil", "dsmil", "clam_sb", "acmil", "ilra")
    figures = draw(make_run(models=models, folds=1), "figure3", "skew", saved=("figure3", "skew"))
    assert len(figures["figure3"].axes[0].lines) == 7 + 1  # and the majority class
    (legend,) = figures["figure3"].legends
    assert [text.get_text() for text in legend.get_texts()] == list(models)
    assert [text.get_text() for text in figures["skew"].axes[0].get_yticklabels()][1] == "srmil\n(4 heads)"


def test_without_attention_only_metrics_and_training(make_run, draw):
    figures = draw(make_run(models=("mean",), folds=1))
    assert list(figures) == ["metrics", "training", "roc", "pr", "calibration"]


def test_without_a_finished_trial_nothing_is_drawn(write, draw):
    failed = write.row("abmil", status="failed", reason="out of memory")
    assert draw(write.run([failed], ["abmil"])) == {}


def test_an_undefined_metric_is_not_drawn(write, make_run, draw):
    run = make_run(models=("abmil",), folds=1)
    scores = {"accuracy": 0.9, "balanced_accuracy": 0.9, "auc": None, "f1": 0.9}
    run.add_trial(write.row("abmil", 1, metrics=scores), lambda folder: copy(run, folder))
    auc = draw(run, "metrics")["metrics"].axes[2]
    assert np.isnan(auc.collections[0].get_offsets().data[:, 0]).tolist() == [False, True]


def copy(run, folder):
    for path in (run.path / "trials" / "abmil-r0-f0-s0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def test_file_names_of_a_grid_are_quoted(make_run, draw):
    run = make_run(models=("abmil",), folds=1)
    row = run.trials()[0] | {"grid": "path=a/b", "trial": "other"}
    run.add_trial(row, lambda folder: copy(run, folder))
    assert "figure3-abmil@path=a%2Fb" in draw(run, "figure3")


def test_pictures_are_reproducible(make_run):
    run = make_run(folds=1)
    names = ["skew"]
    first = [drawing.png for drawing in draw_figures(Results.load(run), names)]
    assert [drawing.png for drawing in draw_figures(Results.load(run), names)] == first


def grid_run(make_run, grids, folds=2):
    run = make_run(models=("srmil",), folds=folds)
    rows = run.trials()
    (run.path / "trials.jsonl").unlink()
    for row in rows:
        for value, grid in enumerate(grids):
            scores = {"accuracy": 0.5 + 0.1 * value, "balanced_accuracy": 0.5, "auc": 0.7, "f1": 0.5}
            name = f"srmil@{grid}-r0-f{row['fold']}-s0"
            run.add_trial(
                row | {"grid": grid, "trial": name, "metrics": scores},
                lambda folder, row=row: copy_files(run.path / "trials" / row["trial"], folder),
            )
    return run


def copy_files(source, folder):
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def test_figure_5_draws_the_numbers_against_the_mask_rate(make_run, draw):
    run = grid_run(make_run, ["mask_rate=0.5", "mask_rate=0", "mask_rate=0.9"])
    figure = draw(run, "ablation")["figure5"]
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [
        "accuracy", "AUC", "maximum attention", "N x maximum", "effective share of instances",
        "mass ratio on positives",
    ]  # fmt: skip
    (line,) = panels["accuracy"].lines
    assert line.get_xdata().tolist() == [0, 0.5, 0.9]
    assert line.get_ydata() == pytest.approx([0.6, 0.5, 0.7])
    skew = [run.skew(f"srmil@mask_rate=0-r0-f{fold}-s0") for fold in range(2)]
    drawn = np.concatenate([s.loc[(s["split"] == "test") & (s["name"] == "max_attention"), "value"] for s in skew])
    assert panels["maximum attention"].lines[0].get_ydata() == pytest.approx([np.median(drawn)] * 3)


def test_several_grids_have_a_figure_each(make_run, draw):
    grids = [f"graph={graph},terms={terms}" for graph in ("window:2", "knn:8") for terms in ("both", "none")]
    figures = draw(grid_run(make_run, grids, folds=1), "ablation")
    assert {"ablation-srmil-graph", "ablation-srmil-terms"} <= set(figures)
    axes = figures["ablation-srmil-graph"].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["knn:8", "window:2"]
    (legend,) = figures["ablation-srmil-graph"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["terms=both", "terms=none"]


def test_bands_of_many_curves_are_left_out(make_run, draw):
    few = draw(make_run(models=("abmil", "srmil"), folds=5, slides=8), "roc")["roc"]
    assert len(few.axes[0].collections) == 2
    assert "Band: 95 %" in texts(few)


def test_calibration_shows_every_prediction(make_run, draw):
    upper, lower = draw(make_run(models=("abmil",), folds=2, slides=6), "calibration")["calibration"].axes
    assert sum(bar.get_height() for bar in lower.patches) == 12
    edges = [10 * edge for bar in lower.patches for edge in (bar.get_x(), bar.get_x() + bar.get_width())]
    assert edges == pytest.approx(np.round(edges)), "each bar fills one of the ten bins: none hides another"
    assert np.diff(edges)[::2] == pytest.approx(1)
    assert "Brier" in upper.get_title()


@pytest.mark.parametrize("folds", [3, 6])
def test_few_folds_are_lines_and_many_a_band(make_run, draw, folds):
    figures = draw(make_run(models=("abmil",), folds=folds, slides=8), "roc", "training")
    for name in ("roc", "training"):
        axes = figures[name].axes[0]
        assert sum(line.get_linewidth() == 0.6 for line in axes.lines) == (3 if folds == 3 else 0)
        assert bool(axes.collections) == (folds == 6)


def test_a_trial_that_stopped_early_keeps_its_last_numbers(make_run, draw, change_table):
    """Else each epoch would show the mean of other trials: here of a trial that ended well, and of one that did not."""
    run = make_run(models=("mean", "abmil"), folds=2, epochs=4)
    for fold, (stop, value) in enumerate(((2, 0.9), (4, 0.5))):
        trial = f"mean-r0-f{fold}-s0"
        table = pd.read_csv(run.path / "trials" / trial / "epochs.csv")
        table["val_auc"] = value
        change_table(run, trial, "epochs.csv", table[table["epoch"] <= stop])
        skew = f"abmil-r0-f{fold}-s0"
        rows = pd.read_csv(run.path / "trials" / skew / "skew.csv")
        change_table(run, skew, "skew.csv", rows[(rows["epoch"] == stop) | (rows["split"] == "test")])
    figures = draw(run, "training", "figure3")
    (axes,) = (axes for axes in figures["training"].axes if axes.get_title() == "validation AUC")
    (mean,) = (
        line for line in axes.lines if line.get_color() == axes.lines[0].get_color() and line.get_linewidth() > 1
    )
    np.testing.assert_allclose(mean.get_xydata(), [(1, 0.7), (2, 0.7), (3, 0.7), (4, 0.7)])
    assert "A trial that stopped early counts with its last epoch from there on." in texts(figures["training"])
    (high,) = (axes for axes in figures["figure3-abmil"].axes if axes.get_title().startswith("(b)"))
    assert {x for line in high.lines for x in line.get_xdata()} >= {4}  # recorded by all: that alone


def test_a_score_that_no_epoch_has_takes_no_panel(make_run, draw, change_table):
    run = make_run(models=("mean",), folds=1)
    table = pd.read_csv(run.path / "trials" / "mean-r0-f0-s0" / "epochs.csv")
    change_table(run, "mean-r0-f0-s0", "epochs.csv", table.assign(val_auc=np.nan))
    figure = draw(run, "training")["training"]
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "validation accuracy"]
    assert "Without a value in any epoch, so not shown: validation AUC." in texts(figure).replace("\n", " ")


def test_legends_say_the_table_s_auc(make_run, draw):
    run = make_run(models=("abmil", "srmil"), folds=2, slides=8)
    figure = draw(run, "roc")["roc"]
    table = score_table(Results.load(run)).set_index("aggregator")["auc_mean"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"{m} (AUC {table[m]:.3f})" for m in ("abmil", "srmil")]


def test_panels_of_several_classes_say_their_own_areas(make_run, draw, change_table):
    run = make_run(models=("abmil", "srmil"), folds=1, slides=12, classes=["a", "b", "c"])
    found, rng = {}, np.random.default_rng(0)
    for model in ("abmil", "srmil"):
        table = pd.read_csv(run.path / "trials" / f"{model}-r0-f0-s0" / "predictions.csv")
        names = ["prob_0", "prob_1", "prob_2"]
        table["label"] = np.arange(len(table)) // 2 % 3
        table[names] = rng.dirichlet([1, 1, 1], len(table))
        change_table(run, f"{model}-r0-f0-s0", "predictions.csv", table)
        found[model] = test = table[table["split"] == "test"]
        assert test["label"].value_counts().tolist() == [4, 4, 4]
    figures = draw(run, "roc", "pr")
    for name, of, word in (("roc", roc_auc_score, "AUC"), ("pr", average_precision_score, "AP")):
        areas = [[of(test["label"] == c, test[f"prob_{c}"]) for test in found.values()] for c in range(3)]
        panels = figures[name].axes
        assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
        for axes, own in zip(panels, areas, strict=True):
            legend = axes.get_legend()
            assert legend.get_title().get_text() == word
            assert [text.get_text() for text in legend.get_texts()] == [f"{area:.3f}" for area in own]
        (legend,) = figures[name].legends
        assert all(f"(mean {word} " in text.get_text() for text in legend.get_texts())
        if name == "pr":  # the other is the table's
            means = [f"{model} (mean AP {mean:.3f})" for model, mean in zip(found, np.mean(areas, 0), strict=True)]
            assert [text.get_text() for text in legend.get_texts()] == means
        assert f"Mean {word}: of the {'areas of the ' * (name == 'roc')}classes" in texts(figures[name]).replace(
            "\n", " "
        )


def test_curves_have_lines_for_chance_and_the_majority(make_run, draw):
    figures = draw(make_run(models=("abmil",), folds=1, slides=5), "training", "figure3", "pr")
    _, auc, accuracy = figures["training"].axes
    assert auc.lines[-1].get_ydata()[0] == 0.5
    assert accuracy.lines[-1].get_ydata()[0] == pytest.approx(3 / 5)
    (precision,) = figures["pr"].axes
    assert [line.get_ydata()[0] for line in precision.lines if line.get_linestyle() == "--"] == [pytest.approx(2 / 5)]
    assert "majority class" in texts(figures["training"])
    assert figures["figure3"].axes[0].lines[-1].get_ydata()[0] == pytest.approx(3 / 5)


def test_models_of_slides_of_one_instance_are_named_and_not_drawn(make_run, draw, change_table):
    run = make_run(models=("abmil", "srmil", "mean"), folds=1)
    skew = pd.read_csv(run.path / "trials" / "abmil-r0-f0-s0" / "skew.csv")
    skew.loc[skew["name"] == "n_instances", "value"] = 1
    skew.loc[skew["name"].isin(["max_attention", "n_x_max"]), "value"] = 1
    change_table(run, "abmil-r0-f0-s0", "skew.csv", skew)
    figures = draw(run, "figure3", "skew")
    assert set(figures) == {"figure3", "figure3-srmil", "skew"}
    for name in ("figure3", "skew"):
        said = texts(figures[name]).replace("\n", " ")
        assert "Without attention, so not shown: mean." in said
        assert "Slides of one or two instances only, so not shown: abmil." in said


def test_bags_of_one_or_two_instances_are_left_out_and_counted(make_run, draw, change_table):
    run = make_run(models=("abmil",), folds=1, slides=4)
    path = run.path / "trials" / "abmil-r0-f0-s0" / "skew.csv"
    skew = pd.read_csv(path, dtype={"slide_id": str})
    tiny = []
    for epoch in range(1, 5):
        tiny += [
            (epoch, "tiny", "train", *item) for item in (("max_attention", 0.6), ("n_x_max", 1.2), ("high_count", 1))
        ]
    tiny += [(4, "tiny2", "test", *item) for item in (("max_attention", 1.0), ("n_x_max", 1.0), ("n_instances", 1))]
    changed = pd.concat([skew, pd.DataFrame(tiny, columns=skew.columns)])
    change_table(run, "abmil-r0-f0-s0", "skew.csv", changed)
    before = len(skew[(skew["split"] == "train") & (skew["name"] == "high_count") & (skew["epoch"] == 1)])
    figure = draw(run, "figure3")["figure3-abmil"]
    high, maxima = figure.axes[1], figure.axes[-1]
    shares = skew[(skew["split"] == "train") & (skew["name"] == "high_count")].groupby("epoch")["value"]
    assert at(high.lines[0], 4) == pytest.approx((shares.get_group(4) > 0).sum() / before)
    assert maxima.lines[0].get_xdata().max() < 1
    assert "without the bags of one or two instances (20% of the training slides)" in texts(figure)


def test_learning_rates_have_a_logarithmic_axis(make_run, draw):
    grids = [f"learning_rate={rate}" for rate in ("1e-05", "0.0001", "0.001")]
    figure = draw(grid_run(make_run, grids, folds=1), "ablation")["ablation-srmil-learning_rate"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert (
        draw(grid_run(make_run, ["mask_rate=0", "mask_rate=0.9"], folds=1))["figure5"].axes[0].get_xscale() == "linear"
    )


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 9, 10])
def test_panels_leave_no_row_half_empty(number):
    rows, columns = grid_shape(number, 4)
    assert 0 <= rows * columns - number < rows
    assert columns <= 4


def test_a_user_s_style_changes_nothing(make_run):
    run = make_run(models=("abmil",), folds=1)
    names = ["metrics", "attention"]
    expected = [drawing.png for drawing in draw_figures(Results.load(run), names)]
    mine = {"text.usetex": True, "font.size": 30, "figure.dpi": 31, "savefig.bbox": "tight", "savefig.facecolor": "red"}
    with mpl.rc_context(mine | {"axes.prop_cycle": mpl.cycler(color=["k"]), "lines.linewidth": 9}):
        assert [drawing.png for drawing in draw_figures(Results.load(run), names)] == expected


def test_a_backend_that_matplotlib_does_not_know_is_no_matter(make_run):
    run = make_run(models=("abmil",), folds=1)
    code = (
        "from mil_zoo.report.load import Results\nfrom mil_zoo.report.figures import draw_figures\n"
        f"assert draw_figures(Results.load({str(run.path)!r}), ['roc'])"
    )
    environment = dict(os.environ, MPLBACKEND="nonsense")
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_the_backend_of_a_notebook_stays_its_own():
    backend = "module://matplotlib.backends.backend_pdf"
    code = "import mil_zoo.report.figures, matplotlib\nprint(matplotlib.rcParams._get_backend_or_none())"
    environment = dict(os.environ, MPLBACKEND=backend)
    printed = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == backend


def test_dollars_in_names_are_dollars(make_run, draw):
    run = make_run(models=("abmil",), folds=1, title="costs $1 or $2", classes=["a$b$", "c$d$"])
    names = ("metrics", "roc", "calibration")
    figures = draw(run, *names, saved=names)
    for figure in figures.values():
        assert "$1 or" in figure.get_suptitle().replace("\\$", "$").replace("\n", " ")


def test_a_long_name_is_cut_in_file_names(make_run, draw):
    run = make_run(models=("abmil",), folds=1)
    row = run.trials()[0] | {"grid": "note=" + "Ж" * 60, "trial": "other"}
    run.add_trial(row, lambda folder: copy(run, folder))
    assert all(len(name) < 200 for name in draw(run, "figure3"))


def test_a_figure_of_few_points_is_an_svg_too_the_same_each_time(tmp_path):
    def drawn(points):
        figure = Figure(layout="constrained")
        figure.subplots().scatter(range(points), range(points), label="points")
        png, svg = registry.save(figure, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").read_bytes() == png
        return svg

    first = drawn(5)
    assert first is not None
    assert first == drawn(5) == (tmp_path / "figure.svg").read_bytes()
    assert drawn(50_000) is None
    assert not (tmp_path / "figure.svg").exists()


def test_curves_that_coincide_are_all_seen(make_run, draw):
    """The first is wider than those that cover it, and the epochs that were recorded are marked."""
    figures = draw(make_run(), "figure3")
    accuracy, high, _, counted, _ = figures["figure3"].axes
    for axes in (accuracy, high, counted):
        first, second = (line for line in axes.lines if line.get_marker() == "o")
        assert first.get_linewidth() > second.get_linewidth() + 0.5
        assert first.get_markersize() > second.get_markersize() + 1


def test_names_of_levels_stand_above_the_curves(make_run, draw):
    maxima = draw(make_run(), "figure3")["figure3"].axes[-1]
    places = {text.get_text(): text.get_position()[1] for text in maxima.texts}
    assert places == {"0.1": 1.01, "0.5": 1.01}
    assert all(text.get_transform() == maxima.get_xaxis_transform() for text in maxima.texts)
