"""
The documents: F{docs/options.md} is what the code says, relative links and anchors lead somewhere, and lines can be read in a
terminal.
"""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.options import Options
from resticserver.config.reference import REFERENCE

CHECKOUT = Path(__file__).parent.parent
#: Longest line of prose; what cannot be wrapped may be longer.
COLUMNS = 100
#: Not wrapped yet. Nothing is added here.
LONG_LINES = ("benchmarks/README.md", "docs/decisions/packages.md")

OPTIONS = [option for section in REFERENCE for option in section.options]
#: Those that L{Options} has as methods.
METHODS = {"listen", "trusted-proxy", "help", "version"}


def documents() -> list[Path]:
    """All Markdown files of the project."""
    found = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md"), *(CHECKOUT / "benchmarks").glob("*.md")]
    return sorted(found)


def without_code(text: str) -> Iterator[str]:
    """The lines of a document that are not code; those are empty, so that lines keep their numbers."""
    fence = ""
    for line in text.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        inside = bool(fence)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        yield "" if inside or mark or (line.startswith("    ") and not line.lstrip().startswith(("-", "*"))) else line


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and GitLab give to a document's headings."""
    found: dict[str, int] = {}
    names = set()
    for line in without_code(text):
        heading = re.match(r"#{1,6} (.*?)#*\s*\Z", line)
        if heading is None:
            continue
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        times = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{times}" if times else name)
    return names


def links(text: str) -> Iterator[str]:
    """The targets of a document's links and images."""
    prose = re.sub(r"`[^`\n]*`", "", "\n".join(without_code(text)))
    yield from re.findall(r"\]\(([^()\s]+)\)", prose)


def broken(document: Path) -> Iterator[str]:
    """Those relative links of a document that lead nowhere."""
    text = document.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield f"{link}: no such heading"


class LinkTests(SynchronousTestCase):
    """Links between the documents."""

    def test_anchors(self) -> None:
        """Headings become anchors as GitHub makes them."""
        text = "# A `--b` & c\n\n```sh\n# no\n```\n## [X](y.md): z?\n## Same\n## Same\n"
        self.assertEqual({"a---b--c", "x-z", "same", "same-1"}, anchors(text))

    def test_links(self) -> None:
        """Images and links over two lines are found; code is not looked at."""
        text = "![a](b.png) [c\nd](e.md#f) `[g](h)`\n\n```\n[i](j)\n```\n"
        self.assertEqual(["b.png", "e.md#f"], list(links(text)))

    def test_all(self) -> None:
        """Every relative link and every anchor leads somewhere."""
        found = {document.relative_to(CHECKOUT).as_posix(): list(broken(document)) for document in documents()}
        self.assertEqual({}, {name: wrong for name, wrong in found.items() if wrong})

    def test_pages_are_linked(self) -> None:
        """The README, or a page that it links to, links to every page in docs/."""
        seen = {CHECKOUT / "README.md"}
        waiting = list(seen)
        while waiting:
            document = waiting.pop()
            for link in links(document.read_text(encoding="utf-8")):
                target = (document.parent / link.partition("#")[0]).resolve()
                if target.suffix == ".md" and target.exists() and target not in seen:
                    seen.add(target)
                    waiting.append(target)
        pages = {page for page in documents() if page.parent.name != "news"}
        self.assertEqual(set(), {page.relative_to(CHECKOUT).as_posix() for page in pages - seen})

    def test_index(self) -> None:
        """The index links to every page in docs/."""
        index = CHECKOUT / "docs" / "index.md"
        linked = {link.partition("#")[0] for link in links(index.read_text(encoding="utf-8"))}
        pages = {page.name for page in index.parent.glob("*.md")} - {index.name}
        self.assertEqual(set(), pages - linked)


class LineTests(SynchronousTestCase):
    """How long lines are."""

    def test_prose(self) -> None:
        """Prose is wrapped; tables, code and lines of one long word or link need not be."""
        found = []
        for document in documents():
            name = document.relative_to(CHECKOUT).as_posix()
            if name in LONG_LINES:
                continue
            for number, line in enumerate(without_code(document.read_text(encoding="utf-8")), 1):
                wrappable = " " in line.strip().removeprefix("- ") and "://" not in line
                if len(line) > COLUMNS and wrappable and not line.startswith("|"):
                    found.append(f"{name}:{number}")
        self.assertEqual([], found)

    def test_exceptions_are_needed(self) -> None:
        """A file that is wrapped by now is no exception any longer."""
        for name in LONG_LINES:
            lines = without_code((CHECKOUT / name).read_text(encoding="utf-8"))
            self.assertTrue(any(len(line) > COLUMNS and not line.startswith("|") for line in lines), name)


class OptionsTests(SynchronousTestCase):
    """F{docs/options.md} and the flags."""

    def test_current(self) -> None:
        """The page is what C{make docs} makes."""
        made = runpy.run_path(str(CHECKOUT / "docs" / "generate_options.py"))["page"]()
        self.assertEqual(made, (CHECKOUT / "docs" / "options.md").read_text(encoding="utf-8"))

    def test_every_flag(self) -> None:
        """Every flag is there once, and no other."""
        flags = {str(flag[0]) for flag in (*Options.optFlags, *Options.optParameters)} | METHODS
        self.assertEqual(sorted(flags), sorted(option.flag for option in OPTIONS))

    def test_switches(self) -> None:
        """Those without a value are the switches."""
        switches = {str(flag[0]) for flag in Options.optFlags} | {"help", "version"}
        self.assertEqual(switches, {option.flag for option in OPTIONS if not option.value})

    def test_defaults(self) -> None:
        """Defaults that are values are those of the code."""
        stated = {option.flag: option.default for option in OPTIONS}
        for name, _, default, *_ in Options.optParameters:
            if default is not None:
                self.assertEqual("none" if default == "0" else f"`{default}`", stated[str(name)], name)
        self.assertEqual({"off"}, {stated[str(flag[0])] for flag in Options.optFlags})


class NewsTests(SynchronousTestCase):
    """The fragments that become the changelog."""

    def test_names(self) -> None:
        """Each is called as towncrier wants it: another name would be left out of the changelog without a word."""
        settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
        types = "|".join(one["directory"] for one in settings["type"])
        names = {path.name for path in (CHECKOUT / settings["directory"]).iterdir()} - set(settings["ignore"])
        self.assertEqual([], [name for name in names if not re.fullmatch(rf"(\d+|\+[\w-]+)\.({types})\.md", name)])
