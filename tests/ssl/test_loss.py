"""NT-Xent against its definition."""

import pytest
import torch
import torch.nn.functional as F

from mil_zoo import InputError
from mil_zoo.ssl import nt_xent


def test_it_is_the_definition():
    a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = F.normalize(torch.cat([a, b]), dim=1)
    total = 0.0
    for i in range(10):
        similar = [torch.exp(views[i] @ views[k] / 0.1) for k in range(10)]
        total -= torch.log(similar[(i + 5) % 10] / sum(s for k, s in enumerate(similar) if k != i))
    torch.testing.assert_close(nt_xent(a, b, 0.1), total / 10)


def test_wrong_input():
    a = torch.randn(3, 4)
    with pytest.raises(InputError, match="needs two of them in a batch, not 1"):
        nt_xent(a[:1], a[:1])
    with pytest.raises(InputError, match="two views"):
        nt_xent(a, a[:2])
    with pytest.raises(InputError, match="must be positive"):
        nt_xent(a, a, 0)
