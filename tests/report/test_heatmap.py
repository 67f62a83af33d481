import re

import h5py
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection

from mil_zoo.errors import InputError
from mil_zoo.report.attention_files import write_explanations_png, write_png
from mil_zoo.report.figures import draw_figures, registry
from mil_zoo.report.figures.explanation_maps import draw_ranks
from mil_zoo.report.load import Results


@pytest.fixture
def draw(monkeypatch):
    """Makes the maps of single slides and returns them by name; ``saved`` checks that each file is a picture."""

    def draw(run, slides=None, figure4=False, saved=False):
        figures, save = {}, registry.save

        def keep(figure, path):
            figures[path.stem] = figure
            return save(figure, path) if saved else (b"", None)

        monkeypatch.setattr(registry, "save", keep)
        paths = [drawing.path for drawing in draw_maps(run, slides)]
        monkeypatch.undo()
        assert [path.name for path in paths] == [f"{name}.png" for name in figures]
        for path in paths if saved else ():
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
            assert path.stat().st_size > 10_000
        both = figures.pop("figure4", None)
        return both if figure4 else figures

    return draw


def draw_maps(run, slides=None):
    return draw_figures(Results.load(run, slides), ["attention"])


def edit(run, trial, change):
    """Applies ``change`` to the attention file of a trial."""
    with h5py.File(run.attention(trial), "r+") as file:
        change(file)


def test_one_positive_and_one_negative_slide(make_run, draw):
    figures = draw(make_run(models=("abmil", "mean", "srmil"), slides=8, simulated=True), saved=True)
    assert len(figures) == 2
    for figure in figures.values():
        truth, abmil, srmil, bar = figure.axes
        assert "(simulated slides)" in figure.get_suptitle()
        assert abmil.get_title().startswith("abmil\nmax 0.")
        assert srmil.get_title().startswith("srmil\nmax 0.0")
        assert "N x attention" in bar.get_ylabel()
        assert "Without attention or coordinates on this slide: mean." in figure.get_supxlabel().replace("\n", " ")
        for axes in (truth, abmil, srmil):
            assert axes.yaxis_inverted()
            assert axes.get_aspect() == 1
    assert [figure.axes[0].get_title().split("\n")[0] for figure in figures.values()] == [
        "truth: normal",
        "truth: tumour",
    ]


def test_figure_4_sets_a_negative_slide_above_a_positive_one(make_run, draw):
    figure = draw(make_run(models=("abmil", "mean", "srmil"), slides=8, simulated=True), figure4=True)
    assert "(simulated slides)" in figure.get_suptitle()
    truths = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title().startswith("truth")]
    assert truths == ["truth: normal", "truth: tumour"]
    assert sum(axes.get_title().startswith("srmil\nmax") for axes in figure.axes) == 2
    assert "on these slides: mean." in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("slides", [None, ["slide/103"]])
def test_slides_without_coordinates_in_one_trial_have_the_maps_of_the_others(make_run, draw, slides):
    """As of an encoder of patches beside one of slides, whose embeddings lie nowhere."""
    run = make_run(folds=1)
    edit(run, "abmil-r0-f0-s0", lambda file: [group.pop("coords") for group in file.values()])
    figures = draw(run, slides)
    assert len(figures) == (1 if slides else 2)
    for figure in figures.values():
        assert [re.split("[:\\n]", axes.get_title())[0] for axes in figure.axes[:-1]] == ["truth", "srmil"]
        assert "Without attention or coordinates on this slide: abmil." in figure.get_supxlabel()


def test_the_typical_slides_by_hand(make_run, draw):
    run = make_run(models=("abmil", "srmil"), folds=1, slides=9)

    def change(file):
        for i in range(9):
            group = file[f"slide%2F{100 + i}"]
            n = len(group["attention"])
            del group["instance_labels"]
            # Slides 101 (predicted wrongly), 103, 105, 107 are positive, with a share growing in this order.
            group["instance_labels"] = (np.arange(n) < n * (i % 2) * i / 20).astype("i1")

    for trial in ("abmil-r0-f0-s0", "srmil-r0-f0-s0"):
        edit(run, trial, change)
    with h5py.File(run.attention("abmil-r0-f0-s0")) as file:
        sizes = sorted((len(file[f"slide%2F{name}"]["attention"]), name) for name in (100, 102, 104, 106, 108))
    assert list(draw(run)) == [f"attention-slide%2F{sizes[2][1]}", "attention-slide%2F105"]


def test_patches_are_squares_coloured_by_n_times_attention(make_run, draw):
    run = make_run(models=("abmil",), folds=1)

    def change(file):
        group = file["slide%2F103"]
        n = len(group["attention"])
        weights = np.full(n, 1 / n)
        weights[4], weights[5:7] = 2 / n, 0.5 / n
        group["attention"][:] = weights

    edit(run, "abmil-r0-f0-s0", change)
    axes = draw(run, ["slide/103"])["attention-slide%2F103"].axes[1]
    (patches,) = axes.collections
    assert isinstance(patches, PolyCollection)
    with h5py.File(run.attention("abmil-r0-f0-s0")) as file:
        coords = file["slide%2F103/coords"][:]
    # The most attended patch is drawn last, above its neighbours.
    corners = patches.get_paths()[-1].vertices
    assert corners.min(0) == pytest.approx(coords[4])
    assert corners.max(0) == pytest.approx(coords[4] + 224)
    colours = patches.get_facecolors()
    assert len(colours) == len(coords)
    cmap = mpl.colormaps["coolwarm"]
    assert colours[5] == pytest.approx(np.array(cmap(0.5)), abs=0.01)
    assert colours[-1] == pytest.approx(np.array(cmap(0.5 + np.log10(2) / 4)), abs=0.01)
    assert axes.lines[0].get_data() == (pytest.approx([coords[4, 0] + 112]), pytest.approx([coords[4, 1] + 112]))


def test_nuclei_are_dots(make_run, draw):
    for figure in draw(make_run(models=("abmil",), folds=1, nuclei=True)).values():
        assert all(isinstance(axes.collections[0], PathCollection) for axes in figure.axes[:2])
        assert not any(axes.collections[0].get_clip_on() for axes in figure.axes[:2]), "the outer ones are whole"


def test_without_instance_labels_there_is_no_truth_panel(make_run, draw):
    for figure in draw(make_run(folds=1, labels=False)).values():
        assert [axes.get_title().split("\n")[0] for axes in figure.axes[:-1]] == ["abmil", "srmil"]
        (block,) = figure.subfigs
        assert ", truth: " in block.get_suptitle()


def test_a_single_map_stands_in_the_middle_below_its_heading(make_run, draw):
    for figure in draw(make_run(models=("abmil",), folds=1, labels=False), saved=True).values():
        axes, (block,) = figure.axes[0], figure.subfigs
        box = axes.get_position()
        assert (box.x0 + box.x1) / 2 == pytest.approx(0.45, abs=0.05)
        assert not block._suptitle.get_window_extent().overlaps(axes.title.get_window_extent())


def test_seven_aggregators_take_two_rows(make_run, draw):
    models = ("abmil", "srmil", "transmil", "dsmil", "clam_sb", "acmil", "ilra")
    for figure in draw(make_run(models=models, folds=1), saved=True).values():
        assert len(figure.axes) == 9
        assert len({round(axes.get_subplotspec().rowspan.start) for axes in figure.axes[:8]}) == 2


def test_a_fold_that_more_aggregators_finished_is_taken(make_run, draw):
    run = make_run(models=("abmil", "srmil"))
    run.attention("srmil-r0-f0-s0").unlink()
    for name, figure in draw(run).items():
        assert name.startswith("attention-slide%2F20")
        assert len(figure.axes) == 4


def test_named_slides(make_run, draw):
    run = make_run(models=("abmil", "srmil"))
    assert list(draw(run, ["slide/200", "slide/101"])) == ["attention-slide%2F200", "attention-slide%2F101"]
    with pytest.raises(InputError, match="'slide/999'"):
        draw_maps(run, ["slide/999"])


def test_slides_without_coordinates(make_run, draw):
    run = make_run(models=("abmil",), folds=1)
    edit(run, "abmil-r0-f0-s0", lambda file: [group.pop("coords") for group in file.values()])
    assert draw(run) == {}
    with pytest.raises(InputError, match="slide/100"):
        draw_maps(run, ["slide/100"])


def test_without_attention_nothing_is_drawn(make_run, draw):
    assert draw(make_run(models=("mean",), folds=1)) == {}


def test_titles_of_predicted_slides_stay_on_the_picture(tmp_path):
    coords = np.stack([np.arange(12) % 4, np.arange(12) // 4], 1) * 512.0
    title = (
        "TCGA-XF-A8HG-01Z-00-DX1: risk -1.182, S(12 months) 29%, S(24 months) 18%, S(36 months) 17%, S(60 months) 9%"
    )
    scores = {name: np.arange(12.0) for name in ("attention", "gradient")}
    write_png(tmp_path / "one.png", np.full(12, 1 / 12), coords, 512, title)
    write_explanations_png(tmp_path / "all.png", scores, coords, 512, title)
    for name in ("one.png", "all.png"):
        picture = mpl.image.imread(tmp_path / name)
        assert (picture[:, [0, -1]] == 1).all()  # white


def test_nuclei_are_seen_on_the_maps_of_many_explainers(tmp_path):
    coords = np.random.default_rng(0).random((274, 2)) * 500
    scores = dict.fromkeys(("attention", "gradient", "integrated_gradients", "occlusion", "random"), np.arange(274.0))
    write_explanations_png(tmp_path / "all.png", scores, coords, None, "img10")
    picture = mpl.image.imread(tmp_path / "all.png")[..., :3]
    assert (np.ptp(picture, axis=2) > 0.1).mean() > 0.05  # is coloured


def test_equal_scores_have_one_colour():
    axes = mpl.figure.Figure().subplots()
    draw_ranks(axes, np.random.default_rng(0).random((50, 2)), np.nan, np.r_[np.zeros(49), 1.0], 2)
    (dots,) = axes.collections
    assert len(np.unique(dots.get_facecolors(), axis=0)) == 2, "max pooling's gradients are 0 but for a few"


def test_a_map_of_nearly_uniform_attention_says_so(make_run, draw):
    """Such a map is grey all over."""
    run = make_run(models=("abmil", "srmil"), folds=1)

    def flatten(file):
        for group in file.values():
            weights = np.linspace(1, 1.3, len(group["attention"]))
            group["attention"][:] = weights / weights.sum()

    edit(run, "srmil-r0-f0-s0", flatten)
    for figure in draw(run).values():
        abmil, srmil = (axes.get_title().split("\n") for axes in figure.axes[1:3])
        assert abmil[0] == "abmil"
        assert (srmil[0], srmil[1].split(", ")[1]) == ("srmil: nearly uniform", "1.13 x uniform")
        assert [len(axes.lines) for axes in figure.axes[1:3]] == [1, 0], "no ring where no patch stands out"
        assert "all patches within a factor of 1.5 of uniform attention, no ring" in figure.get_supxlabel()


def test_each_figure_has_a_caption_and_maps_stand_on_the_page_once(make_run):
    drawings = draw_figures(Results.load(make_run()), ["figure3", "attention"])
    assert all(drawing.caption for drawing in drawings)
    assert {drawing.name for drawing in drawings if not drawing.on_page} == {"figure4"}
    captions = {drawing.name: drawing.caption for drawing in drawings}
    assert captions["figure3-srmil"] == "As figure3, of srmil alone."
    (positive,) = (name for name in captions if name.startswith("attention-") and name.endswith("103"))
    assert captions[positive].startswith("Where the models look on slide slide/103. ")


def test_the_colour_bar_of_a_predicted_slide_says_so_too(tmp_path, monkeypatch):
    seen, save = [], mpl.figure.Figure.savefig
    coords = np.stack([np.arange(12) % 4, np.arange(12) // 4], 1) * 512.0

    def keep(figure, *arguments, **options):
        seen.append(figure.axes[-1].get_ylabel())
        save(figure, *arguments, **options)

    monkeypatch.setattr(mpl.figure.Figure, "savefig", keep)
    for attention in (np.full(12, 1 / 12), np.arange(12) / 66):
        write_png(tmp_path / "one.png", attention, coords, 512, "s1")
    assert seen == ["N x attention: nearly uniform, at most 1 x uniform", "N x attention (1 = uniform)"]
