"""The figures of a run, one file each."""

from mil_zoo.report.figures.registry import Drawing, draw_figures, register_figure

__all__ = ["Drawing", "draw_figures", "register_figure"]
