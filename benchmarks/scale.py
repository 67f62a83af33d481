"""Time and memory of very large bags, each in a process of its own: ``python benchmarks/scale.py``.

A bag of a million patches is evaluated by ABMIL, DSMIL, TransMIL and SRMIL, and one of 200 000 trains SRMIL for two
steps (graph, forward, backward, AdamW), at 1024 features in float32. Writes ``results/scale.jsonl``: seconds (the graph
included) and the peak resident memory of the whole process, features included, in GiB.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

DIM, STEP = 1024, 256
CASES = [("abmil", "evaluate", 10**6), ("dsmil", "evaluate", 10**6), ("transmil", "evaluate", 10**6)]
CASES += [("srmil", "evaluate", 10**6), ("srmil", "train", 2 * 10**5)]
RESULTS = Path(__file__).parent / "results" / "scale.jsonl"


def measure(name: str, task: str, n: int) -> dict[str, object]:
    """Runs one case in this process. The patches fill a square of the grid, row after row."""
    import torch

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
    seconds = time.perf_counter() - start
    return {
        "aggregator": name,
        "task": task,
        "n": n,
        "dim": DIM,
        "seconds": round(seconds, 2),
        "graph_seconds": round(graph_seconds, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measures every case, or the one that is named: ``scale.py srmil train 200000``."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, *map(str, case)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(done.stdout.splitlines()[-1])
        print(rows[-1], flush=True)
    RESULTS.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
