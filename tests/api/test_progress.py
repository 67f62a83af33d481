"""Bars in notebooks, by a stand-in for IPython: a notebook is no part of the tests."""

import sys
from types import ModuleType, SimpleNamespace

import torch

import mil_zoo


def test_a_notebook_shows_one_bar_that_moves(monkeypatch):
    """Without ipywidgets, which rich would need."""
    shown = []

    def display(look, raw, display_id):
        assert (raw, display_id) == (True, True)
        shown.append(look)
        return SimpleNamespace(update=lambda look, raw: shown.append(look))

    ipython = ModuleType("IPython.display")
    ipython.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    bags = [mil_zoo.Bag(features=torch.randn(4, 3), label=i % 2, slide_id=f"s{i}") for i in range(8)]
    mil_zoo.fit("mean", bags[:4], bags[4:], epochs=2)
    assert [look["text/html"].partition(" aria")[0] for look in shown] == [
        f'<progress value="{done}" max="2"' for done in range(3)
    ]
    assert shown[-1]["text/plain"].startswith("training mean 2/2 loss ")
    shown.clear()
    mil_zoo.fit("mean", bags[:4], bags[4:], epochs=1, progress=False)
    assert not shown
