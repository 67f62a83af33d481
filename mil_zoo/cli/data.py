"""``mil-zoo data``: the group of commands on datasets."""

from __future__ import annotations

import click

from mil_zoo.cli.data_check import check, show
from mil_zoo.cli.data_import import import_store
from mil_zoo.cli.data_leaks import leaks


@click.group(
    epilog="""\b
Examples:
  mil-zoo data show camelyon16
  mil-zoo data check camelyon16 --root /data/camelyon16
  mil-zoo data check tcga_nsclc --root /data/trident_processed --features uni_v1,conch_v15
  mil-zoo data check /data/my_features --labels labels.csv --csv slides.csv
  mil-zoo data check one_slide.h5
  mil-zoo data leaks splits/
Layouts that are told from the path (or named with --layout): arrays, clam, dsmil, embedding_table, gigassl, histossl,
lazyslide, slide_embeddings, slideflow, srmil, stamp, torchmil, trident.
"""
)
def data() -> None:
    """Tell of a dataset, check its files, pack them for speed, and find patients on two sides of a split."""


data.add_command(show)
data.add_command(check)
data.add_command(import_store)
data.add_command(leaks)
