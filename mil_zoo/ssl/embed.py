"""Slide embeddings from a pretrained encoder, and the two files in which the authors publish them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mil_zoo.data.formats.npy import load_npy
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe, replacing
from mil_zoo.ssl.model import SlideEncoder
from mil_zoo.ssl.views import ViewSource, generator_of


def embed_slides(
    encoder: SlideEncoder,
    source: ViewSource,
    *,
    views: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_slide: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The mean embedding of random views of each slide: T instances as in pretraining, coordinates as they are.

    The encoder is in eval mode meanwhile. A slide's embedding does not depend on the other slides: its views are drawn
    from a generator of its own and embedded alone.

    Args:
        encoder: on ``device``.
        source: the slides.
        views: R; None for the encoder's own.
        seed: of the views.
        device: where to compute.
        on_slide: called after each slide with how many are done.

    Returns:
        float32 ``[n, E]`` on the CPU, in the order of ``source.slide_ids``.

    Raises:
        InputError: a slide that the encoder cannot embed, or whose embedding is not finite.
    """
    config, was_training = encoder.config, encoder.training
    encoder.eval()
    rows = []
    try:
        for slide, slide_id in enumerate(source.slide_ids):
            generators = [generator_of(slide_id, seed, view) for view in range(views or config.views)]
            bags = source.draw(slide, config.instances, generators)
            with torch.inference_mode():
                embedding = encoder(encoder.batch(bags, device)).float().mean(0).cpu()
            if not embedding.isfinite().all():
                raise InputError(f"slide {slide_id!r}: the embedding is not finite; check the encoder's pretraining")
            rows.append(embedding)
            on_slide(slide + 1)
    finally:
        encoder.train(was_training)
    return torch.stack(rows)


def write_embeddings(folder: Path, embeddings: npt.ArrayLike, slide_ids: Sequence[str]) -> None:
    """Writes ``embeddings.npy`` float32 ``[n, E]`` and ``ids.npy`` (text ``[n]``), the authors' two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("embeddings", np.asarray(embeddings, np.float32)), ("ids", np.array(slide_ids, dtype=str))):
        with replacing(folder / f"{name}.npy") as partial, partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)


def read_embeddings(folder: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Reads ``embeddings.npy`` and ``ids.npy``, ours or the authors', without pickle.

    The folder may be that of a trial, whose ``predictions.csv`` names the test slides.

    Returns:
        float32 ``[n, E]`` and the slide ids.

    Raises:
        InputError: a file is missing or damaged, lengths differ, an id occurs twice, or a number is not finite.
    """
    arrays = []
    for name in ("embeddings", "ids"):
        path = folder / f"{name}.npy"
        if name == "ids" and not path.exists() and (folder / "predictions.csv").exists():
            arrays.append(np.array(_tested(folder / "predictions.csv"), dtype=str))
            continue
        if not path.exists():
            raise InputError(f"{path}: no such file; a folder of embeddings holds embeddings.npy and ids.npy")
        arrays.append(np.array(load_npy(path)))
    embeddings, ids = arrays
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating) or ids.shape != (len(embeddings),):
        raise InputError(
            f"{folder}: embeddings must be float [slides, dimensions] and ids one name a slide, not "
            f"{embeddings.dtype} {embeddings.shape} and {ids.shape}"
        )
    if not embeddings.shape[1]:
        raise InputError(f"{folder}: embeddings have 0 dimensions; embed the slides again")
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in ids.tolist()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{folder}/ids.npy names slide {repeated[0]!r} twice; keep one of them")
    with np.errstate(over="ignore"):
        embeddings = embeddings.astype(np.float32)
    if not np.isfinite(embeddings).all():
        raise InputError(
            f"{folder}: the embedding of slide {names[int((~np.isfinite(embeddings)).any(1).argmax())]!r} "
            "is not finite in 32 bits; embed it again"
        )
    return embeddings, names


def _tested(path: Path) -> list[str]:
    """The test slides that a trial's ``predictions.csv`` names, in its order."""
    refuse_pipe(path)
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        return rows.loc[rows["split"] == "test", "slide_id"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} does not name the slides of embeddings.npy ({error})") from error
