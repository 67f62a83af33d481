"""A console of any encoding, and names of files."""

import io
import sys

import pytest

from mil_zoo.cli.encoding import show_anywhere
from mil_zoo.cli.predicted_files import stem_of
from mil_zoo.registry import PLUGINS
from mil_zoo.report.names import file_stem


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_text_can_be_shown(encoding, monkeypatch):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    show_anywhere()
    print("0.9 ± 0.1, a ≥ b, Müller, 肿瘤, a…", end="")
    stream.flush()
    expected = {
        "ascii": "0.9 +- 0.1, a >= b, Muller, ??, a...",
        "cp1252": "0.9 ± 0.1, a >= b, Müller, ??, a…",
        "utf-8": "0.9 ± 0.1, a ≥ b, Müller, 肿瘤, a…",
    }
    assert buffer.getvalue().decode(encoding) == expected[encoding]


def test_slides_of_one_name_in_two_folders_keep_files_of_their_own():
    taken = {}
    first, again, other = (stem_of("slide", source, taken) for source in ("a/slide.h5", "a/slide.h5", "b/slide.h5"))
    assert first == again == "slide"
    assert other.startswith("slide-")
    assert stem_of("SLIDE", "c/SLIDE.h5", taken) not in (first, other)  # file systems may not tell cases apart


def test_a_long_name_fits_a_file_system():
    names = {file_stem("肿" * 100 + end) for end in "ab"}
    assert len(names) == 2
    assert all(len(name) <= 160 for name in names)
    assert file_stem("a/b c") == "a%2Fb%20c"


def test_a_missing_excepthook_is_put_back(monkeypatch, tmp_path):
    """Without one no thread starts, nor does a spinner of the terminal; a plugin may take it away too."""
    (tmp_path / "takes_hook.py").write_text("import sys\nsys.excepthook = None\n")
    monkeypatch.setattr(sys, "excepthook", None)
    show_anywhere()
    assert sys.excepthook is sys.__excepthook__
    PLUGINS.load(tmp_path / "takes_hook.py")
    PLUGINS.files.pop()
    assert sys.excepthook is sys.__excepthook__
