"""Time and memory of very large bags, each in a process of its own: ``python benchmarks/scale.py``.

``million``: ABMIL, DSMIL, TransMIL and SRMIL evaluate a bag of a million patches, and SRMIL trains on one of 200 000
for two steps (graph, forward, backward, AdamW). ``zoo``: every aggregator evaluates a bag of 100 000. All have 1024
features in float32. A row of ``results/scale.jsonl`` replaces that of the same case: seconds of everything (the graph
included) and the peak resident memory of the whole process in GiB, features included (.38 GiB of 100 000 patches).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import mil_zoo

DIM, STEP = 1024, 256
MILLION = [("abmil", "evaluate", 10**6), ("dsmil", "evaluate", 10**6), ("transmil", "evaluate", 10**6)]
MILLION += [("srmil", "evaluate", 10**6), ("srmil", "train", 2 * 10**5)]
RESULTS = Path(__file__).parent / "results" / "scale.jsonl"

Case = tuple[str, str, int]  # aggregator, task, patches


def measure(name: str, task: str, n: int) -> dict[str, object]:
    """Runs one case in this process. The patches fill a square of the grid, row after row."""
    import torch
    from conftest import machine_name

    from mil_zoo import Bag, BagBatch, create_aggregator

    torch.manual_seed(0)
    side = int((n - 1) ** 0.5) + 1
    cells = torch.arange(n)
    coords = torch.stack([cells % side, cells // side], dim=1) * STEP
    bag = Bag(features=torch.randn(n, DIM), coords=coords, patch_size=STEP, label=1)
    aggregator = create_aggregator(name, in_dim=DIM)
    start = time.perf_counter()
    batch = BagBatch.from_bags([bag], graph=aggregator.graph)
    graph_seconds = time.perf_counter() - start
    if task == "evaluate":
        with torch.inference_mode():
            finite = aggregator.eval()(batch).logits.isfinite().all()
    else:
        optimizer = torch.optim.AdamW(aggregator.train().parameters(), fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            loss = aggregator.losses(batch)["loss"]
            loss.backward()
            optimizer.step()
        finite = loss.isfinite()
    assert finite
    return {
        "aggregator": name,
        "task": task,
        "n": n,
        "dim": DIM,
        "seconds": round(time.perf_counter() - start, 2),
        "graph_seconds": round(graph_seconds, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "machine": machine_name(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_apart(case: Case) -> dict[str, object]:
    """Runs one case in a process of its own; where that fails, the row says how it ended."""
    command = [sys.executable, __file__, "--case", *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
    return {"aggregator": case[0], "task": case[1], "n": case[2], "dim": DIM, "failed": reason[0]}


def main() -> None:
    """Measures the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", choices=("million", "zoo", "all"), default="all")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--case", nargs=3, metavar=("AGGREGATOR", "TASK", "N"), help="one case, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        name, task, n = arguments.case
        print(json.dumps(measure(name, task, int(n))))
        return
    cases: list[Case] = [] if arguments.cases == "zoo" else list(MILLION)
    if arguments.cases != "million":
        cases += [(name, "evaluate", 10**5) for name in mil_zoo.list_aggregators()]
    if arguments.models:
        cases = [case for case in cases if case[0] in arguments.models]
    kept = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    rows = {(row["aggregator"], row["task"], row["n"]): row for row in kept}
    for case in cases:
        rows[case] = measure_apart(case)
        print(json.dumps(rows[case]), flush=True)
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


if __name__ == "__main__":
    main()
