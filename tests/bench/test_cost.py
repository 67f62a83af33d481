"""Measured costs of the zoo: in a process of their own, kept in a file that ships with the package."""

import sys

import pytest

from mil_zoo import InputError
from mil_zoo.bench import cost

PLUGIN = """
import torch
from torch import nn
from mil_zoo import Aggregator, AggregatorOutput, register_aggregator
from mil_zoo.kernels import segment_reduce

@register_aggregator("hungry")
class Hungry(Aggregator):
    def __init__(self, in_dim, num_classes):
        super().__init__(in_dim, num_classes)
        self.classifier = nn.Linear(in_dim, num_classes)

    def forward(self, batch):
        held = torch.ones(batch.num_instances * (25_000 if self.training else 5_000), dtype=torch.uint8)
        embedding = segment_reduce(batch.features, batch.offsets, "mean") + 0 * held[-1]
        return AggregatorOutput(self.classifier(embedding), embedding)
"""


def test_a_measurement_sees_the_memory_that_a_step_holds(tmp_path):
    (tmp_path / "hungry.py").write_text(PLUGIN)
    measured = cost.measure("hungry", threads=1, plugins=[tmp_path / "hungry.py"])
    if sys.platform == "linux":  # elsewhere the peak cannot be reset
        assert 45 < measured.eval_mib < 80, "10,000 instances hold 5,000 bytes each"
        assert 230 < measured.train_mib < 280
    assert measured.eval_ms > 0
    assert measured.train_ms > 0
    assert "1 threads" in measured.machine
    assert "torch" in measured.machine


def test_a_failure_in_the_process_is_told(tmp_path):
    (tmp_path / "broken.py").write_text(PLUGIN.replace("held[-1]", "held[held.numel()]"))
    with pytest.raises(InputError, match="hungry could not be measured on a bag of 10,000 instances: IndexError"):
        cost.measure("hungry", threads=1, plugins=[tmp_path / "broken.py"])


def test_costs_come_back_from_their_file(tmp_path):
    path = tmp_path / "costs.csv"
    assert cost.read_costs(path) == {}
    costs = [cost.Cost(name, 7, 1.5, 2.0, 3.25, 4.0, "a machine, 2 threads", "2026-01-01") for name in ("b", "a")]
    costs.append(cost.Cost("c", 8, None, None, None, None, "", ""))
    cost.write_costs(costs, path)
    assert list(cost.read_costs(path)) == ["a", "b", "c"]
    assert list(cost.read_costs(path).values()) == [costs[1], costs[0], costs[2]]
    path.write_text("name,eval_ms\na,fast\n")
    with pytest.raises(InputError, match="not a table of costs"):
        cost.read_costs(path)


def test_the_shipped_file_holds_every_aggregator_of_the_zoo_in_one_setting():
    from mil_zoo.aggregators.registry import AGGREGATORS

    shipped = cost.read_costs()
    zoo = {name for name in AGGREGATORS.names() if AGGREGATORS.get(name).__module__.startswith("mil_zoo.aggregators.")}
    assert set(shipped) == zoo, "measure with: mil-zoo models --measure mil_zoo/bench/costs.csv"
    measured = [row for row in shipped.values() if row.machine]
    assert len({row.machine for row in measured}) == 1, "rows of different machines cannot be compared"
    assert all(row.eval_ms > 0 and row.train_ms > 0 for row in measured)
    assert all(
        row.eval_ms is row.eval_mib is row.train_ms is row.train_mib is None
        for row in {*shipped.values()} - {*measured}
    )
