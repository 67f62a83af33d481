"""Arguments of another type than the Python API takes: one sentence that names the argument and what it takes."""

import re

import numpy as np
import pytest

import mil_zoo
from mil_zoo.data import open_dataset, read_annotations, read_bag
from mil_zoo.errors import InputError
from mil_zoo.report.rescore import Columns, rescore


def some_bags(count=12):
    rng = np.random.default_rng(0)
    return [mil_zoo.Bag(features=rng.normal(size=(6, 4)), label=i % 2, slide_id=f"s{i}") for i in range(count)]


BAGS = some_bags()


def compare(*arguments, **options):
    return mil_zoo.cross_validate(*(arguments or (["mean"], BAGS)), **{"folds": 2, "epochs": 1, **options})


def fit(*arguments, **options):
    return mil_zoo.fit(*(arguments or ("mean", BAGS[:6], BAGS[6:])), **{"epochs": 1, **options})


def classify(bags=BAGS, labels=None, **options):
    return mil_zoo.MILClassifier("mean", **{"epochs": 1, **options}).fit(bags, labels)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: compare(5, BAGS), "names is the name of an aggregator or a list of names, not 5"),
        (lambda: compare(None, BAGS), "names is the name of an aggregator or a list of names, not None"),
        (lambda: compare([5], BAGS), "models[0] must be text, not 5"),
        (lambda: compare(["mean"], 5), "a list of bags is needed, not 5"),
        (lambda: compare(["mean"], None), "a list of bags is needed, not None"),
        (lambda: compare(folds="x"), "folds must be"),
        (lambda: compare(jobs="x"), "jobs is a whole number from 1, or \"auto\", not 'x'"),
        (lambda: compare(jobs=0), 'jobs is a whole number from 1, or "auto", not 0'),
        (lambda: compare(task=5), "a task is a name, a dict of its name and settings, or a mil_zoo.tasks.Task, not 5"),
        (lambda: compare(["mean"], "demo", task=5), "a task is a name, a dict of its name and settings"),
        (lambda: compare(classes=5), "classes is a list of the names of the classes, not 5"),
        (lambda: compare(classes="ab"), "classes is a list of the names of the classes, not 'ab'"),
        (lambda: compare(title=5), "title must be text or null, not 5"),
        (lambda: compare(out=5), "out is a path, the run directory, not 5"),
        (lambda: compare(seeds=5), "seeds must be a list, not 5"),
        (lambda: compare(overrides=5), "overrides must be a mapping, not 5"),
        (lambda: compare(grid=5), "grid must be a mapping, not 5"),
        (lambda: compare(split=5), "split must be text, not 5"),
        (lambda: fit(5, BAGS[:6], BAGS[6:]), "aggregator is a name of mil_zoo.list_aggregators() or an Aggregator"),
        (lambda: fit(["mean"], BAGS[:6], BAGS[6:]), "aggregator is a name of mil_zoo.list_aggregators()"),
        (lambda: fit("mean", None, BAGS[6:]), "a list of bags is needed, not None"),
        (lambda: fit("mean", BAGS[:6], 5), "a list of bags is needed, not 5"),
        (lambda: fit(task=5), "a task is a name, a dict of its name and settings"),
        (lambda: fit(graph=5), 'graph is a graph spec such as "knn:8", or None, not 5'),
        (lambda: fit(data=5), "data is the title of the data, not 5"),
        (lambda: fit(seed="x"), "seed must be a whole number from 0 and below 2^32, not 'x'"),
        (lambda: fit(device=5.5), "device 5.5 cannot be used here"),
        (lambda: fit(epochs="x"), "epochs must be a whole number, not 'x'"),
        (lambda: fit(embed_dim="x"), "embed_dim"),
        (lambda: fit().predict(5), "a list of bags is needed, not 5"),
        (lambda: fit().predict(None), "a list of bags is needed, not None"),
        (lambda: fit().predict([5]), "number 0 is of the type int"),
        (lambda: fit().score(5), "a list of bags is needed, not 5"),
        (lambda: fit().save(None), "path is a path, the folder to write, not None"),
        (lambda: fit().to_onnx(5), "path is a path, of the .onnx file, not 5"),
        (lambda: mil_zoo.export_onnx("folder", "model.onnx"), "fitted is what mil_zoo.fit or mil_zoo.load returned"),
        (lambda: mil_zoo.load(None), "path is a path, the folder that Fitted.save or mil-zoo export wrote, not None"),
        (lambda: mil_zoo.load(5), "path is a path, the folder that Fitted.save or mil-zoo export wrote, not 5"),
        (lambda: mil_zoo.Results.load(None), "path is a path, the --out folder of a bench, not None"),
        (lambda: mil_zoo.Results.load("runs", slides=5), "slides is a list of slide ids, not 5"),
        (lambda: mil_zoo.Results.load("runs", slides="a"), "slides is a list of slide ids, not 'a'"),
        (lambda: mil_zoo.Results.load("runs", title=5), "title is text, not 5"),
        (lambda: mil_zoo.Predictor(None, "mean"), "path is a path, the --out folder of a bench, not None"),
        (lambda: classify(5), "a list of bags is needed, not 5"),
        (lambda: classify(labels=5), "a label is needed for each bag"),
        (lambda: classify(options=5), "options is a dict of names and values, or None, not 5"),
        (lambda: classify(training=5), "training is a dict of names and values, or None, not 5"),
        (lambda: classify(validation_fraction="x"), "validation_fraction must be above 0 and at most 0.5, not 'x'"),
        (lambda: classify(seed="x"), "seed must be a whole number from 0 and below 2^32, not 'x'"),
        (lambda: classify(epochs="x"), "epochs must be a whole number, not 'x'"),
        (lambda: classify().predict(5), "a list of bags is needed, not 5"),
        (lambda: classify().predict_proba(None), "a list of bags is needed, not None"),
        (lambda: mil_zoo.MILClassifier(5).fit(BAGS), "aggregator is a name of mil_zoo.list_aggregators()"),
        (lambda: mil_zoo.create_aggregator(5), "the name of a registered aggregator is text, not 5"),
        (lambda: mil_zoo.create_aggregator("mean", in_dim="x"), "in_dim is a whole number, not 'x'"),
        (lambda: mil_zoo.create_aggregator("mean", num_classes=2.5), "num_classes is a whole number, not 2.5"),
        (lambda: mil_zoo.create_aggregator("mean", task="survival"), "task is a mil_zoo.tasks.Task"),
        (lambda: mil_zoo.BagBatch.from_bags(5), "a list of bags is needed, not 5"),
        (lambda: mil_zoo.BagBatch.from_bags([5]), "number 0 is of the type int"),
        (
            lambda: mil_zoo.register_metric(5, title="x", higher_is_better=True)(print),
            "metric name 5 must be lowercase letters",
        ),
        (lambda: mil_zoo.register_task(5)(type("T", (), {})), "task name 5 must be lowercase letters"),
        (lambda: read_bag(None), "path is a path, a feature file or the folder of one, not None"),
        (lambda: read_annotations(5), "path is a path, the annotation file of a slide, not 5"),
        (lambda: open_dataset(5), "source is a card's name, a path or a DatasetSource, not 5"),
        (lambda: rescore("a.csv", "out", Columns({})), "files is a list of prediction files, not 'a.csv'"),
        (lambda: rescore([5], "out", Columns({})), "files is a path, a csv or npz of predictions, not 5"),
        (lambda: rescore(["a.csv"], None, Columns({})), "out is a path, a folder, not None"),
        (lambda: rescore(["a.csv"], "out", None), "columns is a mil_zoo.report.rescore.Columns, not None"),
        (lambda: rescore(["a.csv"], "out", Columns({}), cohort=5), "cohort is a path"),
    ],
)
def test_one_sentence(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        call()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_names_of_any_iterable_and_numbers_of_numpy_are_taken():
    assert list(compare((name for name in ["mean"]), BAGS).table().index) == ["mean"]
    assert mil_zoo.create_aggregator("mean", in_dim=np.int64(4)).in_dim == 4
    assert classify(seed=np.int64(1), validation_fraction=np.float32(0.25)).predict(BAGS).shape == (12,)
