"""Ranks over datasets: the numbers, the diagram, and what is refused."""

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure
from rescore_files import probabilities

from mil_zoo import InputError
from mil_zoo.report.across_runs.ranking import diagram, scores_by_dataset, write_ranking
from mil_zoo.report.load import Results
from mil_zoo.report.rescore import Columns, rescore
from mil_zoo.report.tables import write_tables
from mil_zoo.stats import friedman_nemenyi

SCORES = {
    "one": {"abmil": 0.9, "srmil": 0.8, "mean": 0.7},
    "two": {"abmil": 0.8, "srmil": 0.9, "mean": 0.6},
    "three": {"abmil": 0.9, "srmil": 0.85, "mean": 0.5},
}


@pytest.fixture
def runs(tmp_path, write):
    made = []
    for title, values in SCORES.items():
        rows = [
            write.row(model, fold, metrics={"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": value + d, "f1": 0.5})
            for model, value in values.items()
            for fold, d in enumerate((-0.05, 0.05))
        ]
        made.append(Results.load(write.run_at(tmp_path / title, rows, list(values), title=title)))
    return made


def test_ranking_by_hand(runs, tmp_path):
    paths = write_ranking(runs, tmp_path / "out")
    names = ["ranking.csv", "ranking.md", "ranking.tex", "differences.csv", "critical_difference.png"]
    assert [path.name for path in paths] == names
    assert scores_by_dataset(runs, "auc").loc["two"].to_dict() == pytest.approx(SCORES["two"])
    text = paths[1].read_text()
    assert "| Dataset | abmil | srmil | mean |" in text
    assert "| Mean rank | 1.33 | 1.67 | 3.00 |" in text
    result = friedman_nemenyi([[0.9, 0.8, 0.7], [0.8, 0.9, 0.6], [0.9, 0.85, 0.5]])
    assert f"chi2 = {result.chi2:.2f}" in text
    assert f"critical difference {result.critical_difference:.2f}" in text
    assert f", p = {result.p_chi2:.3f}; Iman" in text
    assert "3 datasets are few" in text
    assert "two: of 5 trials a model abmil 2, srmil 2, mean 2 finished; the scores are means over these." in text
    pairs = pd.read_csv(paths[3])
    assert pairs["mean_difference"].tolist() == pytest.approx([0.05 / 3, 0.8 / 3, 0.75 / 3])
    assert (pairs["p_holm"] >= pairs["p_wilcoxon"]).all()
    assert paths[4].stat().st_size > 5_000


def test_runs_of_one_dataset_add_up(runs, tmp_path, write):
    more = Results.load(write.run([write.row("max", fold) for fold in range(2)], ["max"], title="one"))
    assert scores_by_dataset([*runs, more], "auc").loc["one", "max"] == pytest.approx(0.95)
    text = write_ranking([*runs, more], tmp_path / "out")[1].read_text()
    assert "Left out, since a dataset has no score of them: max." in text
    with pytest.raises(InputError, match="is in two runs of one"):
        scores_by_dataset([*runs, runs[0]], "auc")
    config = more.run.config
    config["split"]["hash"] = "d4e5f6"
    (more.path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="split one differently"):
        scores_by_dataset([*runs, Results.load(more.path)], "auc")


def test_cohorts_of_one_title_are_told_apart(runs, tmp_path):
    """As two folders called features are; runs that share slides are of one cohort."""
    alike = []
    for i, run in enumerate(runs):
        config = run.run.config
        config["dataset"]["title"], config["split"]["hash"] = "features", f"hash {i}"
        (run.path / "config.yaml").write_text(yaml.safe_dump(config))
        (run.path / "splits.csv").write_text(f"slide_id,patient_id,label\ns{i},,0\nNA{i},,1\n")
        alike.append(Results.load(run.path))
    assert list(scores_by_dataset(alike, "auc").index) == ["features (one)", "features (two)", "features (three)"]
    text = write_ranking(alike, tmp_path / "out")[1].read_text()
    assert "- features (two): kfold, 1 x 5 folds" in text
    (alike[1].path / "splits.csv").write_text("slide_id,patient_id,label\ns0,,0\n")
    with pytest.raises(InputError, match=r"split features .*differently"):
        scores_by_dataset(alike, "auc")


def test_what_cannot_be_ranked(runs, tmp_path):
    with pytest.raises(InputError, match="at least 2 datasets"):
        write_ranking(runs[:1], tmp_path)
    with pytest.raises(InputError, match="max has no score on one, two, three"):
        write_ranking(runs, tmp_path, models=["abmil", "max"])
    with pytest.raises(InputError, match="--models must name each aggregator once, not abmil,abmil"):
        write_ranking(runs, tmp_path, models=["abmil", "abmil"])
    two = write_ranking(runs, tmp_path, models=["abmil", "mean"])
    assert "critical_difference.png" not in [path.name for path in two]


def test_the_diagram_joins_what_does_not_differ():
    result = friedman_nemenyi([[9, 8, 7, 1], [9, 8, 6, 1], [9, 7, 8, 1], [8, 9, 7, 1]] * 3)
    figure = diagram(result, ["a", "b", "c", "d"], "AUC", "note")
    assert isinstance(figure, Figure)
    bars = [part for part in figure.axes[0].collections if part.get_linewidth()[0] == 3.5]
    assert len(bars) == len(result.groups()) > 0
    texts = [text.get_text().split()[0] for text in figure.axes[0].texts]
    assert {"a", "b"} <= set(texts)


def test_predictions_of_others_are_ranked_whatever_their_models_are_called(tmp_path, run_cli):
    for seed, cohort in enumerate(("one", "two")):
        table = probabilities([r"$A_1$ $\frac{", "b|c", "<d>"], seed=seed).assign(cohort=cohort)
        table.to_csv(tmp_path / f"{cohort}.csv", index=False)
        rescore([tmp_path / f"{cohort}.csv"], tmp_path / cohort, Columns({}, ("cohort",)))
    code, out, err = run_cli("compare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert code == 0, err
    assert "one: as in the files, 40 patients, 1 x 2 folds; how models were trained, the files do not say." in out
    first = (tmp_path / "out" / "ranking.md").read_text(encoding="utf-8").splitlines()[0]
    assert all(name in first for name in (r"b\|c", r"\<d>", r"\$A_1\$ \$\\frac{"))
    assert (tmp_path / "out" / "critical_difference.png").stat().st_size > 5000


def test_compare_on_the_command_line(runs, tmp_path, run_cli):
    code, out, _ = run_cli("compare", *(run.path for run in runs), "--out", tmp_path / "out")
    assert code == 0
    assert "Mean rank" in out
    code, _, err = run_cli("compare", runs[0].path, "--out", tmp_path / "out")
    assert code == 2
    assert "at least 2 datasets" in err
    assert run_cli("compare", tmp_path / "nowhere")[0] == 2


def test_the_tables_of_a_run_will_do(runs, tmp_path):
    expected = scores_by_dataset(runs, "auc")
    folders = []
    for run in runs:
        write_tables(run)
        folder = tmp_path / "tables" / run.path.name
        folder.mkdir(parents=True)
        for name in ("config.yaml", "table.csv"):
            (folder / name).write_bytes((run.path / name).read_bytes())
        folders.append(Results.load(folder))
    pd.testing.assert_frame_equal(scores_by_dataset(folders, "auc"), expected)
    text = write_ranking(folders, tmp_path / "out")[1].read_text()
    table = (folder / "table.csv").read_text(encoding="utf-8")
    for changed, words in {
        b"": "is empty; bring back the table.csv that the run wrote",
        b"hello": "is no table of a run",
        table.replace("abmil", "abm\xe9l").encode("latin-1"): "is not UTF-8 text",
        (table + table.splitlines()[1]).encode(): "names '.*' twice",
        pd.read_csv(folder / "table.csv").assign(auc_mean="high").to_csv(index=False).encode(): "that is no number",
    }.items():
        (folder / "table.csv").write_bytes(changed)
        with pytest.raises(InputError, match=f"table.csv.*{words}"):
            scores_by_dataset([Results.load(folder)], "auc")
    assert "finished; the scores are means over these" not in text  # a table alone does not say how many were planned
