"""Slide-level self-supervision (Giga-SSL): slide embeddings learned without labels, and the probe that reads them."""

from mil_zoo.ssl.encoder import SparseSlideEncoder
from mil_zoo.ssl.loss import nt_xent

__all__ = ["SparseSlideEncoder", "nt_xent"]
