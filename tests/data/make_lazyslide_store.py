"""Makes ``lazyslide_store.zip``: the store that LazySlide itself writes of a small slide, and what wsidata reads of it.

    python make_lazyslide_store.py FOLDER

It was made with lazyslide 0.13.0, wsidata 0.12.0 and zarr 3.1.6. The slide is the immunohistochemistry of scikit-image
(no known copyright restrictions) on a light ground, as a pyramidal tiff of 0.5 um per pixel. The encoders are
convolutions with random weights: what the features say does not matter here, where they lie does. ``tiles`` touch each
other and ``halves`` overlap by a half.
"""

import sys
import zipfile
from pathlib import Path

import lazyslide
import numpy as np
import tifffile
import torch
from skimage.data import immunohistochemistry
from wsidata import open_wsi

MPP = 0.5
FEATURES = (("conv8", 8, "tiles"), ("conv12", 12, "tiles"), ("conv8", 8, "halves"))  # encoder, dimension, tiles


def write_slide(path: Path) -> None:
    """512 x 512 pixels, of which the inner 320 x 320 are tissue, and the same at half the resolution."""
    image = np.pad(immunohistochemistry()[96:416, 96:416], ((96, 96), (96, 96), (0, 0)), constant_values=250)
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2):
            file.write(
                image[::step, ::step],
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                resolution=(1e4 / MPP / step,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(step > 1),
                metadata=None,
            )


def encoder(dim: int) -> torch.nn.Module:
    """Mean responses of ``dim`` random filters."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, dim, 8, 8), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


def as_tensor(image: object) -> torch.Tensor:
    """``[3, H, W]``, between 0 and 1."""
    return torch.as_tensor(np.asarray(image)).permute(2, 0, 1).float() / 255


def main(folder: Path) -> None:
    """Writes the slide, its store, what wsidata reads of that, and the zip of both."""
    slide, store = folder / "ihc.tif", folder / "ihc.zarr"
    write_slide(slide)
    wsi = open_wsi(slide, store=store)
    lazyslide.pp.find_tissues(wsi, to_hsv=True, filter_artifacts=False)
    lazyslide.pp.tile_tissues(wsi, tile_px=32, mpp=1.0)
    lazyslide.pp.tile_tissues(wsi, tile_px=32, mpp=1.0, overlap=0.5, key_added="halves")
    torch.manual_seed(0)
    for name, dim, tiles in FEATURES:
        lazyslide.tl.feature_extraction(
            wsi, encoder(dim), model_name=name, tile_key=tiles, transform=as_tensor, device="cpu", pbar=False
        )
    wsi.write()
    wsi, arrays = open_wsi(slide, store=store), {}
    for name, _, tiles in FEATURES:
        read = wsi.fetch.features_anndata(name, tiles)
        arrays |= {f"{name}_{tiles}/features": read.X, f"{name}_{tiles}/coords": read.obsm["spatial"]}
    np.savez_compressed(folder / "wsidata.npz", **arrays)
    with zipfile.ZipFile(folder / "lazyslide_store.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in [folder / "wsidata.npz", *sorted(path for path in store.rglob("*") if path.is_file())]:
            archive.writestr(zipfile.ZipInfo(str(path.relative_to(folder))), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
