"""Selective scan on a CPU: the autograd function of the kernels in ``numba_kernels``."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from mil_zoo.kernels._numba.jit import array, array_or_empty
from mil_zoo.kernels._numba.storage import computed, stored
from mil_zoo.kernels._numba.threads import blocks
from mil_zoo.kernels.memory import empty
from mil_zoo.kernels.ops.selective_scan import numba_kernels as kernels

LARGE = ("u", "delta", "z")  # what has a number for each instance and channel


def forward(inputs, softplus, offsets):
    """See ``selective_scan``.

    u, delta, z, y and their gradients are read and written as they are, but float16, which is converted to float32 and
    back; other tensors and what is computed are float32 or float64.
    """
    dtype, tensors = computed(inputs.u), inputs._asdict().items()
    converted = [t if t is None else stored(t) if name in LARGE else t.to(dtype) for name, t in tensors]
    y, last = _SelectiveScan.apply(*converted, softplus, offsets.numpy().astype(np.int64))
    return y.to(inputs.u.dtype), last.to(inputs.u.dtype)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        *tensors, softplus, offsets = arguments
        u, A = tensors[0], tensors[2]
        tasks = _tasks(offsets, u.shape[1])
        states = empty(A, tasks.chunks[-1], A.shape[1], u.shape[1])
        last, y = A.new_empty(len(offsets) - 1, *A.shape), empty(u, *u.shape)
        results = states.numpy(), last.numpy(), array(y)
        kernels.forward(_bounds(tasks, A.shape[1]), tasks, _arrays(tensors), softplus, results)
        ctx.save_for_backward(*tensors, states)
        ctx.settings = softplus, tasks
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        *tensors, states = ctx.saved_tensors
        softplus, tasks = ctx.settings
        inputs = _arrays(tensors)
        bags, (length, channels), count = len(tasks.offsets) - 1, inputs.u.shape, len(inputs.A)
        like, given = inputs.A.dtype, dict(zip(kernels.Arrays._fields, tensors, strict=True))
        found = {name: None if given[name] is None else empty(given[name], length, channels) for name in LARGE}
        gradients = kernels.Gradients(
            u=array(found["u"]),
            delta=array(found["delta"]),
            A=np.empty((bags, count, channels), like),
            B=np.empty((tasks.stripes, length, count), like),
            C=np.empty((tasks.stripes, length, count), like),
            D=np.empty((bags, channels), like),
            z=array_or_empty(found["z"], inputs.z, 0, channels),
            delta_bias=np.empty((bags, channels), like),
        )
        kernels.backward(_bounds(tasks, 3 * count), tasks, inputs, softplus, (states.numpy(), array(grad)), gradients)
        for name in ("A", "B", "C", "D", "delta_bias"):
            found[name] = torch.from_numpy(getattr(gradients, name)).sum(0)
        found["A"] = found["A"].T
        return *[None if given[name] is None else found[name] for name in kernels.Arrays._fields], None, None


def _arrays(tensors):
    u, delta, A, B, C, D, z, delta_bias = tensors
    u_, A_ = array(u), array(A.T)
    zeros = np.zeros(u.shape[1], A_.dtype)
    return kernels.Arrays(
        u=u_,
        delta=array(delta),
        A=A_,
        B=array(B),
        C=array(C),
        D=zeros if D is None else array(D),
        z=array_or_empty(z, u_, 0, u.shape[1]),
        delta_bias=zeros if delta_bias is None else array(delta_bias),
    )


def _tasks(offsets, channels):
    chunks = np.concatenate([[0], np.cumsum(-(-np.diff(offsets) // kernels.CHUNK))])
    return kernels.Tasks(offsets, chunks, -(-channels // kernels.STRIPE))


def _bounds(tasks, states):
    """Blocks of tasks of about equal work; also sets the number of threads."""
    sizes = np.repeat(np.diff(tasks.offsets), tasks.stripes)
    return blocks(np.concatenate([[0], np.cumsum(sizes)]), 8 * kernels.STRIPE * states)
