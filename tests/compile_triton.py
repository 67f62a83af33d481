"""Compiles for sm_90, without a GPU, every Triton kernel that the ops launch; prints what was compiled as JSON.

Run in a process without ``TRITON_INTERPRET``. Launches are caught and compiled with their own arguments, the last of
their block sizes, and never run: the results are garbage and nobody looks at them.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
import triton
from kernel_cases import draw, random_csr
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mil_zoo.kernels import GlobalKey

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
compiled: dict[str, tuple[str, str]] = {}
case = ""


def compile_launch(self, *args, grid, warmup, **kwargs):
    """Stands in for ``Autotuner.run``."""
    values = dict(zip(self.arg_names, args)) | kwargs  # noqa: B905  the last ones are keywords
    config = self.early_config_prune(self.configs, values, **kwargs)[-1]
    values |= config.kwargs
    types, constants, aligned = {}, {}, {}
    for i, parameter in enumerate(self.fn.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name], aligned[(i,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
    if "row" in values:
        values["row"].zero_()  # the one result that is used as an index
    kernel = f"{Path(self.base_fn.__code__.co_filename).parent.name}/{self.base_fn.__name__}"
    key = f"{case} {kernel} {types} {constants}"
    if key in compiled:
        return
    result = triton.compile(
        ASTSource(self.fn, types, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.num_warps},
    )
    assert result.asm["cubin"]
    compiled[key] = case, kernel


def backend(op):
    return import_module(f"mil_zoo.kernels.ops.{op}.triton_gpu").forward


def step(function, *inputs):
    sum(output.sum() for output in function(*inputs) if output is not None and output.is_floating_point()).backward()


def run_ops(dtype, everything):
    """One step of each op: with every option, or with none."""
    n = 1500  # so that the hub is in pieces
    graph, bag, offsets = random_csr(n, n, degree=1), torch.zeros(n, dtype=torch.long), torch.tensor([0, 3, n])
    p, key = 0.3 if everything else 0.0, None
    feat, src, dst = (draw(*shape, seed=1, dtype=dtype) for shape in [(n, 4, 64), (n, 4), (n, 4)])
    if everything:
        key = GlobalKey(draw(1, 4, 64, seed=1, dtype=dtype), draw(1, 4, seed=1, dtype=dtype), bag)
    step(lambda *x: backend("graph_attention")(*x, graph, 0.2, p, 1, key, everything), feat, src, dst)
    bias = draw(graph.num_edges, 4, seed=1, dtype=dtype) if everything else None
    step(lambda *x: backend("graph_dot_attention")(*x, graph, 0.1, bias, p, 1, everything), feat, feat, feat)
    values = feat if everything else feat[:, 0]
    step(lambda *x: backend("segment_attention_pool")(*x, offsets, p, 1), src, values)
    for reduce in ("sum", "max", "logsumexp"):
        step(lambda *x: backend("segment_reduce")(*x, offsets, reduce), src)  # noqa: B023


if __name__ == "__main__":
    triton.runtime.Autotuner.run = compile_launch
    case = "bf16, all options"
    run_ops(torch.bfloat16, everything=True)
    case = "fp32, no option"
    run_ops(torch.float32, everything=False)
    json.dump(list(compiled.values()), sys.stdout)
