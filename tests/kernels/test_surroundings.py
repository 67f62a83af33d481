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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch brings GNU's OpenMP on Linux only")
def test_threads_that_wait_sleep_also_where_torch_was_imported_first():
    code = """if True:
        import os, time, torch
        {}
        x = torch.ones(2**16 * len(os.sched_getaffinity(0)))  # work for every core
        x + 1
        start = time.process_time()
        for _ in range(20):
            x + 1
            time.sleep(0.03)
        print(time.process_time() - start)
    """
    spins = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}

    def seconds(imports: str, **environment: str) -> float:
        command = [sys.executable, "-c", code.format(imports)]
        done = subprocess.run(command, capture_output=True, text=True, env=spins | environment, timeout=100)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("on one core threads do not spin")
    spinning = seconds("", OMP_WAIT_POLICY="ACTIVE")
    assert seconds("import mil_zoo") < spinning / 5
    assert seconds("import mil_zoo", OMP_WAIT_POLICY="ACTIVE") > spinning / 5  # what the user asks for is done


def test_what_numba_does_not_take_leaves_the_reference():
    code = "import torch\nfrom mil_zoo.kernels import backend_status\nprint(backend_status()['numba'])"
    assert "NUMBA_DISABLE_JIT is set" in run(code, NUMBA_DISABLE_JIT="1").stdout
    said = run(code, NUMBA_NUM_THREADS="0").stdout
    assert "cannot be imported (Number of threads specified must be > 0.); look at the variables NUMBA_" in said


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A function to compile whose cache belongs in ``tmp_path``."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    numba.config.reload_config()
    source = tmp_path / "kernel.py"
    source.write_text("def kernel(x):\n    return x + 1\n")
    namespace: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), namespace)
    yield namespace["kernel"]
    monkeypatch.undo()
    numba.config.reload_config()


@pytest.mark.parametrize("damage", [b"", b"\x80\x04damaged"])
def test_a_damaged_cache_costs_a_compilation(tmp_path, kernel, damage):
    for _ in range(2):
        assert jit()(kernel)(2) == 3
        for file in tmp_path.rglob("*.nb[ic]"):
            file.write_bytes(damage)


def test_a_full_disk_costs_the_cache(kernel, monkeypatch, caplog):
    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.FunctionCache, "save_overload", full)
    assert jit()(kernel)(2) == 3
    assert "compiled kernels cannot be kept in" in caplog.text
    assert "No space left on device" in caplog.text


def test_no_place_to_write_costs_the_cache(kernel, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    numba.config.reload_config()
    assert jit()(kernel)(2) == 3


def test_a_threading_layer_that_is_not_there_is_one_line():
    done = run(
        "import mil_zoo.kernels._numba.threads, numba; print(numba.threading_layer())", NUMBA_THREADING_LAYER="tbb"
    )
    if "tbb" not in done.stdout:  # where it is installed it is used
        assert "threading layer 'tbb' is not installed; another one is used" in done.stderr
        assert done.stderr.count("mil-zoo") == 1


def test_a_graphbolt_that_cannot_be_loaded_is_left_out(tmp_path):
    """Under a backend of DGL that is not this one's, as its own environment variable may say."""
    (tmp_path / "dgl" / "graphbolt").mkdir(parents=True)
    version = torch.__version__.partition("+")[0]
    (tmp_path / "dgl" / "graphbolt" / f"libgraphbolt_pytorch_{version}.so").write_bytes(b"built for something else")
    (tmp_path / "dgl" / "graphbolt" / "__init__.py").write_text("raise FileNotFoundError('cannot load it')")
    (tmp_path / "dgl" / "__init__.py").write_text(
        "import os\nprint('backend', os.environ['DGLBACKEND'])\nimport dgl.graphbolt"
    )
    done = run(
        "from mil_zoo.cli import main\nimport sys\nsys.argv = ['mil-zoo', 'doctor']\nmain()",
        PYTHONPATH=str(tmp_path), DGLBACKEND="tensorflow", COLUMNS="200",
    )  # fmt: skip
    assert "backend pytorch" in done.stdout
    assert " ".join(done.stdout.split()).count("dgl │ yes") == 1


def test_prototypes_of_equal_scores_are_finite_in_half_precision():
    from mil_zoo.aggregators.rrt import CrossRegionLayer

    layer = CrossRegionLayer(8, 2, 1, 0.0)
    with torch.autocast("cpu", torch.float16):
        assert layer(torch.ones(3, 8)).isfinite().all()
