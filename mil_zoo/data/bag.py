"""Bags of instances, and batches of bags packed end to end."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.graph import BagGraph, build_csr, parse_spec
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.devices import to_device


@dataclass(eq=False, kw_only=True)
class Bag:
    """One slide: a feature row for each patch.

    Arrays may be given as numpy arrays or tensors; they are kept as CPU or device tensors.

    Attributes:
        features: float ``[N, D]``, N >= 1, all finite.
        coords: float ``[N, 2]`` (x, y), or None.
        patch_size: step of the patch grid in the unit of the coordinates (level-0 patch size), or None.
        label: class index, or None where unknown.
        target: float64 ``[T]``, what the task reads (of any shape of T numbers); None where it is the label alone.
        instance_labels: int ``[N]`` (1 positive, 0 negative, -1 unknown), or None.
        slide_id: names the bag in every message and result.
        patient_id: the patient, or None where unknown; splits never separate the slides of a patient.
        unit: of the coordinates: "px" (level-0 pixels), "um" (micrometres) or "tile" (columns and rows of a grid).
        layout: the layout that the bag was read from; empty for one that was made otherwise.
        geometry: where ``patch_size`` comes from, in words.
        is_part: whether it holds some instances of a slide only (:meth:`subset`): these need not touch in a graph.
        graphs: the graphs built so far, by spec. They belong to this bag: one that is made from it begins without any,
            and :meth:`changed` alone takes along those that still hold.

    Raises:
        InputError: an empty bag, non-finite features, or arrays whose lengths differ.
    """

    features: Tensor
    coords: Tensor | None = None
    patch_size: float | None = None
    label: int | None = None
    target: Tensor | None = None
    instance_labels: Tensor | None = None
    slide_id: str = ""
    patient_id: str | None = None
    unit: Literal["px", "um", "tile"] = "px"
    layout: str = ""
    geometry: str = ""
    is_part: bool = False
    graphs: MutableMapping[str, CSR] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        name = f"slide {self.slide_id!r}"
        features = self._numbers("features", self.features)
        self.features = features if features.is_floating_point() else features.float()
        if self.features.ndim != 2:
            raise InputError(f"{name}: features must be [patches, dimensions], not {tuple(self.features.shape)}")
        if len(self.features) == 0:
            raise InputError(f"{name}: the bag is empty; drop the slide or check its tissue segmentation")
        if not self.features.sum(dtype=torch.float32).isfinite():
            finite = self.features.isfinite().all(1)
            if not finite.all():
                row = int((~finite).nonzero()[0])
                raise InputError(
                    f"{name}: features are NaN or infinite in {int((~finite).sum())} of {len(finite)} patches "
                    f"(first: patch {row}); extract them again or drop these patches"
                )
        if self.target is not None:
            self.target = self._numbers("target", self.target).double().reshape(-1)
        if self.coords is not None:
            self.coords = self._column("coords", self._numbers("coords", self.coords).float(), (len(features), 2))
            if not self.coords.isfinite().all():
                raise InputError(f"{name}: coords hold NaN or infinite values; write them again")
        if self.instance_labels is not None:
            labels = self._column(
                "instance_labels", self._numbers("instance_labels", self.instance_labels), (len(features),)
            )
            odd = labels[(labels != 0) & (labels != 1) & (labels != -1)]
            if len(odd):
                raise InputError(
                    f"{name}: instance_labels hold {odd[0].item()} where 0 (negative), 1 (positive) or -1 (unknown) "
                    f"belongs, in {len(odd)} of {len(labels)} patches; a mask of 0 and 255 is to be divided by 255"
                )
            self.instance_labels = labels.long()
        if self.patch_size is not None and not _is_positive(self.patch_size):
            raise InputError(f"{name}: patch_size must be positive, and one number, not {self.patch_size!r:.60}")

    def _numbers(self, what: str, values: Any) -> Tensor:
        try:
            tensor = as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"slide {self.slide_id!r}: {what} are no numbers that an array holds but {values!r:.60}; give a "
                "tensor, an array or a list"
            ) from error
        if tensor.is_complex():
            raise InputError(f"slide {self.slide_id!r}: {what} are complex numbers; give real ones")
        return tensor

    def _column(self, what: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(values.shape) != shape:
            raise InputError(
                f"slide {self.slide_id!r}: {what} have shape {tuple(values.shape)} where {shape} was expected, "
                f"one row for each of the {shape[0]} feature rows"
            )
        return values

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        """What it is of, on one line: thousands of coordinates would bury it."""
        step = "" if self.patch_size is None else f", patch_size {self.patch_size:g} {self.unit}"
        where = "no coords" if self.coords is None else f"coords{step}"
        given = f"label {self.label}" if self.target is None else f"target {self.target.tolist()}"
        return f"Bag({self.slide_id!r}, {len(self):,} instances of {self.features.shape[1]} features, {where}, {given})"

    def graph(self, spec: str) -> CSR:
        """The bag's graph by ``spec``, built at the first call and kept (with self-loops, symmetric, on the CPU)."""
        if spec not in self.graphs:
            try:
                csr = build_csr(self.coords, spec, patch_size=self.patch_size, features=self.features)
            except InputError as error:
                raise InputError(f"slide {self.slide_id!r}: {error}") from error
            alone = csr.num_edges == len(self)  # self-loops only
            if alone and len(self) > 1 and self.coords is not None and not self.is_part:
                raise InputError(
                    f"slide {self.slide_id!r}: no patch has a neighbour in the graph {spec!r}; patch_size "
                    f"({self.patch_size} {self.unit}, {self.geometry or 'as given'}) is not the step of these "
                    "coordinates, or they are in another unit: correct one of the two"
                )
            self.graphs[spec] = csr
        return self.graphs[spec]

    def changed(self, **fields: Any) -> Bag:
        """The bag with other ``fields``, and the graphs that do not depend on them (shared where none does)."""
        bag = replace(self, **fields)
        stale = {over for over, made_from in _GRAPH_INPUTS.items() if not made_from.isdisjoint(fields)}
        if stale:
            bag.graphs = {spec: csr for spec, csr in self.graphs.items() if parse_spec(spec)[0].over not in stale}
        else:
            bag.graphs = self.graphs
        return bag

    def subset(self, rows: Tensor) -> Bag:
        """The slide with the instances ``rows`` alone (bool ``[N]`` or int64)."""

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return replace(
            self,
            features=self.features[rows],
            coords=take(self.coords),
            instance_labels=take(self.instance_labels),
            is_part=True,
        )

    def with_features(self, features: Tensor) -> Bag:
        """The same slide with other features; graphs over coordinates are kept, graphs over features are not."""
        return self.changed(features=features)


# What the graphs over coordinates and over features are made from.
_GRAPH_INPUTS = {"coords": {"coords", "patch_size"}, "features": {"features"}}


@dataclass(eq=False, kw_only=True)
class BagBatch:
    """Several bags packed end to end: no padding anywhere.

    Attributes:
        features: float ``[ΣN, D]``.
        offsets: int64 ``[B + 1]``; bag b is rows ``offsets[b]:offsets[b + 1]``.
        labels: int64 ``[B]``, or None unless every bag has one.
        targets: ``[B, T]``, float32, or int64 where they are the labels; None unless every bag has one.
        weights: float ``[B]`` of each bag's loss, or None for one each.
        coords: float ``[ΣN, 2]``, or None unless every bag has them.
        patch_sizes: float ``[B]``, or None unless every bag has one.
        graph: the batched graph, or None.
        slide_ids: one a bag.
        lengths: instances of each bag as numbers of the host, so that no step waits for a device to tell them; read
            from ``offsets`` where they are not given.
    """

    features: Tensor
    offsets: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    coords: Tensor | None = None
    patch_sizes: Tensor | None = None
    graph: BagGraph | None = None
    slide_ids: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths:
            self.lengths = tuple(self.offsets.diff().tolist())

    @classmethod
    def from_bags(cls, bags: Sequence[Bag], graph: str | None = None) -> BagBatch:
        """Packs ``bags``; with a graph spec, their (cached) graphs too.

        Raises:
            InputError: no bags, or bags of different feature dimension.
        """
        if isinstance(bags, Bag | str) or not isinstance(bags, Sequence):
            raise InputError(f"a list of bags is needed, not {bags!r:.60}")
        if not bags:
            raise InputError("a batch needs at least one bag")
        for number, bag in enumerate(bags):
            if not isinstance(bag, Bag):
                raise InputError(f"a list of bags is needed, and number {number} is of the type {type(bag).__name__}")
            if bag.features.shape[1] != bags[0].features.shape[1]:
                raise InputError(
                    f"slide {bag.slide_id!r} has {bag.features.shape[1]} features a patch and slide "
                    f"{bags[0].slide_id!r} {bags[0].features.shape[1]}; use one encoder for all"
                )
        device = bags[0].features.device
        labels = _column([bag.label for bag in bags], torch.int64, device)
        lengths = tuple(len(bag) for bag in bags)
        return cls(
            features=_cat([bag.features for bag in bags]),
            offsets=torch.tensor([0, *accumulate(lengths)], device=device),
            labels=labels,
            targets=_targets(bags, labels),
            coords=_cat([bag.coords for bag in bags]),
            patch_sizes=_column([bag.patch_size for bag in bags], torch.float32, device),
            graph=None if graph is None else BagGraph.batch([bag.graph(graph) for bag in bags]).to(device),
            slide_ids=tuple(bag.slide_id for bag in bags),
            lengths=lengths,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_instances(self) -> int:
        """Instances of all bags together, ΣN."""
        return len(self.features)

    @cached_property
    def sizes(self) -> Tensor:
        """int64 ``[B]``: instances of each bag."""
        return self.offsets.diff()

    @cached_property
    def bag_index(self) -> Tensor:
        """int64 ``[ΣN]``: the bag of every instance."""
        bags = torch.arange(len(self), device=self.offsets.device)
        return torch.repeat_interleave(bags, self.sizes, output_size=self.num_instances)

    def to(self, device: torch.device | str) -> BagBatch:
        """The batch with every tensor on ``device``; itself if it is there already.

        The DGLGraph, where one is made, stays on the CPU.
        """
        device = torch.device(device)
        tensors = self.features, self.offsets, self.labels, self.targets, self.weights, self.coords, self.patch_sizes
        if all(tensor is None or tensor.device == device for tensor in tensors) and (
            self.graph is None or self.graph.csr.indptr.device == device
        ):
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else to_device(tensor, device)

        return replace(
            self,
            features=to_device(self.features, device),
            offsets=to_device(self.offsets, device),
            labels=move(self.labels),
            targets=move(self.targets),
            weights=move(self.weights),
            coords=move(self.coords),
            patch_sizes=move(self.patch_sizes),
            graph=None if self.graph is None else self.graph.to(device),
        )


def _is_positive(size: Any) -> bool:
    try:
        return not isinstance(size, str | bytes) and 0 < float(size) < math.inf
    except (TypeError, ValueError, RuntimeError):  # several numbers, or none
        return False


def as_tensor(values: Any) -> Tensor:
    """A tensor of ``values`` (tensor, array, list), also of arrays as files and users have them.

    Arrays of byte orders and number types that torch lacks (big-endian, longdouble, uint16), or with negative strides,
    are copied; a tensor, or an array that torch reads, is not.
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    native = array.dtype.newbyteorder("=")
    if native == np.longdouble:
        native = np.dtype(np.float64)
    elif native.kind == "u" and native.itemsize > 1:
        native = np.dtype(np.int64)
    readable = native == array.dtype and all(stride >= 0 for stride in array.strides)
    return torch.as_tensor(array if readable else np.array(array, dtype=native, order="C"))


def _cat(parts: Sequence[Tensor | None]) -> Any:
    if any(part is None for part in parts):
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # type: ignore[arg-type]


def _targets(bags: Sequence[Bag], labels: Tensor | None) -> Tensor | None:
    """Targets ``[B, T]`` of bags; their labels where no bag states one."""
    if all(bag.target is None for bag in bags):
        return None if labels is None else labels[:, None]
    if any(bag.target is None for bag in bags):
        return None
    widths = {len(bag.target) for bag in bags if bag.target is not None}
    if len(widths) > 1:
        raise InputError(
            f"the targets of a batch hold {' and '.join(map(str, sorted(widths)))} numbers; give all alike"
        )
    return torch.stack([bag.target for bag in bags]).float().to(bags[0].features.device)  # type: ignore[misc]


def _column(values: Sequence[float | None], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=dtype, device=device)
