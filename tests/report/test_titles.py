"""A title with characters that a renderer would read as its own is shown as it is written, everywhere."""

import html
import io

import pytest
from matplotlib import cbook
from rich.console import Console

from mil_zoo import InputError
from mil_zoo.markdown import escape_markdown
from mil_zoo.metrics import inside
from mil_zoo.report.figures.roc_pr import draw_roc
from mil_zoo.report.load import Results
from mil_zoo.report.page.write import write_page
from mil_zoo.report.tables import terminal_scores, write_tables
from mil_zoo.report.tables.text import escape_latex

TITLE = r"<b>x</b> | $a_1$ [red]y[/] *z* _u_ [l](m) &amp; 50 %"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("$a_1$", r"\$a_1\$"),
        ("_u_ __v__", r"\_u\_ \_\_v\_\_"),
        ("slide_id", "slide_id"),
        ("[l](m)", r"[l\](m)"),
        ("[0.90, 1.00]", "[0.90, 1.00]"),
        ("&amp; &#38; a & b", r"\&amp; \&#38; a & b"),
        ("~~gone~~", r"\~~gone\~~"),
        ("<b>|*`\\", r"\<b>\|\*\`\\"),
        ("a\nb\r\n\n# c", "a b # c"),
    ],
)
def test_markdown(text, escaped):
    assert escape_markdown(text) == escaped


def test_inside_a_phrase():
    kept = ["AUC", "C", "Uno's C", "R2", "Brier at 12", "D-calibration p", "macro AUC"]
    assert [inside(title) for title in kept] == kept
    assert [inside(title) for title in ("Accuracy", "Mean AUC")] == ["accuracy", "mean AUC"]


def test_latex():
    assert escape_latex("a|b<c_d") == r"a\textbar{}b\textless{}c\_d"
    assert escape_latex("a\n\nb") == "a b"


def test_everywhere(make_run):
    run = make_run(models=("abmil",), title=TITLE)
    with pytest.raises(InputError, match="title must be one line without control characters"):
        Results.load(run, title="a\x1b[2Jb")
    results = Results.load(run)
    assert results.dataset_title.startswith(TITLE)
    write_tables(results)
    assert escape_markdown(TITLE) in (run.path / "table.md").read_text(encoding="utf-8")
    assert escape_latex(TITLE) in (run.path / "table.tex").read_text(encoding="utf-8")
    page = write_page(results).read_text(encoding="utf-8")
    assert html.escape(TITLE, quote=False) in page
    assert TITLE not in page
    shown = io.StringIO()
    Console(file=shown, width=400).print(terminal_scores(results).terminal())
    assert TITLE in shown.getvalue()
    for text in (draw_roc(results)["roc"].get_suptitle(),):
        assert not cbook.is_math_text(text)
        assert text.replace("\n", " ").replace(r"\$", "$").endswith(results.dataset_title)
