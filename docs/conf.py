"""
How sphinx makes a site of the documents (C{make site}). The same files are read on a code host, so nothing in them is for
sphinx alone: the navigation is here, and links are ordinary ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CHECKOUT = Path(__file__).resolve().parent.parent

project = "resticserver"
author = "the resticserver authors"
version = re.search(r'^__version__ = "(.+)"$', (CHECKOUT / "resticserver/__init__.py").read_text(), re.M)[1]
release = version

extensions = ["myst_parser"]
root_doc = "docs/index"
#: The paths of the site are those of the checkout, so relative links are the same in both.
include_patterns = ["*.md", "docs/**.md", "benchmarks/README.md"]
exclude_patterns = [".*", "build", "dist", "backups", "tests", "resticserver", "docs/news/+*", "docs/news/[0-9]*"]
#: Two dashes are a flag's.
smartquotes = False
#: Anchors of headings as code hosts make them.
myst_heading_anchors = 6

html_theme = "furo"
html_title = f"Repository server for restic {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
#: Built in a checkout of any state: the same files give the same pages.
html_last_updated_fmt = None

NAVIGATION = {
    "Set up": ["quick-start", "recipes", "migrating", "how-to"],
    "Run": ["operations", "monitoring", "scaling", "troubleshooting", "upgrading"],
    "Reference": ["options", "policy", "embedding", "stability"],
    "Background": ["/SECURITY", "durability", "performance", "About this server </README>", "/CHANGELOG"],
    "Development": [
        *("/CONTRIBUTING", "design", "testing", "decisions/README", "/benchmarks/README", "news/README"),
    ],
}
#: Pages that are listed below another one.
BELOW = {"docs/decisions/README": "docs/decisions"}

LINK = re.compile(r"\[([^]]+)\]\(([^()\s:#]+/)\)")


def toctree(caption: str, pages: list[str]) -> str:
    """A list of pages for the navigation, which the page itself does not show."""
    return "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def prepare(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the navigation, and make plain text of links to directories, which a site cannot show."""
    folder = (CHECKOUT / name).parent
    text = LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0])
    if name == root_doc:
        text += "".join(toctree(caption, pages) for caption, pages in NAVIGATION.items())
    if name in BELOW:
        pages = sorted(page.stem for page in (CHECKOUT / BELOW[name]).glob("*.md") if page.stem != Path(name).name)
        text += toctree("", pages).replace(":caption: \n", "")
    source[0] = text


def begin_at_the_index(app: Sphinx, error: Exception | None) -> None:
    """Lead from the site's first page to the index, which has the path that it has in the checkout."""
    if error is None:
        page = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'
        (Path(app.outdir) / "index.html").write_text(f'{page}\n<a href="docs/index.html">Documentation</a>\n')


def setup(app: Sphinx) -> None:
    """See sphinx's "Developing extensions"."""
    app.connect("source-read", prepare)
    app.connect("build-finished", begin_at_the_index)
