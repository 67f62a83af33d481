"""Time to read slides from CLAM and TRIDENT files, the packed store, and with torchmil's loader.

``pytest benchmarks/test_loading.py``: eight slides of 10 000 patches and 1024 features, read once each, features as
float32 in memory, with coordinates and label. Files are in the page cache, so the time is that of opening, decoding and
copying. ``extra_info`` holds the bags a round and the memory floor: the bytes of writing the float32 features once. The
baseline is torchmil's own loader on its own layout (fp32 ``.npy``).
"""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torchmil.datasets import ProcessedMILDataset

from mil_zoo import BagBatch, create_aggregator
from mil_zoo.data.dataset import open_dataset
from mil_zoo.data.packed.writer import import_dataset
from mil_zoo.data.prefetch import read_ahead

SLIDES, PATCHES, DIM, STEP = 8, 10_000, 1024, 256
GRAPH = "window:1"  # the 8 neighbours that torchmil's adjacency has at its default distance


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same slides in every layout; removed after the module (1.3 GiB)."""
    root = tmp_path_factory.mktemp("loading")
    rng = np.random.default_rng(0)
    names = [f"slide_{i}" for i in range(SLIDES)]
    layouts = {
        "clam": root / "clam" / "h5_files",
        "trident": root / "trident" / "20x_256px_0px_overlap" / "features_uni",
    }
    for folder in [*layouts.values(), *(root / "torchmil" / part for part in ("features", "labels", "coords"))]:
        folder.mkdir(parents=True)
    for i, name in enumerate(names):
        features = rng.normal(size=(PATCHES, DIM)).astype(np.float32)
        coords = np.stack(np.divmod(np.arange(PATCHES), 100), 1)[:, ::-1] * STEP
        for layout, folder in layouts.items():
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["features"] = features
                file["coords"] = coords.astype(np.int64 if layout == "trident" else np.int32)
                if layout == "trident":
                    file["coords"].attrs.update(patch_size=STEP, patch_size_level0=STEP)
        for part, values in {"features": features, "labels": np.array([i % 2]), "coords": coords / STEP}.items():
            np.save(root / "torchmil" / part / f"{name}.npy", values)
    for layout in layouts:
        pd.DataFrame({"slide_id": names, "label": np.arange(SLIDES) % 2}).to_csv(
            root / layout / "labels.csv", index=False
        )
    dataset = open_dataset(str(root / "trident"))
    for dtype in ("fp32", "fp16", "bf16"):
        import_dataset(dataset, root / f"store {dtype}", dtype, graphs=[GRAPH])
    yield root
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def torchmil_bags(folders, keys):
    """One pass of torchmil's loader, which would keep what it has read for the next."""
    paths = {f"{part}_path": str(folders / "torchmil" / part) for part in ("features", "labels", "coords")}
    dataset = ProcessedMILDataset(**paths, bag_keys=keys, verbose=False)
    for i in range(SLIDES):
        yield dataset[i]
        dataset.loaded_bags.clear()


def note(benchmark) -> None:
    benchmark.extra_info.update(bags=SLIDES, memory_floor_bytes=SLIDES * PATCHES * DIM * 4)


@pytest.mark.parametrize("side", ["torchmil", "clam", "trident", "store fp32", "store fp16", "store bf16"])
@pytest.mark.benchmark(group=f"read {SLIDES} slides, features and coordinates")
def test_read(benchmark, folders, side):
    if side == "torchmil":
        read = lambda: [float(bag["X"][-1, -1]) for bag in torchmil_bags(folders, ["X", "Y", "coords"])]  # noqa: E731
    else:
        bags = open_dataset(str(folders / side)).bags
        read = lambda: [float(bag.features[-1, -1]) for bag in bags]  # noqa: E731
    benchmark.pedantic(read, rounds=3, warmup_rounds=1)
    note(benchmark)


@pytest.mark.parametrize("side", ["torchmil", "trident", "store fp16"])
@pytest.mark.benchmark(group=f"read {SLIDES} slides with their 8-neighbour graph")
def test_read_with_graph(benchmark, folders, side):
    if side == "torchmil":
        read = lambda: [bag["adj"] for bag in torchmil_bags(folders, ["X", "Y", "coords", "adj"])]  # noqa: E731
    else:  # opened anew every round: graphs that were built would be kept
        read = lambda: [bag.graph(GRAPH) for bag in open_dataset(str(folders / side)).bags]  # noqa: E731
    benchmark.pedantic(read, rounds=2)
    note(benchmark)


@pytest.mark.parametrize("side", ["memory", "store fp16", "store fp16, not ahead", "trident"])
@pytest.mark.benchmark(group=f"ABMIL epoch over {SLIDES} slides")
def test_epoch(benchmark, folders, side):
    """The step is the floor: what the store adds to bags that are in memory is what reading ahead does not hide."""
    bags = open_dataset(str(folders / ("store fp16" if side == "memory" else side.split(",")[0]))).bags
    bags = list(bags) if side == "memory" else bags
    aggregator = create_aggregator("abmil", in_dim=DIM, embed_dim=512)
    optimizer = torch.optim.SGD(aggregator.parameters(), lr=1e-4)

    def epoch() -> None:
        for bag in iter(bags) if "not ahead" in side else read_ahead(bags):
            optimizer.zero_grad()
            aggregator.losses(BagBatch.from_bags([bag]))["loss"].backward()
            optimizer.step()

    benchmark.pedantic(epoch, rounds=3, warmup_rounds=1)
    note(benchmark)
