"""Attention maps for the page: coordinates in 16 bits, attention in 8 on the scale of the maps, deflated."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe
from mil_zoo.report.figures.attention_maps import nearly_uniform
from mil_zoo.report.load import Results

MAPS_MIB = 24.0  # of attention maps in a page: what a browser opens at once
_THUMBNAIL = 1024  # pixels of its longer side
_IMAGES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".svslide",
    ".bif",
    ".vms",
    ".dcm",
    ".czi",
    ".png",
    ".jpg",
)


@dataclass
class Maps:
    """What the page needs to draw slides.

    Attributes:
        facts: of each map: slide, patches, how to undo the packing, its layers, and a thumbnail if there is one.
        packed: base64 of the deflated arrays: x and y uint16 ``[n]`` each, then each layer uint8 ``[n]``.
        place: index of each slide that has a map.
    """

    facts: list[dict[str, Any]] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)


def slide_maps(results: Results, slides: Sequence[str], images: Path | None, limit: float) -> Maps:
    """Packs slides in the given order until ``limit`` bytes are reached; of each model the first trial that has one.

    Raises:
        InputError: ``images`` is no folder, or OpenSlide is not installed.
    """
    found = _images(images)
    trials = _trials(results)
    maps, size = Maps(), 0
    for slide in slides:
        packed = _pack(results, slide, trials.get(slide, {}))
        if packed is None:
            continue
        facts, text = packed
        if slide in found:
            facts["thumbnail"] = _thumbnail(found[slide])
        size += len(text) + len(facts.get("thumbnail", {}).get("data", ""))
        if size > limit:
            break
        maps.place[slide] = len(maps.facts)
        maps.facts.append(facts)
        maps.packed.append(text)
    return maps


def _trials(results: Results) -> dict[str, dict[str, str]]:
    """For each slide and model the first trial that stored its attention."""
    found: dict[str, dict[str, str]] = {}
    for label, trials in results.finished.items():
        for trial in trials:
            for slide in results.attention.slides(trial.trial):
                found.setdefault(slide, {}).setdefault(label, trial.trial)
    return found


def _pack(results: Results, slide: str, trials: Mapping[str, str]) -> tuple[dict[str, Any], str] | None:
    layers: list[dict[str, str]] = []
    values: list[np.ndarray] = []
    coords = labels = None
    side = truth = np.nan
    for label, trial in trials.items():
        facts = results.attention.slides(trial)[slide]
        coords = results.attention.read(trial, slide, "coords")
        if coords is None:
            return None
        coords, side, truth = coords.astype(np.float64), facts["patch_size"], facts["label"]
        labels = results.attention.read(trial, slide, "instance_labels")
        relative = len(coords) * np.asarray(results.attention.read(trial, slide, "attention"), dtype=np.float64)
        flat = ", nearly uniform" * nearly_uniform(relative)
        layers.append({"name": f"{label}{flat} ({trial})", "colours": "attention"})
        # 1/100 to 100 times uniform in 255 logarithmic steps
        values.append(np.rint(255 * (np.log10(np.clip(relative, 1e-2, 1e2)) + 2) / 4).astype(np.uint8))
    if coords is None:
        return None
    if labels is not None:
        layers.append({"name": "truth", "colours": "truth"})
        values.append((labels > 0).astype(np.uint8))
    origin = coords.min(0)
    unit = _unit(coords - origin)
    places = np.rint((coords - origin) / unit).astype("<u2")
    packed = zlib.compress(b"".join([places[:, 0].tobytes(), places[:, 1].tobytes(), *map(bytes, values)]), 6)
    names = results.config.dataset.classes
    facts = {
        "slide_id": slide,
        "label": names[int(truth)] if 0 <= truth < len(names) else str(int(truth)),
        "n": len(coords),
        "origin": origin.tolist(),
        "unit": unit,
        "patch_size": None if np.isnan(side) else float(side),
        "dot": float(0.5 * np.sqrt(np.prod(np.maximum(np.ptp(coords, axis=0), 1)) / len(coords))),
        "layers": layers,
    }
    return facts, base64.b64encode(packed).decode()


def _unit(shifted: np.ndarray) -> float:
    """The largest step that all coordinates are multiples of, where that fits 16 bits, else a 65535th of the extent."""
    widest = float(shifted.max())
    if widest > 0 and (shifted == np.rint(shifted)).all():
        step = int(np.gcd.reduce(shifted.astype(np.int64).ravel()))
        if widest / step < 2**16:
            return float(step)
    return max(widest, 1e-9) / (2**16 - 1)


def _images(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; pass the one that holds the slide images")
    try:
        import openslide  # noqa: F401
    except (ImportError, OSError) as error:
        raise InputError(f"thumbnails need OpenSlide ({error}): pip install 'mil-zoo[openslide]'") from None
    return {unquote(path.stem): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _IMAGES}


def _thumbnail(path: Path) -> dict[str, Any]:
    """A small JPEG of a slide, and the slide's size in level-0 pixels."""
    import openslide

    refuse_pipe(path)
    try:
        with openslide.open_slide(str(path)) as slide:
            width, height = slide.dimensions
            image = slide.get_thumbnail((_THUMBNAIL, _THUMBNAIL)).convert("RGB")
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(f"{path} is not a slide that OpenSlide reads ({error}); take it out of the folder") from error
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return {"data": base64.b64encode(buffer.getvalue()).decode(), "width": width, "height": height}
