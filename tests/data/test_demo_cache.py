import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mil_zoo.data.bag import Bag
from mil_zoo.data.demo import cache as demo_cache
from mil_zoo.data.demo.cache import load_demo
from mil_zoo.data.demo.simulate import HARD, DemoParameters, simulate_demo


@pytest.fixture(scope="module")
def bags() -> list[Bag]:
    return simulate_demo(6)


def assert_same(left: list[Bag], right: list[Bag]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("features", "coords", "instance_labels"):
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name
        for name in ("label", "slide_id", "patient_id", "patch_size", "unit"):
            x, y = getattr(a, name), getattr(b, name)
            assert type(x) is type(y), name
            assert x == y, name


@pytest.fixture
def calls(monkeypatch, bags) -> list[DemoParameters]:
    """Simulation that costs nothing, and one entry for each time it was asked for."""
    made: list[DemoParameters] = []

    def simulate(number, parameters):
        made.append(parameters)
        return bags

    monkeypatch.setattr(demo_cache, "simulate_demo", simulate)
    return made


def test_cache_gives_back_the_same_bits(tmp_path, bags, calls):
    folder = tmp_path / "new" / "cache"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_demo(folder)
        again = load_demo(folder)
    assert len(calls) == 1
    assert_same(again, bags)
    (file,) = folder.iterdir()
    assert file.match("demo-????????????.npz")


def test_the_two_demos_have_files_of_their_own(tmp_path, calls):
    for name in ("demo", "demo_hard", "demo", "demo_hard"):
        load_demo(tmp_path, name)
    assert calls == [DemoParameters(), HARD]
    assert sorted(file.name.split("-")[0] for file in tmp_path.iterdir()) == ["demo", "demo_hard"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "last byte", "flipped", "text", "other arrays"])
def test_damaged_cache_is_named_and_written_again(tmp_path, bags, calls, damage):
    load_demo(tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "other arrays":
        np.savez(file, features=np.zeros((3, 2)))
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        file.write_bytes(
            {"empty": b"", "truncated": content[:middle], "last byte": content[:-1], "flipped": flipped}.get(
                damage, b"not a cache"
            )
        )
    with pytest.warns(UserWarning, match=file.name):
        assert_same(load_demo(tmp_path), bags)
    assert len(calls) == 2
    assert file.read_bytes() == content
    assert_same(load_demo(tmp_path), bags)
    assert len(calls) == 2


def test_where_nothing_can_be_written_nothing_is(tmp_path, bags, calls):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_demo(blocked), bags)
        assert_same(load_demo(blocked / "cache"), bags)
    assert len(calls) == 2
    assert blocked.read_text() == "not a folder"


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, bags, calls):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(demo_cache.os, "replace", full)
    assert_same(load_demo(tmp_path), bags)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_follows_xdg_and_home(tmp_path, monkeypatch, calls):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_demo()
    assert len(list((tmp_path / "xdg" / "mil-zoo").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    load_demo()
    assert len(list((tmp_path / "home" / ".cache" / "mil-zoo").iterdir())) == 1


def test_a_user_without_a_home_gets_the_demo(monkeypatch, bags, calls):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert_same(load_demo(), bags)
