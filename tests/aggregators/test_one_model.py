"""One name, one model: what the lists say, what `create_aggregator` makes and what the benchmark trains."""

import inspect
import subprocess
import sys
from typing import get_type_hints

import numpy as np
import pytest

from mil_zoo import InputError, create_aggregator
from mil_zoo.aggregators.catalogue import describe_aggregators, describe_classes
from mil_zoo.aggregators.registry import AGGREGATORS, aggregator_options
from mil_zoo.bench.cost import read_costs
from mil_zoo.bench.models import plan_models
from mil_zoo.bench.suite import Suite
from mil_zoo.config import read_shipped, read_shipped_text, shipped_names
from mil_zoo.source_index import NotLiteral, registered_in
from mil_zoo.train.protocols import model_options

ZOO = [name for name in AGGREGATORS if AGGREGATORS.get(name).__module__.startswith("mil_zoo.")]


def parameters_of(name: str, **options: object) -> int:
    return sum(parameter.numel() for parameter in create_aggregator(name, 1024, 2, **options).parameters())


@pytest.mark.parametrize("name", shipped_names("aggregators"))
def test_a_shipped_configuration_repeats_no_default_and_says_where_it_differs(name):
    defaults, mapping = model_options(name), read_shipped("aggregators", name)
    comments = [row for row in read_shipped_text("aggregators", f"{name}.yaml").splitlines() if row.startswith("#")]
    for option, value in mapping.get("options", {}).items():
        assert value != defaults[option], f"{name}.yaml repeats the constructor's {option}: delete it there"
        assert any(option in row for row in comments), f"{name}.yaml sets {option} and its comment does not say why"


@pytest.mark.parametrize("name", ZOO)
def test_the_lists_describe_the_model_that_the_benchmark_trains(name):
    (model,) = plan_models(name, Suite(datasets=["demo"], models=[name]))
    trained = parameters_of(name, **model.options)
    assert trained == parameters_of(name), "create_aggregator makes another model than the benchmark"
    assert trained == read_costs()[name].parameters, "measure with: mil-zoo models --measure mil_zoo/bench/costs.csv"
    assert set(model.options) == set(model_options(name)), "a run keeps every option that it trained with"


@pytest.mark.parametrize(
    ("name", "parameters"), [("abmil", 591_619), ("mean", 525_826), ("max", 525_826), ("topk", 525_826)]
)
def test_the_benchmark_s_models_are_those_that_it_always_trained(name, parameters):
    assert parameters_of(name) == parameters


def test_the_source_says_what_the_classes_say():
    described = describe_classes()
    from_source = describe_aggregators()
    assert {name: from_source[name] for name in ZOO} == {name: described[name] for name in ZOO}


def test_lists_do_not_wait_for_torch():
    code = (
        "import sys; from mil_zoo.cli import cli\n"
        "for command in ('models', 'datasets', 'graphs'): cli([command], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_is_no_literal_is_not_guessed(tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("class Base:\n    graph = 'knn:4'\n    def __init__(self, dim, width=3): ...\n")
    (package / "one.py").write_text(
        "from some_package.base import Base as Parent\n"
        "@register_thing('one', over='x')\nclass One(Parent):\n    '''Says.\n\n    More.\n    '''\n"
        "    note = len('abc') + 1\n"
        "@register_thing('two')\ndef two(x, *, y=(1, 2)): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one, two = registered_in("some_package", "register_thing").values()
    assert (one.name, one.keywords, one.docstring) == ("one", {"over": "x"}, "Says.\n\nMore.")
    assert one.parameters == {"dim": inspect.Parameter.empty, "width": 3}
    assert one.attribute("graph") == "knn:4"
    assert one.attribute("absent") is None
    with pytest.raises(NotLiteral):
        one.attribute("note")
    assert (two.parameters["y"], two.keyword_only) == ((1, 2), {"y"})
    assert one.overrides("__init__", base="Other")
    assert not one.overrides("__init__", base="Base")


@pytest.mark.parametrize("name", ZOO)
def test_a_dropout_rate_that_leaves_nothing_is_refused(name):
    rates = [option for option in aggregator_options(name) if option.endswith(("dropout", "_drop"))]
    for option in rates:
        for wrong in (1.5, -0.1, float("nan")):
            with pytest.raises(InputError, match=option):
                create_aggregator(name, 8, **{option: wrong})
        if option != "mask_drop":  # of the highest scores all may be masked
            with pytest.raises(InputError, match=f"{option} must be at least 0 and below 1, not 1.0"):
                create_aggregator(name, 8, **{option: 1.0})


@pytest.mark.parametrize("name", ZOO)
def test_a_value_that_an_option_does_not_take_is_refused(name):
    """By the constructor's annotations, with a sentence that names the option instead of torch's own words."""
    kinds = get_type_hints(AGGREGATORS.get(name).__init__)
    for option, default in aggregator_options(name).items():
        wrong = {int: ["64", 1.5, True, -1, [1]], bool: ["maybe", 2], float: ["a", float("inf"), True]}.get(
            kinds[option], []
        )
        if option.endswith("dim"):
            wrong = [*wrong, 0]
        for value in wrong:
            with pytest.raises(InputError, match=f"{name}: {option} must be "):
                create_aggregator(name, 8, **{option: value})
        if isinstance(default, int) and not isinstance(default, bool):
            assert create_aggregator(name, 8, **{option: np.int64(default)})
