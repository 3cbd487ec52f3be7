"""
Markdown as the project's documents use it, to roff with the macros of man(7), which man-db, mandoc and groff all know.

Headings, paragraphs, lists, tables, fenced code, code, bold and links are known. A table becomes a list of its rows, because
the columns of most tables here would be too wide for a terminal.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator

#: Longer lines of source are a warning of mandoc.
COLUMNS = 78

#: What roff would read as something else, or show as another character.
_CHARACTERS = {"\\": r"\e", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga", "'": r"\(aq", "-": r"\-"}
_PROSE = {**_CHARACTERS, "-": "-", "'": "'"}
_INLINE = re.compile(
    r"(?P<code>`[^`]+`)|\[(?P<text>(?:`[^`]*`|[^]])*)\]\((?P<target>[^()\s]+)\)|\*\*(?P<bold>[^*]+)\*\*"
)

#: What stands for a link: its text in roff, and its target.
Link = Callable[[str, str], str]


def literal(text: str) -> str:
    """A text in which each character means itself, as in code and in the names of options."""
    return _escaped(text, _CHARACTERS)


def bold(text: str) -> str:
    """A literal text in bold."""
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    """A literal text in italics."""
    return rf"\fI{literal(text)}\fR"


def _escaped(text: str, characters: dict[str, str]) -> str:
    return "".join(characters.get(c, c if c.isascii() else rf"\[u{ord(c):04X}]") for c in text)


def only_text(text: str, target: str) -> str:
    """A link without its target."""
    return text


def inline(text: str, link: Link = only_text) -> str:
    """The text of a paragraph, with code, bold and links."""
    parts = []
    position = 0
    for found in _INLINE.finditer(text):
        parts.append(_escaped(text[position : found.start()], _PROSE))
        position = found.end()
        if found["code"]:
            parts.append(bold(found["code"][1:-1]))
        elif found["bold"]:
            parts.append(bold(found["bold"]))
        else:
            parts.append(link(inline(found["text"]), found["target"]))
    return "".join(parts) + _escaped(text[position:], _PROSE)


def heading(text: str, level: int) -> str:
    """A heading: of a section (1), or below one (2)."""
    plain = text.replace("`", "")
    words = _escaped(plain.upper() if level == 1 else plain, _PROSE).replace('"', r"\(dq")
    return f".{'SH' if level == 1 else 'SS'} {words}"


def lines(text: str) -> Iterator[str]:
    """A paragraph's roff in lines that are short enough, none of which roff reads as a request."""
    for line in textwrap.wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False):
        yield rf"\&{line}" if line.startswith((".", "'")) else line


def code(block: list[str]) -> Iterator[str]:
    """Lines of code, indented and unchanged."""
    yield from (".PP", ".RS 4", ".EX")
    for line in block:
        escaped = literal(line)
        yield rf"\&{escaped}" if escaped.startswith(".") else escaped
    yield from (".EE", ".RE")


def item(tag: str, *paragraphs: str) -> Iterator[str]:
    """An entry of a list of terms: the term, and what is said of it."""
    yield ".TP"
    yield tag
    for number, paragraph in enumerate(paragraphs or ("",)):
        if number:
            yield ".IP"
        yield from lines(paragraph)


class Converter:
    """
    Converts a document.

    @param link: what stands for a link.
    @param lift: by how much headings rise: with 1 the title of a second level is that of a section.
    """

    def __init__(self, link: Link = only_text, lift: int = 1) -> None:
        self._link = link
        self._lift = lift

    def document(self, text: str) -> list[str]:
        """All blocks, as lines of roff."""
        out: list[str] = []
        for block in _blocks(text):
            # A paragraph right after a heading needs no macro, and mandoc wants none.
            after_heading = not out or out[-1].startswith((".SH", ".SS"))
            out += self._block(block, after_heading)
        return out

    def _block(self, block: list[str], after_heading: bool) -> Iterator[str]:
        first = block[0]
        if first.startswith("#"):
            marks, _, words = first.partition(" ")
            yield heading(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", words), max(1, len(marks) - self._lift))
        elif first.startswith("```"):
            yield from list(code(block[1:-1]))[1 if after_heading else 0 :]
        elif first.startswith("|"):
            yield from self._table(block)
        elif first.startswith("- "):
            for entry in re.split(r"^- ", "\n".join(block), flags=re.MULTILINE)[1:]:
                yield r".IP \(bu 2"
                yield from lines(self._inline(entry))
        else:
            if not after_heading:
                yield ".PP"
            yield from lines(self._inline("\n".join(block)))

    def _inline(self, text: str) -> str:
        return inline(" ".join(text.split()), self._link)

    def _table(self, rows: list[str]) -> Iterator[str]:
        titles, _, *entries = (_cells(row) for row in rows)
        for cells in entries:
            filled = [(title, cell) for title, cell in zip(titles[1:], cells[1:], strict=True) if cell]
            if len(titles) > 2:
                text = "; ".join(f"{title}: {cell}" for title, cell in filled)
            else:
                text = "".join(cell for _, cell in filled)
            yield from item(self._inline(cells[0]) or r"\&", self._inline(text))


def _cells(row: str) -> list[str]:
    r"""The cells of a row; C{\|} is a bar within one."""
    return [cell.strip().replace("\0", "|") for cell in row.replace(r"\|", "\0").strip().strip("|").split("|")]


def _blocks(text: str) -> Iterator[list[str]]:
    """Paragraphs, headings, lists, tables and code, each as its lines. Comments are left out."""
    block: list[str] = []
    fence = ""
    for line in text.splitlines():
        if fence:
            block.append(line)
            if line.startswith(fence):
                yield block
                block, fence = [], ""
        elif line.startswith("```"):
            if block:
                yield block
            block, fence = [line], "```"
        elif line.startswith("#") or not line.strip():
            if block:
                yield block
            block = []
            if line.startswith("#"):
                yield [line]
        elif not line.startswith("<!--"):
            if block and line.startswith("- ") and not block[0].startswith("- "):
                yield block
                block = []
            block.append(line)
    if block:
        yield block


def section(text: str, title: str) -> str:
    """
    The part of a Markdown document below a heading, without the heading.

    @raise LookupError: there is no such heading.
    """
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"no heading {title!r}")
    return found[2].strip()


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of a table, without its head."""
    return [_cells(line) for line in text.splitlines() if line.startswith("|")][2:]
