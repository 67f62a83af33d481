"""Convolution with one kernel a channel, of an image whose pixels are rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mil_zoo.errors import InputError
from mil_zoo.kernels.backends import choose_backend, lazy
from mil_zoo.kernels.checks import autocast_dtype, check_tensor
from mil_zoo.kernels.ops.depthwise_conv import reference

IMPLEMENTATIONS = {
    "reference": reference.forward,
    "numba": lazy("mil_zoo.kernels.ops.depthwise_conv.numba_cpu"),
}


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shape: tuple[int, int], backend: str = "auto"
) -> Tensor:
    """Convolves every channel of an image with its own kernel; there are zeros around the image.

    The image is taken as tokens are, a row of channels a pixel, row by row. Its gradients take a small part of the time
    that PyTorch's take on a CPU; forward is PyTorch's.

    Args:
        x: ``[height * width, C]`` float.
        weight: ``[C, 1, a, b]``, a and b odd.
        bias: ``[C]``, or None.
        shape: (height, width).
        backend: "auto", "reference" or "numba".

    Returns:
        ``[height * width, C]``; under autocast in its precision, as PyTorch's.

    Raises:
        InputError: shapes or devices that do not fit, an empty image, an even kernel, or a backend that cannot run.
    """
    check_tensor("x", x, (shape[0] * shape[1], None))
    if not x.numel():
        raise InputError(f"x must hold a pixel and a channel, not {list(x.shape)}")
    if (precision := autocast_dtype(x)) is not None:
        bias = None if bias is None else bias.to(precision)
        with torch.autocast(x.device.type, enabled=False):
            return depthwise_conv(x.to(precision), weight.to(precision), bias, shape=shape, backend=backend)
    check_tensor("weight", weight, (x.shape[1], 1, None, None), like=x)
    if bias is not None:
        check_tensor("bias", bias, (x.shape[1],), like=weight)
    if not (weight.shape[2] % 2 and weight.shape[3] % 2):
        raise InputError(f"kernels must be odd, not {weight.shape[2]} x {weight.shape[3]}")
    name = choose_backend("depthwise_conv", IMPLEMENTATIONS, backend, x.device, x.dtype)
    out: Tensor = IMPLEMENTATIONS[name](x, weight, bias, shape)
    return out
