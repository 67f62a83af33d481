"""Trained aggregators as ONNX models of one bag, checked against torch before they are handed over."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mil_zoo.data.bag import BagBatch
from mil_zoo.errors import InputError, as_path
from mil_zoo.files import replacing, writing

if TYPE_CHECKING:
    from mil_zoo.aggregators.base import Aggregator
    from mil_zoo.fitted.model import Fitted

SIZES = (40, 23, 64)  # instances of the bag that is traced, and of those that the model is checked on
NEEDED = "ONNX export needs packages that are not installed ({}); install them with: pip install 'mil-zoo[onnx]'"


def export_onnx(fitted: Fitted, path: Path | str, tolerance: float = 1e-5) -> Path:
    """Writes a trained aggregator as an ONNX model that takes one bag of any size.

    Input "features", float32 ``[N, D]``, and for an aggregator that reads them "coords", float32 ``[N, 2]``. Outputs
    "prediction" ``[1, P]``, the columns of the task, "logits" ``[1, C]``, and "attention" ``[N]`` or ``[N, C]`` of an
    aggregator that has one. Features are scaled within, where the aggregator was trained on scaled ones. The ops are
    traced in plain PyTorch (the ``reference`` backend), and the model that comes of it is run by onnxruntime on bags of
    other sizes.

    Args:
        fitted: without a graph.
        path: of the ``.onnx`` file.
        tolerance: largest difference from torch, relative to the largest entry of an output.

    Returns:
        The path.

    Raises:
        InputError: packages are missing, the aggregator needs a graph or says in ``not_in_onnx`` that it cannot be
            exported, an op of it cannot be traced, or the model differs from torch. No file is written then.

    Example:
        >>> fitted = mil_zoo.load("my_model")
        >>> mil_zoo.export_onnx(fitted, "my_model.onnx")
        >>> onnxruntime.InferenceSession("my_model.onnx").run(None, {"features": features})
    """
    path = as_path(path, "path", "of the .onnx file")
    if not hasattr(fitted, "aggregator"):
        raise InputError(f"fitted is what mil_zoo.fit or mil_zoo.load returned, not {fitted!r:.60}")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not _installed(name)]
    if missing:
        raise InputError(NEEDED.format(", ".join(missing)))
    if fitted.graph is not None:
        raise InputError(
            f"{fitted.name} needs the graph of a slide's patches ({fitted.graph}), which an ONNX model cannot build; "
            "use Fitted.predict, or an aggregator without a graph"
        )
    if why := fitted.aggregator.not_in_onnx:
        raise InputError(f"{fitted.name} cannot be exported to ONNX: {why}; use Fitted.predict, or another aggregator")
    aggregator = fitted.aggregator
    was_training, device = aggregator.training, next(aggregator.parameters()).device
    aggregator.cpu().eval()
    try:
        bag = _OneBag(fitted).eval()
        content = _traced(bag, fitted.name)
        _check(bag, content, fitted.name, tolerance)
    finally:
        aggregator.to(device).train(was_training)
    with writing(path), replacing(path) as partial:
        partial.write_bytes(content)
    return path


class _OneBag(nn.Module):
    """The aggregator as a function of the features, and perhaps the coordinates, of one bag."""

    mean: Tensor
    scale: Tensor
    axes: Tensor

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.aggregator: Aggregator = fitted.aggregator
        tensors = {} if fitted.standardiser is None else fitted.standardiser.tensors()
        self.scaled, self.projected = "mean" in tensors, "axes" in tensors
        self.dim = len(tensors["mean"]) if self.scaled else self.aggregator.in_dim
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.with_coords = _reads_coords(self.aggregator)
        self.with_attention = self(*self.example(SIZES[0]))[2:] != ()

    @property
    def inputs(self) -> list[str]:
        return ["features", "coords"] if self.with_coords else ["features"]

    @property
    def outputs(self) -> list[str]:
        return ["prediction", "logits"] + ["attention"] * self.with_attention

    def example(self, size: int) -> tuple[Tensor, ...]:
        """A random bag on a grid."""
        draws = np.random.default_rng(size)
        features = torch.from_numpy(draws.normal(size=(size, self.dim)).astype(np.float32))
        side = int(np.ceil(np.sqrt(1.25 * size)))
        places = draws.choice(side * side, size, replace=False)
        coords = torch.from_numpy(np.stack([places % side, places // side], axis=1).astype(np.float32) * 256)
        return (features, coords) if self.with_coords else (features,)

    def forward(self, features: Tensor, coords: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.scaled:
            features = (features - self.mean) / self.scale
            features = (features @ self.axes if self.projected else features).float()
        size = features.shape[0]
        offsets = torch.arange(2, device=features.device) * size
        batch = BagBatch(features=features, offsets=offsets, coords=coords, lengths=(size,))
        # Cached properties hold a lock, which the tracer does not know: what they compute is put in their place.
        batch.sizes, batch.bag_index = offsets.diff(), offsets.new_zeros(size)
        output = self.aggregator(batch)
        attention = () if output.attention is None else (output.attention,)
        return (self.aggregator.predict(output.logits), output.logits, *attention)


def _reads_coords(aggregator: Aggregator) -> bool:
    """Whether an aggregator without a graph asks for coordinates."""
    size = SIZES[0]
    features = torch.zeros(size, aggregator.in_dim)
    try:
        with torch.no_grad():
            aggregator(BagBatch(features=features, offsets=torch.tensor([0, size]), lengths=(size,)))
    except InputError:
        return True
    return False


def _traced(bag: _OneBag, name: str) -> bytes:
    """The ONNX model as bytes."""
    length = torch.export.Dim("instances", min=2)
    shapes = ({0: length},) * len(bag.inputs)
    try:
        with _quiet(), torch.no_grad():
            traced = torch.export.export(bag, bag.example(SIZES[0]), dynamic_shapes=shapes, strict=True)
            _without_repeats(traced.graph)
            program = torch.onnx.export(
                traced,
                input_names=bag.inputs,
                output_names=bag.outputs,
                dynamo=True,
                external_data=False,
                optimize=True,
            )
            assert program is not None
            model: Any = program.model_proto
    except Exception as error:  # whatever torch's tracer says of an op or a size
        raise InputError(
            f"{name} cannot be exported to ONNX: torch cannot trace it for bags of any size ({_root(error)}); use "
            "Fitted.predict, or another aggregator"
        ) from error
    return bytes(model.SerializeToString())


def _root(error: BaseException) -> str:
    """What was wrong first, in the first line that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _without_repeats(graph: torch.fx.Graph) -> None:
    """Puts ``expand`` where ``repeat_interleave`` repeats the only bag, which ONNX has no op for."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.repeat_interleave.self_Tensor):
        value, size = node.args[0], node.kwargs.get("output_size")
        if value.meta["val"].shape != (1,) or size is None:
            raise NotImplementedError("repeat_interleave of more than one bag")
        with graph.inserting_before(node):
            repeated = graph.call_function(torch.ops.aten.expand.default, (value, [size]))
        repeated.meta = dict(node.meta)
        node.replace_all_uses_with(repeated)
        graph.erase_node(node)


def _check(bag: _OneBag, content: bytes, name: str, tolerance: float) -> None:
    """Raises an ``InputError`` where onnxruntime computes something else than torch on bags of other sizes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for size in SIZES:
            given = bag.example(size)
            found = session.run(None, {key: value.numpy() for key, value in zip(bag.inputs, given, strict=True)})
            with torch.no_grad():
                expected = bag(*given)
            for output, one, other in zip(bag.outputs, expected, found, strict=True):
                values = one.double().numpy()
                scale = max(float(np.abs(values).max()), 1e-12)
                if values.shape != other.shape or (error := float(np.abs(values - other).max()) / scale) > tolerance:
                    what = f"by {error:.1g}" if values.shape == other.shape else f"in shape, {other.shape}"
                    raise InputError(
                        f"{name} cannot be exported to ONNX: {output} of a bag of {size} instances differs from torch "
                        f"{what}; use Fitted.predict, or another aggregator"
                    )
    except InputError:
        raise
    except Exception as error:  # onnxruntime has an exception of its own for each of its refusals
        raise InputError(f"{name} cannot be exported to ONNX: onnxruntime refuses the model ({error})") from error


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what the exporter prints and logs of its steps."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        aside = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
