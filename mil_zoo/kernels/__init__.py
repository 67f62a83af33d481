"""Sparse attention and convolution over bags and patch graphs: one public function an op, checked arguments, backends.

``reference`` is plain PyTorch (float64-capable, the oracle), ``dgl`` DGL's message-passing ops, ``numba`` fused CPU
kernels, compiled on first use and kept on disk.
"""

from mil_zoo.kernels.backends import available_backends, backend_status
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.graph_attention import GlobalKey, graph_attention
from mil_zoo.kernels.graph_dot_attention import graph_dot_attention
from mil_zoo.kernels.relational_gather_gemm import RelationalEdges, relational_gather_gemm
from mil_zoo.kernels.segment_attention_pool import segment_attention_pool
from mil_zoo.kernels.segment_reduce import segment_reduce

__all__ = [
    "CSR",
    "GlobalKey",
    "RelationalEdges",
    "available_backends",
    "backend_status",
    "graph_attention",
    "graph_dot_attention",
    "relational_gather_gemm",
    "segment_attention_pool",
    "segment_reduce",
]
