"""What only the numba backend promises: bits free of threads, torch left as it was, and errors in place of crashes."""

import importlib.util
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from helpers import needs_dgl

from mil_zoo import InputError
from mil_zoo.kernels import (
    CSR,
    GlobalKey,
    backend_status,
    backends,
    graph_attention,
    segment_attention_pool,
)
from mil_zoo.kernels._numba import jit as numba_jit
from mil_zoo.kernels._numba import threads as numba_threads
from mil_zoo.kernels._numba.hashing import Dropout, kept_scale, kept_scale_run
from mil_zoo.kernels._numba.jit import jit
from mil_zoo.kernels.dropout import dropout_scale
from mil_zoo.kernels.ops.graph_attention import numba_cpu

BAGS = torch.tensor([0, 3, 1, 1, 3, 0, 0, 1]).repeat(200)  # neither sorted nor all four there


def graph_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    n = len(BAGS)
    graph = CSR.from_edges(*torch.randint(n, (2, 9 * n), generator=generator), n)
    shapes = [(n, 2, 7), (n, 2), (n, 2), (4, 2, 7), (4, 2)]
    return graph, [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def attend(graph, inputs, backend="numba", **options):
    feat, src_score, dst_score, *key = inputs
    key = GlobalKey(*key, BAGS) if key else None
    return graph_attention(feat, src_score, dst_score, graph, global_key=key, backend=backend, **options)


def gradients(outputs, inputs):
    grads = [torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output) for output in outputs]
    return torch.autograd.grad(outputs, inputs, grads)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(numba_threads, "GRAIN", 1)  # or so little work would get one thread
    graph, inputs = graph_inputs()
    scores, values = torch.randn(5000, 2, requires_grad=True), torch.randn(5000, 2, 9, requires_grad=True)
    offsets = torch.tensor([0, 1, 1400, 5000])

    def run(threads):
        torch.set_num_threads(threads)
        outputs = attend(graph, inputs, dropout_p=0.2, seed=1, return_attention=True)
        pooled = segment_attention_pool(scores, values, offsets, dropout_p=0.2, seed=1, backend="numba")
        assert numba.get_num_threads() == threads
        return [*outputs, *gradients(outputs, inputs), *pooled, *gradients(pooled, (scores, values))]

    before = torch.get_num_threads()
    try:
        one, two = run(1), run(2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_bags_of_a_global_key_may_be_interleaved_or_empty():
    graph, inputs = graph_inputs(torch.float64)
    results = []
    for backend in ("numba", "reference"):
        outputs = attend(graph, inputs, backend, dropout_p=0.2, seed=1, return_attention=True)
        results.append([*outputs, *gradients(outputs, inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert results[0][-1][2].eq(0).all()  # the gradient of the bag without destinations


def test_infinite_scores_and_nan_do_what_they_do_in_the_reference():
    graph, inputs = graph_inputs()
    inputs = [tensor.detach() for tensor in inputs[:3]]
    inputs[1][::3] = -torch.inf  # a source that nobody sees
    inputs[1][100], inputs[2][50] = torch.nan, -torch.inf
    inputs[0][200] = torch.nan
    got, expected = (attend(graph, inputs, backend, return_attention=True) for backend in ("numba", "reference"))
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert got[0].isnan().any()
    assert got[0][50].eq(0).all()
    scores, offsets = torch.randn(30, 1), torch.tensor([0, 10, 20, 30])
    scores[:10], scores[10], scores[25] = -torch.inf, -torch.inf, torch.nan
    values = torch.ones(30, 2)
    got, expected = (segment_attention_pool(scores, values, offsets, backend=b) for b in ("numba", "reference"))
    torch.testing.assert_close(got, expected, equal_nan=True)


def test_attention_is_made_only_where_it_is_asked_for():
    graph, inputs = graph_inputs()
    out, attention, _ = numba_cpu.forward(*inputs[:3], graph, 0.2, 0.0, 0, None, False)
    assert attention is None
    assert out.equal(attend(graph, inputs[:3], return_attention=True)[0])


def test_half_precision_is_computed_in_float32():
    graph, inputs = graph_inputs()
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    same = [tensor.detach().float().requires_grad_() for tensor in half]
    out, expected = attend(graph, half), attend(graph, same)
    assert out.dtype == torch.bfloat16
    assert out.equal(expected.bfloat16())
    out.sum().backward()
    expected.sum().backward()
    assert all(a.grad.equal(b.grad.bfloat16()) for a, b in zip(half, same, strict=True))


def test_a_bag_outside_the_global_keys_is_refused():
    graph, inputs = graph_inputs()
    for wrong in (-1, 4):
        bag = BAGS.clone()
        bag[7] = wrong
        with pytest.raises(InputError, match=r"global_key.bag must lie in 0..3"):
            graph_attention(*inputs[:3], graph, global_key=GlobalKey(*inputs[3:], bag), backend="numba")


@pytest.mark.parametrize("first", [0, 5, 2**31, 2**32 // 3 - 7, 2**33 + 17])
def test_dropout_in_kernels_is_that_of_tensors(first):
    edges, scale = np.arange(first, first + 300), np.empty((3, 300), np.float32)
    kept_scale(edges, Dropout.of(0.3, 2**61 + 12345, scale.dtype), np.empty((2, 300), np.uint32), scale)
    expected = dropout_scale(900, 0.3, 2**61 + 12345, torch.device("cpu"), torch.float32, start=3 * first)
    assert expected.view(300, 3).T.equal(torch.from_numpy(scale))
    few = np.full((3, 32), np.nan, np.float32)  # fewer edges than room
    kept_scale(edges[:21], Dropout.of(0.3, 2**61 + 12345, scale.dtype), np.zeros((2, 32), np.uint32), few)
    assert np.array_equal(few[:, :21], scale[:, :21])
    kept_scale_run(3 * first, Dropout.of(0.3, 2**61 + 12345, scale.dtype), run := np.empty(900, np.float64))
    assert expected.double().ne(0).equal(torch.from_numpy(run).ne(0))


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(lambda x: x + 1)
    assert jit()(lambda x: x + 1)(2) == 3


def test_a_kernel_that_allocates_says_so_or_does_not_compile():
    assert jit(allocates=True)(lambda n: np.ones(n))(2).tolist() == [1, 1]
    with pytest.raises(numba.core.errors.NumbaError, match="ones"):
        jit()(lambda n: np.ones(n + 1))(2)


def test_a_kernel_is_compiled_again_after_a_change_in_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    numba.config.reload_config()
    source = tmp_path / "kernel.py"
    source.write_text("def kernel(x):\n    return x + 1\n")
    spec = importlib.util.spec_from_file_location("kernel", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def hits(stamp):
        monkeypatch.setattr(numba_jit, "_SHARED", stamp)
        compiled = jit()(module.kernel)
        assert compiled(2) == 3
        return sum(compiled.stats.cache_hits.values())

    try:
        assert [hits("before"), hits("before"), hits("after"), hits("after")] == [0, 1, 0, 1]
    finally:
        monkeypatch.undo()
        numba.config.reload_config()


def test_of_two_processes_that_need_a_kernel_one_compiles_it(tmp_path):
    (tmp_path / "kernel.py").write_text("def kernel(x):\n    return x + 1\n")
    script = """if True:
        import os
        from kernel import kernel
        from mil_zoo.kernels._numba.jit import jit

        def child():
            os.close(start)
            os.read(wait, 1)
            compiled = jit()(kernel)
            assert compiled(2) == 3
            os._exit(sum(compiled.stats.cache_misses.values()))

        wait, start = os.pipe()
        children = [os.fork() or child() for _ in range(2)]
        os.close(start)  # both go on
        print(sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "[0, 1]\n", done.stderr


@needs_dgl
def test_a_numba_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    backends._reason.cache_clear()
    try:
        assert "numba cannot be imported" in backend_status()["numba"]
        assert (
            backends.choose_backend("op", {"reference": 0, "dgl": 0, "numba": 0}, "auto", torch.device("cpu")) == "dgl"
        )
    finally:
        monkeypatch.undo()
        backends._reason.cache_clear()


def test_torch_keeps_its_threads_and_a_forked_process_gets_an_error():
    script = """if True:
        import os, sys, torch
        torch.set_num_threads(1)
        import mil_zoo.kernels
        from mil_zoo.kernels import segment_attention_pool
        assert "mil_zoo.kernels._numba.threads" not in sys.modules
        arguments = torch.zeros(3, 1), torch.zeros(3, 2), torch.tensor([0, 3])
        segment_attention_pool(*arguments, backend="numba")
        assert torch.get_num_threads() == 1, torch.get_num_threads()
        child = os.fork()
        if child == 0:
            try:
                segment_attention_pool(*arguments, backend="numba")
            except mil_zoo.InputError as error:
                os._exit(17 if "forked" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gradients_of_nearly_flat_attention_keep_their_digits():
    """They are differences of nearly equal numbers: what a value adds to the loss less what the mean adds."""
    generator, offsets = torch.Generator().manual_seed(0), torch.tensor([0, 3, 40])
    scores, values = (torch.randn(40, width, generator=generator) for width in (1, 6))

    def gradient(dtype, backend):
        inputs = (1e-2 * scores).to(dtype).requires_grad_()
        pooled, _ = segment_attention_pool(inputs, (1 + 1e-3 * values).to(dtype), offsets, backend=backend)
        return torch.autograd.grad(pooled.sum(), inputs)[0]

    expected = gradient(torch.float64, "reference")
    assert (gradient(torch.float32, "numba") - expected).abs().max() < 1e-4 * expected.abs().max()
    offsets = torch.tensor([0, 40])  # one bag, and so PyTorch's operations
    expected = gradient(torch.float64, "reference")
    assert (gradient(torch.float32, "auto") - expected).abs().max() < 1e-4 * expected.abs().max()
