"""Kernels in surroundings that are not as they should be: a fork, a damaged cache, odd environment variables."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from mil_zoo.kernels._numba.jit import jit


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_without_threads_of_its_parent():
    run("""if True:
        import os, sys, torch, types
        torch.set_num_threads(2)
        from mil_zoo.kernels import segment_attention_pool
        torch.randn(500, 500) @ torch.randn(500, 500)
        sys.modules["mil_zoo.kernels._numba.threads"] = types.ModuleType("threads")  # as after a kernel has run
        child = os.fork()
        if child == 0:
            torch.randn(500, 500) @ torch.randn(500, 500)
            pooled, _ = segment_attention_pool(torch.zeros(3, 1), torch.ones(3, 2), torch.tensor([0, 3]))
            os._exit(5 if pooled.eq(1).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    """)


def test_compiling_switched_off_leaves_the_reference():
    code = "import torch\nfrom mil_zoo.kernels import backend_status\nprint(backend_status()['numba'])"
    assert "NUMBA_DISABLE_JIT is set" in run(code, NUMBA_DISABLE_JIT="1").stdout


@pytest.mark.parametrize("damage", [b"", b"\x80\x04damaged"])
def test_a_damaged_cache_costs_a_compilation(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    numba.config.reload_config()
    try:
        source = tmp_path / "kernel.py"
        source.write_text("def kernel(x):\n    return x + 1\n")
        namespace: dict = {}
        exec(compile(source.read_text(), str(source), "exec"), namespace)
        for _ in range(2):
            assert jit()(namespace["kernel"])(2) == 3
            for file in tmp_path.rglob("*.nb[ic]"):
                file.write_bytes(damage)
    finally:
        monkeypatch.undo()
        numba.config.reload_config()


def test_prototypes_of_equal_scores_are_finite_in_half_precision():
    from mil_zoo.aggregators.rrt import CrossRegionLayer

    layer = CrossRegionLayer(8, 2, 1, 0.0)
    with torch.autocast("cpu", torch.float16):
        assert layer(torch.ones(3, 8)).isfinite().all()
