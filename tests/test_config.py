"""Typed configuration: conversions, and errors that name the nearest key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mil_zoo import InputError
from mil_zoo.config import from_mapping, parse_override, parse_yaml, read_shipped, read_yaml, shipped_names, yaml_text


@dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclass(frozen=True)
class Settings:
    rate: float
    names: list[str] = field(default_factory=list)
    kind: Literal["a", "b"] = "a"
    folds: int | Literal["published"] = 5
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    more: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    flag: bool = False
    select: Literal["auc", "f1"] | Literal["last"] = "auc"
    pair: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.rate < 0:
            raise InputError(f"a rate is positive, not {self.rate}")


def test_values_become_their_types():
    settings = from_mapping(
        Settings,
        {"rate": 5e-4, "names": ["x"], "folds": "published", "limit": 3, "inner": {"width": 7}, "path": "here"},
        "it",
    )
    assert settings == Settings(5e-4, ["x"], folds="published", limit=3, inner=Inner(7), path=Path("here"))
    assert from_mapping(Settings, {"rate": 1, "limit": None, "pair": [1, 2]}, "it") == Settings(1.0, pair=(1.0, 2.0))


def test_what_people_write_as_a_number_is_one():
    for text, value in {"5e-4": 5e-4, "1E5": 1e5, "-2.5e3": -2500.0, ".5e1": 5.0, "3": 3, "0.5": 0.5}.items():
        assert parse_yaml(f"a: {text}", "it") == {"a": value}
        assert type(parse_override(f"a={text}")[1]) is type(value)
    assert parse_yaml("a: 1e-4x", "it") == {"a": "1e-4x"}


def test_text_that_looks_like_something_else_comes_back_as_text():
    """Names of classes, titles and encoders are what users call them."""
    looks = ["1e0", "5E-4", ".5e1", "1_000", "0x1f", "0o7", "12:30:45", "2020-01-01", ".inf", ".NaN", "null", "~"]
    looks += ["no", "On", "true", "=", "<<", "#", "%", "@x", "!t", "&a", "*a", "|", "'", '"']
    looks += ["", "- a", "a: b", "a\u2028b", "a\x85b", "\x85", "\ufeff"]
    values = {"text": looks, "keys": {text: 1 for text in looks}, "numbers": [1e-5, 1e300, 0.1, -2, True, None]}
    assert parse_yaml(yaml_text(values), "it") == values


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "it: the key 'rate' is missing"),
        ({"rate": 1, "nams": []}, "it: unknown key 'nams'; did you mean 'names'"),
        ({"rate": "fast"}, "it: rate must be a number, not 'fast'"),
        ({"rate": True}, "rate must be a number, not True"),
        ({"rate": 1, "names": "x"}, "names must be a list"),
        ({"rate": 1, "names": [1]}, r"it: names\[0\] must be text, not 1"),
        ({"rate": 1, "kind": "c"}, "kind must be one of 'a', 'b', not 'c'"),
        ({"rate": 1, "folds": 2.5}, "it: folds must be a whole number or 'published', not 2.5"),
        ({"rate": 1, "limit": True}, "it: limit must be a whole number or null, not True"),
        ({"rate": 1, "inner": 3}, "inner must be a mapping"),
        ({"rate": 1, "inner": {"widht": 3}}, "it: inner: unknown key 'widht'; did you mean 'width'"),
        ({"rate": 1, "flag": 1}, "it: flag must be true or false, not 1"),
        ({"rate": 1, "select": "recall"}, "it: select must be one of 'auc', 'f1', 'last', not 'recall'"),
        ({"rate": 1, "pair": [1]}, r"it: pair has the wrong number of values: \[1\]"),
        ({"rate": 1, "pair": [1, 2, 3]}, r"it: pair has the wrong number of values: \[1, 2, 3\]"),
        ({"rate": 1, "pair": [1, "x"]}, r"it: pair\[1\] must be a number, not 'x'"),
        ({"rate": 1, "more": 3}, "it: more must be a mapping, not 3"),
        ({"rate": 1, "path": 3}, "it: path must be text or null, not 3"),
        ({"rate": float("inf")}, "it: rate must be a finite number, not inf"),
        ({"rate": -1}, "^a rate is positive, not -1.0$"),
    ],
)
def test_wrong_values_are_named(mapping, message):
    with pytest.raises(InputError, match=message):
        from_mapping(Settings, mapping, "it")


def test_overrides():
    assert parse_override("srmil.mask_rate=0.5") == (["srmil", "mask_rate"], 0.5)
    assert parse_override("learning_rate=1e-4") == (["learning_rate"], 1e-4)
    assert parse_override("abmil.gated=true") == (["abmil", "gated"], True)
    assert parse_override("abmil.embed_dim=null") == (["abmil", "embed_dim"], None)
    assert parse_override("srmil.readout=attention") == (["srmil", "readout"], "attention")
    assert parse_override("record=off") == (["record"], "off")  # and no truth value, as YAML 1.1 has it
    assert parse_yaml("classes: [no, yes]", "it") == {"classes": ["no", "yes"]}
    for text in ("mask_rate", "=3", "a=[1"):
        with pytest.raises(InputError, match="--set"):
            parse_override(text)


def test_files_that_are_no_mapping_are_refused(tmp_path):
    for content, message in {"[1, 2]": "mapping", "a: [": "not valid YAML", "1: x": "mapping"}.items():
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(InputError, match=rf"c.yaml.*{message}"):
            read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")


def test_settings_that_hold_themselves_and_dates_that_are_none_are_sentences(tmp_path):
    for content in ("a: &a [*a]", "a: 2023-13-45", f"a: {'9' * 5000}", f"a: {'[' * 400}{']' * 400}"):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(InputError, match=r"c.yaml"):
            from_mapping(Settings, {"rate": 1, "more": read_yaml(tmp_path / "c.yaml")}, "c.yaml")


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "c.yaml").write_text(f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'ran'}]")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "c.yaml")
    assert not (tmp_path / "ran").exists()


def test_shipped_files():
    assert {"abmil", "srmil", "mean", "max"} <= set(shipped_names("aggregators"))
    assert "demo" in shipped_names("suites")
    assert "crchisto" in shipped_names("data_cards")
    for folder, kind in {"aggregators": "aggregator", "suites": "suite", "data_cards": "dataset"}.items():
        with pytest.raises(InputError, match=f"unknown {kind} 'nothing_like_it'"):
            read_shipped(folder, "nothing_like_it")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "its anchors stand for more than 1,000,000 values; write it out"),
        ("a: &a [*a]", "its anchors stand for more than"),
        (f"a: 0x{'f' * 5000}", "a whole number in it is too large to be written"),
        (f"a: {'9' * 5000}", "is not valid YAML"),
        (f"a: {'[' * 3000}", "is not valid YAML"),
        (f"a: {'[' * 900}{']' * 900}", "is not valid YAML"),
        ("a: 2020-13-45", "is not valid YAML"),
        ("a: !!python/object:os.system x", "is not valid YAML"),
        ("a: \0", "is not valid YAML"),
        ("a: {b: 1, c: 2, b: 3}", "'b' stands twice .*line 1, column 17"),
    ],
)
def test_extremes_of_yaml_are_a_short_sentence_at_once(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_yaml(text, "it")
    assert len(str(error.value)) < 500
    with pytest.raises(InputError, match="is not a YAML value") as error:
        parse_override(text.replace(": ", "=", 1).partition("\n")[0] if text is not BOMB else "a=[1")
    assert len(str(error.value)) < 500
