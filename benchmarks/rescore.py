"""Scores published predictions of survival models again, checks published accuracies, and writes the page on both.

    python benchmarks/rescore.py DATA --out benchmarks/results/rescore.md

DATA holds ``survival/golden/mcat_risks.csv.gz`` and ``mcat_folds.csv`` (risks that MCAT and Patch-GCN published for
patients of five TCGA cohorts, with the published C of every fold), ``survival/tcga_*.csv.gz`` (who should be there) and
``published/`` (accuracies of the HIPT repository by fold, and a table of published numbers).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from mil_zoo.report.load import Results
from mil_zoo.report.rescore import Columns, rescore
from mil_zoo.report.tables.comparison_tables import shown_comparisons

COHORTS = ("blca", "brca", "gbmlgg", "luad", "ucec")


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rescore.md"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given.out.write_text(_page(given.data, Path(folder)), encoding="utf-8")


def _page(data: Path, folder: Path) -> str:
    survival, golden = data / "survival", data / "survival" / "golden"
    published = folder / "published.csv"
    table = pd.read_csv(golden / "mcat_folds.csv", dtype=str)
    table.rename(columns={"published_c": "value"})[["model", "cohort", "fold", "value"]].to_csv(published, index=False)
    cohort = folder / "cohort.csv"
    tables = [pd.read_csv(survival / f"tcga_{name}.csv.gz", dtype=str).assign(cohort=name) for name in COHORTS]
    pd.concat(tables)[["patient_id", "cohort", "fold", "time_months", "event"]].to_csv(cohort, index=False)
    out = folder / "survival"
    made = rescore([golden / "mcat_risks.csv.gz"], out, Columns({}, ("cohort",)), cohort, published)
    rows = pd.read_csv(out / "rescore.csv")
    pairs = []
    for name in COHORTS:
        results = Results.load(out / name)
        if len(results.groups) > 1:
            pairs.append(shown_comparisons(results).tables[1])
            pairs[-1] = f"### {name.upper()}\n\n{pairs[-1].markdown()}"
    hipt = rescore(
        [data / "published" / "hipt_per_fold.csv"], folder / "hipt", Columns({}, ("dataset", "train_fraction"))
    )
    numbers = rescore([data / "published" / "published_results.csv"], folder / "n", Columns({}, ("dataset",)))
    return "\n".join(
        [
            "# Published predictions, scored again\n",
            "Made by `python benchmarks/rescore.py DATA`, with the functions of `mil-zoo rescore`.\n",
            "## Survival: the risks that MCAT and Patch-GCN published\n",
            "`mil-zoo rescore mcat_risks.csv.gz --cohort patients.csv --published published.csv --by cohort`\n",
            f"{len(rows)} folds; the largest difference from a published C is {rows['difference'].abs().max():.1g}.\n",
            *(table.markdown().replace("## ", "### ") for table in made.document.tables),
            "## Paired tests on the same folds\n",
            *pairs,
            "## Accuracies by fold of the HIPT repository\n",
            "`mil-zoo rescore hipt_per_fold.csv --by dataset,train_fraction`\n",
            *(table.markdown().replace("## ", "### ") for table in hipt.document.tables),
            "## The table of published numbers\n",
            "`mil-zoo rescore published_results.csv --by dataset`\n",
            *(table.markdown().replace("## ", "### ") for table in numbers.document.tables),
        ]
    )


if __name__ == "__main__":
    main()
