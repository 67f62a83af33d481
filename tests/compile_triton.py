"""Compiles, without a GPU, every Triton kernel that the ops launch, and prints what each configuration takes as JSON.

Run in a process without ``TRITON_INTERPRET``. Launches are caught and compiled with their own arguments, and never run:
the results are garbage and nobody looks at them. ``python tests/compile_triton.py --capabilities 80 90 100 --all``
compiles every block size of every kernel and lists registers, bytes spilled and shared memory as a table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch
import triton
from kernel_cases import draw, random_csr
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mil_zoo.kernels import GlobalKey, devices
from mil_zoo.kernels._triton.tools import LONG, Kernel
from mil_zoo.kernels.ops.selective_scan import Inputs

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"
}  # fmt: skip
FEW = 16  # bytes that the assembler spills of its own accord, so that one more block fits a multiprocessor
ASSEMBLERS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
rows: list[dict[str, object]] = []
seen: set[str] = set()
arguments = argparse.Namespace(capabilities=[90], all=False, case="")


def compile_launch(self, grid, **values):
    """Stands in for ``Kernel.run``."""
    tuner = self.tuner
    if "row" in values and isinstance(values["row"], torch.Tensor):
        values["row"].zero_()  # the one result that is used as an index
    configs = tuner.early_config_prune(tuner.configs, values, **values)
    kernel = f"{Path(tuner.base_fn.__code__.co_filename).parent.name}/{tuner.base_fn.__name__}"
    for config in configs if arguments.all else configs[-1:]:
        for capability in arguments.capabilities:
            _compile(tuner.fn, kernel, values | config.kwargs, config, capability)


def _compile(function, kernel, values, config, capability):
    types, constants, aligned = {}, {}, {}
    for i, parameter in enumerate(function.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name], aligned[(i,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
    key = f"{arguments.case} {kernel} {types} {constants} {config.num_warps} {config.num_stages} {capability}"
    if key in seen:
        return
    seen.add(key)
    result = triton.compile(
        ASTSource(function, types, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    blocks = {name: value for name, value in constants.items() if name.startswith("BLOCK_")}
    row = {
        "case": arguments.case,
        "kernel": kernel,
        "capability": capability,
        "blocks": blocks,
        "warps": config.num_warps,
    }
    rows.append(row | {"shared_bytes": result.metadata.shared} | _resources(result.asm["ptx"]))


def _resources(ptx: str) -> dict[str, int]:
    """Registers a thread and bytes of them that are spilled, as the assembler says."""
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)[1]
    assembler = ASSEMBLERS / ("ptxas-blackwell" if target.startswith("sm_1") else "ptxas")
    if not assembler.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = re.search(r"(\d+) bytes spill stores.*Used (\d+) registers", said, re.DOTALL)
    return {"registers": int(found[2]), "spilled_bytes": int(found[1])} if found else {}


def backend(op):
    return import_module(f"mil_zoo.kernels.ops.{op}.triton_gpu").forward


def step(function, *inputs):
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.sum() for output in outputs if output is not None and output.is_floating_point()).backward()


def run_ops(dtype, everything):
    """One step of each op: with every option, or with none."""
    n = LONG.value + 476  # so that the hub is in pieces
    graph, bag, offsets = random_csr(n, n, degree=1), torch.zeros(n, dtype=torch.long), torch.tensor([0, 3, n])
    p, key = 0.3 if everything else 0.0, None
    feat, src, dst = (draw(*shape, seed=1, dtype=dtype) for shape in [(n, 4, 64), (n, 4), (n, 4)])
    if everything:
        key = GlobalKey(draw(1, 4, 64, seed=1, dtype=dtype), draw(1, 4, seed=1, dtype=dtype), bag)
    step(lambda *x: backend("graph_attention")(*x, graph, 0.2, p, 1, key, everything), feat, src, dst)
    bias = draw(graph.num_edges, 4, seed=1, dtype=dtype) if everything else None
    step(lambda *x: backend("graph_dot_attention")(*x, graph, 0.1, bias, p, 1, everything), feat, feat, feat)
    weight = bias[:, 0].detach().contiguous() if everything else None
    step(lambda x: backend("graph_sum")(x, graph, weight), feat.flatten(1).detach().requires_grad_())
    step(lambda x, t: backend("graph_softmax_sum")(x, t, graph), feat.flatten(1).detach().requires_grad_(), src[:1, 0])
    values = feat if everything else feat[:, 0]
    step(lambda *x: backend("segment_attention_pool")(*x, offsets, p, 1), src, values)
    for reduce in ("sum", "max", "logsumexp"):
        step(lambda *x: backend("segment_reduce")(*x, offsets, reduce), src)  # noqa: B023
    run_layer_ops(dtype, everything)
    run_scan(dtype, everything)


def run_layer_ops(dtype, everything):
    n, width = 300, 256
    x, residual = draw(n, width, seed=1, dtype=dtype), draw(n, width, seed=2, dtype=dtype) if everything else None
    vectors = [draw(width, seed=i, dtype=dtype) for i in range(3)]
    slope, weight = draw(1, seed=3, dtype=dtype), draw(24, width, seed=4, dtype=dtype)
    step(lambda *t: backend("residual_norm_prelu")(*t, 1e-5), x, residual, *vectors, slope)
    step(lambda t: backend("seeded_dropout")(t, 0.3, 1), x)
    index, token = torch.arange(n, dtype=torch.int32), vectors[0]
    index[::3] = -1
    for p in (0.3, 0.0) if everything else (0.0,):
        step(lambda *t: backend("dropout_linear")(*t, None, [16, 8], index, token, p, 1, dtype), x, weight)  # noqa: B023
    step(backend("linear"), *(t.detach().float().requires_grad_() for t in (x, weight)))


def run_scan(dtype, everything):
    n, channels, states = 300, 96, 16
    shapes = [(n, channels), (n, channels), (channels, states), (n, states), (n, states)]
    shapes += [(channels,), (n, channels), (channels,)] * everything
    inputs, missing = [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)], [None] * (8 - len(shapes))
    offsets = torch.tensor([0, 3, n])
    step(lambda *t: backend("selective_scan")(Inputs(*t, *missing), everything, offsets), *inputs)


def table() -> str:
    """``rows`` as Markdown, the worst case of each kernel, block size and capability; spilling ones are marked."""
    lines = [
        "| kernel | sm | blocks | warps | registers | spilled bytes | shared bytes | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        blocks = " ".join(f"{name.removeprefix('BLOCK_')}={value}" for name, value in row["blocks"].items())
        spilled = row.get("spilled_bytes", 0)
        lines.append(
            f"| {row['kernel']} ({row['case']}) | {row['capability']} | {blocks} | {row['warps']} | "
            f"{row.get('registers')} | {spilled} | {row['shared_bytes']} | {'SPILLS' if spilled > FEW else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    global case
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capabilities", type=int, nargs="+", default=[90], help="80, 90, 100 ...")
    parser.add_argument("--all", action="store_true", help="Every block size instead of the last of each kernel.")
    parser.add_argument("--table", action="store_true", help="Markdown instead of JSON.")
    parser.parse_args(namespace=arguments)
    Kernel.run, devices.require = compile_launch, lambda holds, message: None  # nothing runs that could be looked at
    for arguments.case, dtype in (("bf16, all options", torch.bfloat16), ("fp32, no option", torch.float32)):
        run_ops(dtype, everything=dtype == torch.bfloat16)
    print(table()) if arguments.table else json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
