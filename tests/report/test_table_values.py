"""One table, five ways to write it."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mil_zoo.report.tables import Cell, Document, Table

TABLE = Table(
    ["Aggregator", "AUC [95 %]"],
    [
        ["a*b<i>&_x", Cell("0.900", "0.012", ("[0.85, 0.95]", "(n = 3)"), bold=True)],
        ["c|d", Cell("0.8")],
    ],
    ["One *note* of 5 %."],
)


def test_markdown():
    assert TABLE.markdown() == (
        "| Aggregator | AUC [95 %] |\n| --- | ---: |\n"
        "| a\\*b\\<i>&\\_x | **0.900** ± 0.012 [0.85, 0.95] (n = 3) |\n| c\\|d | 0.8 |\n"
        "\n- One \\*note\\* of 5 %.\n"
    )


def test_latex_puts_what_stands_below_on_lines_of_its_own():
    text = TABLE.latex("AUC & more")
    body = text[text.index(r"\midrule") + 9 : text.index(r"\bottomrule")]
    assert body.splitlines() == [
        r"a*b\textless{}i\textgreater{}\&\_x & \textbf{0.900} $\pm$ 0.012 \\",
        r" & [0.85, 0.95] \\",
        r" & (n = 3) \\",
        r"\addlinespace",
        r"c\textbar{}d & 0.8 \\",
    ]
    assert r"\caption{AUC \& more.}" in text
    assert r"One *note* of 5 \%.\par" in text


def test_a_line_above_a_row():
    table = Table(["a"], [["1"], ["2"]], ruled=frozenset([1]))
    assert "1 \\\\\n\\midrule\n2 \\\\\n\\bottomrule" in table.latex("x")


def test_html_is_escaped():
    assert [list(map(str, row)) for row in TABLE.html()] == [
        [
            "a*b&lt;i&gt;&amp;_x",
            "<b>0.900</b> ± 0.012 <small>[0.85, 0.95]</small> <small>(n = 3)</small>",
        ],
        ["c|d", "0.8"],
    ]


def test_terminal():
    console = Console(width=80, file=io.StringIO())
    console.print(TABLE.terminal())
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert "a*b<i>&_x   0.900±0.012" in lines
    assert "[0.85, 0.95]" in lines
    assert "One *note* of 5 %." in lines


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1, 2], "b": [1 / 3, np.nan], "c": ['x,"y"', "z\nw"], "d": [2.0, 1e-20]}),
        pd.DataFrame({"a": [], "b": []}),
        pd.DataFrame({"seed": [None, 1], "e": [1e9 + 0.25, 3.0]}, dtype=object).astype({"e": float}),
    ],
)
def test_csv_is_what_pandas_writes(frame):
    assert Table.of(frame).csv() == frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def test_a_document_joins_tables_and_notes():
    document = Document("x", "X", [Table(["a"], [["1"]], title="T"), Table(["b"], [["2"]])], ["end"], heading="H")
    assert document.markdown() == ("# H\n\n## T\n\n| a |\n| --- |\n| 1 |\n\n| b |\n| --- |\n| 2 |\n\n- end\n")


def test_columns_of_numbers_are_right_aligned_and_those_of_words_left():
    rows = [
        ["abmil", "5-fold CV", "0.9", "-", "3 of 5", "< 0.001", "-", "[0.1, 0.2]", "a word", Cell("1,234", "0.1")],
        ["mean", "10 x 10 folds", "-0.1", "", "5 of 5", "0.03", "-", "12 % ", "1", Cell("-")],
        ["max", "as published", "undefined", "", "5 of 5", "0.03", "-", "+3", "no", Cell("2")],
    ]
    table = Table([f"c{i}" for i in range(10)], rows)
    right = [False, False, True, True, True, True, True, True, False, True]
    assert table.of_numbers == right
    assert table.markdown().splitlines()[1] == f"| {' | '.join('---:' if one else '---' for one in right)} |"
    assert rf"\begin{{tabular}}{{{''.join('r' if one else 'l' for one in right)}}}" in table.latex("x")
    console = Console(width=200, file=io.StringIO())
    console.print(table.terminal())
    lines = console.file.getvalue().splitlines()
    assert lines[2].index("5-fold") == lines[3].index("10 x 10")
