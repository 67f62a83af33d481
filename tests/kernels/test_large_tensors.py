"""Large tensors, which lie in huge pages."""

import pytest
import torch
from kernel_cases import random_csr

from mil_zoo.kernels import graph_attention, graph_sum, memory, segment_attention_pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ops_do_not_depend_on_where_their_results_lie(monkeypatch, dtype):
    graph = random_csr(70, 70)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 2, 9, generator=generator).to(dtype).requires_grad_()
    scores = torch.randn(70, 2, generator=generator).to(dtype)

    def results():
        outs = [
            graph_attention(x, scores, scores, graph),
            graph_sum(x[:, 0], graph),
            segment_attention_pool(scores, x[:, 0], torch.tensor([0, 30, 70]))[0],
        ]
        return [*outs, *(torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in outs)]

    usual = results()
    monkeypatch.setattr(memory, "LARGE", 0)
    for one, other in zip(usual, results(), strict=True):
        assert one.dtype == other.dtype == dtype
        assert one.equal(other)
