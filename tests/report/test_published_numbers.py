"""Published numbers beside ours."""

import pandas as pd
import pytest
import yaml

from mil_zoo.report.across_runs.literature import published_numbers, published_table
from mil_zoo.report.load import Results


def scores(value):
    return {"accuracy": value, "balanced_accuracy": value, "auc": value, "f1": value}


@pytest.fixture
def crchisto(write):
    """A run of gated ABMIL on crchisto."""
    rows = [write.row("abmil", fold, metrics=scores(value)) for fold, value in enumerate([0.8, 0.9, 1.0])]
    run = write.run(rows, ["abmil"], name="crchisto", warnings=["Folds share patients."])
    config = run.config
    config["model_settings"]["abmil"]["options"] = {"gated": True}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_every_number_has_a_protocol_and_a_source():
    numbers = published_numbers()
    assert len({(n.dataset, n.published_as, n.metric) for n in numbers}) == len(numbers) > 10
    for number in numbers:
        assert number.protocol
        assert number.source
        assert 0 < number.value < 1


def test_ours_stands_beside_the_number_of_the_same_options(crchisto):
    table = published_table([Results.load(crchisto)])
    ours = table[table["mean"].notna()]
    assert set(ours["published_as"]) == {"Gated-Attention (Ilse et al.)"}
    accuracy = ours[ours["metric"] == "accuracy"].iloc[0]
    assert (accuracy["value"], accuracy["mean"]) == (0.898, pytest.approx(0.9))
    assert accuracy["difference"] == pytest.approx(0.002)
    assert accuracy["splits"] == 3
    assert len(table) == len(published_numbers())


def test_a_dataset_without_published_numbers_is_told(write, run_cli, tmp_path):
    run = write.run([write.row("abmil", 0, metrics=scores(0.8))], ["abmil"], name="mine")
    _, out, _ = run_cli("published", run.path, "--out", tmp_path / "page")
    assert f"Nothing beside {run.path}: no number is known of the dataset 'mine', but of crchisto," in out


def test_the_page(crchisto, run_cli, tmp_path):
    code, out, _ = run_cli("published", crchisto.path, "--out", tmp_path / "page")
    assert (code, "Nothing beside" in out) == (0, False)
    page = (tmp_path / "page" / "published.md").read_text()
    assert (
        "| Gated-Attention (Ilse et al.) (gated=True) | Accuracy | 0.898 | 5 x 10-fold CV | abmil | 0.900 ± 0.100 ["
        in page
    )
    assert "Source: Ilse, Tomczak & Welling, ICML 2018" in page
    assert "Folds share patients." in page
    assert "not run" in page
    assert len(pd.read_csv(tmp_path / "page" / "published.csv")) == len(published_numbers())
