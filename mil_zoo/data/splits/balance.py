"""Which patients go into which part: stratified, never dividing a patient, and fair to large ones.

Patients (or sites: *groups*) are laid into ``cells`` on a circle so that every run of ``width`` cells in a row holds
its share of every stratum. A part is such a run, at a place that the seed draws: each group's chance of the part is
then ``width / cells`` whatever its size, since it lies in that many of the ``cells`` runs.

Only integers are compared, and random numbers are raw output of PCG64, which numpy keeps for ever: the same groups and
seed give the same parts with every version, on every machine. The order of rows and the names of strata play no role.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from mil_zoo.errors import InputError

Ints = npt.NDArray[np.int64]
_SCALE = 2**20  # of the integer weights of strata
_WORK = 2_000_000  # exchanges with one cell; of more, groups are only moved
_BLOCK = 50_000  # exchanges that are looked at together
_NEVER = 2**60  # the price of a group that is not there
_CELLS = 30  # a share is taken to the nearest fraction with a denominator up to this


def raw(number: int, *seed: int) -> npt.NDArray[np.uint64]:
    """Whole numbers below 2^64 that never change for a seed (numbers of 0 or more)."""
    return np.asarray(np.random.PCG64(np.random.SeedSequence(list(seed))).random_raw(number), dtype=np.uint64)


def shuffled(number: int, *seed: int) -> Ints:
    """A permutation of ``number`` things that never changes for a seed."""
    return np.argsort(raw(number, *seed), kind="stable")


def share_of(fraction: float) -> Fraction:
    """``fraction`` as a ratio of small numbers: at most 1 / 900 away from it, or 1 over a whole number below 1 / 30."""
    return Fraction(1, round(1 / fraction)) if fraction < 1 / _CELLS else Fraction(fraction).limit_denominator(_CELLS)


def arrange(counts: Ints, cells: int, width: int, *seed: int) -> Ints:
    """Lays groups into cells on a circle so that every ``width`` cells in a row hold their share of every stratum.

    What is made small is the sum over runs of cells and over strata of ``(slides in the run - share) ^ 2 / slides of
    the stratum ^ 2``, and where that is equal the spread of sizes: large groups first, each where it adds least, then
    by moving groups and exchanging pairs of them while that helps.

    Args:
        counts: slides of each group and stratum, ``[G, S]``.
        cells: number of cells.
        width: cells in a run, less than ``cells``.
        seed: of the draw.

    Returns:
        the cell of each group, ``[G]``. Cells are named at random.
    """
    order = shuffled(len(counts), *seed, 0)
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)  # groups of one kind can be exchanged freely
    kind_of = kind_of.reshape(-1)
    table = np.column_stack([kinds, kinds.sum(1)])
    totals = np.maximum(np.append(counts.sum(0), counts.sum()), 1)
    weights = np.maximum(_SCALE * totals.min() ** 2 // totals**2, 1)
    weights[-1] = 1  # sizes decide only between parts whose strata are as good
    circle = _Circle(table, weights, cells, width)
    number = np.bincount(kind_of, minlength=len(kinds))
    # Sizes that differ little take turns at random, so that another seed finds other parts.
    first = np.full(len(kinds), len(counts))
    np.minimum.at(first, kind_of[order], np.arange(len(order)))
    for kind in np.lexsort((first, -np.floor(np.log2(table[:, -1])))):
        circle.fill(int(kind), int(number[kind]))
    circle.improve()
    cell_of = np.empty(len(counts), dtype=np.int64)
    for kind in range(len(kinds)):
        members = order[kind_of[order] == kind]
        cell_of[members] = np.repeat(np.arange(cells), circle.held[kind])
    turn = int(shuffled(cells, *seed, 1)[0])
    return shuffled(cells, *seed, 2)[cell_of] if width == 1 else (cell_of + turn) % cells


def hold_out(counts: Ints, fraction: float, *seed: int, every: bool = True) -> npt.NDArray[np.bool_]:
    """Draws a part that holds about ``fraction`` of each stratum, each group with that chance.

    A stratum of so few groups that its share is less than one of them gives one, drawn among them: its groups' chance
    is one over their number.

    Args:
        counts: slides of each group and stratum, ``[G, S]``.
        fraction: in (0, 0.5].
        seed: of the draw.
        every: whether both sides must hold every stratum.

    Returns:
        which groups are in the part, ``[G]``.

    Raises:
        InputError: a side would hold nothing, or with ``every`` not every stratum.
    """
    share = share_of(fraction)
    width, cells = share.numerator, share.denominator
    groups = (counts > 0).sum(0)
    part: npt.NDArray[np.bool_] = np.zeros(len(counts), dtype=bool)
    apart = part.copy()
    if every:
        for stratum in np.argsort(groups, kind="stable"):
            if groups[stratum] * share < 1:
                members = np.flatnonzero((counts[:, stratum] > 0) & ~apart)
                if not counts[part, stratum].any() and len(members):
                    part[members[shuffled(len(members), *seed, 3, int(stratum))[0]]] = True
                apart[members] = True
    common = np.flatnonzero(~apart)
    cell_of = arrange(counts[common], cells, width, *seed) if len(common) else common
    present = groups > 0
    for start in shuffled(cells, *seed, 4):
        drawn: npt.NDArray[np.bool_] = part.copy()
        drawn[common] = (cell_of - start) % cells < width
        if 0 < drawn.sum() < len(drawn) and (
            not every or all((counts[side].sum(0)[present] > 0).all() for side in (drawn, ~drawn))
        ):
            return drawn
    if not every:
        raise InputError("too few patients are left for a training and a validation part; ask for fewer folds")
    raise InputError("no validation part holds every class; ask for a larger validation_fraction or fewer folds")


class _Circle:
    """Numbers of groups of each kind in each cell, and what the next one would cost where.

    The cost is ``sum_s w_s x_s' K x_s`` of the slides ``x_s [cells]`` of stratum s, where ``K[a, b]`` is the number of
    runs that hold both cells. Its gradient is kept, so that each step looks at all cells at once.
    """

    def __init__(self, table: Ints, weights: Ints, cells: int, width: int) -> None:
        distance = np.arange(cells)
        overlap = np.maximum(width - distance, 0) + np.maximum(width - cells + distance, 0) * (distance > 0)
        self._overlap = np.tile(overlap, 2)  # [cells - a : 2 cells - a] is of cell a with each other
        self._weighted = table * weights  # [kinds, S]
        self._table, self._cells = table, cells
        empty = np.zeros((1, table.shape[1]), dtype=np.int64)  # nothing: moving a group is exchanging it for this
        rows = np.concatenate([table, empty])
        self._apart = ((rows[:, None] - rows[None]) ** 2 * weights).sum(2)  # [kinds + 1, kinds + 1]
        self._gradient = np.zeros((table.shape[1], cells), dtype=np.int64)
        self.held = np.zeros((len(table), cells), dtype=np.int64)

    def fill(self, kind: int, number: int) -> None:
        """Puts ``number`` groups of a kind where they cost least."""
        if even := number // self._cells:
            self.held[kind] += even  # as many in every cell changes no difference between cells
        for _ in range(number - even * self._cells):
            self._add(kind, int((self._weighted[kind] @ self._gradient).argmin()))

    def improve(self) -> None:
        """Moves and exchanges groups until none of that lowers the cost: of some cells at a time, the best first."""
        pairs = (len(self._table) + 1) ** 2 * self._cells
        several = pairs <= _WORK
        block = max(1, _BLOCK // pairs) if several else 1
        starts = range(0, self._cells, block)
        idle = turn = 0
        while idle < len(starts):
            cells = np.arange(starts[turn], min(starts[turn] + block, self._cells))
            if self._improve_one(cells, several):
                idle = 0
            else:
                idle, turn = idle + 1, (turn + 1) % len(starts)

    def _improve_one(self, cells: Ints, several: bool) -> bool:
        """Makes the best exchange of a group in ``cells`` with one (or nothing) elsewhere, if it lowers the cost."""
        none = len(self._table)
        price = np.concatenate([self._weighted @ self._gradient, np.zeros((1, self._cells), dtype=np.int64)])
        gain = price[:, None, :] - price[:, cells, None]  # of a kind that goes there, [kinds + 1, here, there]
        spread = self._overlap[0] - np.stack([self._with(cell) for cell in cells.tolist()])  # [here, there]
        mine = np.flatnonzero(self.held[:, cells].any(1))
        if not len(mine):
            return False
        back = np.append(np.flatnonzero(self.held.any(1)) if several else [], none).astype(np.int64)
        lacking = np.where(np.concatenate([self.held > 0, np.ones((1, self._cells), dtype=bool)]), 0, _NEVER)
        leave, enter = gain[mine] + lacking[mine][:, cells, None], lacking[back][:, None] - gain[back]
        change = leave[:, None] + enter[None]  # [mine, back, here, there]
        change += self._apart[np.ix_(mine, back)][:, :, None, None] * spread
        flat = int(change.argmin())
        if change.flat[flat] >= 0:
            return False
        kind, other, here, to = (int(i) for i in np.unravel_index(flat, change.shape))
        at = int(cells[here])
        for moved, source, target in ((int(mine[kind]), at, to), (int(back[other]), to, at)):
            if moved < none:
                self._add(moved, target)
                self._add(moved, source, -1)
        return True

    def _with(self, cell: int) -> Ints:
        """Runs that hold ``cell`` and each cell, ``[cells]``."""
        return self._overlap[self._cells - cell : 2 * self._cells - cell]

    def _add(self, kind: int, cell: int, times: int = 1) -> None:
        self.held[kind, cell] += times
        self._gradient += times * self._table[kind][:, None] * self._with(cell)
