"""SmABMIL and its transformer: attention whose inputs or scores are smoothed over the patch graph."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from mil_zoo.aggregators.base import Aggregator, Paper
from mil_zoo.aggregators.blocks.linear import Linear
from mil_zoo.aggregators.blocks.smoothing import Adjacency, Smooth
from mil_zoo.aggregators.output import AggregatorOutput
from mil_zoo.aggregators.registry import register_aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import dense_attention, segment_attention_pool

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu}


class _Smoothing(NamedTuple):
    mode: Literal["approx", "exact"]
    steps: int
    alpha: float | Literal["trainable"]


class SmAttention(nn.Module):
    """Pools by the attention ``softmax(w^T act(W X + b))``, with Sm at one of three places.

    Args:
        in_dim: width of X.
        att_dim: rows of W.
        act: "tanh", "relu" or "gelu".
        where: "early" smooths X (and pools the smooth X), "mid" W X + b, "late" the scores.
        smoothing: how.
        spectral_norm: divides W (of "early") and w (of "early" and "mid") by their largest singular value.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(
        self,
        in_dim: int,
        att_dim: int,
        act: Literal["tanh", "relu", "gelu"],
        where: Literal["early", "mid", "late"],
        smoothing: _Smoothing,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS or where not in ("early", "mid", "late"):
            raise InputError(
                f"act must be 'tanh', 'relu' or 'gelu', not {act!r}, and sm_where 'early', 'mid' or 'late', "
                f"not {where!r}"
            )
        self.act, self.where = ACTIVATIONS[act], where
        self.proj1, self.proj2 = Linear(in_dim, att_dim), Linear(att_dim, 1, bias=False)
        if spectral_norm and where == "early":
            normalised(self.proj1)
        if spectral_norm and where != "late":
            normalised(self.proj2)
        self.smooth = Smooth(*smoothing)

    def forward(self, x: Tensor, adjacency: Adjacency) -> tuple[Tensor, Tensor, Tensor]:
        """``[ΣN, in_dim]`` to pooled ``[B, in_dim]``, attention and attention logits ``[ΣN]``."""
        x = self.smooth(x, adjacency) if self.where == "early" else x
        h = self.proj1(x)  # [ΣN, att_dim]
        h = self.smooth(h, adjacency) if self.where == "mid" else h
        scores = self.proj2(self.act(h))  # [ΣN, 1]
        scores = self.smooth(scores, adjacency) if self.where == "late" else scores
        pooled, attention = segment_attention_pool(scores, x, adjacency.offsets)
        return pooled[:, 0], attention[:, 0], scores[:, 0]


@register_aggregator("sm_abmil")
class SmABMIL(Aggregator):
    """Pools by attention after drawing each patch towards its neighbours with a smoothing operator Sm.

    With A the normalised adjacency of the patch graph and q a learned coefficient, ``Sm(U)`` minimises
    ``|G - U|^2 + q <G, (I - A) G>`` over G, exactly or by a few steps of an iteration (:class:`.Smooth`). Where Sm
    comes early::

        X <- Sm(X)    f_i = w^T tanh(W x_i + b)    a = softmax(f)    z = sum_i a_i x_i    logits linear in z

    "mid" smooths W X + b and "late" f; both pool X as it came.

    Source: Castro-Macias et al., NeurIPS 2024; torchmil, the authors' package (the paper's repository holds no code).

    Deviations: C classes have C logits where theirs has one. The graph is ``window:1`` without self-loops, which has
    their edges. The exact mode solves by conjugate gradients where theirs factorises a dense matrix.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        att_dim: rows of W.
        act: "tanh", "relu" or "gelu".
        sm_mode: "approx" or "exact".
        sm_where: "early", "mid" or "late".
        sm_steps: of "approx".
        sm_alpha: "trainable" for a learned q, or a number in [0, 1) for q = sm_alpha / (1 - sm_alpha).
        spectral_norm: divides the weights that come after Sm by their largest singular value.

    Raises:
        InputError: an option outside its range.
    """

    graph = "window:1"
    family = "spatial"
    replayable = True
    paper = Paper(
        "Sm: enhanced localization in Multiple Instance Learning for medical imaging classification",
        2024,
        "https://arxiv.org/abs/2410.03276",
        "https://github.com/Franblueee/torchmil",
        licence="Apache-2.0",
    )
    published_renames = ((r"\.sm\.sm\.coef$", ".smooth.coef"), (r"^last_layer\.", "classifier."))

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        att_dim: int = 128,
        act: Literal["tanh", "relu", "gelu"] = "tanh",
        sm_mode: Literal["approx", "exact"] = "approx",
        sm_where: Literal["early", "mid", "late"] = "early",
        sm_steps: int = 10,
        sm_alpha: float | Literal["trainable"] = "trainable",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(in_dim, num_classes)
        smoothing = _Smoothing(sm_mode, sm_steps, sm_alpha)
        self.pool = SmAttention(in_dim, att_dim, act, sm_where, smoothing, spectral_norm)
        self.classifier = Linear(in_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        adjacency = Adjacency.of(self._needs_graph(batch))
        embedding, attention, scores = self.pool(batch.features, adjacency)
        return AggregatorOutput(self.classifier(embedding), embedding, attention, scores)


class SmTransformerLayer(nn.Module):
    """Computes ``Y = P_1 X + Sm(MHSA(LN(X)))``, ``Y <- Y + MLP(LN(Y))`` and returns ``P_2 Y``.

    P_1 and P_2 are linear where widths differ, else the identity. Every patch attends to all of its bag.
    """

    def __init__(self, in_dim: int, width: int, out_dim: int, heads: int, smoothing: _Smoothing) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(in_dim), nn.LayerNorm(width)
        self.qkv = Linear(in_dim, 3 * width, bias=False)
        self.smooth = Smooth(*smoothing)
        self.att_proj = Linear(in_dim, width) if in_dim != width else nn.Identity()
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.out_proj = Linear(width, out_dim) if width != out_dim else nn.Identity()

    def forward(self, x: Tensor, adjacency: Adjacency, lengths: tuple[int, ...]) -> Tensor:
        """``[ΣN, in_dim]`` to ``[ΣN, out_dim]``."""
        qkv = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1)
        attended = [
            dense_attention(*bag.permute(1, 2, 0, 3)).transpose(0, 1).flatten(1) for bag in qkv.split(lengths)
        ]  # [N, width] each
        y = self.att_proj(x) + self.smooth(torch.cat(attended), adjacency)
        return self.out_proj(y + self.mlp(self.norm2(y)))


@register_aggregator("sm_transformer")
class SmTransformer(Aggregator):
    """Runs transformer layers whose attention output is smoothed over the patch graph, then pools as ``sm_abmil``.

    With Sm the smoothing operator of ``sm_abmil``, a layer computes::

        Y = P_1 X + Sm(MHSA(LN(X)))    Y <- Y + MLP(LN(Y))    X <- P_2 Y (+ the features, with add_self)

    Source: Castro-Macias et al., NeurIPS 2024; ``SmTransformerABMIL`` of torchmil, the authors' package.

    Deviations: as ``sm_abmil``. Their attention drops out in evaluation too, and where it returns its weights masks the
    real patches instead of the padding; here it has neither dropout nor padding.

    Args:
        in_dim: feature dimension D.
        num_classes: C, or 1.
        att_dim: as in ``sm_abmil``, of the pooling.
        act: as in ``sm_abmil``.
        sm_mode: as in ``sm_abmil``, of the layers too.
        sm_where: as in ``sm_abmil``, of the pooling.
        sm_steps: as in ``sm_abmil``.
        sm_alpha: as in ``sm_abmil``; with "trainable" each layer and the pooling learn a q of their own.
        spectral_norm: as in ``sm_abmil``, of the pooling.
        transf_att_dim: width of the layers.
        heads: attention heads; they divide ``transf_att_dim``.
        layers: their number.
        add_self: adds the features to the output of every layer; several layers must then be as wide as the features.

    Raises:
        InputError: an option outside its range.
    """

    graph = "window:1"
    family = "spatial"
    replayable = True
    paper = Paper(
        "Sm: enhanced localization in Multiple Instance Learning for medical imaging classification",
        2024,
        "https://arxiv.org/abs/2410.03276",
        "https://github.com/Franblueee/torchmil",
        licence="Apache-2.0",
    )
    published_renames = (
        (r"\.sm\.sm\.coef$", ".smooth.coef"),
        (r"^last_layer\.", "classifier."),
        (r"^transformer_encoder\.", ""),
        (r"\.att_module\.(smooth)", r".\1"),
        (r"\.att_module\.qkv_nn\.", ".qkv."),
        (r"\.mlp_module\.0\.", ".mlp.0."),
        (r"\.mlp_module\.3\.", ".mlp.2."),  # their dropout has a place of its own
    )

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        att_dim: int = 128,
        act: Literal["tanh", "relu", "gelu"] = "tanh",
        sm_mode: Literal["approx", "exact"] = "approx",
        sm_where: Literal["early", "mid", "late"] = "early",
        sm_steps: int = 10,
        sm_alpha: float | Literal["trainable"] = "trainable",
        spectral_norm: bool = False,
        transf_att_dim: int = 512,
        heads: int = 4,
        layers: int = 1,
        add_self: bool = True,
    ) -> None:
        super().__init__(in_dim, num_classes)
        if layers < 1 or heads < 1 or transf_att_dim % heads:
            raise InputError(
                f"sm_transformer: layers ({layers}) must be at least 1, and heads ({heads}) divide transf_att_dim "
                f"({transf_att_dim})"
            )
        if add_self and layers > 1 and transf_att_dim != in_dim:
            raise InputError(
                f"sm_transformer: add_self adds features ({in_dim}) to layers of transf_att_dim ({transf_att_dim}); "
                "make them equally wide, or set add_self=False"
            )
        smoothing = _Smoothing(sm_mode, sm_steps, sm_alpha)
        self.add_self = add_self
        widths = [in_dim, *[transf_att_dim] * (layers - 1), in_dim]
        self.layers = nn.ModuleList(
            SmTransformerLayer(widths[i], transf_att_dim, widths[i + 1], heads, smoothing) for i in range(layers)
        )
        self.norm = nn.LayerNorm(in_dim)
        self.pool = SmAttention(in_dim, att_dim, act, sm_where, smoothing, spectral_norm)
        self.classifier = Linear(in_dim, num_classes)

    def forward(self, batch: BagBatch) -> AggregatorOutput:
        """See ``Aggregator.forward``; attention ``[ΣN]``."""
        adjacency = Adjacency.of(self._needs_graph(batch))
        x = batch.features
        for layer in self.layers:
            x = layer(x, adjacency, batch.lengths)
            x = x + batch.features if self.add_self else x
        embedding, attention, scores = self.pool(self.norm(x), adjacency)
        return AggregatorOutput(self.classifier(embedding), embedding, attention, scores)
