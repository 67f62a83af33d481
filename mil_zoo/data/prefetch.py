"""Reading ahead: the next bags are read while the present ones are computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from mil_zoo.data.bag import Bag
from mil_zoo.data.bags import as_bags

AHEAD = 2  # bags in memory besides the one in use: enough to hide a slow one behind two quick steps

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(bags: Sequence[Bag], order: Iterable[int] | None = None, graph: str | None = None) -> Iterator[Bag]:
    """The bags in ``order``, each read in another thread, with its graph, while the one before is in use.

    Bags that are in memory already are handed out as they are.

    Args:
        bags: a dataset's.
        order: indices into them; None for all, in their order.
        graph: spec of a graph that will be asked for, or None.
    """
    order = range(len(bags)) if order is None else order
    if not as_bags(bags).on_disk:
        return (bags[int(i)] for i in order)

    def read(i: int) -> Bag:
        bag = bags[i]
        if graph is not None:
            bag.graph(graph)
        return bag

    return map_ahead(read, map(int, order))


def map_ahead(read: Callable[[S], T], items: Iterator[S]) -> Iterator[T]:
    """``map(read, items)`` that is up to ``AHEAD`` items ahead, in another thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        coming: deque[Future[T]] = deque(thread.submit(read, item) for item in islice(items, AHEAD))
        try:
            while coming:
                result = coming.popleft().result()
                coming.extend(thread.submit(read, item) for item in islice(items, 1))
                yield result
        finally:
            thread.shutdown(cancel_futures=True)
