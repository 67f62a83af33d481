"""Dress rehearsals: full-size stand-ins of CAMELYON16 and TCGA-NSCLC on disk, laid out as CLAM and TRIDENT write them.

    python benchmarks/rehearsal.py camelyon16 --data DATA --out DIR
    python benchmarks/rehearsal.py tcga_nsclc --data DATA --out DIR [--site-offset 0 --patches 100]

Slide ids, labels, official split, patients, sites, annotated lesions and tissue extents are real; FEATURES ARE
SIMULATED (16 numbers a patch unless --dim says otherwise), and ``card.yaml`` in the folder makes every table and figure
say so. They show that the real thing would run: 399 and 1053 slides of thousands of patches, read from disk. Their
scores say nothing about aggregators.

DATA is the folder of real data that the tests use (``labels_splits/``, ``camelyon16/``, ``coords/``). Borrowed are:

- CAMELYON16: a slide without a published tissue outline gets that of another one, turned and mirrored; tumor_111 and
  the 49 tumour slides of the test set get the lesions of a training slide (one with a metastasis of their size, macro
  or micro), turned likewise. Tissue is moved so that it holds the lesions, and patches around them are added.
- TCGA-NSCLC: tissue extents are those of real TCGA slides of another organ (liver), turned, mirrored and cut to a
  random share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import h5py
import numpy as np
import pandas as pd
import shapely
import yaml
from rich.progress import track
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from mil_zoo.data import read_annotations
from mil_zoo.data.labels.annotations import overlap_share

STEP = 256  # of the patch grid of CAMELYON16, level-0 px
MICRO_PX = 2000 / 0.243  # a macro-metastasis is longer than 2 mm; CAMELYON16's slides have 0.243 um a pixel
TYPES, NOISE, STAIN, LESION, LOOKALIKE = 6, 0.25, 1.0, 2.0, 0.6  # of the simulated features, prototypes having length 1
SITE_OFFSET = 0.5  # of TCGA-NSCLC, as long as that of a slide
NOTE = "SIMULATED FEATURES on real slide ids, labels and tissue extents: the numbers say nothing about any aggregator."


class Features:
    """Simulates features: smooth mixtures of tissue types, a stain a slide, and what is added for lesions."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.prototypes = self._unit(rng.normal(size=(TYPES, dim)))
        self.lesion = LESION * self._unit(rng.normal(size=dim))
        self.dim = dim

    @staticmethod
    def _unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def stain(self, rng: np.random.Generator) -> np.ndarray:
        """``[D]``: the offset of a slide or a site."""
        return STAIN * self._unit(rng.normal(size=self.dim))

    def __call__(
        self, cells: np.ndarray, lesion: np.ndarray, stain: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """float16 ``[N, D]`` of the patches at integer grid ``cells`` ``[N, 2]``; ``lesion`` ``[N]`` is its share."""
        logits = np.stack([2.5 * field(cells, extent, rng) for extent in np.linspace(1, 6, TYPES)], axis=1)
        features = softmax(logits, axis=1) @ self.prototypes + stain
        features += np.maximum(lesion, LOOKALIKE * (rng.random(len(cells)) < 0.003))[:, None] * self.lesion
        return (features + NOISE * rng.normal(size=features.shape)).astype(np.float16)


def field(cells: np.ndarray, extent: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random number for each cell, of unit variance, correlated over ``extent`` cells."""
    column, row = (cells - cells.min(0)).T
    values = gaussian_filter(rng.normal(size=(row.max() + 1, column.max() + 1)).astype(np.float32), extent, truncate=3)
    return values[row, column] * (2 * np.sqrt(np.pi) * extent)


def turned(points: np.ndarray, turn: int, middle: np.ndarray) -> np.ndarray:
    """Points ``[n, 2]`` mirrored and turned by quarters about ``middle``: ``turn`` is one of the 8 symmetries."""
    x, y = (points - middle).T
    if turn >= 4:
        x = -x
    for _ in range(turn % 4):
        x, y = -y, x
    return np.column_stack([x, y]) + middle


# --- CAMELYON16, as CLAM lays it out ---------------------------------------------------------------------------------


def camelyon16(data: Path, out: Path, dim: int, seed: int) -> None:
    """Writes ``labels.csv``, ``card.yaml``, ``annotations/<slide>.xml`` and ``clam/{h5_files,patches}/<slide>.h5``."""
    slides = pd.read_csv(data / "labels_splits" / "camelyon16_slides.csv")
    slides = slides[slides["slide_id"] != "test_049"]  # removed by the organisers
    outlines = polygons_by_slide(data / "camelyon16" / "train_normal_tissue_polygons_ncrf.npz")
    lesions = polygons_by_slide(data / "camelyon16" / "train_tumor_polygons_ncrf.npz")
    real = real_cells(data / "coords" / "camelyon16_patch_coords_standrews.npz")
    longest = pd.read_csv(data / "camelyon16" / "train_tumor_stats_ncrf.csv").set_index("slide")
    macro = longest["largest_component_feret_px"] > MICRO_PX
    make = Features(dim, seed)
    for number, slide in enumerate(track(slides.to_dict("records"), "CAMELYON16")):
        rng = np.random.default_rng([seed, number])
        name = slide["slide_id"]
        if (out / "clam" / "patches" / f"{name}.h5").exists():
            continue  # of an interrupted start of the same command
        if name in real:
            cells = real[name]
        else:
            donor = name if name in outlines else str(rng.choice(sorted(outlines)))
            cells = cells_of(outline(outlines[donor]))
            if donor != name:
                cells = turned(cells, int(rng.integers(8)), cells.min(0)).astype(int)
        cells = cells - np.minimum(cells.min(0), 0)
        share = np.zeros(len(cells))
        if slide["label"]:
            donors = (
                macro.index
                if pd.isna(slide["metastasis_type"])
                else macro.index[macro == (slide["metastasis_type"] == "Macro")]
            )
            rings = lesions.get(name) or borrowed(lesions[str(rng.choice(donors))], cells, rng)
            write_asap(out / "annotations" / f"{name}.xml", rings)
            annotations = read_annotations(out / "annotations" / f"{name}.xml")
            cells = with_lesions(cells, annotations.region, name not in lesions or name in real)
            share = overlap_share(cells * float(STEP), STEP, annotations.region)
        features = make(cells, share, make.stain(rng), rng)
        coords = (cells * STEP).astype(np.int32)
        write(out / "clam" / "h5_files" / f"{name}.h5", features=features, coords=coords)
        attributes = {"patch_size": STEP, "patch_level": 0, "downsample": np.ones(2), "name": name}
        write(out / "clam" / "patches" / f"{name}.h5", attributes, coords=coords)
    table = slides[["slide_id"]].assign(
        case_id=slides["slide_id"], label=slides["label"].map({0: "normal", 1: "tumour"})
    )
    table.assign(split=slides["official_split"]).to_csv(out / "labels.csv", index=False)
    write_card(
        out, "CAMELYON16 (simulated features)", ["No patient ids are published: each slide counts as a patient."]
    )


def polygons_by_slide(path: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """``(group, ring [n, 2])`` of every polygon of each slide in a table of polygons."""
    with np.load(path) as file:
        points, pointer, slides, groups = (file[key] for key in ("verts", "poly_ptr", "poly_slide", "poly_group"))
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for i, (slide, group) in enumerate(zip(slides.tolist(), groups.tolist(), strict=True)):
        found.setdefault(slide, []).append((group, points[pointer[i] : pointer[i + 1]].astype(float)))
    return found


def real_cells(path: Path) -> dict[str, np.ndarray]:
    """The published patch grids, as integer cells; of the two of a slide, the one without "grid" in its name."""
    with np.load(path) as file:
        names = [key.removesuffix("__coords") for key in file.files if key.endswith("__coords")]
        return {name: file[f"{name}__coords"] // STEP for name in names if not name.endswith("_grid")}


def outline(rings: Sequence[tuple[str, np.ndarray]]) -> shapely.Geometry:
    """The union of the rings."""
    return shapely.union_all([shapely.make_valid(shapely.Polygon(ring)) for _, ring in rings if len(ring) > 2])


def cells_of(region: shapely.Geometry) -> np.ndarray:
    """Grid cells whose centre lies in the region."""
    low, high = np.array(region.bounds).reshape(2, 2) // STEP
    columns, rows = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    cells = np.column_stack([columns.ravel(), rows.ravel()])
    shapely.prepare(region)
    return cells[shapely.contains_xy(region, *((cells + 0.5) * STEP).T)].astype(int)


def borrowed(
    rings: Sequence[tuple[str, np.ndarray]], cells: np.ndarray, rng: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """The lesions of another slide, turned, with their middle on a patch of this slide's tissue."""
    middle = np.concatenate([ring for _, ring in rings]).mean(0)
    turn, place = int(rng.integers(8)), rng.choice(cells) * STEP
    moved = [(group, turned(ring, turn, middle) - middle + place) for group, ring in rings]
    below = np.minimum(np.concatenate([ring for _, ring in moved]).min(0), 0)  # slides begin at 0
    return [(group, ring - below) for group, ring in moved]


def with_lesions(cells: np.ndarray, region: shapely.Geometry, in_place: bool) -> np.ndarray:
    """Tissue that holds the lesions: moved to them unless it is theirs, and with the patches in and around them."""
    if not in_place:
        middle = np.array(region.point_on_surface().coords[0]) // STEP
        cells = cells - cells[np.argmin(np.abs(cells - np.median(cells, axis=0)).sum(1))] + middle.astype(int)
        cells = cells[(cells >= 0).all(1)]
    around = cells_of(region.simplify(STEP / 8).buffer(2 * STEP, quad_segs=2))
    return np.unique(np.concatenate([cells, around[(around >= 0).all(1)]]), axis=0)


def write_asap(path: Path, rings: Sequence[tuple[str, np.ndarray]]) -> None:
    """An ASAP annotation file with the groups of CAMELYON16's own: Tumor, and Exclusion for holes."""
    groups = {"positive": "Tumor", "negative": "Exclusion"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0"?>\n<ASAP_Annotations>\n\t<Annotations>\n')
        for number, (group, ring) in enumerate(rings):
            if len(ring) < 3:
                continue  # one published polygon is a line
            name = quoteattr(f"Annotation {number}")
            file.write(f'\t\t<Annotation Name={name} Type="Polygon" PartOfGroup="{groups[group]}" Color="#F4FA58">\n')
            file.write("\t\t\t<Coordinates>\n")
            file.writelines(
                f'\t\t\t\t<Coordinate Order="{i}" X="{x:.6g}" Y="{y:.6g}" />\n' for i, (x, y) in enumerate(ring)
            )
            file.write("\t\t\t</Coordinates>\n\t\t</Annotation>\n")
        file.write("\t</Annotations>\n\t<AnnotationGroups>\n")
        for group in groups.values():
            file.write(f'\t\t<Group Name="{group}" PartOfGroup="None" Color="#F4FA58"><Attributes /></Group>\n')
        file.write("\t</AnnotationGroups>\n</ASAP_Annotations>\n")


# --- TCGA-NSCLC, as TRIDENT lays it out ------------------------------------------------------------------------------


def tcga_nsclc(
    data: Path, out: Path, dim: int, seed: int, site_offset: float = SITE_OFFSET, patches: int | None = None
) -> None:
    """Writes ``labels.csv``, ``card.yaml`` and ``20x_256px_0px_overlap/{features_sim,patches}/...``.

    Every site has a stain of its own beside the slide's, as real ones do, and gave slides of one class only: a random
    split rewards an aggregator that learns the site, a site-preserved one does not.

    Args:
        data: folder of the real data.
        out: folder to write.
        dim: of the features.
        seed: of what is simulated.
        site_offset: length of the vector that is added to every patch of a site; 0 for sites that nothing tells apart.
        patches: at most of a slide; None for all that its tissue has.
    """
    slides = pd.read_csv(data / "labels_splits" / "tcga_nsclc_slides.csv.gz")
    with np.load(data / "coords" / "tcga_lihc_clam_coords.npz") as file:
        tissues = [file[key] // 512 for key in file.files if not key.endswith("_tumormask")]
    make = Features(dim, seed)
    tumour = make.lesion / LESION  # LUAD one way, LUSC the other
    stains = {
        site: make.stain(np.random.default_rng([seed, 1, number]))
        for number, site in enumerate(sorted(set(slides["slide_id"].str[5:7])))
    }
    folder = out / "20x_256px_0px_overlap"
    for number, slide in enumerate(track(slides.to_dict("records"), "TCGA-NSCLC")):
        rng = np.random.default_rng([seed, number])
        name = slide["slide_id"]
        if (folder / "patches" / f"{name}_patches.h5").exists():
            continue
        cells = tissues[rng.integers(len(tissues))]
        cells = turned(cells, int(rng.integers(8)), cells.min(0)).astype(int)
        axis = int(rng.integers(2))
        cells = cells[np.argsort(cells[:, axis], kind="stable")][: max(200, int(len(cells) * rng.uniform(0.2, 0.6)))]
        cells = np.unique(cells - cells.min(0) + 10, axis=0)[:patches]
        share = 0.4 * (field(cells, 8, rng) > 0.5)  # about a third of the tissue is tumour
        sign = 1 if slide["label"] == "LUSC" else -1
        features = make(cells, np.zeros(len(cells)), site_offset * stains[name[5:7]] + 0.5 * make.stain(rng), rng)
        features = (features + sign * share[:, None] * tumour).astype(np.float16)
        size = (cells.max(0) + 1) * 512
        attributes = {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
        }
        attributes |= {"overlap": 0, "level0_width": size[0], "level0_height": size[1], "name": name, "savetodir": ""}
        coords = (cells * 512).astype(np.int64)
        write(folder / "features_sim" / f"{name}.h5", attributes, features=features, coords=coords)
        write(folder / "patches" / f"{name}_patches.h5", attributes, coords=coords)
    slides[["case_id", "slide_id", "label"]].to_csv(out / "labels.csv", index=False)
    told = (
        f"Every patch of a site is moved by a vector of length {site_offset:g}, as those of a slide are by one of 0.5."
    )
    write_card(out, "TCGA NSCLC, LUAD against LUSC (simulated features)", [told])


def write(path: Path, coords_attributes: dict[str, object] | None = None, **arrays: np.ndarray) -> None:
    """An HDF5 file of arrays, with attributes on ``coords``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file["coords"].attrs.update(coords_attributes or {})


def write_card(out: Path, title: str, warnings: list[str], note: str = NOTE) -> None:
    """What differs from the shipped card: the data are simulated, and every table says so."""
    card = {"title": title, "kind": "simulated", "warnings": [note, *warnings]}
    (out / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")


def main() -> None:
    """Parses the command line and writes one stand-in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["camelyon16", "tcga_nsclc"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dim", type=int, default=16, help="feature dimension")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site-offset", type=float, default=SITE_OFFSET, help="tcga_nsclc: how far sites lie apart")
    parser.add_argument("--patches", type=int, help="tcga_nsclc: at most of a slide")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    of_all = given.data, given.out, given.dim, given.seed
    if given.dataset == "camelyon16":
        camelyon16(*of_all)
    else:
        tcga_nsclc(*of_all, given.site_offset, given.patches)


if __name__ == "__main__":
    main()
