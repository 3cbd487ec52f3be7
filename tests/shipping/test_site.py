"""
The documentation site: it is built without a warning, asks no other machine for anything, and its links lead somewhere.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from ..support.scratch import scratch_directory

CHECKOUT = Path(__file__).parent.parent.parent
#: What a browser fetches without being asked, by element.
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
#: Kinds of C{link} elements that a browser does not fetch.
NOT_FETCHED = {"search", "next", "prev", "index", "canonical"}

_missing = [module for module in ("sphinx", "furo", "myst_parser") if find_spec(module) is None]


class Page(HTMLParser):
    """
    What a page refers to.

    @ivar fetched: what a browser fetches with it.
    @ivar links: where it leads.
    @ivar anchors: what other pages can lead to.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See C{HTMLParser}."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        target = given.get(FETCHED.get(tag, ""))
        if target and not (tag == "link" and set(given.get("rel", "").split()) & NOT_FETCHED):
            self.fetched.append(target)


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run what C{make site} runs."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"^site:.*\n\t\$\(VENV\)/bin/sphinx-build (.*) build/site$", makefile, re.MULTILINE)
    assert command is not None
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *command[1].split(), "-d", str(site) + ".doctrees", str(site)],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def built() -> tuple[dict[str, Page], dict[str, bytes]]:
    """The pages of this checkout's site, and its other files, by path. It is built once."""
    scratch = Path(tempfile.mkdtemp(prefix="restic-site-"))
    try:
        site = scratch / "site"
        done = build(CHECKOUT, site)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        files = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    pages = {name: Page(content.decode()) for name, content in files.items() if name.endswith(".html")}
    return pages, {name: content for name, content in files.items() if name not in pages}


class SiteTests(SynchronousTestCase):
    """The site of this checkout."""

    skip = f"not installed (make .venv/docs): {', '.join(_missing)}" if _missing else None

    def setUp(self) -> None:
        self.pages, self.files = built()

    def test_all_pages(self) -> None:
        """Every document is a page, and the navigation of the first page leads to it."""
        documents = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "benchmarks/README.md"]
        names = {document.relative_to(CHECKOUT).with_suffix(".html").as_posix() for document in documents}
        expected = {name for name in names if not name.startswith("docs/news/") or name.endswith("README.html")}
        self.assertEqual(set(), expected - set(self.pages))
        reached = {resolved("docs/index.html", link)[0] for link in self.pages["docs/index.html"].links}
        below = {name for name in expected if name.startswith("docs/decisions/")}
        self.assertEqual(set(), expected - below - reached - {"docs/index.html"})
        self.assertIn("docs/index.html", self.pages["index.html"].links)

    def test_no_other_machine(self) -> None:
        """Pages and styles fetch nothing from elsewhere."""
        for name, page in self.pages.items():
            self.assertEqual([], [target for target in page.fetched if is_outside(target)], name)
        for name, content in self.files.items():
            if name.endswith(".css"):
                urls = re.findall(rb"(?:url\(|@import )\s*[\"']?([^\"')\s]+)", content)
                self.assertEqual([], [url for url in urls if is_outside(url.decode())], name)

    def test_links(self) -> None:
        """Every link and everything that is fetched is there, with its anchor."""
        broken = []
        for name, page in self.pages.items():
            for link in {*page.links, *page.fetched}:
                if is_outside(link) or link.startswith(("mailto:", "data:")):
                    continue
                target, anchor = resolved(name, link)
                if target not in self.pages and target not in self.files:
                    broken.append(f"{name}: {link}: no such file")
                elif anchor and target in self.pages and anchor not in self.pages[target].anchors:
                    broken.append(f"{name}: {link}: no such anchor")
        self.assertEqual([], broken)

    def test_search(self) -> None:
        """The search knows the pages."""
        index = self.files["searchindex.js"].decode()
        self.assertIn("docs/troubleshooting", index)


class BrokenTests(SynchronousTestCase):
    """What the build must not let pass."""

    skip = SiteTests.skip

    def small_checkout(self, page: str) -> Path:
        """A checkout whose only pages are an index and this one."""
        checkout = scratch_directory(self)
        (checkout / "docs").mkdir()
        (checkout / "resticserver").mkdir()
        (checkout / "resticserver/__init__.py").write_text('__version__ = "1"\n')
        configuration = (CHECKOUT / "docs/conf.py").read_text(encoding="utf-8")
        # Nothing but the two pages in the navigation.
        configuration = re.sub(
            r"^NAVIGATION = \{.*?^\}$", 'NAVIGATION = {"All": ["page"]}', configuration, flags=re.M | re.S
        )
        (checkout / "docs/conf.py").write_text(configuration)
        (checkout / "docs/index.md").write_text("# Index\n")
        (checkout / "docs/page.md").write_text(page)
        return checkout

    def messages(self, page: str) -> tuple[int, str]:
        """The exit status and what was printed."""
        checkout = self.small_checkout(page)
        done = build(checkout, checkout / "build/site")
        return done.returncode, done.stderr

    def test_good(self) -> None:
        """A page with a link to its own heading and to a directory, which becomes text."""
        self.assertEqual((0, ""), self.messages("# Page\n\n[here](#page) [there](../docs/)\n"))

    def test_broken(self) -> None:
        """A missing page, heading or file."""
        for link in ("other.md", "#other", "index.md#other", "../other.conf"):
            status, said = self.messages(f"# Page\n\n[link]({link})\n")
            self.assertNotEqual(0, status, link)
            self.assertIn("page.md:3", said, link)


def is_outside(target: str) -> bool:
    """Whether a link leads to another machine."""
    parts = urlsplit(target)
    return parts.scheme in ("http", "https") or bool(parts.netloc)


def resolved(page: str, link: str) -> tuple[str, str]:
    """The path and the anchor that a link on a page leads to."""
    path, _, anchor = link.partition("#")
    if not path:
        return page, unquote(anchor)
    steps = list(walk([*page.split("/")[:-1], *unquote(path.partition("?")[0]).split("/")]))
    return "/".join(steps), unquote(anchor)


def walk(steps: list[str]) -> Iterator[str]:
    """A path without C{.} and C{..}."""
    kept: list[str] = []
    for step in steps:
        if step == "..":
            kept.pop()
        elif step not in ("", "."):
            kept.append(step)
    yield from kept
