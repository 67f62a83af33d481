"""Training, comparing and saving from Python."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import mil_zoo
from mil_zoo.data.dataset import open_dataset
from mil_zoo.errors import InputError
from mil_zoo.markdown import escape_markdown
from mil_zoo.report.tables.sentences import notes


def shifted_bags(count=24, dim=6, **more):
    """Bags whose positives hold a few shifted instances."""
    rng = np.random.default_rng(0)
    bags = []
    for i in range(count):
        n, label = int(rng.integers(8, 16)), i % 2
        positive = np.arange(n) < 3 * label
        features = (rng.normal(size=(n, dim)) + 3 * positive[:, None]).astype(np.float32)
        bags.append(mil_zoo.Bag(features=features, label=label, slide_id=f"s{i}", patient_id=f"p{i}", **more))
    return bags


@pytest.fixture(scope="module")
def bags():
    return shifted_bags()


@pytest.fixture(scope="module")
def fitted(bags):
    return mil_zoo.fit("abmil", bags[:12], bags[12:18], epochs=12, embed_dim=16, learning_rate=3e-3, data="Shifted")


def test_fit_learns_and_tells_what_it_did(fitted, bags):
    assert fitted.score(bags[18:])["auc"] > 0.9
    assert list(fitted.history["epoch"]) == list(range(1, 13))
    assert fitted.history["selected"].sum() == 1
    assert fitted.options["embed_dim"] == 16
    assert fitted.facts.training["learning_rate"] == 3e-3
    assert fitted.facts.val == tuple(f"s{i}" for i in range(12, 18))
    first, trained = fitted.predict([bags[18], bags[0]])
    assert first.probabilities.sum() == pytest.approx(1)
    assert first.attention.sum() == pytest.approx(1)
    assert (first.trained_on, trained.trained_on) == (0, 1)


def test_the_same_seed_gives_the_same_weights(bags):
    one, same, other = (mil_zoo.fit("mean", bags[:12], bags[12:], epochs=1, embed_dim=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.aggregator.classifier.weight, same.aggregator.classifier.weight)
    assert not torch.equal(one.aggregator.classifier.weight, other.aggregator.classifier.weight)


def test_fit_takes_an_aggregator_of_ones_own(bags):
    aggregator = mil_zoo.create_aggregator("max", 6, embed_dim=8)
    trained = mil_zoo.fit(aggregator, bags[:12], bags[12:], epochs=1)
    assert trained.aggregator is aggregator
    assert trained.name == "max"
    with pytest.raises(InputError, match="embed_dim is no setting of the training"):
        mil_zoo.fit(aggregator, bags[:12], bags[12:], embed_dim=8)


def test_fit_predicts_survival(bags):
    rng = np.random.default_rng(1)
    given = [
        replace(bag, label=None, target=[12 - 8 * bag.label + rng.uniform(0, 3), float(i % 5 > 0)])
        for i, bag in enumerate(bags)
    ]
    trained = mil_zoo.fit("mean", given[:14], given[14:], task="survival", epochs=2, embed_dim=8)
    prediction = trained.predict(given[14:15])[0]
    assert len(prediction.values) == len(trained.task.prediction_columns)
    assert np.isfinite(prediction.probabilities[0])
    with pytest.raises(InputError, match='say what they are, for instance task="survival"'):
        mil_zoo.fit("mean", given[:14], given[14:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregator": "abmill"}, "did you mean 'abmil'"),
        ({"learning_rat": 1e-3}, "did you mean 'learning_rate'"),
        ({"task": "survivl"}, "did you mean 'survival'"),
        ({"val_bags": []}, "at least one of each"),
        ({"val_bags": "train"}, "patients are in both the training and the validation bags .p11; 1 in all"),
        ({"aggregator": "gigassl"}, "no aggregator that fit trains"),
        ({"aggregator": None}, "aggregator is a name of mil_zoo.list_aggregators"),
        ({"train_bags": None}, "a list of bags is needed, not None"),
        ({"train_bags": [np.ones((3, 6))]}, "number 0 is of the type ndarray; make each mil_zoo.Bag"),
        ({"train_bags": "folder"}, "a list of bags is needed, not 'folder'"),
        ({"task": 5}, "a task is a name, a dict .* not 5"),
        ({"task": "survival"}, r"states 1 numbers and the task survival reads 2; .* target=.time, event."),
        ({"task": {"name": "multilabel", "names": ["er", "her2"]}}, "the task multilabel reads 2"),
        ({"seed": -1}, r"seed must be a whole number from 0 and below 2\^32, not -1"),
        ({"seed": "one"}, r"seed must be a whole number from 0 and below 2\^32, not 'one'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
    ],
    ids=str,
)
def test_fit_says_what_is_wrong(bags, change, message):
    given = {"aggregator": "mean", "train_bags": bags[:12], "val_bags": bags[12:], **change}
    if given["val_bags"] == "train":
        given["val_bags"] = bags[11:14]
    with pytest.raises(InputError, match=message):
        mil_zoo.fit(**given)


def test_bags_of_which_nothing_can_be_learnt(bags):
    wider = shifted_bags(count=2, dim=7)
    wider = [replace(bag, slide_id=f"w{i}", patient_id=None) for i, bag in enumerate(wider)]
    for train, val in ((bags[:4] + wider, bags[4:]), (bags[:4], wider)):
        with pytest.raises(InputError, match=r"features have 6 dimensions in most slides and others \(7\) here"):
            mil_zoo.fit("mean", train, val)
    with pytest.raises(InputError, match="the bags have 6 features a patch and the aggregator takes 7"):
        mil_zoo.fit(mil_zoo.create_aggregator("mean", 7), bags[:4], bags[4:])
    with pytest.raises(InputError, match="all 12 training bags have the label 1; add some of another class"):
        mil_zoo.fit("mean", bags[1::2], bags[::2])
    for label in (0.5, "tumour", float("nan")):
        with pytest.raises(InputError, match=f"slide 's0' has the label {label!r}; give every bag a class index"):
            mil_zoo.fit("mean", [replace(bags[0], label=label), *bags[1:12]], bags[12:])

    def outcomes(*targets):
        return [replace(bag, label=None, target=target) for bag, target in zip(bags, targets, strict=False)]

    val = [replace(bag, label=None, target=[1.0 + i, 1.0]) for i, bag in enumerate(bags[12:])]
    for targets, said in (
        (([3.0, 1.0], [float("nan"), 1.0]), "slide 's1' has the target .nan, 1.0.; leave it out"),
        (([3.0, 1.0], [float("inf"), 1.0]), "slide 's1' has the target .inf, 1.0.; leave it out"),
        (([3.0, 1.0], [-2.0, 1.0]), "slide 's1' has the time -2, before 0"),
        (([3.0, 1.0], [3.0]), "slide 's1' has a target of other numbers than the first"),
        (([3.0, 0.0], [4.0, 0.0]), "none of the 2 training patients has the event: their outcomes teach nothing"),
    ):
        with pytest.raises(InputError, match=said):
            mil_zoo.fit("mean", outcomes(*targets), val, task="survival_cox", epochs=1)
    with pytest.raises(InputError, match="none of the 2 training patients has the event before another one's time"):
        mil_zoo.fit("mean", outcomes([3.0, 0.0], [3.0, 1.0]), val, task="survival_rank", epochs=1)


def test_scores_are_of_bags_with_targets_of_the_task(fitted, bags):
    with pytest.raises(InputError, match="there are no bags; give some"):
        fitted.score([])
    with pytest.raises(InputError, match=r"slide .s0. has label 7, the classes are 0 to 1$"):
        fitted.score([replace(bags[0], label=7)])
    assert fitted.predict([]) == []
    with pytest.raises(InputError, match="number 1 is of the type Tensor"):
        fitted.predict([bags[0], bags[1].features])


def test_a_bag_alone_is_no_list(fitted, bags):
    for method in (fitted.predict, fitted.score):
        with pytest.raises(InputError, match=rf"not the bag '{bags[0].slide_id}' alone; write \[bag\]"):
            method(bags[0])


def test_marks_of_what_is_not_known_are_no_classes(bags):
    for mark, said in ((-1, "give every bag a class index from 0"), (255, "no bag has 2; count classes from 0")):
        marked = [*bags[:11], replace(bags[11], label=mark), *bags[12:]]
        for train in (mil_zoo.fit, mil_zoo.cross_validate):
            given = (marked[:12], marked[12:]) if train is mil_zoo.fit else (marked,)
            with pytest.raises(InputError, match=f"has the label {mark}.*{said}"):
                train("mean", *given)
    three = [replace(bag, label=2 * bag.label) for bag in bags]
    fitted = mil_zoo.fit("mean", three[:12], three[12:], task={"name": "classification", "num_classes": 3}, epochs=1)
    assert fitted.task.width == 3


def test_cross_validation_gives_the_numbers_of_the_command_line(tmp_path, bag_table, run_cli):
    code, _, _ = run_cli(
        "bench", "--models", "mean,max", "--dataset", bag_table, "--folds", 2, "--epochs", 2, "--out", tmp_path / "cli"
    )
    assert code == 0
    ran = pd.read_csv(tmp_path / "cli" / "table.csv").set_index("aggregator")
    by_path = mil_zoo.cross_validate(["mean", "max"], bag_table, folds=2, epochs=2, out=tmp_path / "python")
    in_memory = mil_zoo.cross_validate(
        ["mean", "max"], list(open_dataset(bag_table).bags), folds=2, epochs=2, standardise=True
    )
    for results in (by_path, in_memory):
        table = results.table()
        scores = [name for name in ran if name.endswith(("_mean", "_sd", "_low", "_high", "_n"))]
        assert len(scores) > 10
        pd.testing.assert_frame_equal(table[scores].astype(float), ran[scores].astype(float), rtol=1e-9)
    assert (tmp_path / "python" / "trials.jsonl").exists()


def test_results_without_a_folder_take_their_files_along(bags):
    results = mil_zoo.cross_validate("mean", bags, folds=2, epochs=1, overrides={"mean.embed_dim": 8})
    path = results.path
    assert path.is_dir()
    del results
    assert not path.exists()


def test_bags_that_a_program_made_are_called_so(bags, bag_table):
    told = {
        simulated: notes(mil_zoo.cross_validate("mean", bags, folds=2, epochs=1, simulated=simulated))[0]
        for simulated in (False, True)
    }
    assert told[False].startswith("Data: Bags in memory: the user's own features")
    assert told[True].startswith("Data: Bags in memory: SIMULATED slides")
    with pytest.raises(InputError, match=r"write kind: simulated into a card\.yaml"):
        mil_zoo.cross_validate("mean", bag_table, simulated=True)


def test_cross_validation_says_what_is_wrong(bags):
    with pytest.raises(InputError, match="slide_id of its own"):
        mil_zoo.cross_validate("mean", [replace(bag, slide_id="") for bag in bags])
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        mil_zoo.cross_validate("mean", bags, epoch=3)
    with pytest.raises(InputError, match="trained in this process"):
        mil_zoo.cross_validate("mean", bags, jobs=2)
    with pytest.raises(InputError, match="classes= names 1 and the bags' labels tell of 2"):
        mil_zoo.cross_validate("mean", bags, classes=["benign"])


def test_scikit_learn_validates_and_searches(bags):
    labels = np.array(["benign", "tumour"])[[bag.label for bag in bags]]
    classifier = mil_zoo.MILClassifier("mean", epochs=8, learning_rate=1e-2, options={"embed_dim": 8})
    scores = cross_val_score(classifier, bags, labels, cv=2, scoring="roc_auc", error_score="raise")
    assert scores.min() > 0.8
    search = GridSearchCV(classifier, {"learning_rate": [1e-6, 1e-2]}, cv=2, error_score="raise").fit(bags, labels)
    assert search.best_params_ == {"learning_rate": 1e-2}
    assert search.predict_proba(bags[:3]).shape == (3, 2)
    assert set(search.predict(bags)) <= {"benign", "tumour"}


def test_the_classifier_says_what_is_wrong(bags):
    classifier = mil_zoo.MILClassifier("mean", epochs=1)
    with pytest.raises(InputError, match="3 labels are given for 24 bags"):
        classifier.fit(bags, [0, 1, 0])
    with pytest.raises(InputError, match="a classifier needs two classes"):
        classifier.fit(bags[:4], [1, 1, 1, 1])
    labels = [bag.label for bag in bags]
    with pytest.raises(InputError, match="bag 2 has no label; leave out the bags without one"):
        classifier.fit(bags, [0.0, 1.0, float("nan"), float("nan"), *labels[4:]])  # no third class
    with pytest.raises(InputError, match="a label is needed for each bag"):
        classifier.fit(bags, np.array(labels)[:, None])
    with pytest.raises(InputError, match="there are 0 bags"):
        classifier.fit([], [])
    with pytest.raises(NotFittedError):
        classifier.predict(bags)
    assert classifier.fit(bags, labels).predict([]).shape == (0,)


def test_the_names_load_when_they_are_used():
    code = "import mil_zoo, sys; mil_zoo.__all__; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
    for name in mil_zoo.__all__:
        assert getattr(mil_zoo, name) is not None


# Saving


def test_a_saved_aggregator_predicts_the_same(tmp_path, fitted, bags):
    fitted.save(tmp_path / "model")
    loaded = mil_zoo.load(tmp_path / "model")
    for one, other in zip(fitted.predict(bags[:4]), loaded.predict(bags[:4]), strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.attention, other.attention)
        assert one.trained_on == other.trained_on == 1
    assert loaded.facts == fitted.facts
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mil-zoo\n")
    assert "# abmil on Shifted" in card
    assert "Trained on 12 slides; the checkpoint was chosen on 6 others" in card
    assert "predicts `prob_0`, `prob_1`." in card, "of which nobody told the classes' names"
    assert "no medical device" in card
    assert "| metric | validation slides |\n| --- | ---: |\n" in card, "no test slide was scored: said once"
    assert card.count("No test slides were scored.") == 1
    assert "undefined" not in card
    loaded.save(tmp_path / "model")  # over itself, and again the same
    assert (tmp_path / "model" / "config.json").read_bytes() == json.dumps(
        json.loads((tmp_path / "model" / "config.json").read_text()), indent=1
    ).encode() + b"\n"


def test_the_folder_is_what_the_hub_mixin_reads(tmp_path, fitted, bags):
    hub = pytest.importorskip("huggingface_hub")
    fitted.save(tmp_path)
    abmil = type(fitted.aggregator)
    shared = type("Shared", (abmil, hub.PyTorchModelHubMixin), {}).from_pretrained(str(tmp_path)).eval()
    batch = mil_zoo.BagBatch.from_bags(bags[:3])
    with torch.no_grad():
        torch.testing.assert_close(shared(batch).logits, fitted.aggregator(batch).logits)


def test_a_damaged_folder_is_named(tmp_path, fitted):
    with pytest.raises(InputError, match="no such file; pass the folder"):
        mil_zoo.load(tmp_path)
    fitted.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model.safetensors cannot be loaded"):
        mil_zoo.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("aggregator", "abmill", "did you mean 'abmil'"),
        ("precision", 3, "precision must be text"),
        ("task", {"name": "regression"}, "its task has 1 outputs"),
    ):
        changed = config | {"mil_zoo": config["mil_zoo"] | {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            mil_zoo.load(tmp_path)
    for text in ("[]", "{", '{"mil_zoo": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            mil_zoo.load(tmp_path)


def test_nothing_else_is_written_over(tmp_path, fitted):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds no trained aggregator"):
        fitted.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_nothing_says_how_to_make_is_not_saved(tmp_path, bags):
    own = type(mil_zoo.create_aggregator("mean", 6))(6, 2)
    trained = mil_zoo.fit(own, bags[:12], bags[12:], epochs=1)
    with pytest.raises(InputError, match="was not made by create_aggregator"):
        trained.save(tmp_path / "model")


def test_the_card_shows_markup_as_it_is_written(tmp_path, bags):
    title = "<script>x</script> | *a* $b$"
    mil_zoo.fit("mean", bags[:12], bags[12:], epochs=1, data=title).save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"# mean on {escape_markdown(title)}" in card
    assert f"Data: {escape_markdown(title)}." in card
    assert title not in card


def test_a_trial_of_a_run_is_exported(tmp_path, bag_table, run_cli):
    mil_zoo.cross_validate("mean", bag_table, folds=2, epochs=1, out=tmp_path / "run")
    code, out, _ = run_cli("export", tmp_path / "run", "--model", "mean", "--out", tmp_path / "model")
    assert code == 0
    assert "mil_zoo.load(" in out
    loaded = mil_zoo.load(tmp_path / "model")
    trial = loaded.facts.trial.split()[1]
    bag = open_dataset(bag_table).bags[0]
    expected = mil_zoo.Predictor(tmp_path / "run", "mean", trial).predict(bag)
    np.testing.assert_array_equal(loaded.predict([bag])[0].probabilities, expected.probabilities)
    assert loaded.standardiser is not None
    assert loaded.facts.test_scores
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| AUC |" in card
    assert "| metric | validation slides | test slides |" in card
    again = ("export", tmp_path / "run", "--model", "mean")
    assert run_cli(*again, "--out", tmp_path / "model")[0] == 0  # the same once more
    other = next(name for name in ("mean-r0-f0-s0", "mean-r0-f1-s0") if name != trial)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text("{}")
    for out, more, told in (
        ("model", ("--trial", other), "holds another trained aggregator; choose another --out, or delete it"),
        ("notes", (), "exists and holds no trained aggregator; choose another --out"),
        ("run", (), "exists and holds no trained aggregator; choose another --out"),
    ):
        before = {path: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        code, _, err = run_cli(*again, *more, "--out", tmp_path / out)
        assert (code, told in err) == (2, True)
        assert before == {path: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
