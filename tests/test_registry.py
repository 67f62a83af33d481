"""The registry: duplicates and misses fail loudly; plugins load from files and entry points."""

import importlib.metadata

import pytest

import mil_zoo
from mil_zoo import InputError, registry
from mil_zoo.aggregators.registry import AGGREGATORS, aggregator_options
from mil_zoo.registry import Plugins, Registry, load_plugin


def test_register_get_and_names():
    zoo = Registry("animal")

    @zoo.register("cat")
    class Cat:
        pass

    assert zoo.get("cat") is Cat
    assert zoo.names() == ["cat"]
    assert "cat" in zoo
    assert "dog" not in zoo


def test_a_duplicate_and_a_bad_name_are_refused():
    zoo = Registry("animal")
    zoo.register("cat")(int)
    zoo.register("cat")(int)  # the same object again is no conflict
    with pytest.raises(InputError, match=r"animal 'cat' is already registered by builtins.int"):
        zoo.register("cat")(float)
    for name in ("Cat", "my cat", "a-b", ""):
        with pytest.raises(InputError, match="lowercase"):
            zoo.register(name)


def test_a_miss_offers_near_names():
    with pytest.raises(InputError, match="unknown aggregator 'abmill'; did you mean 'abmil'"):
        mil_zoo.create_aggregator("abmill")
    with pytest.raises(InputError, match="unknown graph 'windw'; did you mean 'window'"):
        mil_zoo.graph.build([[0.0, 0.0]], "windw:2", patch_size=1.0)
    with pytest.raises(InputError, match="abmil has no option 'atention_dim'; did you mean 'attention_dim'"):
        mil_zoo.create_aggregator("abmil", atention_dim=3)
    with pytest.raises(InputError, match="a graph is named by its spec, 'window:2' for instance, not by 8"):
        mil_zoo.graph.build_csr([[0.0, 0.0]], 8, patch_size=1.0)


def test_options_that_a_constructor_passes_on_are_those_of_its_base(monkeypatch):
    base = AGGREGATORS.get("abmil")

    class Narrow(base):
        def __init__(self, in_dim, num_classes=2, **options):
            super().__init__(in_dim, num_classes, **{"embed_dim": 16, **options})

    monkeypatch.setitem(AGGREGATORS._entries, "narrow", Narrow)
    assert aggregator_options("narrow") == dict.fromkeys(aggregator_options("abmil"), ...)
    assert mil_zoo.create_aggregator("narrow", in_dim=4).embed[0].out_features == 16
    made = mil_zoo.create_aggregator("narrow", in_dim=4, embed_dim=8, attention_dim=4)
    assert (made.embed[0].out_features, made.attention.V.out_features) == (8, 4)
    with pytest.raises(InputError, match="narrow has no option 'options'"):
        mil_zoo.create_aggregator("narrow", in_dim=4, options=3)


PLUGIN = """
from mil_zoo import register_aggregator, register_graph
from mil_zoo.aggregators.mean_max import MeanPooling

@register_aggregator("{name}")
class Mine(MeanPooling):
    pass
"""


def test_a_plugin_file(tmp_path):
    path = tmp_path / "from_a_file.py"
    path.write_text(PLUGIN.format(name="from_a_file"))
    load_plugin(path)
    load_plugin(path)  # loading it again changes nothing
    assert "from_a_file" in mil_zoo.list_aggregators()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "from_a_file.py").write_text("")
    with pytest.raises(InputError, match=r"two plugin files are called from_a_file.py"):
        load_plugin(tmp_path / "other" / "from_a_file.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"plugin .*bad_0.py, line 1: invalid syntax"),
        ("x = 1\nimport no_such_module_here\n", r"bad_1.py, line 2 failed to import: ModuleNotFoundError"),
        (
            "import sys\n\nsys.exit(3)\n",
            r"bad_2.py, line 3 failed to import: SystemExit: it calls for an exit \(code 3",
        ),
        (PLUGIN.format(name="abmil"), "aggregator 'abmil' is already registered"),
        (
            PLUGIN.format(name="takes_task").replace("pass", "def __init__(self, in_dim, num_classes, task): ..."),
            "aggregator 'takes_task': its constructor takes in_dim, .* leave task out, .* as self.task",
        ),
    ],
)
def test_broken_plugins_are_one_sentence(tmp_path, text, message, request):
    number = request.node.callspec.indices["text"]
    path = tmp_path / f"bad_{number}.py"
    path.write_text(text)
    mil_zoo.list_aggregators()
    with pytest.raises(InputError, match=message):
        load_plugin(path)
    with pytest.raises(InputError, match="does not exist"):
        load_plugin(tmp_path / "none.py")


def test_entry_points(tmp_path, monkeypatch):
    (tmp_path / "packaged_mil.py").write_text(PLUGIN.format(name="from_a_package"))
    monkeypatch.syspath_prepend(tmp_path)
    points = [importlib.metadata.EntryPoint("packaged", "packaged_mil", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "mil_zoo.plugins" else [])
    plugins = Plugins()
    plugins.load_installed()
    assert "from_a_package" in mil_zoo.list_aggregators()
    broken = importlib.metadata.EntryPoint("broken", "no_such_module_here", registry.ENTRY_POINT_GROUP)
    points.append(broken)
    plugins.load_installed()  # once
    with pytest.raises(InputError, match="plugin 'broken'"):
        Plugins().load_installed()


def test_an_installed_plugin_that_leaves_python_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "leaving_mil.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [importlib.metadata.EntryPoint("leaving", "leaving_mil", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    with pytest.raises(InputError, match=r"plugin 'leaving' .* it calls for an exit \(code 0\); fix or uninstall it"):
        Plugins().load_installed()
