"""Outcomes that cannot be, from the command line: each is one sentence that names the place and says what to do."""

import pandas as pd
import pytest
from survival_runs import make_cohort

from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.source import DatasetSource

SURVIVAL = ("--task", "survival", "--time", "os_months", "--event", "event")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def table(cohort):
    """Its outcomes with the event, where both are known; slides 0 and 1 are of one patient."""
    rows = pd.read_csv(cohort / "labels.csv", dtype=str)
    rows["event"] = rows["censorship"].map({"0": "1", "1": "0"})
    return rows.drop(columns="censorship").dropna(subset=["os_months", "event"])


@pytest.fixture
def dry_run(cohort, tmp_path, run_cli):
    """Plans a bench on the cohort with another table of labels; nothing is trained."""

    def run(rows, *arguments):
        rows.to_csv(tmp_path / "table.csv", index=False)
        where = ("--dataset", cohort / "bags.npz", "--labels", tmp_path / "table.csv", "--models", "mean")
        return run_cli("bench", *where, "--folds", 2, "--dry-run", *arguments, "--out", tmp_path / "run")

    return run


def changed(column, value, rows=slice(25, 25)):
    """A table with other values in some rows, or with a function of all of them."""

    def change(table):
        table = table.copy()
        if callable(value):
            table[column] = value(table[column])
        else:
            table.loc[rows, column] = value
        return table

    return change


def called_event(table):
    """The times stand in a column that is called Event."""
    return table.assign(status=table["event"], Event=table["os_months"]).drop(columns=["event", "os_months"])


EVENT = "the column 'event' takes 0 and 1 (true and false), not what"
BAD = {
    "negative time": (changed("os_months", "-3"), "slide 'slide_25' has the time -3, before 0", "correct it"),
    "no times": (changed("os_months", "", slice(None)), "no slide has all of os_months, event; fill them in"),
    "time in words": (changed("os_months", "a year"), "slide 'slide_25' has os_months 'a year'", "leave it empty"),
    "a date": (changed("os_months", "2019-03-01"), "has os_months '2019-03-01', which is no number"),
    "infinite time": (changed("os_months", "inf"), "slide 'slide_25' has os_months 'inf', which is no number"),
    "event 1 and 2": (
        changed("event", lambda event: event.map({"1": "2", "0": "1"})),
        EVENT,
        "'2'",
        "say which of them is the event: --event-values 1=1,2=0, or 1=0,2=1",
    ),
    "dead and alive": (
        changed("event", lambda event: event.map({"1": "dead", "0": "alive"})),
        EVENT,
        "--event-values alive=1,dead=0, or alive=0,dead=1",
    ),
    "one unknown event": (changed("event", "lost"), EVENT, "'slide_25' 'lost'", "leave unknown ones empty"),
    "times as event": (
        changed("event", lambda event: event.index.astype(str) + ".5"),
        EVENT,
        "they look like times",
        "with --time",
    ),
    "nobody had the event": (
        changed("event", "0", slice(None)),
        "table.csv: no patient had the event (event)",
        "what 1 means",
    ),
    "all had the event": (
        changed("event", "1", slice(None)),
        "table.csv: every patient had the event (event)",
        "what 1 means",
    ),
    "one event": (
        lambda table: changed("event", "1")(table.assign(event="0")),
        "has 0 events and no comparable pair of patients",
        "ask for fewer folds",
    ),
    "two times": (changed("os_months", "50", 1), "patient 'P00' has time_months", "'slide_01'", "a patient has one"),
    "two events": (
        changed("event", lambda event: event.where(event.index != 1, "1").where(event.index != 0, "0")),
        "patient 'P00' has time_months",
        "event 0 on slide 'slide_00'",
        "event 1 on slide 'slide_01'",
    ),
    "days among months": (changed("os_months", "3044"), "slide 'slide_25' has a time of 3044 months", "--time-unit"),
}


@pytest.mark.parametrize("name", BAD)
def test_survival(table, dry_run, name):
    change, *messages = BAD[name]
    code, _, err = dry_run(change(table), *SURVIVAL)
    assert code == 2
    assert err.count("\n") == 1
    for message in messages:
        assert message in err


def test_a_column_called_event_that_holds_times(table, dry_run):
    code, _, err = dry_run(called_event(table), "--task", "survival")
    assert code == 2
    assert "the column 'time' is missing; known: Event" in err
    assert "name the table's own: --time COLUMN" in err
    code, _, err = dry_run(called_event(table).assign(time_months="5"), "--task", "survival")
    assert code == 2
    assert "the column 'Event' takes 0 and 1" in err
    assert "they look like times" in err
    named = ("--time", "Event", "--event", "status", "--time-unit", "months")
    assert dry_run(called_event(table), *named)[0] == 0


@pytest.fixture
def facts(cohort, tmp_path):
    """What tables say of the cohort with another table of labels."""

    def facts(rows, **settings):
        rows.to_csv(tmp_path / "table.csv", index=False)
        source = DatasetSource(str(cohort / "bags.npz"), labels=tmp_path / "table.csv")
        task = {"name": "survival", "time": "os_months", "event": "event"} | settings
        return open_dataset(source.with_task(task)).card.warnings

    return facts


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ({"1": "True", "0": "False"}, {}),
        ({"1": "dead", "0": "alive"}, {"event_values": ["alive=0", "dead=1"]}),
        ({"1": "2", "0": "1"}, {"event_values": ["1=0", "2=1"]}),
    ],
)
def test_other_words_for_the_event_are_the_same_event(table, facts, words, settings):
    """The ways out that the messages name."""
    assert facts(changed("event", lambda event: event.map(words))(table), **settings) == facts(table)


def test_times_that_few_cohorts_reach_are_named(table, facts):
    assert any(line.startswith("The longest time is 50 years") for line in facts(changed("os_months", "600")(table)))
    assert not any(line.startswith("The longest time") for line in facts(table))


GRADES = {"0": "low", "1": "mid", "2": "high"}
OTHER = {
    "regression:column=score": (changed("score", "high"), "slide 'slide_25' has score 'high', which is no number"),
    "multilabel:names=[wide,deep]": (changed("wide", "2"), "slide 'slide_25' has wide 2, not 0, 1 or nothing"),
    "multilabel:names=[deep,wide]": (
        changed("wide", "maybe"),
        "has wide 'maybe', which is no number",
        "leave it empty",
    ),
    "ordinal": (
        changed("label", lambda label: label.map(GRADES)),
        "nothing says which of the classes high, low, mid is above which",
        "state them, the lowest first, by --task ordinal:classes=[LOWEST,...,HIGHEST]",
    ),
    "ordinal:classes=[low,high]": (
        changed("label", lambda label: label.map(GRADES)),
        "label 'mid' is none of the task's classes low, high",
    ),
    "ordinal:num_classes=2": (
        lambda table: table,
        "num_classes=2, but the labels are of 3 classes",
        "leave num_classes",
    ),
}


@pytest.mark.parametrize("task", OTHER)
def test_other_tasks(table, dry_run, task):
    change, *messages = OTHER[task]
    code, _, err = dry_run(change(table), "--task", task)
    assert code == 2
    assert err.count("\n") == 1
    for message in messages:
        assert message in err


def test_a_class_that_no_training_slide_has(table, cohort, tmp_path, run_cli):
    test = table["label"] == "2"
    (rows := table.assign(split=test.map({True: "test", False: "train"}))).to_csv(tmp_path / "t.csv", index=False)
    assert set(rows["split"]) == {"train", "test"}
    where = ("--dataset", cohort / "bags.npz", "--labels", tmp_path / "t.csv", "--models", "mean", "--dry-run")
    code, _, err = run_cli("bench", *where, "--task", "ordinal", "--split", "official")
    assert code == 2
    assert "no train slide is of class 'class 2'; mend the column split of the label table" in err


def test_a_label_that_nobody_knows_has_no_scores_and_says_why(table, cohort, tmp_path, run_cli):
    table.assign(wide="").to_csv(tmp_path / "t.csv", index=False)
    where = ("--dataset", cohort / "bags.npz", "--labels", tmp_path / "t.csv", "--models", "mean", "--epochs", 1)
    task = ("--task", "multilabel:names=[wide,deep]", "--folds", 2)
    code, _, err = run_cli("bench", *where, *task, "--out", tmp_path / "run")
    assert code == 0, err
    told = pd.read_csv(tmp_path / "run" / "undefined.csv").groupby("metric")["note"].first()
    assert told["auc_wide"] == "all known bags are of one class"


def test_named_grades_are_in_the_order_that_is_stated(table, cohort, tmp_path, run_cli):
    """Not in that of the alphabet, which would put high below low."""
    named, numbers = tmp_path / "named.csv", tmp_path / "numbers.csv"
    table.assign(label=table["label"].map(GRADES)).to_csv(named, index=False)
    table.to_csv(numbers, index=False)
    said = []
    for labels, task in ((named, "ordinal:classes=[low,mid,high]"), (numbers, "ordinal")):
        where = ("--dataset", cohort / "bags.npz", "--labels", labels, "--models", "mean", "--epochs", 1, "--folds", 2)
        out = tmp_path / labels.stem
        code, _, err = run_cli("bench", *where, "--task", task, "--out", out)
        assert code == 0, err
        files = sorted((out / "trials").glob("*/predictions.csv"))
        said.append([pd.read_csv(file) for file in files])
    for one, other in zip(*said, strict=True):
        pd.testing.assert_frame_equal(one, other)
