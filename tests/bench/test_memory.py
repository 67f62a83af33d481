"""Peak memory of a piece of work."""

import gc

import numpy as np
import pytest

from mil_zoo.bench import memory


@pytest.mark.parametrize("kept", [True, False], ids=["the system keeps a peak", "it is looked at"])
def test_work_takes_as_much_after_other_work_as_alone(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(memory, "_start_anew", lambda: False)

    def work(mib):
        with memory.peak_memory() as peak:
            for _ in range(1 if kept else 30):
                block = np.ones((mib, 2**20 // 8))
                block += 1
                del block
        return peak.mib

    work(10)
    large, small = work(400), work(60)
    gc.collect()
    assert large == pytest.approx(400, abs=40)
    assert small == pytest.approx(60, abs=40)


def test_a_system_that_tells_nothing_costs_no_work(monkeypatch):
    monkeypatch.setattr(memory, "_resident", lambda: None)
    monkeypatch.setattr(memory, "_kept_peak", lambda: None)
    with memory.peak_memory() as peak:
        done = True
    assert done
    assert np.isnan(peak.mib)


def test_what_is_set_aside_comes_back_unless_the_caller_did_it():
    gc.unfreeze()
    with memory.heap_set_aside():
        aside = gc.get_freeze_count()
    assert aside > 10_000 > gc.get_freeze_count()
    gc.freeze()  # as conftest does, for the tests that follow
    with memory.heap_set_aside():
        pass
    assert gc.get_freeze_count() > 10_000
