"""Settings of the site. ``make docs`` builds it strictly; the built pages load nothing from a network."""

import os
import sys
from pathlib import Path

from latex2mathml.converter import convert
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import mil_zoo  # noqa: E402

project = "mil-zoo"
author = "the mil-zoo contributors"
project_copyright = "the mil-zoo contributors, Apache-2.0"
release = version = mil_zoo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]

highlight_language = "none"  # formulas in docstrings are no Python

html_theme = "furo"
html_title = "mil-zoo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# MIL_ZOO_DOCS_NOTEBOOKS=off builds without running the notebooks, which takes a minute instead of three.
nb_execution_mode = os.environ.get("MIL_ZOO_DOCS_NOTEBOOKS", "force")
nb_execution_timeout = 300
suppress_warnings = ["myst-nb.lexer"] if nb_execution_mode == "off" else []  # a kernel that runs names its language
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # widgets would load scripts from a network

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray"]
napoleon_numpy_docstring = False
napoleon_attr_annotations = False

copybutton_exclude = ".linenos, .gp, .go"


def _inline_math(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise _skip()


def _block_math(translator, node) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise _skip()


def _skip() -> Exception:
    from docutils.nodes import SkipNode

    return SkipNode()


def setup(app: Sphinx) -> None:
    """Math becomes MathML, which browsers and screen readers know by themselves; generated pages are made anew."""
    import site_pages

    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("builder-inited", lambda app: site_pages.write(HERE))
