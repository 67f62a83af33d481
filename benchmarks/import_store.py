"""Time, size and memory of importing many slides and of reading them all: ``python benchmarks/import_store.py``.

The source is a TRIDENT folder whose slides are hard links to eight files, so that many slides need little disk; they
are read and written one by one as if they differed. Prints one JSON line: seconds, bytes, and resident memory (MiB)
after a tenth and after all of the slides, of the import and of reading them from the store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil

from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.packed.writer import import_dataset
from mil_zoo.data.prefetch import read_ahead

FILES = 8


def make_source(root: Path, slides: int, patches: int, dim: int) -> None:
    """A folder of ``slides`` slides on a square grid, with labels."""
    below = root / "20x_256px_0px_overlap" / "features_uni"
    below.mkdir(parents=True)
    rng = np.random.default_rng(0)
    side = int(np.ceil(patches**0.5))
    coords = np.stack(np.divmod(np.arange(patches), side), 1)[:, ::-1] * 256
    for i in range(FILES):
        with h5py.File(below / f"slide_{i:05d}.h5", "w") as file:
            file["features"] = rng.normal(size=(patches, dim)).astype(np.float32)
            file["coords"] = coords
            file["coords"].attrs.update(patch_size=256, patch_size_level0=256)
    for i in range(FILES, slides):
        os.link(below / f"slide_{i % FILES:05d}.h5", below / f"slide_{i:05d}.h5")
    table = {"slide_id": [f"slide_{i:05d}" for i in range(slides)], "label": np.arange(slides) % 2}
    pd.DataFrame(table).to_csv(root / "labels.csv", index=False)


class Memory:
    """Resident memory of this process, noted after a tenth and after all of ``total`` slides."""

    def __init__(self, total: int) -> None:
        self.at, self.seen, self.noted = (total // 10, total), 0, []

    def __call__(self, _: object = None) -> None:
        """Counts a slide."""
        self.seen += 1
        if self.seen in self.at:
            self.noted.append(round(psutil.Process().memory_info().rss / 2**20))


def main() -> None:
    """Runs the measurement and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"slides": 200, "patches": 10_000, "dim": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--graph", help="cache this graph too")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="import-store-"))
    try:
        make_source(root / "source", options.slides, options.patches, options.dim)
        dataset = open_dataset(str(root / "source"))
        graphs = [options.graph] if options.graph else []
        importing, reading = Memory(options.slides), Memory(options.slides)
        start = time.perf_counter()
        import_dataset(dataset, root / "store", options.dtype, graphs, importing)
        import_s = time.perf_counter() - start
        size = sum(file.stat().st_size for file in (root / "store").iterdir())
        bags = open_dataset(str(root / "store")).bags
        start = time.perf_counter()
        for bag in read_ahead(bags, np.random.default_rng(0).permutation(len(bags)), options.graph):
            reading(bag)
        read_s = time.perf_counter() - start
    finally:
        shutil.rmtree(root)
    line = vars(options) | {
        "cpus": os.cpu_count(),
        "import_s": round(import_s, 1),
        "store_bytes": size,
        "feature_bytes_fp32": options.slides * options.patches * options.dim * 4,
        "import_rss_mib": importing.noted,
        "read_all_s": round(read_s, 1),
        "read_rss_mib": reading.noted,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
