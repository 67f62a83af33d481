"""Published figures beside those of the runs in ``benchmarks/results/``: prints ``classic_published.md``.

    python benchmarks/classic_published.py > benchmarks/results/classic_published.md

``classic_published.csv`` holds the published figures with their source and protocol, ``classic_published_notes.md``
what is known of the differences. Ours are read from the ``table.csv`` and ``config.yaml`` of each run.
"""

from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).parent
HEAD = """# Published figures on the classic data, beside ours

Made by `benchmarks/classic_published.py` from the runs in this folder and the figures in
`benchmarks/classic_published.csv`, which states their sources. Ours: mean over test folds [95 % interval].

| data | aggregator | metric | published | ours | difference | our run | published variant | published protocol |
|---|---|---|---:|---:|---:|---|---|---|"""


def main() -> None:
    """Prints the page."""
    print(HEAD)
    for _, row in pd.read_csv(HERE / "classic_published.csv").iterrows():
        run = HERE / "results" / row["run"]
        table = pd.read_csv(run / "table.csv").set_index("aggregator")
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        ours, difference = "not run", ""
        what = f"{config['split']['kind']}, {config['split']['repeats']} x {config['split']['folds']}"
        if row["aggregator"] in table.index:
            mean, low, high = (
                table.loc[row["aggregator"], f"{row['metric']}_{part}"] for part in ("mean", "low", "high")
            )
            ours, difference = f"{mean:.3f} [{low:.2f}, {high:.2f}]", f"{mean - row['published']:+.3f}"
            epochs = config["model_settings"][row["aggregator"]]["training"]["epochs"]
            what += f", {epochs} epochs, epoch by validation"
        cells = (row["dataset"], f"`{row['aggregator']}`", row["metric"], f"{row['published']:.3f}", ours, difference)
        print(f"| {' | '.join([*cells, what, row['variant'], row['protocol']])} |")
    print((HERE / "classic_published_notes.md").read_text(encoding="utf-8").rstrip())


if __name__ == "__main__":
    main()
