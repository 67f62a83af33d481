"""Smoothing over the patch graph, which draws each patch towards its neighbours (the operator Sm)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError
from mil_zoo.kernels import CSR, devices, graph_sum, segment_reduce
from mil_zoo.kernels.checks import in_float32

AHEAD = 64  # products of an exact solution where nobody may wait to see whether fewer do
MOST = 1000  # where someone may


class Adjacency(NamedTuple):
    """The graphs of a batch as the symmetric matrix A = D^-1/2 W D^-1/2, without self-loops.

    Attributes:
        graph: W, without self-loops.
        weight: ``[E]``, the entries of A.
        offsets: int64 ``[B + 1]``.
        bag: int64 ``[ΣN]``.
        lonely: bool ``[ΣN, 1]``, the patches that are the only one of their bag, for which A is 1; None without any.
    """

    graph: CSR
    weight: Tensor
    offsets: Tensor
    bag: Tensor
    lonely: Tensor | None

    @classmethod
    def of(cls, batch: BagBatch) -> Adjacency:
        """The adjacency of a batch with its graph, which is symmetric, as built graphs are."""
        graph = batch.graph.csr.without_self_loops
        scale = graph.indptr.diff().clamp(min=1).to(batch.features.dtype).rsqrt()
        weight = scale.index_select(0, graph.destinations) * scale.index_select(0, graph.indices)
        lonely = (batch.sizes == 1).index_select(0, batch.bag_index)[:, None] if 1 in batch.lengths else None
        return cls(graph, weight, batch.offsets, batch.bag_index, lonely)

    def times(self, u: Tensor) -> Tensor:
        """A u, ``[ΣN, F]``."""
        return graph_sum(u, self.graph, weight=self.weight)


class Smooth(nn.Module):
    """Smooths what patches hold, with L = I - A the Laplacian and q a coefficient.

    Exactly, ``G = (I + q L)^-1 U``, the minimiser of ``|G - U|^2 + q <G, L G>``; or approximately, with
    ``a = 1 / (1 + q)``, as the ``steps``-th of ``G <- (1 - a) U + a A G`` from ``G = U``. A patch without neighbours
    shrinks; one that is the only patch of its bag stays as it is.

    Neither holds a matrix of N x N: products are sparse, the exact solution is by conjugate gradients, in backward too.
    On a GPU these take 64 products (enough in single precision for q up to 30), elsewhere as many as it needs.

    Source: Castro-Macias et al., NeurIPS 2024, equations 11 to 14; torchmil 1.0.2. The paper's a is q / (1 + q), that
    of the code, kept here, 1 / (1 + q): the two modes agree for q = 1 alone.

    Args:
        mode: "approx" or "exact".
        steps: of "approx".
        alpha: "trainable" for a learned q, at first 1; or a number in [0, 1), for ``q = alpha / (1 - alpha)``.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(self, mode: Literal["approx", "exact"], steps: int, alpha: float | Literal["trainable"]) -> None:
        super().__init__()
        if mode not in ("approx", "exact") or steps < 1:
            raise InputError(f"sm_mode must be 'approx' or 'exact', not {mode!r}, and sm_steps positive, not {steps}")
        if alpha != "trainable" and not (isinstance(alpha, (int, float)) and 0 <= alpha < 1):
            raise InputError(f"sm_alpha must be 'trainable' or a number in [0, 1), not {alpha!r}")
        self.mode, self.steps = mode, steps
        self.fixed = None if alpha == "trainable" else alpha / (1 - alpha)
        if self.fixed is None:
            self.coef = nn.Parameter(torch.ones(()))

    def forward(self, u: Tensor, adjacency: Adjacency) -> Tensor:
        """``[ΣN, F]`` to the same."""
        q = self.coef if self.fixed is None else u.new_full((), self.fixed)
        smooth = _smoothed(u, q, adjacency, self.steps if self.mode == "approx" else None)
        return smooth if adjacency.lonely is None else torch.where(adjacency.lonely, u, smooth)


@in_float32
def _smoothed(u: Tensor, q: Tensor, adjacency: Adjacency, steps: int | None) -> Tensor:
    """Sm(U), by so many steps or, for None, exactly."""
    if steps is None:
        return _Exact.apply(u, q, adjacency)
    return _Approximate.apply(u, 1 / (1 + q), adjacency, steps)


class _Approximate(torch.autograd.Function):
    """``G = sum_s c_s A^s U`` with ``c_s = (1 - a) a^s`` for s below ``steps`` and ``c_steps = a^steps``.

    A is symmetric, so the gradient of U is the same polynomial of A times the gradient g of G; on the way come the
    ``<A^s g, U>``, which are all that the gradient of a needs. No step is kept.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, a: Tensor, adjacency: Adjacency, steps: int) -> Tensor:
        ctx.save_for_backward(u, a)
        ctx.adjacency, ctx.steps = adjacency, steps
        smooth = u
        for _ in range(steps):
            smooth = torch.lerp(u, adjacency.times(smooth), a)
        return smooth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, a = ctx.saved_tensors
        power = torch.arange(ctx.steps, device=a.device, dtype=a.dtype)
        factors = torch.cat([(1 - a) * a**power, (a**ctx.steps)[None]])
        slopes = torch.cat(
            [power * a ** (power - 1) - (power + 1) * a**power, (ctx.steps * a ** (ctx.steps - 1))[None]]
        )
        grad_u, flows = factors[0] * grad, [(grad * u).sum()]
        for factor in factors[1:]:
            grad = ctx.adjacency.times(grad)
            grad_u += factor * grad
            flows.append((grad * u).sum())
        return grad_u, (slopes * torch.stack(flows)).sum(), None, None


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, q: Tensor, adjacency: Adjacency) -> Tensor:
        smooth = _solve(u, q, adjacency)
        ctx.save_for_backward(smooth, q)
        ctx.adjacency = adjacency
        return smooth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        smooth, q = ctx.saved_tensors
        grad_u = _solve(grad, q, ctx.adjacency)
        return grad_u, -(grad_u * (smooth - ctx.adjacency.times(smooth))).sum(), None


def _solve(u: Tensor, q: Tensor, adjacency: Adjacency) -> Tensor:
    """Solves ``((1 + q) I - q A) G = U`` by conjugate gradients, every column of every bag on its own."""

    def total(x: Tensor) -> Tensor:
        return segment_reduce(x, adjacency.offsets, "sum")  # [B, F]

    def spread(x: Tensor) -> Tensor:
        return x.index_select(0, adjacency.bag)  # [ΣN, F]

    solution, residual, direction = torch.zeros_like(u), u, u
    size = total(u * u)
    enough = torch.finfo(u.dtype).eps ** 2 * size
    ahead = devices.runs_ahead(u.device)
    for _ in range(AHEAD if ahead else MOST):
        going = size > enough
        if not ahead and not going.any():
            break
        image = (1 + q) * direction - q * adjacency.times(direction)
        step = torch.where(going, size / total(direction * image), 0)
        solution = torch.addcmul(solution, spread(step), direction)
        residual = torch.addcmul(residual, spread(step), image, value=-1)
        new = total(residual * residual)
        direction = torch.addcmul(residual, spread(torch.where(going, new / size, 0)), direction)
        size = torch.where(going, new, size)
    return solution
