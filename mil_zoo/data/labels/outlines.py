"""Shapes drawn on slides, one reader a file format: ASAP ``.xml``, GeoJSON, polygon tables ``.npz`` and ``.csv``."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from mil_zoo.data.formats.gz import unpacked
from mil_zoo.data.formats.npy import load_arrays
from mil_zoo.errors import InputError

SUFFIXES = (".xml", ".geojson", ".json", ".npz", ".csv")
_MOST_MIB = 128  # that a packed file may hold, of a slide
_AREAS = ("Polygon", "Spline", "Rectangle")


class Outline(NamedTuple):
    """One drawn shape.

    Attributes:
        name: in its file.
        groups: the group or class it was given, then those that this one belongs to, nearest first.
        shape: a ring ``[n, 2]`` of level-0 pixels, or a shapely geometry.
    """

    name: str
    groups: tuple[str, ...]
    shape: Any


def read_outlines(path: Path, slide_id: str | None = None) -> Iterator[Outline]:
    """The shapes in an annotation file, in its order; see ``mil_zoo.data.read_annotations`` for the formats.

    Raises:
        InputError: the file is missing, damaged or of another kind, or a coordinate in it is no number.
    """
    kind = next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "")
    if kind not in SUFFIXES:
        raise InputError(f"{path}: annotations are read from {', '.join(SUFFIXES)} (also .gz), not {kind or 'this'}")
    if kind == ".npz":
        return _from_npz(path, slide_id)
    if kind == ".csv":
        return _from_csv(path, slide_id)
    return _from_xml(path) if kind == ".xml" else _from_geojson(path)


def _content(path: Path) -> bytes:
    try:
        return unpacked(path, _MOST_MIB, "outlines of a million vertices")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch the file again") from error


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities can only be defined in a document type declaration: without one there is nothing to expand."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("it declares a document type, which no annotation file needs")


def _from_xml(path: Path) -> Iterator[Outline]:
    content = _content(path)
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path} is not a readable ASAP annotation file ({error}); export it again") from error
    if root.tag != "ASAP_Annotations":
        raise InputError(f"{path} is not an ASAP annotation file: its root is <{root.tag}>, not <ASAP_Annotations>")
    parent = {group.get("Name", ""): group.get("PartOfGroup", "") for group in root.iter("Group")}
    for annotation in root.iter("Annotation"):
        name, kind = annotation.get("Name", "unnamed"), annotation.get("Type", "Polygon")
        if kind not in _AREAS:
            yield Outline(name, (f"type {kind}",), None)
            continue
        points = []
        for number, point in enumerate(annotation.iter("Coordinate")):
            try:
                points.append((float(point.get("Order", number)), float(point.attrib["X"]), float(point.attrib["Y"])))
            except (KeyError, ValueError):
                raise InputError(f"{path}: annotation {name!r} has a Coordinate without numbers in X and Y") from None
        ring = np.array(sorted(points, key=lambda point: point[0])).reshape(-1, 3)[:, 1:]
        yield Outline(name, _lineage(annotation.get("PartOfGroup", ""), parent), _finite(path, name, ring))


def _lineage(group: str, parent: dict[str, str]) -> tuple[str, ...]:
    groups: list[str] = []
    while group not in ("", "None", *groups):  # the definitions of a damaged file may go in a circle
        groups.append(group)
        group = parent.get(group, "")
    return tuple(groups)


def _from_geojson(path: Path) -> Iterator[Outline]:
    try:
        content = json.loads(_content(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not readable GeoJSON ({error}); export it again") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise InputError(f"{path}: GeoJSON must be a FeatureCollection, a list of features or one feature")
    for number, feature in enumerate(features):
        try:
            properties = feature.get("properties") or {}
            group = properties.get("classification") or ""
            if isinstance(group, dict):  # QuPath: a name, and since 0.4 the names of a derived class
                names = group.get("names")
                group = group.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
            group = str(group or "").strip()
            name = str(properties.get("name") or f"feature {number}")
            shape = shapely.from_geojson(json.dumps(_closed(feature["geometry"])))
        except (AttributeError, KeyError, TypeError, ValueError, shapely.GEOSException) as error:
            raise InputError(
                f"{path}: feature {number} has no readable GeoJSON geometry ({error}); correct it"
            ) from error
        _finite(path, name, shapely.get_coordinates(shape))
        # QuPath writes a class derived from another one as "Tumor: Positive".
        yield Outline(name, (group, *(part.strip() for part in group.split(":"))) if group else (), shape)


def _closed(geometry: Any) -> Any:
    """A geometry whose rings end where they begin, as GeoJSON wants it and not every tool writes it."""
    if not isinstance(geometry, dict):
        return geometry
    if isinstance(geometry.get("geometries"), list):
        return geometry | {"geometries": [_closed(part) for part in geometry["geometries"]]}
    depth = {"Polygon": 1, "MultiPolygon": 2}.get(str(geometry.get("type")))
    if depth is None:
        return geometry
    polygons = geometry["coordinates"] if depth == 2 else [geometry["coordinates"]]
    closed = [[ring if ring[:1] == ring[-1:] else [*ring, *ring[:1]] for ring in polygon] for polygon in polygons]
    return geometry | {"coordinates": closed if depth == 2 else closed[0]}


def _from_npz(path: Path, slide_id: str | None) -> Iterator[Outline]:
    arrays = load_arrays(path)
    if missing := {"verts", "poly_ptr"} - set(arrays):
        raise InputError(f"{path}: the array {min(missing)!r} is missing; a polygon table needs verts and poly_ptr")
    points, pointer = np.asarray(arrays["verts"], dtype=np.float64), arrays["poly_ptr"]
    count = len(pointer) - 1
    rising = (np.diff(pointer, prepend=0, append=len(points)) >= 0).all()
    if points.ndim != 2 or points.shape[1] != 2 or count < 0 or not rising:
        raise InputError(f"{path}: verts must be [n, 2] and poly_ptr rise from 0 to its {len(points)} rows")
    names = arrays.get("poly_name", np.arange(count))
    groups = arrays.get("poly_group", np.full(count, "positive"))
    for row in _rows_of(path, arrays.get("poly_slide"), slide_id, count):
        ring = _finite(path, str(names[row]), points[pointer[row] : pointer[row + 1]])
        yield Outline(str(names[row]), (str(groups[row]),), ring)


def _from_csv(path: Path, slide_id: str | None) -> Iterator[Outline]:
    try:
        table = pd.read_csv(io.BytesIO(_content(path)), dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} is not a readable csv ({error}); it needs the columns polygon, x and y") from error
    for column in ("polygon", "x", "y"):
        if column not in table:
            raise InputError(f"{path}: the column {column!r} is missing; a polygon table needs polygon, x and y")
    slides = table["slide_id"].to_numpy() if "slide_id" in table else None
    table = table.iloc[_rows_of(path, slides, slide_id, len(table))]
    for name, rows in table.groupby("polygon", sort=False):
        points = rows[["x", "y"]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        group = str(rows["group"].iloc[0]) if "group" in rows else "positive"
        yield Outline(str(name), (group,), _finite(path, str(name), points))


def _rows_of(path: Path, slides: Any, slide_id: str | None, count: int) -> npt.NDArray[np.int64]:
    """The rows of a table that belong to one slide."""
    if slides is None:
        return np.arange(count)
    if slide_id is None and len(set(slides)) > 1:
        raise InputError(f"{path} holds polygons of {len(set(slides))} slides; say which with slide_id")
    return np.arange(count) if slide_id is None else np.flatnonzero(np.asarray(slides) == slide_id)


def _finite(path: Path, name: str, points: Any) -> Any:
    if not np.isfinite(points).all():
        raise InputError(f"{path}: polygon {name!r} has a coordinate that is no finite number; correct it")
    return points
