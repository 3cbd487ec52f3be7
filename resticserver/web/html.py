"""
HTML elements as text. Whatever is put in is escaped, unless it is made here.

C{twisted.web.template} takes several times as long for hundreds of rows, because any of its parts could be a
Deferred, and a thread that makes pages holds the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

#: Elements without content, which have no end tag.
_VOID = frozenset(("input", "link", "meta"))
_NAMES: dict[str, str] = {}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


#: What an element may contain.
Content: TypeAlias = "str | Iterable[Content] | None"


def element(name: str, /, *content: Content, **attributes: str | None) -> Markup:
    """
    An element.

    @param content: text, which is escaped, elements, and sequences of both. C{None} is nothing.
    @param attributes: C{None} leaves one out. In a name C{_} stands for C{-}, and one at the end is removed, so that
        C{class_} and C{data_name} can be written.
    """
    start = f"<{name}"
    for attribute, value in attributes.items():
        if value is not None:
            start += f' {_attribute(attribute)}="{escape(value)}"'
    if name in _VOID:
        return Markup(start + "/>")
    return Markup(f"{start}>{text_of(content)}</{name}>")


def _attribute(name: str) -> str:
    known = _NAMES.get(name)
    if known is None:
        known = _NAMES[name] = name.removesuffix("_").replace("_", "-")
    return known


def text_of(content: Content) -> Markup:
    """Content as HTML."""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(escape(content, quote=False))
    if content is None:
        return Markup()
    return Markup("".join(map(text_of, content)))


def document(page: Markup) -> bytes:
    """A whole page as bytes. Nothing makes it fail, not even what is no Unicode."""
    return b"<!DOCTYPE html>\n" + page.encode("utf-8", "backslashreplace")
