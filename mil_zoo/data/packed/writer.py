"""Writing packed stores: any dataset, one slide in memory at a time, in steps that a kill cannot tear."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary
from mil_zoo.data.labelled import Dataset
from mil_zoo.data.packed.store import (
    DTYPES,
    FORMAT,
    GRAPH,
    HEAD,
    INDEX,
    PARTIAL,
    Chunks,
    PackedStore,
    checksum,
    digest_of,
    ends_after,
    ends_of,
    file_sizes,
    graph_file,
    read_head,
    read_index,
)
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe, write_text


def import_dataset(
    dataset: Dataset,
    out: Path,
    dtype: str = "fp16",
    graphs: Sequence[str] = (),
    on_slide: Callable[[str], None] = lambda slide: None,
) -> PackedStore:
    """Writes a dataset as a packed store, one slide in memory at a time.

    Interrupted at any moment and called again with the same arguments, it goes on after the last whole slide.

    Args:
        dataset: from ``open_dataset``.
        out: folder of the store.
        dtype: of the stored features: "fp16", "bf16" or "fp32".
        graphs: graph specs to build once and keep; over features they are those of the stored features.
        on_slide: called with each slide that is there, also with those of an earlier call.

    Raises:
        InputError: ``out`` holds something else, a slide cannot be read, or a feature does not fit ``dtype``.
        OSError: the disk is full; what was written is kept.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    slides = dataset.bags.slides
    head = _head_of(dataset, dtype, graphs)
    out.mkdir(parents=True, exist_ok=True)
    written = _begin(out, head)
    for entry in written:
        on_slide(entry["slide_id"])
    ends = ends_after(written, head)
    with (out / INDEX).open("a", encoding="utf-8") as index:
        for number in range(len(written), len(slides)):
            entry, chunks = _pack(dataset.bags[number], head, ends)
            for name, values in chunks.items():
                with (out / name).open("ab") as file:
                    file.write(values.data)
            index.write(json.dumps(entry) + "\n")
            index.flush()
            ends |= ends_of(entry, head)
            on_slide(entry["slide_id"])
    for name in [*file_sizes(read_index(out / INDEX), head), INDEX]:
        with (out / name).open("rb") as file:
            os.fsync(file.fileno())
    whole = head | {"index_sha256": hashlib.sha256((out / INDEX).read_bytes()).hexdigest()}
    write_text(out / HEAD, json.dumps(whole | {"sha256": checksum(whole)}))
    (out / PARTIAL).unlink()
    return PackedStore.open(out)


def _head_of(dataset: Dataset, dtype: str, graphs: Sequence[str]) -> dict[str, Any]:
    names = "\n".join(f"{slide.slide_id}\t{slide.label}\t{slide.patient_id}" for slide in dataset.bags.slides)
    head = {
        "format": FORMAT,
        "dtype": dtype,
        "dim": dataset.in_dim,
        "graphs": list(graphs),
        "slides": len(dataset.bags),
        "slides_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "card": dataclasses.asdict(dataset.card),
        "published_splits": [dataclasses.asdict(split) for split in dataset.published_splits],
        "site_of": dict(dataset.site_of),
        "covariates": None if dataset.covariates is None else dataset.covariates.to_dict("split", index=False),
    }
    return dict(json.loads(json.dumps(head)))


def _begin(out: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes ``out`` ready to append to and returns the lines of the slides that are there already."""
    if (out / HEAD).exists():
        raise InputError(f"{out} is a complete store already; choose another folder, or delete it")
    for file in out.iterdir():
        refuse_pipe(file)
    if not (out / PARTIAL).exists():
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty and holds no unfinished store; choose another folder")
        write_text(out / PARTIAL, json.dumps(head))
    other = [key for key, value in read_head(out / PARTIAL).items() if head.get(key) != value]
    if other:
        raise InputError(
            f"{out} holds an unfinished import of other settings or data ({', '.join(other)}); repeat that command, or "
            "choose another folder"
        )
    (out / INDEX).touch()
    content = (out / INDEX).read_bytes()
    os.truncate(out / INDEX, content.rfind(b"\n") + 1)  # what a kill left of a line
    with boundary(out / INDEX, "a readable index", "delete the folder and import again"):
        written = list(read_index(out / INDEX))
        sizes = file_sizes(written, head)
    for name, size in sizes.items():
        (out / name).touch()
        if (out / name).stat().st_size < size:
            raise InputError(f"{out / name} is shorter than the index says; delete the folder and import again")
        os.truncate(out / name, size)  # what a kill left of a slide
    return written


def _pack(bag: Bag, head: Mapping[str, Any], ends: Mapping[str, int]) -> tuple[dict[str, Any], Chunks]:
    """The index line of a bag and the bytes that go to each file."""
    dtype = DTYPES[head["dtype"]]
    features = bag.features.to(dtype)
    if not features.isfinite().all():
        raise InputError(
            f"slide {bag.slide_id!r}: features up to {bag.features.abs().max():.3g} do not fit {head['dtype']}; "
            "import with --dtype bf16 or fp32"
        )
    if features.shape[1] != head["dim"]:
        raise InputError(f"slide {bag.slide_id!r} has {features.shape[1]} features a patch, the others {head['dim']}")
    bits = features.contiguous().view(torch.int16) if dtype == torch.bfloat16 else features.contiguous()
    chunks: Chunks = {"features.bin": bits.numpy()}
    entry: dict[str, Any] = {
        "slide_id": bag.slide_id,
        "label": bag.label,
        "patient_id": bag.patient_id,
        "row": ends["features.bin"],
        "n": len(bag),
        "patch_size": None if bag.patch_size is None else float(bag.patch_size),
        "unit": bag.unit,
        "geometry": bag.geometry,
        "coords": None,
        "instance_labels": None,
        "graphs": {},
    }
    if bag.target is not None:
        entry["target"] = bag.target.tolist()
    if bag.coords is not None:
        entry["coords"] = ends["coords.bin"]
        chunks["coords.bin"] = bag.coords.numpy()
    if bag.instance_labels is not None:
        entry["instance_labels"] = ends["instance_labels.bin"]
        chunks["instance_labels.bin"] = bag.instance_labels.to(torch.int8).numpy()
    stored = bag.with_features(features.float())
    for spec in head["graphs"]:
        csr = stored.graph(spec)
        files = {name: graph_file(Path(), spec, name).name for name in GRAPH}
        entry["graphs"][spec] = {"node": ends[files["indptr"]], "edge": ends[files["edge"]], "edges": csr.num_edges}
        parts = (csr.indptr, csr.indices, csr.transposed.edge)
        chunks |= {files[name]: part.numpy() for name, part in zip(GRAPH, parts, strict=True)}
    chunks = {name: np.ascontiguousarray(values) for name, values in chunks.items()}
    entry["sha256"] = digest_of(chunks)
    return entry, chunks
