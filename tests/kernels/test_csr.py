"""The graph as tensors: selections, joined graphs and their transposes, against those of their edges."""

from pathlib import Path

import pytest
import torch

import mil_zoo
from mil_zoo import InputError
from mil_zoo.kernels import CSR
from mil_zoo.kernels.long_rows import LONG_ROW


def random_graph(num_src, num_dst, num_edges, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(num_src * num_dst, generator=generator)[:num_edges]
    return CSR.from_edges(pairs % num_src, pairs // num_src, num_src, num_dst)


def assert_transposed(graph):
    back = graph.transposed
    src = torch.repeat_interleave(torch.arange(graph.num_src), back.indptr.diff().long())
    assert back.indptr.dtype == back.indices.dtype == back.edge.dtype == torch.int32
    assert graph.indices[back.edge].equal(src.int())
    assert graph.destinations[back.edge].equal(back.indices.long())
    assert back.edge.sort().values.equal(torch.arange(graph.num_edges, dtype=torch.int32))


def rows_of(graph):
    return [row.tolist() for row in graph.indices.split(graph.indptr.diff().tolist())]


def test_edges_are_grouped_by_destination():
    graph = CSR.from_edges(torch.tensor([2, 0, 1, 2]), torch.tensor([1, 1, 0, 3]), 3, 4)
    assert rows_of(graph) == [[1], [0, 2], [], [2]]
    assert graph.destinations.tolist() == [0, 1, 1, 3]
    assert_transposed(graph)


def test_a_selection_is_the_rows_in_their_order():
    graph = random_graph(30, 25, 120, seed=0)
    rows = torch.randperm(25, generator=torch.Generator().manual_seed(1))[:11]
    selection = graph.select(rows)
    assert (selection.num_src, selection.num_dst) == (30, 11)
    assert rows_of(selection) == [rows_of(graph)[row] for row in rows]
    assert_transposed(selection)
    assert_transposed(graph.select(rows[:0]))
    assert rows_of(graph.select(rows[:0])) == []


def test_self_loops_can_be_left_out():
    graphs = [random_graph(9, 9, 60, seed=5), random_graph(1, 1, 1, seed=6), random_graph(12, 12, 70, seed=7)]
    for graph in graphs:
        assert any(i in row for i, row in enumerate(rows_of(graph)))
        expected = [[j for j in row if j != i] for i, row in enumerate(rows_of(graph))]
        assert rows_of(graph.without_self_loops) == expected
        assert graph.without_self_loops is graph.without_self_loops
        assert graph.without_self_loops.without_self_loops is graph.without_self_loops
    joined = CSR.concat(graphs)
    assert rows_of(joined.without_self_loops) == rows_of(CSR.concat([graph.without_self_loops for graph in graphs]))
    assert_transposed(joined.without_self_loops)
    with pytest.raises(InputError, match="indptr must rise"):
        CSR(graph.indptr + 1, graph.indices, 12).without_self_loops  # noqa: B018


def test_joined_graphs_keep_their_rows():
    graphs = [random_graph(9, 9, 20, seed=2), random_graph(5, 5, 0, seed=3), random_graph(12, 12, 60, seed=4)]
    joined = CSR.concat(graphs)
    parts = zip(graphs, (0, 9, 14), strict=True)
    expected = [[j + first for j in row] for graph, first in parts for row in rows_of(graph)]
    assert rows_of(joined) == expected
    assert_transposed(joined)
    assert_transposed(joined.select(torch.tensor([25, 3, 14])))


def test_a_graph_that_is_where_it_should_be_is_not_copied():
    graph = random_graph(4, 4, 6, seed=5)
    assert graph.to("cpu") is graph


def test_the_transpose_of_a_symmetric_graph_shares_its_tensors():
    graph = random_graph(12, 12, 60, seed=6)
    src = torch.cat([graph.indices.long(), graph.destinations, torch.arange(12)])
    dst = torch.cat([graph.destinations, graph.indices.long(), torch.arange(12)])
    keys = torch.unique(dst * 12 + src)
    both_ways = CSR.from_edges(keys % 12, keys // 12, 12)
    joined = CSR.concat([both_ways, both_ways])
    for symmetric in (both_ways, joined):
        assert_transposed(symmetric)
        assert symmetric.transposed.indptr is symmetric.indptr
        assert symmetric.transposed.indices is symmetric.indices
    assert_transposed(CSR.concat([both_ways, graph]))


def test_what_is_derived_from_a_moved_graph_is_derived_once_and_moved(monkeypatch):
    """A step on a GPU moves the graph of a bag that outlives it, which must not be sorted again."""
    hub = torch.arange(2 * LONG_ROW + 7)
    graphs = [CSR.from_edges(hub, torch.zeros_like(hub), len(hub)), random_graph(9, 9, 20, seed=7)]
    steps = [CSR.concat(graphs).to("meta") for _ in range(2)]
    calls, transpose = [], CSR._transposed_by_counting
    monkeypatch.setattr(CSR, "_transposed_by_counting", lambda self: calls.append(self) or transpose(self))
    for moved in steps:
        back = moved.transposed
        assert {t.device.type for t in (back.indptr, back.indices, back.edge)} == {"meta"}
        assert len(back.edge) == moved.num_edges
        assert moved.problem is None  # nothing is read from the device for this
        for rows in (moved.long_rows, moved.origin.long_rows):
            assert (len(rows.rows), rows.pieces.count) == (1, 3)
        assert moved.long_rows.pieces.starts.device.type == "meta"
        assert back.long_rows is None
        assert moved.destinations.device.type == "meta"
    assert [id(graph) for graph in calls] == [id(graph) for graph in graphs]
    assert steps[0].to("meta") is steps[0]


def test_a_selection_of_a_moved_graph_keeps_its_transpose():
    graph = random_graph(30, 25, 120, seed=8)
    moved = CSR(graph.indptr.clone(), graph.indices.clone(), 30, origin=graph)  # as ``to`` makes it
    assert_transposed(moved.select(torch.tensor([4, 2, 17])))


def test_a_graph_that_is_not_one_says_why_and_is_not_transposed():
    for indptr, indices, problem in (
        ([0, 1, 5], [0, 1], "rise from 0"),
        ([0, 2, 1, 2], [0, 1], "rise from 0"),
        ([], [], "rise from 0"),
        ([0, 2], [0, 7], "lie in 0..2, not 0..7"),
        ([0, 2], [-1, 0], "lie in 0..2, not -1..0"),
    ):
        graph = CSR(torch.tensor(indptr, dtype=torch.int32), torch.tensor(indices, dtype=torch.int32), 3)
        assert problem in graph.problem
        with pytest.raises(InputError, match=problem):
            graph.transposed  # noqa: B018
        for derived in (CSR(graph.indptr, graph.indices, 3, origin=graph), CSR.concat([graph, graph])):
            assert derived.problem == graph.problem
    assert "must be int32" in CSR(torch.tensor([0, 1]), torch.tensor([0]), 3).problem


def test_no_state_is_hidden_in_a_dict():
    package = Path(mil_zoo.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "__dict__[" in path.read_text(encoding="utf-8")] == []
