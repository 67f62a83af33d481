"""Training steps as CUDA graphs: on a GPU a step of a shape that was seen before is handed over in one call.

Handing over the hundreds of small kernels of a step takes longer than running them: with ten thousand patches a GPU
still waits for Python. A CUDA graph holds them all. Its sizes are fixed, and slides keep theirs: the second time that a
batch of some shape comes, its step is recorded, and from then on replayed with the values of the batch at hand. What a
step draws at random is drawn anew for each replay (``mil_zoo.kernels.draws``), in the order in which the step itself
would, so that a replayed training gives the numbers of one that is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mil_zoo.aggregators.base import Aggregator
from mil_zoo.data.bag import BagBatch
from mil_zoo.graph import BagGraph
from mil_zoo.kernels.csr import CSR, Transposed
from mil_zoo.kernels.draws import Draws

ROOM = 0.25  # share of the GPU's memory that must be free for one more recording

Pass = Callable[[BagBatch], dict[str, Tensor]]


@dataclass
class _Recording:
    """One recorded step.

    Attributes:
        graph: of forward, backward and the copies of gradients and losses to where they are read.
        inputs: where the graph reads its batch.
        draws: where it reads what is drawn.
        losses: their names; ``values`` holds them after a replay.
        with_gradient: the parameters that have one.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    draws: Draws
    losses: list[str]
    values: Tensor
    with_gradient: list[torch.nn.Parameter]


class Replays:
    """Losses and gradients of training steps, of shapes that come again by replay.

    An aggregator is ``replayable`` whose step does the same work for all bags of the same sizes, at every time of the
    training: no value is read by the host, nothing is kept by it, and what it draws or makes goes through
    ``mil_zoo.kernels.draws``.

    Args:
        aggregator: on a GPU, and :meth:`serve` it.
        run: gives the detached losses of a batch, and leaves gradients in the parameters.
    """

    @staticmethod
    def serve(aggregator: Aggregator, device: str) -> bool:
        """Whether steps of ``aggregator`` may be replayed: its own class says so, for a subclass may do anything."""
        return torch.device(device).type == "cuda" and bool(vars(type(aggregator)).get("replayable"))

    def __init__(self, aggregator: Aggregator, run: Pass) -> None:
        self.aggregator, self.run = aggregator, run
        self.device = next(aggregator.parameters()).device
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()  # one for all: they never run at the same time
        self.noted: dict[Any, Draws] = {}
        self.recorded: dict[Any, _Recording] = {}
        self.buffers: dict[Any, Tensor] = {}
        self.gradients: dict[torch.nn.Parameter, Tensor] = {}
        self.bare = False  # whether steps ask for the graph without self-loops
        self.refused = False

    def __call__(self, batch: BagBatch) -> dict[str, Tensor]:
        """The losses of ``batch``; the gradients lie in the parameters until the next call."""
        tensors, key = _tensors(batch, self.bare)
        if key is None:
            return self.run(batch)
        recording = self.recorded.get(key)
        if recording is None and key in self.noted and self._may_record():
            recording = self._record(key, batch, tensors)
        if recording is None:
            draws = self.noted.setdefault(key, Draws(self.device))
            with self._apart(), draws.noting():
                losses = self.run(batch)
            self.bare |= batch.graph is not None and "without_self_loops" in vars(batch.graph.csr)
            return losses
        torch._foreach_copy_(recording.inputs, list(tensors.values()))
        recording.draws.again()
        recording.graph.replay()
        for parameter in recording.with_gradient:
            parameter.grad = self.gradients[parameter]
        return dict(zip(recording.losses, recording.values.unbind(), strict=True))

    def _may_record(self) -> bool:
        free, total = torch.cuda.mem_get_info(self.device)
        return not self.refused and free > ROOM * total

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """On a stream of its own: gradients of parameters keep to the stream that they were first computed on."""
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            yield
        present.wait_stream(self.stream)

    def _record(self, key: Any, batch: BagBatch, tensors: dict[str, Tensor]) -> _Recording | None:
        """Records the step of ``batch`` without running it; None, and never again, where it cannot be recorded."""
        draws = self.noted[key]
        draws.make_places()
        parameters = [p for p in self.aggregator.parameters() if p.requires_grad]
        inputs = [self._place(name, tensor) for name, tensor in tensors.items()]
        values = torch.zeros(64, device=self.device)
        for parameter in parameters:
            self.gradients.setdefault(parameter, torch.zeros_like(parameter))
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        try:
            with self._apart(), _captured(graph, self.pool), draws.recording():
                losses = self.run(_batch_of(dict(zip(tensors, inputs, strict=True)), batch))
                computed = {p: p.grad for p in parameters if p.grad is not None}
                torch._foreach_copy_([self.gradients[p] for p in computed], list(computed.values()))
                values[: len(losses)].copy_(torch.stack([value.float() for value in losses.values()]))
        except RuntimeError as error:
            self.refused = True
            name = type(self.aggregator).__name__
            first = (str(error).splitlines() or [""])[0]
            warnings.warn(f"training steps of {name} are not replayed as CUDA graphs: {first}", stacklevel=2)
            return None
        finally:
            for parameter in parameters:
                parameter.grad = None
        recording = _Recording(graph, inputs, draws, list(losses), values[: len(losses)], list(computed))
        self.recorded[key] = recording
        return recording

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        """Where the graphs read a tensor: all of them at the beginning of one buffer, which a larger one replaces."""
        key = name, tensor.dtype
        if key not in self.buffers or self.buffers[key].numel() < tensor.numel():
            size = tensor.numel() + tensor.numel() // 4  # recordings keep the buffers that they read
            self.buffers[key] = torch.zeros(size, dtype=tensor.dtype, device=self.device)
        return self.buffers[key][: tensor.numel()].view(tensor.shape)


@contextmanager
def _captured(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    # Thread-local: another thread allocates pinned memory for the next batch meanwhile.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # says that something failed before
            graph.capture_end()
        raise
    graph.capture_end()


def _tensors(batch: BagBatch, bare: bool = False) -> tuple[dict[str, Tensor], Any]:
    """The tensors that a step of ``batch`` reads, by name, and what is equal of batches that one recording serves.

    That is None for graphs with long rows, whose pieces have sizes of their own. With ``bare`` the graph without
    self-loops is among what is read.
    """
    tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
    sizes: tuple[Any, ...] = (batch.lengths,)
    if batch.graph is not None:
        sizes += batch.graph.num_nodes, batch.graph.num_edges
        whole = batch.graph.csr
        for name, csr in ({"graph": whole} | ({"bare graph": whole.without_self_loops} if bare else {})).items():
            back = csr.transposed
            if csr.long_rows is not None or back.long_rows is not None:
                return tensors, None
            tensors |= {f"{name}.indptr": csr.indptr, f"{name}.indices": csr.indices, f"{name}.edge": back.edge}
            if back.indices is not csr.indices:
                tensors |= {f"{name}.back.indptr": back.indptr, f"{name}.back.indices": back.indices}
            sizes += (csr.num_src,)
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
    return tensors, (sizes, shapes)


def _batch_of(tensors: dict[str, Tensor], like: BagBatch) -> BagBatch:
    """The batch whose tensors, by the names of :func:`_tensors`, are these; what is the host's is that of ``like``."""
    graph = like.graph
    if graph is not None:
        csr = _graph_of("graph", tensors, graph.csr.num_src)
        if "bare graph.indptr" in tensors:
            csr = replace(csr, bare=_graph_of("bare graph", tensors, graph.csr.num_src))
        graph = BagGraph(csr, graph.num_nodes, graph.num_edges)
    own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
    return replace(like, graph=graph, slide_ids=(), **own)


def _graph_of(name: str, tensors: dict[str, Tensor], num_src: int) -> CSR:
    indptr, indices = tensors[f"{name}.indptr"], tensors[f"{name}.indices"]
    back_indptr, back_indices = (tensors.get(f"{name}.back.{part}") for part in ("indptr", "indices"))
    back = Transposed(
        indptr if back_indptr is None else back_indptr,
        indices if back_indices is None else back_indices,
        tensors[f"{name}.edge"],
        short=True,
    )
    return CSR(indptr, indices, num_src, stored=back, checked=True)
