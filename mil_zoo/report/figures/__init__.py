"""The figures of a run, one file each."""

from mil_zoo.report.figures.registry import Captioned, Drawing, draw_figures, register_figure

__all__ = ["Captioned", "Drawing", "draw_figures", "register_figure"]
