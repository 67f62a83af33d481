"""Kills a trial at random moments, starts it again each time, and compares its files with those of one left alone.

    python benchmarks/kill_test.py --kills 20 --models abmil,transmil

Every start is the command line in a process of its own, killed with SIGKILL; a checkpoint is written four times a
second.
Files must agree byte by byte; of epochs.csv and the rows of trials all but measured time and memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

MEASURED = {"seconds", "seconds_per_epoch", "peak_mem_mib", "training_seconds", "inference_ms", "energy_j"}


def command(out: Path, arguments: list[str]) -> list[str]:
    """The bench that is killed; without figures, since the trial is what counts."""
    return [sys.executable, "-m", "mil_zoo", "bench", *arguments, "--checkpoint-minutes", "0.004", "--out", str(out)]


def run_killed(out: Path, arguments: list[str], kills: int, seed: int, within: float) -> int:
    """Starts the bench again and again until it ends by itself; how often it was killed."""
    draws, killed = random.Random(seed), 0
    while True:
        started = time.time()
        process = subprocess.Popen(
            command(out, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and (killed >= kills or not trains(out, started)):
            time.sleep(0.01)  # a kill while Python starts tests nothing
        if process.poll() is None:
            time.sleep(draws.uniform(0, within))
        if process.poll() is not None:
            assert process.returncode == 0, f"a start failed; see {out}"
            return killed
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1


def trains(out: Path, started: float) -> bool:
    """Whether a checkpoint was written since then."""
    try:
        return any(path.stat().st_mtime > started for path in (out / "trials").rglob("training.pt"))
    except OSError:  # one was removed meanwhile
        return True


def contents(out: Path) -> dict[str, object]:
    """Every file of the trials, and their rows, without what is measured."""
    found: dict[str, object] = {}
    for path in sorted((out / "trials").rglob("*")):
        if path.is_file():
            content: object = path.read_bytes()
            if path.suffix == ".csv":
                table = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False)
                content = table.drop(columns=MEASURED & set(table)).to_csv(index=False)
            found[str(path.relative_to(out))] = content
    for line in (out / "trials.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row.pop("sha256")
        row["files"] = sorted(row["files"])  # the digest of epochs.csv is of its seconds too
        found[row["trial"]] = {name: value for name, value in row.items() if name not in MEASURED}
    return found


def main() -> int:
    """Runs once alone and once killed, and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--models", default="abmil,transmil")
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=4.0, help="Seconds of training after which a start is killed.")
    parser.add_argument("more", nargs="*", help="Further options of mil-zoo bench, after --.")
    asked = parser.parse_args()
    arguments = ["--suite", "crchisto", "--models", asked.models, "--folds", "2", "--epochs", asked.epochs, *asked.more]
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / "alone", Path(folder) / "killed"
        subprocess.run(command(alone, arguments), check=True, stdout=subprocess.DEVNULL)
        kills = run_killed(killed, arguments, asked.kills, asked.seed, asked.within)
        one, other = contents(alone), contents(killed)
        different = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        left = [path.name for path in (killed / "trials").glob(".*")]
    print(f"{kills} kills, {len(one)} files and rows compared, different: {', '.join(different) or 'none'}")
    print(f"left behind: {', '.join(left) or 'nothing'}")
    return 1 if different or left else 0


if __name__ == "__main__":
    sys.exit(main())
