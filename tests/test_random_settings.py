"""Overrides, grids and configuration over random texts: a value of the right type, or one sentence."""

import dataclasses
from contextlib import suppress

from examples import attempt, some
from hypothesis import given
from hypothesis import strategies as st

from mil_zoo import InputError
from mil_zoo.bench.grid import parse_grids
from mil_zoo.bench.suite import Suite, parse_task
from mil_zoo.config import from_mapping, parse_override, parse_yaml
from mil_zoo.data.card import DataCard
from mil_zoo.train.config import TrainingConfig

TEXTS = st.one_of(
    st.text(max_size=40),
    st.text("0123456789.,-+eE_:[]{}&*!?|>'\"~ \n\tinfa=", max_size=40),
    st.sampled_from(
        [".inf", "-.inf", ".nan", "1e400", "9" * 400, "-1", "0", "null", "yes", "2020-13-45", "0x" + "f" * 999]
    ),
)
FIELDS = {cls: [field.name for field in dataclasses.fields(cls)] for cls in (TrainingConfig, Suite, DataCard)}

CARD = {"name": "x", "title": "x", "kind": "real", "form": "slides", "classes": []}


@some
@given(text=TEXTS, cls=st.sampled_from(list(FIELDS)), data=st.data())
def test_any_text_as_a_setting(text, cls, data):
    field = data.draw(st.sampled_from(FIELDS[cls]))
    given = CARD if cls is DataCard else {}
    built, said = attempt(lambda: from_mapping(cls, given | {field: parse_override(f"{field}={text}")[1]}, "it"))
    if built is None:
        assert len(said) < 2000
        return
    assert getattr(built, field) == getattr(built, field)  # NaN stands nowhere


@some
@given(text=TEXTS)
def test_any_text_as_a_file_grid_or_task(text):
    for parse in (lambda: parse_yaml(text, "it"), lambda: parse_grids([f"a.b={text}"]), lambda: parse_task(text)):
        with suppress(InputError):
            parse()
