"""How Sphinx builds the documentation: `make docs`. Nothing is fetched while it does.

Pages are Markdown that reads the same on a forge; those in `reference/` take their text
from the docstrings, which write code between single backticks, whether or not it is the
name of something.
"""

from __future__ import annotations

import re
from typing import Any

from docutils.nodes import Element, Text
from sphinx import addnodes

import areplay

project = "areplay"
author = "areplay contributors"
copyright = author
version = release = areplay.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "areplay"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["areplay.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1b7f79",
        "color-brand-content": "#1b6f9a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc2bb",
        "color-brand-content": "#6db8dd",
    },
}
copybutton_exclude = ".linenos, .gp, .go"

default_role = "py:obj"
smartquotes_action = "D"  # dashes only
nitpick_ignore_regex = [
    # Code in a docstring; other people's names; what a reader need not know.
    ("py:obj", "(?s).*"),
    ("py:.*", r"(asyncio|collections|numpy|np|os|types|torch|jax)\..*|NDArray"),
    ("py:.*", r"areplay\.(_.*|runner\.T)"),
]

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True

GIVEN = {"Actor", "Actors", "Batch", "Batches", "Checkpoints", "Report", "Windows"}
PROTOCOLS = {"Item", "Selector"}
"""Classes that areplay makes objects of, or nobody: no constructor is shown."""

ARRAY = re.compile(
    r"(?:~?numpy\.)?ndarray\[.*?\.\.\.\], (?:~?numpy\.)?dtype\[(.*?)\]\]"
)
"""`NDArray` as Python spells it out."""


def on_docstring(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what is before a property's first colon for a type."""
    if what in ("property", "attribute"):
        lines[:0] = [".. a comment, which has no colon", ""]


def on_signature(
    app: object,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """None for those, and for records of statistics: their fields stand below."""
    if what == "class":
        is_record = thing.__module__ == "areplay.statistics"
        if is_record or name.removeprefix("areplay.") in GIVEN | PROTOCOLS:
            return "", None
    return plain(signature), plain(returns)


def on_description(app: object, domain: str, objtype: str, content: Element) -> None:
    """The types of properties, which have no signature."""
    if objtype == "property":
        for annotation in content.parent.findall(addnodes.desc_annotation):
            # Each name is there twice, for the case that it has a link and the other.
            texts = annotation.findall(Text)
            text = "".join(t for t in texts if t.parent.get("condition") != "*")
            if ARRAY.search(text):
                annotation[:] = [Text(plain(text))]


def plain(text: str | None) -> str | None:
    """Types of arrays as one writes them."""
    return text and ARRAY.sub(r"NDArray[\1]", text)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    before_napoleon = 400
    app.connect("autodoc-process-docstring", on_docstring, priority=before_napoleon)
    app.connect("autodoc-process-signature", on_signature)
    app.connect("object-description-transform", on_description)
