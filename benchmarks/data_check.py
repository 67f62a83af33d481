"""Writes ``benchmarks/results/data_check.md``: what ``mil-zoo data check`` says of the real data at hand.

Run as ``python benchmarks/data_check.py DATA [OUT.md]`` with DATA the folder of real data (``MIL_ZOO_REAL_DATA``). Real
patch coordinates without features are laid out as CLAM writes them, with two simulated numbers a patch as features.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from click.testing import CliRunner

from mil_zoo.cli import cli

TABLES = ("musk1", "elephant", "tiger", "birds", "crchisto")
OUT = Path(__file__).parent / "results" / "data_check.md"


def lay_out(folder: Path, slide: str, coords: np.ndarray, attrs: dict) -> None:
    """``h5_files`` and ``patches`` of one slide."""
    features = np.random.default_rng(len(coords)).normal(size=(len(coords), 2)).astype(np.float32)
    for name, arrays in {"h5_files": {"features": features, "coords": coords}, "patches": {"coords": coords}}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / name / f"{slide}.h5", "w") as file:
            for key, values in arrays.items():
                file[key] = values
            if name == "patches":
                file["coords"].attrs.update(attrs)


def tcga_lihc(data: Path, folder: Path) -> None:
    """19 TCGA slides: coordinates and attributes as CLAM wrote them."""
    table = pd.read_csv(data / "coords" / "tcga_lihc_clam_coords.csv")
    arrays = np.load(data / "coords" / "tcga_lihc_clam_coords.npz")
    for key in arrays.files:
        row = table[table["slide"].str.split(".").str[0] == key.removesuffix("_tumormask")].iloc[0]
        lay_out(folder, row["slide"], arrays[key], json.loads(row["attrs"]))


def camelyon16(data: Path, folder: Path) -> None:
    """CAMELYON16 slides on the 256-px level-0 grid."""
    arrays = np.load(data / "coords" / "camelyon16_patch_coords_standrews.npz")
    for key in arrays.files:
        if key.endswith("__coords"):
            lay_out(folder, key.removesuffix("__coords"), arrays[key], {"patch_size": 256, "downsample": [1.0, 1.0]})


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    with tempfile.TemporaryDirectory() as scratch:
        lihc, c16 = Path(scratch) / "tcga_lihc", Path(scratch) / "camelyon16"
        tcga_lihc(data, lihc)
        camelyon16(data, c16)
        one = next((data / "coords").glob("TCGA*.h5"))
        runs = {
            "Bag tables and nuclei": [
                (name, "--root", data) for name in ("musk1", "elephant", "tiger", "birds", "crchisto")
            ],
            "An original CLAM file (coordinates only)": [(one,)],
            "Real coordinates, SIMULATED features": [(lihc,), (c16,)],
        }
        pages = ["# `mil-zoo data check` on real data\n\nMade by `python benchmarks/data_check.py DATA`.\n"]
        for title, calls in runs.items():
            pages.append(f"## {title}\n")
            for call in calls:
                start = time.perf_counter()
                done = CliRunner().invoke(cli, ["data", "check", *map(str, call), "--markdown"], standalone_mode=False)
                seconds = time.perf_counter() - start
                shown = " ".join(["mil-zoo data check", *map(str, call)])
                pages.append(f"`{shown}` (exit code {done.return_value}, {seconds:.1f} s)\n\n{done.stdout}")
        text = "\n".join(pages).replace(scratch, "SCRATCH").replace(str(data), "DATA")
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
