"""Energy is counted where the machine has counters, and is unknown elsewhere."""

import sys
from types import SimpleNamespace

import pytest

from mil_zoo.bench.energy import energy


def test_packages_are_added_up_and_a_counter_may_begin_anew(tmp_path):
    counters = {}
    for name, start in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        counters[name] = tmp_path / name / "energy_uj"
        counters[name].write_text(f"{start}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9999999\n")
    with energy(tmp_path) as used:
        counters["intel-rapl:0"].write_text("4500000\n")
        counters["intel-rapl:1"].write_text("500000\n")  # ten joules and it begins anew
        counters["intel-rapl:0:0"].write_text("700\n")  # a part of the first
    assert used.joules == pytest.approx(3.5 + 1.5)


def test_without_counters_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr("mil_zoo.bench.energy._gpus", list)
    with energy(tmp_path / "none") as used:
        pass
    assert used.joules is None
    (tmp_path / "intel-rapl:0").mkdir()  # its counter may not be read
    with energy(tmp_path) as used:
        pass
    assert used.joules is None


def test_gpus_that_are_visible_are_added(tmp_path, monkeypatch):
    counted = {"0": 5_000, "GPU-b": 7_000}  # millijoules
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=str,
        nvmlDeviceGetHandleByUUID=str,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counted[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-b")
    with energy(tmp_path) as used:
        counted["0"], counted["GPU-b"] = 6_500, 7_250
    assert used.joules == pytest.approx(1.75)


def test_a_counter_that_is_gone_costs_its_number_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mil_zoo.bench.energy._gpus", list)
    (tmp_path / "intel-rapl:0").mkdir()
    for name in ("energy_uj", "max_energy_range_uj"):
        (tmp_path / "intel-rapl:0" / name).write_text("9\n")
    with energy(tmp_path) as used:
        (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert used.joules is None
