"""Graph specs and the registry of builders: ``build_csr(coords, "window:2")``, and ``build`` for a ``DGLGraph``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.csr import CSR
from mil_zoo.registry import Registry

if TYPE_CHECKING:
    from mil_zoo._dgl import DGLGraph

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Builder:
    """A registered builder: its function, and whether it reads coordinates or features."""

    function: Callable[..., Pairs | DGLGraph]
    over: Literal["coords", "features"]


GRAPHS: Registry[Builder] = Registry("graph", package="mil_zoo.graph")


def register_graph(name: str, over: Literal["coords", "features"] = "coords") -> Callable[[Any], Any]:
    """Decorator that registers a graph builder under ``name``.

    A builder is called as ``f(coords, *numbers, patch_size=..., features=...)``, with the numbers of the spec
    (``"window:2"`` calls it with 2) and those of the two keyword arguments that it names. It returns a ``DGLGraph``
    over the N patches or ``(src, dst)``, integer ``[E]`` each, in any order and direction, repeats and self-loops
    allowed: :func:`build` makes them symmetric and unique and adds the self-loops.

    Args:
        name: lowercase letters, digits and underscores.
        over: "features" if the edges depend on the features: such a graph is rebuilt when features are standardised.
    """

    def decorate(function: Callable[..., Pairs | DGLGraph]) -> Callable[..., Pairs | DGLGraph]:
        GRAPHS.register(name)(Builder(function, over))
        return function

    return decorate


def parse_spec(spec: str) -> tuple[Builder, list[float]]:
    """``"radius:1.5"`` as the builder and its numbers; an ``InputError`` says what is wrong with a spec."""
    if not isinstance(spec, str):
        raise InputError(f"a graph is named by its spec, 'window:2' for instance, not by {spec!r:.60}")
    name, _, arguments = spec.partition(":")
    builder = GRAPHS.get(name)
    numbers: list[float] = []
    for text in filter(None, arguments.split(",")):
        try:
            numbers.append(int(text) if text.strip().lstrip("+-").isdigit() else float(text))
        except ValueError:
            raise InputError(f"graph {spec!r}: {text!r} is not a number; write for instance 'window:2'") from None
    return builder, numbers


def build(
    coords: Any,
    spec: str,
    patch_size: float | None = None,
    features: Any = None,
) -> DGLGraph:
    """Builds the patch graph of one bag as a ``DGLGraph``: :func:`build_csr` at DGL's door.

    Takes what :func:`build_csr` takes.

    Returns:
        A homogeneous ``DGLGraph`` with int32 ids on the CPU, in-edges of each node sorted by source.

    Raises:
        InputError: as :func:`build_csr`, or DGL cannot be imported.
    """
    return build_csr(coords, spec, patch_size, features).dgl


def build_csr(
    coords: Any,
    spec: str,
    patch_size: float | None = None,
    features: Any = None,
) -> CSR:
    """Builds the patch graph of one bag.

        >>> build_csr([[0, 0], [256, 0], [1024, 0]], "window:1", patch_size=256).indices.tolist()
        [0, 1, 0, 1, 2]

    Edges are symmetrised by union (an edge in either direction is kept in both), repeats are removed, and every
    patch gets one self-loop, so no node is ever without a neighbour.

    Args:
        coords: ``[N, 2]`` patch coordinates (top-left corners or centres, one convention for all), or None for a
            graph over features.
        spec: ``name:number``, see ``mil-zoo graphs``.
        patch_size: step of the patch grid, in the unit of the coordinates (level-0 patch size).
        features: ``[N, D]``, for graphs over features.

    Returns:
        The edges by destination, int32, on the CPU, sources ascending within each row.

    Raises:
        InputError: unknown spec, or a spec whose coordinates, features or patch size are missing.
    """
    builder, numbers = parse_spec(spec)
    given = {"coords": coords, "features": features}[builder.over]
    if given is None:
        raise InputError(f"graph {spec!r} needs {builder.over}, and this bag has none; choose another graph")
    num_nodes = len(given)
    coords = None if coords is None else torch.as_tensor(coords).cpu()
    features = None if features is None else torch.as_tensor(features).detach().cpu()
    available = {"patch_size": patch_size, "features": features}
    wanted = inspect.signature(builder.function).parameters
    try:
        inspect.signature(builder.function).bind(
            coords, *numbers, **{k: v for k, v in available.items() if k in wanted}
        )
    except TypeError as error:
        raise InputError(f"graph {spec!r}: {error}; see mil-zoo graphs") from None
    built = builder.function(coords, *numbers, **{k: v for k, v in available.items() if k in wanted})
    src, dst = built if isinstance(built, tuple) else built.edges()
    return _symmetric_with_self_loops(src.cpu().long(), dst.cpu().long(), num_nodes)


def _symmetric_with_self_loops(src: Tensor, dst: Tensor, num_nodes: int) -> CSR:
    # numpy sorts int64 with vector instructions: torch.unique of the same keys took eight times as long
    num_pairs, ends, starts = len(src), dst.numpy(), src.numpy()
    keys = np.empty(2 * num_pairs + num_nodes, dtype=np.int64)
    for part, row, column in (
        (keys[:num_pairs], ends, starts),
        (keys[num_pairs : 2 * num_pairs], starts, ends),
        (keys[2 * num_pairs :], np.arange(num_nodes), np.arange(num_nodes)),
    ):
        np.multiply(row, num_nodes, out=part)
        part += column
    keys.sort()  # by destination, then source
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first]
    if len(keys) >= 2**31:
        raise InputError(f"{len(keys)} edges in one bag do not fit int32; choose a graph with fewer neighbours")
    rows = np.arange(num_nodes + 1) * num_nodes
    indptr = np.searchsorted(keys, rows).astype(np.int32)
    keys -= np.repeat(rows[:-1], np.diff(indptr))  # a remainder by division takes five times as long
    return CSR(torch.from_numpy(indptr), torch.from_numpy(keys.astype(np.int32)), num_nodes)
