"""Writes one small slide in each layout, exactly as the tools write it."""

import json
import pickle

import h5py
import numpy as np
import pandas as pd
import shapely
import torch

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 512 + 1000  # (x, y), level-0 step 512
FEATURES = np.arange(len(GRID) * 3, dtype=np.float32).reshape(-1, 3)  # [12, 3]


def write_h5(path, file_attrs=None, coords_attrs=None, **arrays):
    """An HDF5 file of ``arrays``, with attributes on the file and on ``coords``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file.attrs.update(file_attrs or {})
        if coords_attrs:
            file["coords"].attrs.update(coords_attrs)
    return path


def write_clam(root, slide, features=FEATURES, coords=GRID, patch_size=256, downsample=2.0, pt=False):
    """``h5_files``, ``pt_files`` where asked, and ``patches`` unless ``patch_size`` is None; returns the ``.h5``."""
    path = write_h5(root / "h5_files" / f"{slide}.h5", features=features, coords=np.asarray(coords, dtype=np.int32))
    if pt:
        (root / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(features), root / "pt_files" / f"{slide}.pt")
    if patch_size is not None:
        attrs = {"patch_size": patch_size, "patch_level": 1, "downsample": np.array([downsample] * 2)}
        attrs |= {"level_dim": np.array([4000, 3000]), "downsampled_level_dim": np.array([4000, 3000]), "name": slide}
        write_h5(root / "patches" / f"{slide}.h5", coords_attrs=attrs, coords=np.asarray(coords, dtype=np.int64))
    return path


def write_trident(root, slide, encoder="uni_v1", features=FEATURES, coords=GRID, overlap=0, magnification=20):
    """A 40x slide read at 20x in patches of 256 px: 512 px at level 0; returns the features."""
    folder = root / f"{magnification}x_256px_{overlap}px_overlap"
    attrs = {"patch_size": 256, "patch_size_level0": 256 * 40 // magnification, "level0_magnification": 40}
    attrs |= {"target_magnification": magnification, "overlap": overlap, "name": slide, "savetodir": "out"}
    attrs |= {"level0_width": 9000, "level0_height": 8000}
    coords = np.asarray(coords, dtype=np.int64)
    write_h5(folder / "patches" / f"{slide}_patches.h5", coords_attrs=attrs, coords=coords)
    path = folder / f"features_{encoder}" / f"{slide}.h5"
    write_h5(path, coords_attrs=attrs, features=features, coords=coords)
    with h5py.File(path, "a") as file:
        file["features"].attrs.update({"name": slide, "encoder": encoder})
    return path


def write_stamp(root, slide, features=FEATURES, coords=GRID / 2, **attrs):
    """Version 3 unless ``attrs`` are given (then only those); 512 px at 0.5 um per px are 256 um."""
    attrs = attrs or {
        "stamp_version": "2.4.0",
        "extractor": "uni",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "feat_type": "tile",
    }
    return write_h5(root / f"{slide}.h5", attrs, feats=features.astype(np.float16), coords=np.asarray(coords))


def write_npy(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def write_torchmil(root, slide, encoder="UNI", features=FEATURES, coords=GRID, label=1, patch_labels=None, size=512):
    """Folders of ``.npy``; ``patches_<size>`` is the side that the encoder saw. Returns the features."""
    base = root / f"patches_{size}"
    write_npy(base / "labels" / f"{slide}.npy", np.array([label]))
    write_npy(base / "coords" / f"{slide}.npy", coords)
    if patch_labels is not None:
        write_npy(base / "patch_labels" / f"{slide}.npy", patch_labels)
    return write_npy(base / "features" / f"features_{encoder}" / f"{slide}.npy", features)


def write_histossl(root, slide, features=FEATURES, coords=(GRID - 1000) // 512 + 3, level=16):
    places = np.concatenate([np.full((len(features), 1), level), coords], axis=1)
    return write_npy(root / slide / "features.npy", np.concatenate([places, features], axis=1).astype(np.float32))


def write_slideflow(root, slide, features=FEATURES, coords=GRID):
    root.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(features), root / f"{slide}.pt")
    np.savez(root / f"{slide}.index.npz", coords)
    return root / f"{slide}.pt"


def write_dsmil(root, labels, features=FEATURES):
    """``<class>/<slide>.csv`` for each slide of ``labels`` and the index ``dataset.csv``; returns the folder."""
    rows = []
    for slide, label in labels.items():
        path = root / f"{label}-class" / f"{slide}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(features).to_csv(path, index=False, float_format="%.4f")
        rows.append((f"datasets/dataset/{path.relative_to(root)}", label))
    pd.DataFrame(rows).to_csv(root / "dataset.csv", index=False)
    return root


def write_srmil(path, labels, features=FEATURES, coords=GRID, num_classes=2):
    """A pickled list of torch-geometric ``Data``, one a slide of ``labels``."""
    from torch_geometric.data import Data  # takes seconds to import

    one_hot = torch.eye(num_classes, dtype=torch.long)
    graphs = [
        Data(
            x=torch.from_numpy(features),
            pos=torch.from_numpy(np.asarray(coords, dtype=np.float32)),
            y=torch.arange(len(features)) % 2 * label,
            graph_y=one_hot[label][None],
            slide_index=slide,
        )
        for slide, label in labels.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(graphs, file)
    return path


def write_gigassl(root, slides, embeddings):
    write_npy(root / "ids.npy", np.array(slides))
    return write_npy(root / "embeddings.npy", embeddings)


def mutated(whole, rng):
    """The bytes of a file with some of them changed, and maybe without its end."""
    changed = bytearray(whole)
    for place in rng.integers(len(changed), size=rng.integers(1, 8)):
        changed[place] = rng.integers(256)
    return bytes(changed[: rng.integers(len(changed))] if rng.random() < 0.3 else changed)


def write_zarr(path, values, form=3, codecs=None, **head):
    """An array of one chunk, not packed, of zarr format 2 or 3; ``head`` replaces what its metadata declare."""
    values = np.asarray(values)
    chunk = path / ("c" if form == 3 else ".") / "/".join(["0"] * values.ndim)
    if form == 3:
        chunks = {"name": "regular", "configuration": {"chunk_shape": values.shape}}
        said = {"zarr_format": 3, "node_type": "array", "data_type": values.dtype.name, "chunk_grid": chunks}
        said |= {"chunk_key_encoding": {"name": "default"}, "fill_value": 0}
        said |= {"codecs": codecs or [{"name": "bytes", "configuration": {"endian": "little"}}]}
    else:
        said = {"zarr_format": 2, "dtype": values.dtype.str, "chunks": values.shape, "dimension_separator": "/"}
        said |= {"compressor": None, "filters": codecs, "fill_value": 0, "order": "C"}
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(values.tobytes())
    said |= {"shape": values.shape, **head}
    (path / ("zarr.json" if form == 3 else ".zarray")).write_text(json.dumps(said))
    return path


def write_group(path, form=3, **attributes):
    """The metadata of a group of a zarr store."""
    path.mkdir(parents=True, exist_ok=True)
    if form == 3:
        said = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(said))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def write_lazyslide(root, slide, encoder="uni", features=FEATURES, coords=GRID, ids=None, form=3, spec=True):
    """``<slide>.zarr`` with tiles of 512 px at level 0 that touch; returns the table of features."""
    import pyarrow
    from pyarrow import parquet

    store = root / f"{slide}.zarr"
    tiles = {"height": 256, "width": 256, "stride_height": 256, "stride_width": 256, "base_downsample": 2.0}
    properties = {"slide_properties": {"mpp": 0.25, "shape": [9000, 8000]}}
    write_group(store, form, **properties, **({"tile_spec": {"tiles": tiles}} if spec else {}))
    table = store / "tables" / f"{encoder}_tiles"
    write_group(table, form, region="tiles", instance_key="tile_id", region_key="library_id")
    write_zarr(table / "X", features, form)
    write_zarr(table / "obs" / "tile_id", np.arange(len(features)) if ids is None else ids, form)
    outlines = shapely.to_wkb(shapely.box(*np.transpose(coords), *np.transpose(coords + 512)))
    write_group(store / "shapes" / "tiles", form)
    columns = {"tile_id": np.arange(len(coords)), "geometry": outlines}
    parquet.write_table(pyarrow.table(columns), store / "shapes" / "tiles" / "shapes.parquet")
    return table
