"""Fixtures that several test folders share."""

import gc
import importlib.util
import multiprocessing
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as mil_zoo has it, and before torch reads it
os.environ["MIL_ZOO_JOBS"] = "1"  # the tests run beside each other already

import numpy as np
import pytest
import torch
from helpers import parity_table

from mil_zoo.cli import main

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: its kernels run here under its interpreter


def pytest_addoption(parser):
    parser.addoption("--parity", metavar="FILE.md", help="Write how near each comparison with golden values came.")


# Files of few tests that take long: left to the end they would keep one process busy and leave the others idle.
LONG = ("tests/bench/", "tests/test_tutorial.py", "tests/aggregators/test_waits.py", "tests/report/", "tests/cli/")


def pytest_collection_modifyitems(items):
    """Puts the files that take long first."""
    items.sort(key=lambda item: not any(name in item.path.as_posix() for name in LONG))


def pytest_collection_finish(session):
    """Leaves what lives until the end (modules, tests) out of garbage collections: every trial asks for two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def language_stays_interpreted():
    """Triton's interpreter puts its functions into Triton's language anew at each call within a kernel: half its time.

    They stay there instead. Nothing of these processes compiles kernels.
    """
    interpreter = None
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        interpreter = importlib.import_module("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):  # no Triton, or another version of it
        yield
        return
    patch = interpreter._patch_lang
    patched: dict[int, tuple[object, object]] = {}

    def once(function):
        names = function.__globals__
        if id(names) not in patched:
            scope = patch(function)
            scope.restore = lambda: None
            patched[id(names)] = names, scope
        return patched[id(names)][1]

    with pytest.MonkeyPatch.context() as change:
        change.setattr(interpreter, "_patch_lang", once)
        yield


@pytest.fixture(autouse=True, scope="module")
def objects_set_aside():
    """Does so with what is left of the tests of each file."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def modules_set_aside():
    """Does so with what a test imports, torch's compiler and the like, before the next one."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 50:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish(session, exitstatus):
    path = session.config.getoption("--parity")
    if path and exitstatus == 0:
        Path(path).write_text(parity_table(), encoding="utf-8")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data in MIL_ZOO_REAL_DATA: unset, the test is skipped; set but missing, it fails."""
    variable = os.environ.get("MIL_ZOO_REAL_DATA")
    if not variable:
        pytest.skip("MIL_ZOO_REAL_DATA is not set")
    folder = Path(variable)
    assert folder.is_dir(), f"MIL_ZOO_REAL_DATA is {variable}, which is not a folder"
    return folder


@pytest.fixture
def run_cli(monkeypatch, capsys, request):
    """Runs the command line in this process: ``code, out, err = run_cli("bench", ...)``.

    Figures take longer than small trials: they are drawn in tests that are marked ``figures``.
    """
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("mil_zoo.report.figures.draw_figures", lambda results: [])
    else:
        monkeypatch.setattr("mil_zoo.report.figures.registry.DPI", 50)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mil-zoo", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def apart():
    """Calls a function in a fork of this process, where what it registers stays, and returns what it returned.

    ``code, out, err = apart(run_cli, "report", run, "--plugin", plugin)``: in a tenth of a second, where a fresh
    interpreter takes ten seconds to import what it needs.
    """

    def call(function, *arguments):
        ours, theirs = multiprocessing.Pipe()
        child = os.fork()
        if child == 0:
            try:
                theirs.send(function(*arguments))
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        theirs.close()
        try:
            return ours.recv()
        finally:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return call


@pytest.fixture(scope="session")
def bag_table(tmp_path_factory) -> Path:
    """A small table of bags with coordinates and instance labels: positives hold shifted instances."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 12, 40)
    labels = np.arange(40) % 2
    positive = np.concatenate([label * (rng.random(n) < 0.4) for n, label in zip(sizes, labels, strict=True)])
    first = np.concatenate([[0], sizes.cumsum()])
    for start, label in zip(first[:-1], labels, strict=True):
        positive[start] = label  # at least one
    features = rng.normal(size=(sizes.sum(), 6)) + 2.5 * positive[:, None]
    path = tmp_path_factory.mktemp("table") / "bags.npz"
    np.savez(
        path,
        X=features.astype(np.float32),
        bag_ptr=first,
        bag_label=labels,
        bag_name=np.array([f"slide_{i:02d}" for i in range(40)]),
        patient_id=np.array([f"p{i // 2 % 17}" for i in range(40)]),
        coords=rng.uniform(0, 50, (sizes.sum(), 2)),
        inst_label=positive.astype(np.int8),
    )
    return path
