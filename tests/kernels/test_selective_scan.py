"""The selective scan: every backend against the float64 reference, and against values of the authors' own."""

import importlib
import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from helpers import assert_close as assert_golden
from kernel_cases import assert_close, draw, one_config, outputs_and_gradients

from mil_zoo import InputError
from mil_zoo.kernels import selective_scan

TRITON = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ["reference", "numba", "triton"]
OP = "mil_zoo.kernels.ops.selective_scan"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory holds NaN before it is written, and Triton's kernels take one block size each."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    with one_config(0):
        yield
    torch.use_deterministic_algorithms(False)


def make_inputs(length, channels, states, dtype, given=NAMES):
    shapes = {"A": (channels, states), "B": (length, states), "C": (length, states)}
    shapes |= {"D": (channels,), "delta_bias": (channels,)}
    inputs = {
        name: draw(*shapes.get(name, (length, channels)), seed=i).detach()
        for i, name in enumerate(NAMES)
        if name in given
    }
    inputs["A"] = -(inputs["A"].abs() + 0.05)
    if "delta_bias" not in given:  # without softplus steps of time must be positive as they are
        inputs["delta"] = inputs["delta"].abs() + 0.01
    return [tensor.to(dtype).requires_grad_() for tensor in inputs.values()]


def run(backend, given, offsets, softplus=True):
    def function(*tensors):
        device = tensors[0].device
        return selective_scan(
            **dict(zip(given, tensors, strict=True)),
            softplus=softplus,
            offsets=torch.tensor(offsets).to(device),
            backend=backend,
        )

    return lambda *tensors: [function(*tensors)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("sizes", "channels", "states"), [((1,), 3, 2), ((63, 1, 64), 5, 3), ((300, 9), 130, 16)])
@pytest.mark.parametrize("everything", [True, False])
def test_every_backend_is_the_reference(backend, sizes, channels, states, everything, monkeypatch):
    if backend == "triton" and channels == 5:  # the interpreter takes its time
        sizes = (33, 1, 2)
    if backend == "triton" and channels == 130:
        sizes, channels, states = (66, 2), 40, 1
        monkeypatch.setattr(importlib.import_module(f"{OP}.triton_gpu"), "WIDEST", 32)  # two blocks of channels
    given = NAMES if everything else NAMES[:5]
    offsets = [0, *np.cumsum(sizes)]
    inputs = make_inputs(sum(sizes), channels, states, torch.float64, given)
    expected = outputs_and_gradients(run("reference", given, offsets, everything), inputs)
    for dtype in (torch.float32, torch.float64):
        if backend == "triton" and dtype == torch.float64:
            continue
        own = make_inputs(sum(sizes), channels, states, dtype, given)
        if backend == "triton":
            own = [tensor.detach().to(TRITON).requires_grad_() for tensor in own]
        got = outputs_and_gradients(run(backend, given, offsets, everything), own)
        assert_close([tensor.cpu() for tensor in got], expected, dtype)


def test_gradcheck_of_the_reference():
    inputs = make_inputs(7, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(run("reference", NAMES, [0, 3, 7]), inputs)


def test_by_hand():
    u, delta, one = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.5]]), torch.ones(2, 1)
    A = torch.tensor([[-1.0]])
    first = 1.0  # 1 * 1 * 1
    second = np.exp(-0.5) * first + 0.5 * 2
    for backend in ("reference", "numba"):
        y = selective_scan(u, delta, A, one, 3 * one, backend=backend)
        assert_close([y], [torch.tensor([[3 * first], [3 * second]])], torch.float32)
        apart = selective_scan(u, delta, A, one, 3 * one, offsets=torch.tensor([0, 1, 2]), backend=backend)
        assert_close([apart], [torch.tensor([[3.0], [3.0]])], torch.float32)


GOLDEN_CASES = ["L1", "L37", "L37_plain", "L37_noz"]
GOLDEN_RUNS = [
    *product(GOLDEN_CASES, BACKENDS),
    ("L300", "reference"),
    ("L300", "numba"),
]  # Triton's interpreter is slow


def packed(case, file):
    """The case's tensors by name, sequences packed end to end, and their offsets."""
    arrays = {name: torch.from_numpy(file[f"{case}/{name}"]) for name in NAMES if f"{case}/{name}" in file}
    batch, _, length = arrays["u"].shape
    flat = {n: pack(t) if t.ndim == 3 else t for n, t in arrays.items()}
    return flat, torch.arange(batch + 1) * length


def pack(tensor):
    """``[batch, dim, L]`` to ``[batch * L, dim]``."""
    return tensor.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(("case", "backend"), GOLDEN_RUNS)
def test_values_of_the_authors(case, backend):
    with np.load(GOLDEN / "selective_scan.npz") as file:
        tensors, offsets = packed(case, file)
        device = TRITON if backend == "triton" else torch.device("cpu")
        tensors = {name: t.to(device).requires_grad_() for name, t in tensors.items()}
        softplus = bool(file[f"{case}/softplus"])
        y, last = selective_scan(
            **tensors, softplus=softplus, offsets=offsets.to(device), return_last_state=True, backend=backend
        )
        assert not last.requires_grad
        assert_golden(y.cpu(), pack(torch.from_numpy(file[f"{case}/y"])), "y")
        assert_golden(last.cpu(), file[f"{case}/last_state"], "last state")
        (y * pack(torch.from_numpy(file[f"{case}/dy"])).to(device)).sum().backward()
        for name, tensor in tensors.items():
            expected = torch.from_numpy(file[f"{case}/grad_{name}"])
            expected = pack(expected) if expected.ndim == 3 else expected
            if expected.abs().max() == 0:
                assert tensor.grad.abs().max() == 0
            else:
                assert_golden(tensor.grad.cpu(), expected, f"gradient of {name}")


@pytest.mark.parametrize("case", ["L37_groups", "L37_constant"])
def test_coefficients_of_groups_of_channels_and_constant_ones_are_several_calls(case):
    """What the authors' op takes besides: B and C for each group of channels, or for each channel at all times."""
    with np.load(GOLDEN / "selective_scan.npz") as file:
        tensors, offsets = packed(case, file)
        B, C = (torch.from_numpy(file[f"{case}/{name}"]).requires_grad_() for name in "BC")
        channels = tensors["u"].shape[1]
        tensors = {name: t.requires_grad_() for name, t in tensors.items() if name not in "BC"}
        groups = B.shape[1] if B.ndim == 4 else channels
        parts = []
        for group in range(groups):
            some = slice(group * channels // groups, (group + 1) * channels // groups)
            own = {n: t[:, some] if n in ("u", "delta", "z") else t[some] for n, t in tensors.items()}
            b, c = (pack(t[:, group]) if t.ndim == 4 else t[group].expand(len(own["u"]), -1) for t in (B, C))
            parts.append(selective_scan(**own, B=b, C=c, softplus=True, offsets=offsets))
        y = torch.cat(parts, dim=1)
        assert_golden(y, pack(torch.from_numpy(file[f"{case}/y"])), "y")
        (y * pack(torch.from_numpy(file[f"{case}/dy"]))).sum().backward()
        for name, tensor in (tensors | {"B": B, "C": C}).items():
            expected = torch.from_numpy(file[f"{case}/grad_{name}"])
            got = tensor.grad
            assert_golden(got, pack(expected) if expected.ndim == 3 else expected, f"gradient of {name}")


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    threads = importlib.import_module("mil_zoo.kernels._numba.threads")
    monkeypatch.setattr(threads, "GRAIN", 1)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            inputs = make_inputs(700, 130, 4, torch.float32)
            results.append(outputs_and_gradients(run("numba", NAMES, [0, 400, 401, 700]), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_of_rows_times_channels_times_states_is_stored():
    length, channels, states = 4000, 64, 16
    inputs = make_inputs(length, channels, states, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        run("numba", NAMES, [0, length])(*inputs)[0].sum().backward()
    assert max(kept) <= length * channels
    tracemalloc.start()
    try:
        run("numba", NAMES, [0, length])(*inputs)[0].sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * length * channels * states / 2, "arrays of numpy, which backward works in"


def test_large_and_small_steps_of_time_are_finite():
    inputs = make_inputs(200, 4, 3, torch.float32)
    with torch.no_grad():
        inputs[1][::2] = 90.0
        inputs[1][1::2] = -90.0
        inputs[6][::3] = -95.0
    for backend in ("reference", "numba"):
        results = outputs_and_gradients(run(backend, NAMES, [0, 200]), inputs)
        assert all(tensor.isfinite().all() for tensor in results)


def test_half_precision_is_that_of_the_same_numbers():
    inputs = [t.detach().bfloat16() for t in make_inputs(90, 8, 4, torch.float32)]
    for backend in ("numba", "triton"):
        got = run(backend, NAMES, [0, 90])(*[t.to(TRITON if backend == "triton" else "cpu") for t in inputs])[0]
        assert got.dtype == torch.bfloat16
        expected = run("reference", NAMES, [0, 90])(*[t.double() for t in inputs])[0]
        assert (got.cpu().double() - expected).abs().max() < 0.01 * expected.abs().max()


def test_wrong_arguments_are_named():
    u, A, B = torch.ones(5, 3), -torch.ones(3, 2), torch.ones(5, 2)
    for change, message in [
        ({"delta": torch.ones(5, 2)}, r"delta must have shape \[5, 3\]"),
        ({"A": -torch.ones(2, 2)}, r"A must have shape \[3, \*\]"),
        ({"C": torch.ones(5, 3)}, r"C must have shape \[5, 2\]"),
        ({"D": torch.ones(2)}, r"D must have shape \[3\]"),
        ({"z": torch.ones(5, 3).double()}, "z is torch.float64"),
        ({"offsets": torch.tensor([0, 2, 2, 5])}, "bag 1 is empty"),
        ({"offsets": torch.tensor([0, 4])}, "from 0 to 5"),
        ({"backend": "dgl"}, "no 'dgl' backend"),
    ]:
        arguments = {"u": u, "delta": u, "A": A, "B": B, "C": B} | change
        with pytest.raises(InputError, match=message):
            selective_scan(**arguments)
