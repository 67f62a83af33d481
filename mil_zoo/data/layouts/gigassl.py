"""Giga-SSL: one embedding a slide, ``embeddings.npy`` and ``ids.npy``."""

from __future__ import annotations

from pathlib import Path

from mil_zoo.data.bag import Bag
from mil_zoo.data.formats.boundary import numbers
from mil_zoo.data.formats.npy import load_npy
from mil_zoo.data.layouts.base import Claim, Sure, TableLayout, make_bag, matrix_shape, register_layout, slide_name
from mil_zoo.errors import InputError


@register_layout("gigassl")
class GigaSSL(TableLayout):
    """``embeddings [S, E]`` and ``ids [S]``: each slide is a bag of one instance, its embedding."""

    about = "embeddings.npy [S, E] and ids.npy [S]: one embedding a slide; csv ID, label, case_id"
    suffixes = (".npy",)
    of_slides = True

    def claim(self, path: Path) -> Claim | None:
        """By the names of the two files."""
        if path.name != "embeddings.npy" or not (path.parent / "ids.npy").is_file():
            return None
        return Claim(Sure.STATED, "embeddings.npy beside ids.npy")

    def read_all(self, path: Path, allow_pickle: bool = False) -> list[Bag]:
        """One bag a slide."""
        embeddings, ids = numbers(path, load_npy(path), "embeddings"), load_npy(path.parent / "ids.npy")
        count, _ = matrix_shape(path, embeddings.shape)
        if ids.shape != (count,):
            raise InputError(f"{path.parent / 'ids.npy'} has {ids.size} ids for {count} embeddings; write both again")
        return [
            make_bag(path, slide_name(str(slide)), self.name, row[None])
            for slide, row in zip(ids, embeddings, strict=True)
        ]
