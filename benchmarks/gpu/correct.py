"""Every op with a Triton version against the reference in float64: outputs and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gpu.common import Check
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    dense_attention,
    dropout_linear,
    graph_attention,
    graph_dot_attention,
    graph_softmax_sum,
    graph_sum,
    linear,
    residual_norm_prelu,
    seeded_dropout,
    segment_attention_pool,
    segment_reduce,
    selective_scan,
)

SEED = 2**61 + 11
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
    """A name, the shapes of the inputs, and the op: ``function(backend, *inputs)``."""

    name: str
    shapes: list[tuple[int, ...]]
    function: Callable[..., object]
    dtypes: tuple[torch.dtype, ...] = DTYPES


def run(check: Check) -> None:
    """The largest error of each case and precision: of an entry, relative to the largest of its tensor (or to 1)."""
    from kernel_cases import one_config

    device = check.device
    todo = [(case, dtype) for dtype in DTYPES for case in cases(device, check.quick) if dtype in case.dtypes]
    for i, (case, dtype) in check.mine(todo):
        precision = str(dtype).removeprefix("torch.")
        with one_config(i):  # a different one from case to case: compiling takes longer than anything else
            check.attempt(f"{case.name}, {precision}", partial(_compare, check, case, dtype, precision, i))


def _compare(check: Check, case: Case, dtype: torch.dtype, precision: str, config: int) -> None:
    rounded = [_draw(shape, i, check.device).to(dtype) for i, shape in enumerate(case.shapes)]
    expected = _outputs_and_gradients(case, "reference", [x.double() for x in rounded])
    got = _outputs_and_gradients(case, "triton", rounded)
    errors = [_error(a, b) for a, b in zip(got, expected, strict=True)]
    allowed = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    worst = max(range(len(errors)), key=errors.__getitem__)
    check.report(
        f"{case.name}, {precision}",
        largest_error=errors[worst],
        of_tensor=f"{worst} of {len(errors)}",
        allowed=allowed,
        passed=errors[worst] <= allowed,
        config=config,
    )


def _error(got: Tensor, expected: Tensor) -> float:
    """Of the worst entry, relative to the largest; what is too large for the dtype must be infinite, and no other."""
    fits = expected.to(got.dtype).isfinite()
    if not torch.equal(got.isfinite(), fits):
        return float("inf")
    if not fits.any():
        return 0.0
    return float((got.double() - expected)[fits].abs().max() / expected[fits].abs().max().clamp(min=1))


def _draw(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def _outputs_and_gradients(case: Case, backend: str, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = case.function(backend, *inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x is not None]
    outputs = [x for x in outputs if x.is_floating_point()]
    weights = [_draw(tuple(x.shape), 100 + i, x.device).to(torch.bfloat16).to(x.dtype) for i, x in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Sizes 1, 63, 1000 and beyond the 65 536 rows of a grid's axis; hubs, empty rows, widths that fill no block."""
    parts = (_graph_cases, _sum_cases, _segment_cases, _scan_cases, _layer_cases)
    return [case for part in parts for case in part(device, quick)]


def _graph_cases(device: torch.device, quick: bool) -> list[Case]:
    from kernel_cases import random_csr

    found = []
    large = [] if quick else [(1000, 4, 64), (70_000, 2, 6)]
    for n, heads, width in [(1, 3, 5), (63, 1, 1), (1000, 3, 5), *large]:
        graph, bag = random_csr(n, n).to(device), torch.arange(n, device=device) // max(1, n // 2) % 2
        plain = [(n, heads, width), (n, heads), (n, heads)]
        keyed = [*plain, (2, heads, width), (2, heads)]
        options = {"dropout_p": 0.3, "seed": SEED, "return_attention": True}
        size = f"{n} x {heads} x {width}"
        found.append(Case(f"graph_attention {size}", plain, partial(_attend, graph, None, {})))
        more = f"graph_attention {size}, global key, dropout, attention"
        found.append(Case(more, keyed, partial(_attend, graph, bag, options)))
    for n, heads, width, out in [(1, 2, 6, 3), (63, 1, 1, 1), (1000, 3, 6, 5), *[(*x, x[2]) for x in large]]:
        graph, biased = random_csr(n, n).to(device), n % 2 == 0
        shapes = [(n, heads, width), (n, heads, width), (n, heads, out)] + [(graph.num_edges, heads)] * biased
        options = {"dropout_p": 0.3, "seed": SEED, "return_attention": True} if biased else {}
        name = f"graph_dot_attention {n} x {heads} x {width}" + ", bias, dropout, attention" * biased
        found.append(Case(name, shapes, partial(_attend_dot, graph, options)))
    return found


def _attend(graph: CSR, bag: Tensor | None, options: dict, backend: str, feat, src, dst, *key) -> object:
    global_key = GlobalKey(*key, bag) if key else None
    return graph_attention(feat, src, dst, graph, global_key=global_key, backend=backend, **options)


def _attend_dot(graph: CSR, options: dict, backend: str, q, k, v, bias=None) -> object:
    return graph_dot_attention(q, k, v, graph, bias=bias, backend=backend, **options)


def _sum_cases(device: torch.device, quick: bool) -> list[Case]:
    from kernel_cases import random_csr

    found = []
    for n, width in [(1, 5), (63, 1), (1000, 37), *([] if quick else [(1000, 512), (70_000, 9)])]:
        graph = random_csr(n, n).to(device)
        for weighted in (True, False):
            weight = _draw((graph.num_edges,), 7, device) if weighted else None
            name = f"graph_sum {n} x {width}" + ", weights" * weighted
            found.append(Case(name, [(n, width)], partial(_sum, graph, weight)))
        found.append(Case(f"graph_softmax_sum {n} x {width}", [(n, width), (1,)], partial(_softmax_sum, graph)))
    return found


def _sum(graph: CSR, weight: Tensor | None, backend: str, x: Tensor) -> Tensor:
    return graph_sum(x, graph, weight=None if weight is None else weight.to(x.dtype), backend=backend)


def _softmax_sum(graph: CSR, backend: str, x: Tensor, t: Tensor) -> Tensor:
    return graph_softmax_sum(x, t, graph, backend=backend)


def _scan_cases(device: torch.device, quick: bool) -> list[Case]:
    """Bags of one instance, of less and of more than a chunk; channels and states that fill no block."""
    found = []
    large = [] if quick else [((700, 1, 300), 96, 16), ((3000,), 200, 16)]
    for sizes, channels, states in [((1,), 3, 2), ((1, 62), 5, 3), ((130, 64, 65), 37, 5), *large]:
        n, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0).to(device)
        for full in (True, False):
            shapes = [(n, channels), (n, channels), (channels, states), (n, states), (n, states)]
            shapes += [(channels,), (n, channels), (channels,)] if full else []
            name = f"selective_scan {sizes} x {channels} x {states}" + ", D, z, bias, softplus" * full
            found.append(Case(name, shapes, partial(_scan, offsets, full)))
    return found


def _scan(offsets: Tensor, full: bool, backend: str, u, delta, A, *rest) -> object:
    # Rates below zero and steps above it, as everywhere that the op is used: states would grow beyond any number.
    delta = delta if full else delta.abs()
    return selective_scan(u, delta, -A.abs(), *rest, softplus=full, offsets=offsets, backend=backend)


def _segment_cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    for sizes, width in [((1,), 5), ((1, 62), 5), ((1000, 1, 3), 5), ((70_000, 2), 5), ((3000, 100, 1), 512)]:
        if quick and width == 512:
            continue
        n, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0).to(device)
        for shared in (True, False):
            options = {"dropout_p": 0.25 * shared, "seed": SEED}
            name = f"segment_attention_pool {sizes} x {width}" + (", dropout" if shared else ", values by head")
            shapes = [(n, 3), (n, width) if shared else (n, 3, width)]
            found.append(Case(name, shapes, partial(_pool, offsets, options)))
        for reduce in ("sum", "mean", "max", "logsumexp"):
            found.append(
                Case(f"segment_reduce {reduce} {sizes} x {width}", [(n, width)], partial(_reduce, offsets, reduce))
            )
    return found


def _pool(offsets: Tensor, options: dict, backend: str, scores, values) -> object:
    return segment_attention_pool(scores, values, offsets, backend=backend, **options)


def _reduce(offsets: Tensor, reduce: str, backend: str, values) -> object:
    return segment_reduce(values, offsets, reduce, backend=backend)


def _layer_cases(device: torch.device, quick: bool) -> list[Case]:
    found = []
    large = [] if quick else [(1000, 1024, 520), (70_000, 21, 12)]
    for n, dim, out in [(1, 21, 12), (63, 21, 12), (1000, 21, 12), *large]:
        index = torch.arange(n).repeat(3)
        index[: 2 * n][torch.rand(2 * n, generator=torch.Generator().manual_seed(n)) < 0.67] = -1
        sizes = (out - 5, 1, 4)
        for packed in (True, False):
            options = {"sizes": sizes, "index": index.to(device) if packed else None, "dropout_p": 0.3, "seed": SEED}
            shapes = [(n, dim), (out, dim), (out,)] + [(dim,)] * packed
            name = f"dropout_linear {n} x {dim} to {out}" + ", picked rows and token" * packed
            found.append(Case(name, shapes, partial(_map, options)))
    for n, dim, out in [(1, 21, 12), (63, 64, 20), *([] if quick else [(1000, 1024, 520), (70_000, 1024, 256)])]:
        shapes = [(n, dim), (out, dim), (out,)]
        found.append(Case(f"linear {n} x {dim} to {out}", shapes, _linear, (torch.float32,)))
    for queries, keys in [(63, 5), *([] if quick else [(10_000, 256), (256, 10_000)])]:
        shapes = [(8, queries, 64), (8, keys, 64), (8, keys, 64)]
        found.append(Case(f"dense_attention 8 x {queries} x {keys} x 64", shapes, _attend_all, (torch.float32,)))
    for n, width in [(1, 37), (63, 1), (1000, 37), *([] if quick else [(1000, 256), (70_000, 37)])]:
        for with_residual in (True, False):
            shapes = [(n, width), (width,), (width,), (width,), (1,)] + [(n, width)] * with_residual
            name = f"residual_norm_prelu {n} x {width}" + ", residual" * with_residual
            found.append(Case(name, shapes, _norm))
    for n, width in [(1, 1), (700, 9), *([] if quick else [(70_000, 37)])]:
        found.append(Case(f"seeded_dropout {n} x {width}", [(n, width)], _drop))
    return found


def _map(options: dict, backend: str, x, weight, bias, token=None) -> object:
    return dropout_linear(x, weight, bias, token=token, backend=backend, **options)


def _linear(backend: str, x, weight, bias) -> object:
    return linear(x, weight, bias, backend=backend)


def _attend_all(backend: str, q, k, v) -> object:
    """Of few queries or keys, which "auto" takes from products on a GPU."""
    return dense_attention(q, k, v, backend="auto" if backend == "triton" else backend)


def _norm(backend: str, x, bias, weight, shift, slope, residual=None) -> object:
    return residual_norm_prelu(x, residual, bias, weight, shift, slope, backend=backend)


def _drop(backend: str, x) -> object:
    return seeded_dropout(x, 0.3, seed=SEED, backend=backend)
