"""Inputs, gradients and the tolerance that the tests of the kernels share."""

import functools
import importlib
from contextlib import contextmanager

import torch

from mil_zoo.kernels import CSR


@functools.cache
def random_csr(num_src, num_dst, seed=0, degree=6):
    """Random edges with repeats, isolated destinations, and (over 60 rows) one hub that all sources point at.

    The same graph again for the same arguments, with what was derived from it.
    """
    generator = torch.Generator().manual_seed(seed)
    count = degree * num_dst
    src = torch.randint(num_src, (count,), generator=generator)
    dst = torch.randint(max(1, num_dst - 3), (count,), generator=generator)
    if num_dst > 60:
        src, dst = torch.cat([src, torch.arange(num_src)]), torch.cat([dst, torch.full((num_src,), 5)])
    return CSR.from_edges(src, dst, num_src, num_dst)


def draw(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def outputs_and_gradients(function, inputs):
    outputs = [output for output in function(*inputs) if output is not None]
    weights = [draw(*x.shape, seed=100 + i, dtype=x.dtype).detach().to(x.device) for i, x in enumerate(outputs)]
    sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    return [output.detach() for output in outputs] + [tensor.grad for tensor in inputs]


def assert_close(got, expected, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        # Relative to the largest entry, or to 1 (the scale of the inputs) where a gradient cancels to nothing.
        error = (a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1)
        assert error < tolerance, f"tensor {i} differs by {error:.2g}"


@contextmanager
def one_config(choice):
    """Kernels run with one of their block sizes, the ``choice``-th or so of each, and are not tuned."""
    autotuner = importlib.import_module("triton").runtime.Autotuner
    tune = autotuner._bench
    autotuner._bench = lambda self, *args, config, **meta: (self.configs.index(config) - choice) % len(self.configs)
    try:
        yield
    finally:
        autotuner._bench = tune
