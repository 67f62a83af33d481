"""LazySlide: ``<slide>.zarr``, a folder with ``tables/<encoder>_tiles`` and ``shapes/tiles``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import boundary, numbers
from mil_zoo.data.formats.zarr import NEEDED, attributes, declared, read_array
from mil_zoo.data.layouts.base import Claim, Layout, Places, Sure, make_bag, matrix_shape, register_layout, slide_name
from mil_zoo.data.layouts.geometry import grid_step, number_of, overlapping_step
from mil_zoo.errors import InputError

_TILES = "tiles"  # what LazySlide calls its tiles where no name is given


@register_layout("lazyslide")
class LazySlide(Layout):
    """A SpatialData store: a table of features an encoder, whose rows are tiles, and the tiles' outlines as GeoParquet.

    A row names its tile by ``obs/tile_id``; the bag has the tiles in the order of ``shapes/tiles``, as LazySlide gives
    them. Outlines are in level-0 pixels, and ``tile_spec`` of the store states the stride (source: ``add_features``,
    ``FetchAccessor.features_anndata`` and ``TileSpec`` of wsidata, which writes the stores).
    """

    about = "<slide>.zarr with tables/<encoder>_tiles (features) and shapes/tiles (outlines)"
    suffixes = (".zarr", ".zip")  # packed ones are known, so that they are named
    folders = (".zarr",)

    def claim(self, path: Path) -> Claim | None:
        """By a table of tiles, or what LazySlide says of the slide; a packed store by its name."""
        if path.suffix.lower() == ".zip":
            return Claim(Sure.NAMES, "a packed zarr store") if path.stem.lower().endswith(".zarr") else None
        if tables := self.parts(path):
            return Claim(Sure.STATED, f"tables/{tables[0].name}, whose rows are tiles")
        if "slide_properties" in attributes(path) or (path / "tables" / "slide_properties").is_dir():
            return Claim(Sure.STATED, "slide_properties of the store")
        return None

    def parts(self, path: Path) -> list[Path]:
        """The tables of features; damaged ones too, which are named when they are read."""
        folder = path / "tables"
        return [table for table in sorted(folder.iterdir()) if _is_of_tiles(table)] if folder.is_dir() else []

    def slide_id(self, path: Path) -> str:
        """The name of the store, without the suffix of the image."""
        return slide_name(_store(path).stem)

    def group(self, path: Path) -> Path:
        """The folder of the stores."""
        return _store(path).parent

    def encoder(self, path: Path) -> str:
        """The ``<encoder>`` of ``<encoder>_tiles``; other tiles stay in the name."""
        return path.name.removesuffix(f"_{_TILES}")

    def source(self, path: Path) -> str | None:
        """The encoder."""
        return self.encoder(path)

    def shape(self, path: Path) -> tuple[int, int]:
        """Number of tiles, and of features of one, from the heads of their files."""
        with _outlines(path) as file:
            tiles: int = file.metadata.num_rows
        return tiles, matrix_shape(path, declared(path / "X").shape)[1]

    def read(self, path: Path) -> Bag:
        """The bag, in level-0 pixels."""
        rows, places = _tiles(path)
        features = numbers(path, read_array(path / "X"), "features")
        return make_bag(path, self.slide_id(path), self.name, features[rows], *places)

    def rows(self, path: Path, places: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows alone."""
        return numbers(path, read_array(path / "X", _tiles(path)[0][list(places)].tolist()), "features")

    def coordinates(self, path: Path) -> Places | None:
        """The upper left corners of the tiles."""
        return _tiles(path)[1]


def _is_of_tiles(table: Path) -> bool:
    try:
        return table.is_dir() and attributes(table).get("instance_key") == "tile_id"
    except InputError:
        return True


def _store(place: Path) -> Path:
    """The store that a table lies in, or the place itself."""
    return place.parents[1] if place.parent.name == "tables" else place


def _region(table: Path) -> str:
    """The name of the tiles that are the rows of a table."""
    if table.suffix.lower() == ".zip":
        raise InputError(f"{table} is a packed store, which LazySlide does not read either; unpack it where it lies")
    if table.parent.name != "tables":
        raise InputError(
            f"{table} holds no features of tiles; extract them with zs.tl.feature_extraction and write the store again"
        )
    region = attributes(table).get("region")
    if not isinstance(region, str) or Path(region).name != region:
        raise InputError(f"{table}: region is {region!r} and no name of tiles; extract the slide again")
    return region


@contextmanager
def _outlines(table: Path) -> Iterator[Any]:
    """The open file of the tiles' outlines."""
    path = _store(table) / "shapes" / _region(table) / "shapes.parquet"
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: {NEEDED.format(error.name)}") from None
    with boundary(path, "a readable table of outlines", "tile the slide again"), parquet.ParquetFile(path) as file:
        yield file


def _tiles(table: Path) -> tuple[npt.NDArray[np.intp], Places]:
    """Of each tile its row in the table, and where it lies."""
    named = (table / "obs" / "tile_id").is_dir()
    with _outlines(table) as file:
        count, _ = matrix_shape(table, declared(table / "X").shape)
        tiles = file.metadata.num_rows
        named &= "tile_id" in file.schema_arrow.names
        if tiles > count or (not named and tiles < count):
            raise InputError(
                f"{table} has features of {count} tiles, and the slide has {tiles}; extract the slide again"
            )
        found = file.read(columns=["geometry", "tile_id"] if named else ["geometry"], use_threads=False)
        bounds = shapely.bounds(shapely.from_wkb(found["geometry"].to_numpy())).reshape(-1, 4)
        if not np.isfinite(bounds).all():
            raise ValueError("a tile has no outline")
        wanted = np.asarray(found["tile_id"].to_numpy(), dtype=np.int64) if named else np.arange(tiles)
    rows = _rows_of(table, wanted, count) if named else wanted
    return rows, Places(bounds[:, :2], *_step(table, bounds))


def _rows_of(table: Path, wanted: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.intp]:
    """The row of each of these tiles."""
    ids = pd.Index(read_array(table / "obs" / "tile_id", zeros=True))
    if ids.shape != (count,) or not ids.is_unique:
        raise InputError(f"{table}: obs/tile_id does not name each of {count} tiles once; extract the slide again")
    rows = ids.get_indexer(wanted)
    if (rows < 0).any():
        raise InputError(
            f"{table} has no features of {np.sum(rows < 0)} of {len(wanted)} tiles, for instance of tile "
            f"{wanted[rows < 0][0]}; extract the slide again"
        )
    return rows


def _step(table: Path, bounds: npt.NDArray[np.float64]) -> tuple[float | None, str]:
    """The stride of the tiles in level-0 pixels, by the store's ``tile_spec``; without one it is measured."""
    if not len(bounds):
        return None, ""
    size = float(np.median(bounds[:, 2] - bounds[:, 0]))
    specs = attributes(_store(table)).get("tile_spec")
    spec = specs.get(_region(table)) if isinstance(specs, dict) else None
    if not isinstance(spec, dict):  # of earlier versions
        return overlapping_step(table, grid_step(bounds[:, :2]), size, "the tiles' outlines")
    width, stride, scale = (number_of(spec, name, table) for name in ("width", "stride_width", "base_downsample"))
    if width is None or stride is None or scale is None or abs(width * scale - size) > max(1, 0.05 * size):
        raise InputError(
            f"{table}: its tiles are {size:g} px wide at level 0, and tile_spec states a width of {width} and a "
            f"downsample of {scale}; tile the slide again"
        )
    return float(int(stride * scale)), "stride_width x base_downsample of tile_spec"
