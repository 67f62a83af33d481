"""Depthwise convolution in plain PyTorch: the oracle."""

from __future__ import annotations

import torch.nn.functional as F


def forward(x, weight, bias, shape):
    """See ``depthwise_conv``."""
    # Channels last, as x lies in memory: four times the speed of channels first.
    image = x.T.view(1, x.shape[1], *shape)
    padding = [size // 2 for size in weight.shape[2:]]
    return F.conv2d(image, weight, bias, padding=padding, groups=x.shape[1])[0].flatten(1).T
