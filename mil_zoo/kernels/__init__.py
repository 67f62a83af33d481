"""Sparse attention and convolution over bags and patch graphs: one public function an op, checked arguments, backends.

``reference`` is plain PyTorch (float64-capable, the oracle), ``onednn`` its second library of matrix products, ``dgl``
DGL's message-passing ops, ``numba`` fused CPU kernels, compiled on first use and kept on disk, ``triton`` fused CUDA
kernels, compiled and tuned on first use.
"""

from mil_zoo.kernels.backends import available_backends, backend_status
from mil_zoo.kernels.csr import CSR
from mil_zoo.kernels.ops.bmm import bmm
from mil_zoo.kernels.ops.dense_attention import dense_attention
from mil_zoo.kernels.ops.depthwise_conv import depthwise_conv
from mil_zoo.kernels.ops.dropout_linear import dropout_linear
from mil_zoo.kernels.ops.gated_scores import gated_scores
from mil_zoo.kernels.ops.graph_attention import GlobalKey, graph_attention
from mil_zoo.kernels.ops.graph_dot_attention import graph_dot_attention
from mil_zoo.kernels.ops.graph_softmax_sum import graph_softmax_sum
from mil_zoo.kernels.ops.graph_sum import graph_sum
from mil_zoo.kernels.ops.linear import linear
from mil_zoo.kernels.ops.relational_gather_gemm import RelationalEdges, relational_gather_gemm
from mil_zoo.kernels.ops.residual_norm_prelu import residual_norm_prelu
from mil_zoo.kernels.ops.seeded_dropout import seeded_dropout
from mil_zoo.kernels.ops.segment_attention_pool import segment_attention_pool
from mil_zoo.kernels.ops.segment_reduce import segment_reduce
from mil_zoo.kernels.ops.selective_scan import selective_scan

__all__ = [
    "CSR",
    "GlobalKey",
    "RelationalEdges",
    "available_backends",
    "backend_status",
    "bmm",
    "dense_attention",
    "depthwise_conv",
    "dropout_linear",
    "gated_scores",
    "graph_attention",
    "graph_dot_attention",
    "graph_softmax_sum",
    "graph_sum",
    "linear",
    "relational_gather_gemm",
    "residual_norm_prelu",
    "seeded_dropout",
    "segment_attention_pool",
    "segment_reduce",
    "selective_scan",
]
