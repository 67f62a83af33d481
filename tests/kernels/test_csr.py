"""The graph as tensors: selections, joined graphs and their transposes, against those of their edges."""

import torch

from mil_zoo.kernels import CSR


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
