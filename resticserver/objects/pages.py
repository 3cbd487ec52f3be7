"""
What the lists of all object stores have in common: pages, and the order of their keys. Pure rules, no I/O.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from operator import lt
from typing import NamedTuple
from xml.parsers import expat

from .engine import Found

#: The largest page that is read, in bytes: 1,000 keys of 1,024 bytes are 3 MiB when each byte is encoded.
MAX_PAGE_BYTES = 16 << 20


class BadPage(ValueError):
    """An answer is not a page of a list; the message says why, for the log."""


class Page(NamedTuple):
    """
    One page.

    @ivar found: its objects; the keys are without the prefix.
    @ivar token: what to ask for the next page with; C{None} if this is the last.
    @ivar folders: what stands for all keys below a folder, without the prefix, with a slash at the end.
    """

    found: list[Found]
    token: str | None
    folders: list[str]


class Ascending:
    """
    Checks that the keys of a list ascend strictly over all its pages, so that none comes twice and no page is sent again.

    There are two orders. S3's is by the bytes of UTF-8, which is also Python's order of strings. SeaweedFS 4 goes through its
    directories: there C{a/b} comes before C{a-b}, as if the slash were the first of all characters. A list must keep to one of
    them from its first page to its last.

    @param after: the key that all others come after, without the prefix of all; C{None} for none.
    """

    def __init__(self, after: str | None = None) -> None:
        self._last = after
        self._by_bytes = self._by_folders = True

    def check(self, keys: list[str]) -> None:
        """
        Take the keys of the next page.

        @raise BadPage: they do not ascend.
        """
        if not keys:
            return
        with_last = keys if self._last is None else [self._last, *keys]
        self._by_bytes = self._by_bytes and all(map(lt, with_last, with_last[1:]))
        if self._by_folders:
            folded = [key.replace("/", "\0") for key in with_last]
            self._by_folders = all(map(lt, folded, folded[1:]))
        if not self._by_bytes and not self._by_folders:
            raise BadPage("the keys are not in ascending order")
        self._last = keys[-1]


def well_formed(body: bytes) -> str:
    """
    An answer as text.

    @raise BadPage: it is no XML in UTF-8; or has declarations (entities could make a small answer large), comments, CDATA or
        instructions, in which a tag need not be one.
    """
    body = body.removeprefix(BOM_UTF8)
    if b"<!" in body or body.find(b"<?", 1) != -1:
        raise BadPage("the answer has a declaration, a comment or an instruction")
    try:
        # The encoding given here wins over the one that the text names, so that the check above cannot be evaded.
        expat.ParserCreate("utf-8").Parse(body, True)
        return body.decode("utf-8")
    except (expat.ExpatError, UnicodeDecodeError) as error:
        raise BadPage(f"the answer is no XML: {error}") from None


def short(text: str) -> str:
    """A text of the engine's for a message."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")
