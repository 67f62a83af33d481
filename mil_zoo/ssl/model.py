"""What is pretrained: a slide encoder that keeps what its use needs, and a projector that is thrown away."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.registry import create_aggregator
from mil_zoo.config import from_mapping
from mil_zoo.data.bag import Bag, BagBatch
from mil_zoo.data.labelled import Standardiser
from mil_zoo.errors import InputError
from mil_zoo.files import refuse_pipe, write_bytes
from mil_zoo.ssl.config import SPARSE, PretrainConfig
from mil_zoo.ssl.distributed import gather_rows
from mil_zoo.ssl.encoder import SparseSlideEncoder
from mil_zoo.ssl.loss import nt_xent
from mil_zoo.ssl.norm import BatchNorm


class SlideEncoder(nn.Module):
    """Embeds slides: features standardised as in pretraining, then the backbone.

    Args:
        in_dim: feature dimension D.
        config: names the backbone.
        standardiser: of the features; None leaves them as they are.

    Raises:
        InputError: an unknown backbone or option.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_dim: int, config: PretrainConfig, standardiser: Standardiser | None = None) -> None:
        super().__init__()
        self.in_dim, self.config = in_dim, config
        self.register_buffer("mean", torch.zeros(in_dim) if standardiser is None else standardiser.mean.float())
        self.register_buffer("scale", torch.ones(in_dim) if standardiser is None else standardiser.scale.float())
        self.backbone: SparseSlideEncoder | Aggregator
        if config.backbone == SPARSE:
            if config.options or config.graph is not None:
                raise InputError("the sparse encoder has no options and no graph of its own; set out_dim or downsample")
            self.backbone, self.graph = SparseSlideEncoder(in_dim, config.out_dim, config.downsample), None
        else:
            self.backbone = create_aggregator(config.backbone, in_dim, 2, **config.options)
            own = type(self.backbone).graph
            self.graph = own and (config.graph or own)

    def forward(self, batch: BagBatch) -> Tensor:
        """``[B, E]``, one embedding a slide."""
        if batch.features.shape[1] != self.in_dim:
            raise InputError(
                f"slide {batch.slide_ids[0]!r} has {batch.features.shape[1]} features a patch, the encoder was made "
                f"for {self.in_dim}; use the patch encoder of its pretraining"
            )
        features = (batch.features - self.mean) / self.scale
        out = self.backbone(dataclasses.replace(batch, features=features))
        embedding: Tensor = out if isinstance(out, Tensor) else out.embedding
        return embedding

    def batch(self, bags: list[Bag], device: torch.device | str) -> BagBatch:
        """Packs bags with the graph that the backbone needs."""
        return BagBatch.from_bags(bags, graph=self.graph).to(device)

    def save(self, path: Path) -> None:
        """Writes weights and configuration to one ``.safetensors`` file, under its name only when complete."""
        weights = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}  # shared ones apart
        about = {"in_dim": str(self.in_dim), "pretrain_config": json.dumps(dataclasses.asdict(self.config))}
        write_bytes(path, save(weights, metadata=about))

    @classmethod
    def load(cls, path: Path) -> SlideEncoder:
        """An encoder that :meth:`save` wrote, in eval mode.

        Raises:
            InputError: no such file, or not one of an encoder.
        """
        refuse_pipe(path)
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
            weights = load_file(path)
            config = from_mapping(PretrainConfig, json.loads(about["pretrain_config"]), str(path))
            encoder = cls(int(about["in_dim"]), config)
            encoder.load_state_dict(weights)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; pass the encoder.safetensors of a pretraining") from None
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
            raise InputError(f"{path} is not the encoder of a pretraining ({error})") from error
        return encoder.eval()


class Projector(nn.Sequential):
    """Linear-ReLU-BN, Linear-ReLU-BN, Linear: ``[B, in_dim]`` to ``[B, out_dim]``, statistics over all processes."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(
            Linear(in_dim, in_dim),
            nn.ReLU(),
            BatchNorm(in_dim),
            Linear(in_dim, in_dim),
            nn.ReLU(),
            BatchNorm(in_dim),
            Linear(in_dim, out_dim),
        )


class Contrast(nn.Module):
    """The training step: two views of each slide to the loss of the whole batch, the same on every process.

    Args:
        encoder: of the slides.
        embedding_dim: E, dimension of its embeddings.
    """

    def __init__(self, encoder: SlideEncoder, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(embedding_dim, encoder.config.projection_dim)

    def forward(self, first: BagBatch, second: BagBatch) -> tuple[Tensor, Tensor]:
        """The loss of the views of the same slides, and the spread (see :func:`spread`) of the first projections."""
        a, b = (gather_rows(self.projector(self.encoder(view))) for view in (first, second))
        return nt_xent(a, b, self.encoder.config.temperature), spread(a.detach().float())


def spread(embeddings: Tensor) -> Tensor:
    """How far embeddings are from collapse: sqrt(F) times the mean standard deviation of their normalised columns.

    0 where all are equal; 1 where they point in all directions alike (1 minus the authors' collapse level).

    Args:
        embeddings: ``[B, F]``, B >= 2.
    """
    return F.normalize(embeddings, dim=1).std(0).mean() * embeddings.shape[1] ** 0.5
