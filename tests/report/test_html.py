"""The page of a run: well-formed, complete, self-contained, and deaf to markup in names."""

import base64
import dataclasses
import io
import json
import zlib
from html.parser import HTMLParser
from urllib.parse import quote

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from mil_zoo import InputError
from mil_zoo.report.figures import draw_figures
from mil_zoo.report.load import Results
from mil_zoo.report.page import write_page
from mil_zoo.report.page.summary import findings
from mil_zoo.report.page.write import SMALL
from mil_zoo.report.tables import score_table
from mil_zoo.report.tables.pairs import best
from mil_zoo.report.tables.sentences import notes

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts, self.tables, self.scripts = [], [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[self.open[-1][1].get("id")] = data
        else:
            self.texts.append(data)
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def table(self, *header):
        return next(table for table in self.tables if set(header) <= set(table[0]))

    def map(self, index):
        facts = json.loads(self.scripts["meta"])["maps"][index]
        data = zlib.decompress(base64.b64decode(self.scripts[f"map-{index}"]))
        n = facts["n"]
        coords = np.frombuffer(data[: 4 * n], "<u2").reshape(2, n).T * facts["unit"] + facts["origin"]
        layers = np.frombuffer(data[4 * n :], "u1").reshape(-1, n)
        return facts, coords, dict(zip([layer["name"] for layer in facts["layers"]], layers, strict=True))


def make_page(run, **options):
    path = write_page(Results.load(run), **options)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_loads_nothing(make_run, as_made):
    run = make_run(models=("abmil", "srmil", "mean"))
    page = make_page(run, drawings=draw_figures(Results.load(run)))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes[name][:80])
    assert not any("http" in text and "://" in text for text in page.scripts.values())
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    images = [base64.b64decode(a["src"].split(",")[1]) for tag, a in page.tags if tag == "img" and "src" in a]
    pngs = {path: path.read_bytes() for path in run.path.glob("figures/*.png") if path.stem != "figure4"}
    svgs = {path: path.with_suffix(".svg").read_bytes() for path in pngs}
    assert sorted(images) == sorted(svgs[path] if len(svgs[path]) <= SMALL else pngs[path] for path in pngs)
    assert any(image.startswith(b"<?xml") for image in images)
    assert "Labels of 3 slides are disputed" in page.text
    comparison = page.table("Aggregator", "AUC", "Parameters")
    assert [row[0] for row in comparison[1:]] == ["abmil", "srmil", "mean"]
    assert {row["trial"] for row in run.trials()} == {row[0] for row in page.table("Trial", "Status")[1:]}
    assert "hash: a1b2c3" in page.text


def test_a_figure_without_a_small_svg_is_a_png_on_the_page(make_run):
    run = make_run()
    (drawn,) = draw_figures(Results.load(run), ["metrics"])
    for svg in (None, b"<" * (SMALL + 1)):
        page = make_page(run, drawings=[dataclasses.replace(drawn, svg=svg)])
        (source,) = [a["src"] for tag, a in page.tags if tag == "img" and "src" in a]
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == drawn.png


def test_the_page_begins_with_what_was_found(make_run):
    run = make_run(models=("abmil", "srmil", "mean"))
    page = make_page(run)
    text = page.text
    table = score_table(Results.load(run)).set_index("aggregator")["auc_mean"]
    first = f"{table.idxmax()} has the highest mean AUC, {table.max():.3f}"
    assert text.index("Summary") < text.index(first) < text.index("Comparison")
    assert f"{table.idxmin()} has the lowest, {table.min():.3f}." in text
    assert "Fewer than 5 splits cannot tell aggregators apart" in text or "No aggregator differs from the best" in text
    assert "The most attended instance of a test slide" in text
    worst = page.table("Slide", "Patient", "Wrong")[1]
    wrong = sum(not row[3].startswith("0 ") for row in page.table("Slide", "Patient", "Wrong")[1:])
    assert f"{wrong} test slides of" in text
    assert f"the worst is {worst[0]}." in text


def test_the_summary_is_of_the_metric_that_it_names(write):
    """Where another metric than the leading one leaves a model out, the summary still says that none differs; and what
    the comparisons do not show is not bold."""
    rows = [
        write.row(
            model,
            fold,
            metrics={
                "auc": auc,
                "accuracy": right * (1 - fold / 100),
                "balanced_accuracy": 0.8,
                "f1": right - fold / 100,
            },
        )
        for model, aucs, right in (("abmil", [0.9, 0.8, 0.7, 0.9, 0.8], 0.9), ("mean", [0.8, 0.9, 0.7, 0.8, 0.9], 0.5))
        for fold, auc in enumerate(aucs)
    ]
    results = Results.load(write.run(rows, ["abmil", "mean"]))
    assert set(best(results)) == {"accuracy"}, "F1 differs as much, and comparisons.md does not show it"
    first, second = findings(results, [])[:2]
    assert "mean AUC" in first
    assert second.startswith("By AUC, no aggregator differs from the best; each can be it")
    assert "Accuracy" not in second, "what could be seen is of the metric that the sentence is of"
    third = "By accuracy, abmil can be the best; mean cannot (is worse than another one, with 95 % "
    assert findings(results, [])[2].startswith(third)


def test_the_summary_says_once_what_two_metrics_agree_on(write):
    values = {"abmil": [0.9, 0.92, 0.95, 0.91, 0.92], "mean": [0.6, 0.61, 0.66, 0.62, 0.63]}
    rows = [
        write.row(model, fold, metrics={"auc": value, "accuracy": value, "balanced_accuracy": 0.5, "f1": 0.5})
        for model, of in values.items()
        for fold, value in enumerate(of)
    ]
    said = findings(Results.load(write.run(rows, ["abmil", "mean"])), [])[1:]
    assert [sentence.split(";")[0] for sentence in said] == ["By AUC and accuracy, abmil can be the best"]


def test_the_summary_tells_slides_from_patients_and_worse_from_undefined(write):
    """Slides tell no two models apart, patients do, and of one model the metric is undefined."""
    rows = [
        write.row(model, fold, metrics={"auc": 0.8 + fold / 50}, patient_metrics={"auc": of and of + fold / 50})
        for model, of in {"abmil": 0.9, "mean": 0.5, "max": None}.items()
        for fold in range(5)
    ]
    rows[4]["patient_metrics"] = {"auc": 0.97}  # else the difference has no spread
    results = Results.load(write.run(rows, ["abmil", "mean", "max"], patient_rule="mean", patients=6, bags=12))
    said = findings(results, [])[1]
    assert said.startswith("By AUC, abmil (patients) can be the best; mean (patients) cannot (is worse")


def test_what_is_shown_can_be_reached_without_eyes_or_a_mouse(make_run, as_made):
    run = make_run(models=("abmil", "srmil"))
    page = make_page(run, drawings=draw_figures(Results.load(run), ["figure3", "metrics", "attention"]))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a" and a.get("href", "").startswith("#")}
    assert links == {"main", "summary", "results", "attention", "slides", "provenance"}
    assert links <= {a["id"] for _, a in page.tags if "id" in a}
    labelled = {a["aria-labelledby"] for tag, a in page.tags if tag == "section"}
    assert labelled <= {a["id"] for tag, a in page.tags if tag == "h2"}
    pictures = [a for tag, a in page.tags if tag == "img" and "src" in a]
    assert pictures
    assert all(a["alt"] and a["tabindex"] == "0" for a in pictures)


def test_slides_come_worst_first_and_maps_hold_what_was_stored(make_run):
    run = make_run(models=("abmil", "srmil", "mean"))
    page = make_page(run)
    rows = page.table("Slide", "Patient", "Wrong")
    expected = pd.concat(
        [run.predictions(row["trial"]).query("split == 'test'") for row in run.trials()], ignore_index=True
    )
    truth = np.where(expected["label"] == 1, expected["prob_1"], expected["prob_0"]).clip(1e-12)
    loss = pd.Series(-np.log(truth)).groupby(expected["slide_id"]).mean()
    order = sorted(loss.index, key=lambda slide: (-loss[slide], slide))
    assert [row[0] for row in rows[1:]] == order
    for index, slide in enumerate(order):
        facts, coords, layers = page.map(index)
        assert facts["slide_id"] == slide
        assert [name.split(" ")[0] for name in layers] == ["abmil", "srmil", "truth"]
        for name, values in layers.items():
            trial = name.split("(")[-1].rstrip(")") if name != "truth" else next(iter(layers)).split("(")[-1][:-1]
            with h5py.File(run.attention(trial)) as file:
                group = file[quote(slide, safe="")]
                np.testing.assert_array_equal(coords, group["coords"][:])
                if name == "truth":
                    np.testing.assert_array_equal(values, group["instance_labels"][:])
                    continue
                relative = len(coords) * group["attention"][:].astype(float)
                shown = 10 ** (4 * values.astype(float) / 255 - 2)
                np.testing.assert_allclose(shown, relative.clip(0.01, 100), rtol=0.02)


def test_maps_stop_at_their_size_and_the_page_says_so(make_run):
    page = make_page(make_run(slides=6), maps_mib=0.002)
    maps = json.loads(page.scripts["meta"])["maps"]
    slides = page.table("Slide", "Patient", "Wrong")[1:]
    assert 0 < len(maps) < len(slides)
    assert f"{len(maps)} of the {len(slides)} slides" in page.text
    assert [facts["slide_id"] for facts in maps] == [row[0] for row in slides[: len(maps)]]


NASTY = ["<script>alert(1)</script>", "../../etc/passwd", "\"quoted\" & 'single'", "</table><b>", "{{ 7 * 7 }}"]


def nasty_run(write):
    def files(row, folder):
        rows = [(slide, f"<i>{slide}", "test", i % 2, 0.7, 0.3) for i, slide in enumerate(NASTY)]
        columns = ["slide_id", "patient_id", "split", "label", "prob_0", "prob_1"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "predictions.csv", index=False)
        pd.DataFrame({"epoch": [1], "seconds": [1.0], "selected": [1]}).to_csv(folder / "epochs.csv", index=False)
        with h5py.File(folder / "attention.h5", "w") as file:
            for i, slide in enumerate(NASTY):
                group = file.create_group(quote(slide, safe=""))
                group.attrs.update(slide_id=slide, label=i % 2, predicted=0, patch_size=np.nan)
                group["attention"] = np.full(3, 1 / 3, "f4")
                group["coords"] = np.array([[0.5, 1], [2, 3.25], [5, 7]], "f4")

    rows = [write.row("abmil"), write.row("srmil", status="failed", reason="<img src=x onerror=alert(2)>")]
    return write.run(rows, ["abmil", "srmil"], files, title="<h1>title", classes=["<u>normal", "tumour"])


def test_names_with_markup_and_paths_are_text(write):
    run = nasty_run(write)
    path = write_page(Results.load(run))
    page = Page(path.read_text(encoding="utf-8"))
    assert path.parent == run.path
    assert {row[0] for row in page.table("Slide", "Patient")[1:]} == set(NASTY)
    assert "<img src=x onerror=alert(2)>" in page.text
    assert "1 of 1 trials of srmil failed." in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 2 + len(NASTY)
    assert not {"b", "i", "u"} & {tag for tag, _ in page.tags}
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)
    assert [facts["slide_id"] for facts in json.loads(page.scripts["meta"])["maps"]] == [
        row[0] for row in page.table("Slide", "Patient")[1:]
    ]
    np.testing.assert_allclose(page.map(0)[1], [[0.5, 1], [2, 3.25], [5, 7]], atol=1e-4)


def test_thumbnails_lie_below_their_maps(make_run, tmp_path):
    run, images = make_run(), tmp_path / "images"
    images.mkdir()
    slides = [facts["slide_id"] for facts in json.loads(make_page(run).scripts["meta"])["maps"]]
    Image.new("RGB", (3000, 2000), "pink").save(images / f"{quote(slides[1], safe='')}.png")  # the id holds a slash
    (images / "thesis.tex").write_text("")
    (images / "broken.svs").write_bytes(b"")  # of no slide of the run: it is not opened
    maps = json.loads(make_page(run, slide_images=images).scripts["meta"])["maps"]
    assert [facts["slide_id"] for facts in maps if "thumbnail" in facts] == [slides[1]]
    thumbnail = maps[1]["thumbnail"]
    assert (thumbnail["width"], thumbnail["height"]) == (3000, 2000)
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail["data"]))).size == (1024, 683)
    with pytest.raises(InputError, match="no such folder"):
        write_page(Results.load(run), slide_images=tmp_path / "nowhere")


def test_a_run_without_results_has_a_page(write):
    run = write.run([write.row("abmil", status="failed", reason="broken")], ["abmil"])
    page = Page(write_page(Results.load(run)).read_text(encoding="utf-8"))
    assert "0 of 1 finished" in page.text
    assert "broken" in page.text


def test_scores_come_before_attention_and_sentences_once(make_run, as_made):
    run = make_run(models=("srmil", "abmil"), folds=2)
    results = Results.load(run)
    drawings = draw_figures(results, ["figure3", "skew", "metrics", "roc", "calibration"])
    text = write_page(results, drawings).read_text(encoding="utf-8")
    order = ("metrics", "roc", "calibration", "figure3", "figure3-srmil", "figure3-abmil", "skew")  # the run's
    places = [text.index(f'alt="{name}"') for name in order]
    assert places == sorted(places)
    assert places[2] < text.index('id="attention"') < places[3]
    tables, _, sheet = text.partition("Known faults of the data")  # of the reporting sheet, whose answer it is
    assert tables.count("Labels of 3 slides are disputed.") == sheet.count("Labels of 3 slides are disputed.") == 1
    assert text.count("How attention gathers on few instances") == 1
    assert 'role="tooltip"' in text


def test_words_begin_at_the_left_and_sentences_go_on_in_further_lines(make_run, as_made):
    text = write_page(Results.load(make_run(folds=1))).read_text(encoding="utf-8")
    assert '<th>Section</th><th class="text">Asked</th><th class="text prose">This run</th>' in text
    assert "<th>Aggregator</th><th>Accuracy</th>" in text
    assert '<th>Trial</th><th class="text">Status</th><th>Chosen epoch</th>' in text


def test_rows_of_patients_stand_beside_their_model(write):
    def files(row, folder):
        rows = [(f"s{i}", f"p{i // 2}", "test", i // 2 % 2, 0.6, 0.4) for i in range(8)]
        columns = ["slide_id", "patient_id", "split", "label", "prob_0", "prob_1"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "predictions.csv", index=False)

    scores = {"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": 0.5, "f1": 0.0}
    rows = [write.row(model, fold, patient_metrics=scores) for model in ("abmil", "mean") for fold in (0, 1)]
    run = write.run(rows, ["abmil", "mean"], files, patient_rule="mean", patients=4, bags=8)
    page = Page(write_page(Results.load(run)).read_text(encoding="utf-8"))
    names = [row[0] for row in page.table("Aggregator", "AUC", "Parameters")[1:]]
    assert names == ["abmil", "abmil (patients)", "mean", "mean (patients)"]


def test_the_summary_says_that_budgets_and_recipes_differ(write):
    rows = [write.row(model, fold) for model in ("abmil", "srmil") for fold in range(5)]
    run = write.run(rows, ["abmil", "srmil"])
    config = run.config

    def said(epochs, replaced, models=("abmil", "srmil"), **training):
        config["model_settings"] = {
            model: {"training": {"epochs": number} | training, "replaced": replaced}
            for model, number in zip(models, epochs, strict=True)
        }
        run.path.joinpath("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        results = Results.load(run)
        return " ".join(findings(results, [])), " ".join(notes(results))

    budgets, recipes = "The models were given different numbers of epochs", "than by the authors' recipes: epochs"
    assert [text in found for found in said((5, 10), {"epochs": 100}) for text in (budgets, recipes)] == [1, 1, 1, 0]
    assert [text in found for found in said((7, 7), {}) for text in (budgets, recipes)] == [0, 0, 0, 0]
    found, told = said((7, 7), {"epochs": 100}, ("mine", "yours"))  # which have no authors' recipe
    assert "authors' recipes" not in found
    defaults = "the defaults of model and trainer, but for what the suite or the command line changes"
    assert f"{defaults}: epochs 7 instead of 100" in told
    found, _ = said((7, 12), {"epochs": 100})
    assert "recipes: epochs 7 to 12 instead of 100. Scores are of these settings" in found
    found, _ = said((7, 7), {"epochs": 100, "schedule": "cosine"}, ("abmil", "mine"), schedule="constant")
    assert "recipes: epochs 7 instead of 100 (abmil); schedule constant instead of cosine (abmil). Scores" in found
    replaced = {"learning_rate": 1e-4, "width": None}
    found, _ = said((7, 7), replaced, learning_rate=4e-4, width=True)
    assert "recipes: learning_rate 4 times theirs; width True instead of none. Scores" in found
