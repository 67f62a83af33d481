"""Yardsticks in plain PyTorch: what the authors run on a GPU, one bag at a time, without this package's kernels.

DGL's wheels hold no CUDA code, so that attention over edges is written with gathers and scatters, as PyTorch Geometric
does it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mil_zoo import BagBatch
from mil_zoo.kernels import CSR


class PlainABMIL(nn.Module):
    """Ilse et al. 2018, the authors' modules, with the feature layer that histopathology puts before it."""

    def __init__(self, dim: int, embed: int = 512, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embed), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(embed, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.classifier = nn.Linear(embed, 2)

    def logits(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.classifier(torch.softmax(self.attention(h).T, dim=1) @ h)

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), label)


class PlainCLAM(nn.Module):
    """Lu et al. 2021 (``clam_sb``): gated attention with dropout, instance clustering by ``topk``."""

    def __init__(self, dim: int, embed: int = 512, hidden: int = 256, k: int = 8, p: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embed), nn.ReLU(), nn.Dropout(p))
        self.a = nn.Sequential(nn.Linear(embed, hidden), nn.Tanh(), nn.Dropout(p))
        self.b = nn.Sequential(nn.Linear(embed, hidden), nn.Sigmoid(), nn.Dropout(p))
        self.c, self.classifier, self.k = nn.Linear(hidden, 1), nn.Linear(embed, 2), k
        self.instance = nn.ModuleList(nn.Linear(embed, 2) for _ in range(2))

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.embed(x)
        attention = F.softmax(self.c(self.a(h) * self.b(h)).T, dim=1)
        return h, attention, self.classifier(attention @ h)

    def logits(self, x: Tensor) -> Tensor:
        return self._score(x)[2]

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        h, attention, logits = self._score(x)
        total = F.cross_entropy(logits, label)
        for head, inside in zip(self.instance, F.one_hot(label, 2)[0].tolist(), strict=True):
            if inside:  # the authors' code reads the label on the host
                top, bottom = attention.topk(self.k)[1][-1], (-attention).topk(self.k)[1][-1]
                rows = torch.cat([h[top], h[bottom]])
                target = torch.cat([torch.ones_like(top), torch.zeros_like(bottom)])
                total = 0.7 * total + 0.3 * F.cross_entropy(head(rows), target)
        return total


class PlainDSMIL(nn.Module):
    """Li et al. 2021: critical instances by sorting, one query each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.instance = nn.Linear(dim, 2)
        self.query = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.bag = nn.Conv1d(2, 2, dim)

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c, q = self.instance(x), self.query(x)
        top = torch.sort(c, 0, descending=True)[1][0]
        attention = torch.softmax(q @ self.query(x[top]).T / 128**0.5, 0)
        return c, self.bag((attention.T @ x)[None])[..., 0]

    def logits(self, x: Tensor) -> Tensor:
        return self._score(x)[1]

    def loss(self, x: Tensor, label: Tensor) -> Tensor:
        c, logits = self._score(x)
        target = F.one_hot(label, 2).float()
        instance = F.binary_cross_entropy_with_logits(c.max(0)[0][None], target)
        return 0.5 * F.binary_cross_entropy_with_logits(logits, target) + 0.5 * instance


class PlainSRMIL(nn.Module):
    """Wu et al. 2026 in the authors' order of work, on the parameters of this package's SRMIL: three passes over a
    graph that holds the global node, a tensor of all edges, dropout by torch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def logits(self, batch: BagBatch) -> Tensor:
        return self._classify(batch.features, _with_global_node(batch.graph.csr))

    def loss(self, batch: BagBatch) -> Tensor:
        m, x, graph = self.model, batch.features, _edges(batch.graph.csr)
        rows = torch.randperm(len(x), device=x.device)[: int(m.mask_rate * len(x))]
        masked = x.clone()
        masked[rows] = m.enc_mask_token.to(x.dtype)
        code = m.encoder_to_decoder(self._encode(m.reformer(masked), graph)).clone()
        code[rows] = m.dec_mask_token.to(code.dtype)
        for layer in m.decoder.gat_layers:
            code = _attend(layer, code, *graph)
        cosine = (F.normalize(code[rows], dim=1) * F.normalize(x[rows], dim=1)).sum(1)
        extended = _with_global_node(batch.graph.csr)
        terms = [F.cross_entropy(self._classify(part, extended), batch.labels) for part in (masked, x)]
        classification = (2 - m.w_ce) * terms[0] + m.w_ce * terms[1]
        return (2 - m.w_gen) * classification + m.w_gen * (1 - cosine).pow(m.alpha).mean()

    def _classify(self, x: Tensor, graph: tuple[Tensor, Tensor]) -> Tensor:
        h = self._encode(self.model.reformer(torch.cat([x, self.model.super_tokens])), graph)
        return self.model.classifier(h[-1:].view(1, self.model.encoder.gat_layers[-1].heads, -1).mean(1))

    def _encode(self, h: Tensor, graph: tuple[Tensor, Tensor]) -> Tensor:
        for layer in self.model.encoder.gat_layers:
            h = _attend(layer, h, *graph)
        return h


def _edges(csr: CSR) -> tuple[Tensor, Tensor]:
    return csr.indices.long(), csr.destinations


def _with_global_node(csr: CSR) -> tuple[Tensor, Tensor]:
    (src, dst), n = _edges(csr), csr.num_dst
    patches = torch.arange(n, device=src.device)
    node = torch.full_like(patches, n)
    return torch.cat([src, node, patches]), torch.cat([dst, patches, node])


def _attend(layer: nn.Module, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    h = layer.feat_drop(h)
    z = layer.fc(h).view(len(h), layer.heads, layer.head_dim)
    left, right = (z * layer.attn_l).sum(-1), (z * layer.attn_r).sum(-1)
    attention = edge_softmax(F.leaky_relu(left[src] + right[dst], 0.2), dst, len(h))
    attention = F.dropout(attention, layer.attn_drop, layer.training)
    out = z.new_zeros(z.shape).index_add(0, dst, (z[src] * attention[:, :, None]).to(z.dtype)).flatten(1) + layer.bias
    if layer.res_fc is not None:
        out = out + layer.res_fc(h)
    return layer.activation(layer.norm(out))


def edge_softmax(scores: Tensor, dst: Tensor, count: int) -> Tensor:
    """Softmax of ``scores`` ``[E, H]`` over the edges of each of ``count`` destinations."""
    index = dst[:, None].expand_as(scores)
    top = scores.new_full((count, scores.shape[1]), -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
    weight = (scores - top[dst]).exp()
    return weight / weight.new_zeros(top.shape).scatter_add(0, index, weight)[dst]


def scan_by_doubling(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Selective scan of one bag as fast as plain PyTorch can: log2(L) rounds, each doubling what a state looks back on.

    From coefficients ``a_t = exp(dt_t A)`` and ``b_t = dt_t u_t B_t``, a round of reach r replaces ``(a_t, b_t)`` by
    ``(a_t a_(t-r), a_t b_(t-r) + b_t)``; memory is a few tensors of L x d x n a round.
    """
    dt = F.softplus(delta + delta_bias)
    decay, state = (dt[:, :, None] * A).exp(), (dt * u)[:, :, None] * B[:, None, :]
    reach = 1
    while reach < len(u):
        state = torch.cat([state[:reach], decay[reach:] * state[:-reach] + state[reach:]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    return ((state @ C[:, :, None])[..., 0] + D * u) * F.silu(z)
