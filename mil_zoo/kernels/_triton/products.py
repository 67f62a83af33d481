"""Matrix products in float32 on a GPU's matrix units, which take TensorFloat-32: each number as a sum of two of them.

A product of three parts, high x high + high x low + low x high, keeps the 24 bits of float32: its error is a third of
that of cuBLAS, which leaves the matrix units alone, in half to two thirds of the time (H200; ``benchmarks/results``).
What is left out, low x low, is 2^-22 of the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mil_zoo.kernels._triton.tools import tuned

# Blocks along K are equally long, so that the order of additions is the same whichever is the fastest.
BLOCKS = [
    {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": 32, "num_warps": warps, "num_stages": stages}
    for m, n, warps, stages in ((64, 64, 4, 4), (128, 64, 4, 4), (128, 128, 8, 3))
]
INTERPRETED_BLOCKS = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 32}


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of float32 ``[M, K]``, ``[K, N]`` and ``[N]``, without a gradient.

    The matrix units want both with their K next to each other: ``b`` is turned, which is little of a layer's weights,
    and an ``a`` that lies otherwise is left to PyTorch.
    """
    if not a.is_contiguous() or not (a.numel() and b.numel()):
        return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    (rows, width), columns = a.shape, b.shape[1]
    out, unit = a.new_empty(rows, columns), 4 if width % 4 == columns % 4 == 0 else 1
    _product[lambda meta: (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(columns, meta["BLOCK_N"]),)](
        a=a,
        b=b.t().contiguous(),
        bias=None if bias is None else bias.contiguous(),
        out=out,
        num_rows=rows,
        columns=columns // unit,
        width=width // unit,
        UNIT=unit,
        NARROW=columns <= 256,
    )
    return out


@tuned(("UNIT", "NARROW"), BLOCKS, INTERPRETED_BLOCKS)
def _product(
    a,
    b,
    bias,
    out,
    num_rows,
    columns,
    width,
    UNIT: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of ``a @ b^T + bias``; programs side by side share their rows of ``a``.

    Sizes are runtime arguments, for compiling takes seconds, in units of what can be loaded at once.
    """
    N, K = columns * UNIT, width * UNIT
    across = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        left = tl.load(a + (m * K)[:, None] + k[None, :], (m < num_rows)[:, None] & (k < K)[None, :], 0.0)
        right = tl.load(b + (n * K)[None, :] + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
        acc = tl.dot(left, right, acc, input_precision="tf32x3")
    if bias is not None:
        acc += tl.load(bias + n, n < N, 0.0)[None, :]
    tl.store(out + (m * N)[:, None] + n[None, :], acc, (m < num_rows)[:, None] & (n < N)[None, :])
