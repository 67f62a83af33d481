"""The slide encoder of Giga-SSL: block 4 of a ResNet18 over the occupied sites of the patch grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.graph.sites import Sites
from mil_zoo.kernels import RelationalEdges, relational_gather_gemm, segment_reduce
from mil_zoo.ssl.distributed import all_max
from mil_zoo.ssl.norm import BatchNorm


class SparseSlideEncoder(nn.Module):
    """Two sparse basic blocks over the patch grid, then the mean over occupied sites.

    A sparse convolution is a graph convolution with one relation for each of its 9 taps. Instances on one site are
    averaged; weights are ``[9, Ci, Co]`` with tap ``3 kx + ky`` over (x, y).

    Source: Lazard et al., Giga-SSL, CVPRW 2023 (arXiv 2212.03273); github trislaz/gigassl, which needs SparseConvNet.

    As there, the grid is one for all slides of a batch (in training: of all processes): a slide that ends on the last
    row or column of a grid of its own has more border sites in a batch with a larger slide. Embeddings for use are
    therefore taken one slide at a time (``mil_zoo.ssl.embed``).

    Args:
        in_dim: feature dimension D.
        out_dim: dimension of the slide embedding.
        downsample: size of a site in the unit of the coordinates; None for each bag's own patch size, so that
            neighbouring patches are neighbouring sites.

    Raises:
        InputError: a dimension or a downsample that is not positive.
    """

    def __init__(self, in_dim: int, out_dim: int, downsample: float | None = 224) -> None:
        super().__init__()
        if in_dim < 1 or out_dim < 1 or (downsample is not None and not downsample > 0):
            raise InputError(
                f"in_dim, out_dim and downsample must be positive, not {in_dim}, {out_dim} and {downsample}"
            )
        self.in_dim, self.out_dim, self.downsample = in_dim, out_dim, downsample
        self.block0 = _StridedBlock(in_dim, out_dim)
        self.block1 = _Block(out_dim, out_dim)

    def forward(self, batch: BagBatch) -> Tensor:
        """Embeds every slide of a batch: ``[B, out_dim]``.

        Raises:
            InputError: a bag without coordinates (or, where it is needed, without patch size).
        """
        embeddings, _ = self.embed_sites(batch)
        return embeddings

    def embed_sites(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """As ``forward``, and int64 ``[B]``: the occupied sites that each embedding averages."""
        sites, site_of_instance = Sites.of(self._coords(batch), batch.offsets, self._step(batch))
        counts = torch.bincount(site_of_instance, minlength=len(sites))
        x = batch.features.new_zeros(len(sites), batch.features.shape[1])
        x = x.index_add(0, site_of_instance, batch.features) / counts[:, None].to(batch.features.dtype)
        # In evaluation a process may be alone with its slides.
        extent = all_max(sites.extent) if self.training else sites.extent
        out, strided = sites.strided(_grid_size(extent))
        neighbours = out.neighbours()
        x = self.block1(self.block0(x, strided, neighbours), neighbours)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums over many sites, also under autocast
        return segment_reduce(x, out.offsets, "mean"), out.offsets.diff()

    def _coords(self, batch: BagBatch) -> Tensor:
        if batch.coords is None:
            raise InputError(
                "the sparse slide encoder needs coordinates for every slide; give coords in the bags, or choose an "
                "aggregator that does without (--backbone abmil)"
            )
        return batch.coords

    def _step(self, batch: BagBatch) -> Tensor | float:
        if self.downsample is not None:
            return self.downsample
        if batch.patch_sizes is None:
            raise InputError("the sparse slide encoder needs a patch size for every slide, or a downsample for all")
        return batch.patch_sizes

    def load_torchvision_layer4(self, state_dict: Mapping[str, Any]) -> None:
        """Starts from block 4 of a torchvision ResNet18 (in_dim 256, out_dim 512), as the authors do with ImageNet's.

        A kernel ``[Co, Ci, 3, 3]`` of an image has its rows along y and its columns along x: tap ``3 kx + ky`` is
        ``kernel[:, :, ky, kx]``.

        Args:
            state_dict: of the whole network ("layer4.0.conv1.weight", ...) or of its layer4 alone ("0.conv1.weight").

        Raises:
            InputError: a tensor is missing or has another shape.
        """
        loaded = {}
        for name, mine in self.state_dict().items():
            block, layer, *rest = name.split(".")
            theirs = _TORCHVISION.get(layer, layer.replace("norm", "bn"))
            theirs = ".".join([block.removeprefix("block"), theirs, *(rest or ["weight"])])
            value = state_dict.get(f"layer4.{theirs}", state_dict.get(theirs))
            if value is None:
                raise InputError(f"the weights lack 'layer4.{theirs}'; give the state_dict of a torchvision ResNet18")
            value = torch.as_tensor(value)
            if value.ndim == 4:
                value = value.permute(3, 2, 1, 0).flatten(0, 1)  # [Co, Ci, ky, kx] to [3 kx + ky, Ci, Co]
            if value.shape != mine.shape:
                raise InputError(
                    f"'layer4.{theirs}' of the weights gives {list(value.shape)}, here it is {list(mine.shape)}; "
                    "create the encoder with their dimensions (a ResNet18: in_dim=256, out_dim=512)"
                )
            loaded[name] = value
        self.load_state_dict(loaded)


_TORCHVISION = {"convd": "downsample.0", "normd": "downsample.1"}


class _Block(nn.Module):
    """Two submanifold convolutions beside the identity."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _kernel(9, in_dim, out_dim), BatchNorm(out_dim)
        self.conv2, self.norm2 = _kernel(9, out_dim, out_dim), BatchNorm(out_dim)

    def forward(self, x: Tensor, neighbours: RelationalEdges) -> Tensor:
        """``[S, F]`` to ``[S, F]``."""
        return F.relu(self._residual(x, neighbours, neighbours) + x)

    def _residual(self, x: Tensor, first: RelationalEdges, second: RelationalEdges) -> Tensor:
        h = F.relu(self.norm1(relational_gather_gemm(x, self.conv1, first)))
        return self.norm2(relational_gather_gemm(h, self.conv2, second))


class _StridedBlock(_Block):
    """A strided and a submanifold convolution, beside average pooling, a 1 x 1 convolution and a norm."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.convd, self.normd = _kernel(1, in_dim, out_dim), BatchNorm(out_dim)

    def forward(self, x: Tensor, strided: RelationalEdges, neighbours: RelationalEdges) -> Tensor:  # type: ignore[override]
        """``[S, in_dim]`` on the input sites to ``[S', out_dim]`` on the output sites."""
        pooled = x.new_zeros(strided.num_dst, x.shape[1]).index_add(0, strided.dst, x.index_select(0, strided.src)) / 9
        shortcut = self.normd(pooled @ self.convd[0])
        return F.relu(self._residual(x, strided, neighbours) + shortcut)


def _kernel(taps: int, in_dim: int, out_dim: int) -> nn.Parameter:
    """``[taps, in_dim, out_dim]``, Kaiming normal over the fan-out, as torchvision starts a ResNet's convolutions."""
    return nn.Parameter(torch.randn(taps, in_dim, out_dim) * (2 / (taps * out_dim)) ** 0.5)


def _grid_size(extent: Tensor) -> Tensor:
    """The authors' size of a grid: at least 5, odd, and with an odd half, so that two strided layers fit."""
    size = extent.clamp(min=5)
    size = size + (size % 2 == 0)
    return size + 2 * (size // 2 % 2 == 0)
