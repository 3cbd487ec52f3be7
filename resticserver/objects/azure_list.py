"""
What Azure answers to List Blobs: one page. Pure rules, no I/O.

An answer that is not exactly a page is refused, since a list that is too short makes restic's prune lose data. Source:
U{https://learn.microsoft.com/en-us/rest/api/storageservices/list-blobs}
"""

from __future__ import annotations

import re
from urllib.parse import unquote
from xml.etree import ElementTree

from ..dates import http_seconds
from .engine import Found
from .pages import BadPage, Page, short, well_formed

_ROOT = "EnumerationResults"
_SIZE = re.compile(r"[0-9]{1,19}", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_azure_page(body: bytes, prefix: str, by_folder: bool = False) -> Page:
    """
    Read a page of a list.

    @param prefix: what was asked for; all names must begin with it.
    @param by_folder: whether the slash was asked for as the delimiter.
    @raise BadPage: it is no page, or not a whole one.
    """
    well_formed(body)
    root = ElementTree.fromstring(body, ElementTree.XMLParser(encoding="utf-8"))
    if root.tag != _ROOT:
        raise BadPage(f"the answer is {short(root.tag)}, not {_ROOT}")
    if not all(element.tag in _PARTS for element in root):
        raise BadPage("the answer has something that no list has")
    found: list[Found] = []
    folders: list[str] = []
    for element in _only(root, "Blobs"):
        name = _below(prefix, _name(element))
        if element.tag == "Blob":
            if by_folder and "/" in name:
                raise BadPage("names are not grouped as was asked for")
            found.append(_blob(element, name))
        elif element.tag == "BlobPrefix" and by_folder:
            if name.find("/") != len(name) - 1:
                raise BadPage("names are not grouped as was asked for")
            folders.append(name)
        else:
            raise BadPage(f"there is {short(element.tag)} in the list")
    return Page(found, _only(root, "NextMarker").text or None, folders)


#: The elements of a page.
_PARTS = frozenset(("Prefix", "Marker", "MaxResults", "Delimiter", "Blobs", "NextMarker"))


def _only(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    """The one child of this name."""
    children = parent.findall(tag)
    if len(children) != 1:
        raise BadPage(f"{tag} is missing, or is there twice")
    return children[0]


def _name(element: ElementTree.Element) -> str:
    """The name of an object or a folder. One with characters that XML does not have is encoded as in a URL."""
    name = _only(element, "Name")
    text = name.text or ""
    encoded = name.get("Encoded", "false")
    if not text or len(name) or encoded not in ("true", "false"):
        raise BadPage("an object has no name, or a wrong one")
    if encoded == "false":
        return text
    try:
        if not _BAD_ESCAPE.search(text):
            return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise BadPage("a name is not encoded as in a URL")


def _below(prefix: str, name: str) -> str:
    if not name.startswith(prefix):
        raise BadPage("a name does not begin with the prefix that was asked for")
    return name[len(prefix) :]


def _blob(element: ElementTree.Element, name: str) -> Found:
    properties = _only(element, "Properties")
    size, modified = _only(properties, "Content-Length").text or "", _only(properties, "Last-Modified").text or ""
    if _SIZE.fullmatch(size) is None:
        raise BadPage(f"the size of an object is wrong: {short(size)}")
    try:
        return Found(name, int(size), http_seconds(modified))
    except (ValueError, OverflowError):
        raise BadPage(f"the time of an object is wrong: {short(modified)}") from None
