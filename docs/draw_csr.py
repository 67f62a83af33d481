"""Draws ``_static/csr.svg``: a graph of five patches beside its arrays ``indptr`` and ``indices``."""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import mil_zoo

INK, FAINT, ACCENT = "#26323d", "#8a97a3", "#b3395b"
OUT = Path(__file__).parent / "_static" / "csr.svg"
SHOWN = 1  # the patch whose row is marked


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mil-zoo", "font.family": "DejaVu Sans"})
    coords = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [2, 1]])
    csr = mil_zoo.graph.build_csr(coords, "radius:1", patch_size=1)
    figure = Figure(figsize=(9, 2.9), facecolor="white")
    graph = figure.add_axes((0.01, 0.05, 0.27, 0.85))
    marked = range(int(csr.indptr[SHOWN]), int(csr.indptr[SHOWN + 1]))
    for i in range(csr.num_dst):
        for edge in range(int(csr.indptr[i]), int(csr.indptr[i + 1])):
            j = int(csr.indices[edge])
            line = coords[[j, i]].float()
            graph.plot(
                *line.T, color=ACCENT if edge in marked else FAINT, zorder=2 if edge in marked else 1, linewidth=2
            )
    for i, (x, y) in enumerate(coords.tolist()):
        graph.scatter(x, y, s=620, color="white", edgecolors=ACCENT if i == SHOWN else INK, linewidths=2, zorder=3)
        graph.text(x, y, str(i), ha="center", va="center", fontsize=13, color=ACCENT if i == SHOWN else INK, zorder=4)
    graph.set(xlim=(-0.35, 2.35), ylim=(1.4, -0.4), aspect="equal")
    graph.set_axis_off()

    arrays = figure.add_axes((0.29, 0.02, 0.7, 0.95))
    arrays.set(xlim=(-2.1, csr.num_edges + 0.2), ylim=(4.3, -0.6))
    arrays.set_axis_off()
    for name, values, top in (("indptr", csr.indptr.tolist(), 0.2), ("indices", csr.indices.tolist(), 2.6)):
        arrays.text(-0.3, top + 0.5, name, ha="right", va="center", fontsize=12, family="monospace", color=INK)
        for place, value in enumerate(values):
            of_row = place in marked if name == "indices" else place in (SHOWN, SHOWN + 1)
            colour = "#f6e3e9" if of_row else "white"
            arrays.add_patch(Rectangle((place, top), 1, 1, facecolor=colour, edgecolor=INK, linewidth=1))
            arrays.text(place + 0.5, top + 0.5, str(value), ha="center", va="center", fontsize=12, color=INK)
            arrays.text(place + 0.5, top - 0.25, str(place), ha="center", va="center", fontsize=8, color=FAINT)
    for place, edge in ((SHOWN, marked.start), (SHOWN + 1, marked.stop)):
        arrays.annotate(
            "", (edge, 2.55), (place + 0.5, 1.25), arrowprops={"arrowstyle": "->", "color": ACCENT, "linewidth": 1.5}
        )
    words = f"row {SHOWN}: patch {SHOWN} looks at patches {', '.join(map(str, csr.indices[list(marked)].tolist()))}"
    arrays.text((marked.start + marked.stop) / 2, 3.95, words, ha="center", va="center", fontsize=10.5, color=ACCENT)
    figure.savefig(OUT, metadata={"Date": None})
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
