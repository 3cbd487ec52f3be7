"""
What an engine of S3 answers to ListObjectsV2: one page. Pure rules, no I/O.

An answer that is not exactly a page is refused, since a list that is too short makes restic's prune lose data. Source:
U{https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html}
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from ..dates import zoned_seconds
from .engine import Found
from .pages import BadPage, Page, short, well_formed

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_ROOT = "ListBucketResult"
_ONCE = frozenset(("IsTruncated", "NextContinuationToken", "KeyCount", "EncodingType"))
#: What must not be anywhere else: parts of an object, more about the page, an error.
_WRONG = frozenset(("Contents", "Key", "Size", "LastModified", "CommonPrefixes", "Error", *_ONCE))

#: What engines write for characters that XML does not have.
_UNKNOWN = "\ufffd"

_ATTRIBUTES = r"""(?:\s++[\w:]++\s*+=\s*+"[^"<]*+")*+\s*+"""
_OTHER = rf"<(?!(?:Key|Size|LastModified|Contents)\b)\w++{_ATTRIBUTES}"
_FLAT = rf"{_OTHER}(?:/>|>[^<]*+</\w++\s*+>)"
#: An object, in text that is known to be well-formed: what is wanted of it, and other elements with children or without.
_OBJECT = re.compile(
    r"<Contents>(?:\s++|<Key>([^<]++)</Key>|<Size>([0-9]{1,19}+)</Size>|<LastModified>([^<]++)</LastModified>"
    rf"|{_FLAT}|{_OTHER}>(?:\s++|{_FLAT})*+</\w++\s*+>)*+</Contents>",
    re.ASCII,
)
#: Stands for all objects when the rest of a page is read.
_OBJECTS = "<Contents/>"
_FOLDER = re.compile(r"[^/]*/")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_page(body: bytes, prefix: str, by_folder: bool = False) -> Page:
    """
    Read a page of a list.

    @param prefix: what was asked for; all keys must begin with it.
    @param by_folder: whether the slash was asked for as the delimiter.
    @raise BadPage: it is no page, or not a whole one.
    """
    text = well_formed(body)
    # A tree of all elements takes three times as long as all that is done here.
    pieces = _OBJECT.split(text)
    keys, sizes, times = pieces[1::4], pieces[2::4], pieces[3::4]
    if "".join(pieces[4:-1:4]).strip():
        raise BadPage("there is something between the objects")
    once, folders = _rest(f"{pieces[0]}{_OBJECTS}{pieces[-1]}" if keys else text, bool(keys))
    for name, values in (("Key", keys), ("Size", sizes), ("LastModified", times)):
        if None in values or text.count(f"<{name}>") != len(values):
            raise BadPage(f"an object has no {name}, two of them, or a wrong one")
    if "KeyCount" in once and once["KeyCount"] != str(len(keys) + len(folders)):
        raise BadPage(f"KeyCount is {short(once['KeyCount'])} with {len(keys)} keys and {len(folders)} folders")
    encoding = once.get("EncodingType", "")
    if encoding not in ("", "url"):
        raise BadPage(f"the EncodingType is {short(encoding)}")
    keys, folders = (_below(prefix, decoded_keys(names, encoding == "url")) for names in (_unescaped(keys), folders))
    if folders and not by_folder:
        raise BadPage("keys are grouped, which was not asked for")
    if by_folder and (any("/" in key for key in keys) or not all(_FOLDER.fullmatch(folder) for folder in folders)):
        raise BadPage("keys are not grouped as was asked for")
    return Page(list(map(Found, keys, map(int, sizes), _seconds(times))), _token(once), folders)


def _rest(text: str, has_objects: bool) -> tuple[dict[str, str], list[str]]:
    """
    What a page has but its objects: what it says about itself, and folders.

    @param text: the page, with L{_OBJECTS} in the place of all objects if it has some.
    @raise BadPage: it is no page, or has an object that was not recognised.
    """
    try:
        root = ElementTree.fromstring(text.encode("utf-8"), ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise BadPage(f"the answer is no XML: {error}") from None
    space = root.tag.removesuffix(_ROOT)
    if root.tag != space + _ROOT or space not in ("", _NAMESPACE):
        raise BadPage(f"the answer is {short(root.tag)}, not {_ROOT}")
    once: dict[str, str] = {}
    folders: list[str] = []
    has_seen_objects = False
    for element in root:
        name = element.tag.removeprefix(space)
        if name == "Contents" and not len(element) and has_objects and not has_seen_objects:
            has_seen_objects = True
        elif name == "CommonPrefixes":
            folders.append(_folder(element, space))
        elif name in _ONCE:
            if name in once or len(element):
                raise BadPage(f"{name} is there twice, or is not text")
            once[name] = element.text or ""
        elif not _WRONG.isdisjoint(each.tag.removeprefix(space) for each in element.iter()):
            raise BadPage(f"{short(name)} is an error, or an object in a form that is not known")
    if has_seen_objects is not has_objects:
        raise BadPage("the objects are in the wrong place")
    return once, folders


def _folder(element: ElementTree.Element, space: str) -> str:
    """The only child of C{CommonPrefixes}."""
    if len(element) == 1 and element[0].tag == f"{space}Prefix" and not len(element[0]) and element[0].text:
        return element[0].text
    raise BadPage("a folder has no name, or several")


def _below(prefix: str, names: list[str]) -> list[str]:
    """Names without the prefix that was asked for."""
    if not all(name.startswith(prefix) for name in names):
        raise BadPage("a key does not begin with the prefix that was asked for")
    start = len(prefix)
    return [name[start:] for name in names]


def _token(once: dict[str, str]) -> str | None:
    """What to ask for the next page with."""
    truncated = once.get("IsTruncated")
    if truncated == "false":
        return None
    if truncated != "true":
        raise BadPage("IsTruncated is missing" if truncated is None else f"IsTruncated is {short(truncated)}")
    token = once.get("NextContinuationToken")
    if not token:
        raise BadPage("the list goes on, but NextContinuationToken is missing")
    if _UNKNOWN in token:
        # SeaweedFS's token is the last key. It would leave out all keys between that one and the one it has written.
        raise BadPage("NextContinuationToken has characters that the engine cannot write")
    return token


def decoded_keys(keys: list[str], is_encoded: bool) -> list[str]:
    """
    The keys as they are.

    @param is_encoded: whether they are encoded as in a URL. Engines write a space as C{+}, as in forms, or as C{%20}; and a plus
        as C{%2B}.
    """
    if not is_encoded:
        if any(_UNKNOWN in key for key in keys):
            raise BadPage("a key has characters that the engine cannot write")
        return keys
    together = "".join(keys)
    if "%" not in together and "+" not in together:
        return keys
    if any(_BAD_ESCAPE.search(key) for key in keys):
        raise BadPage("a key is not encoded as in a URL")
    try:
        return [unquote_plus(key, errors="strict") for key in keys]
    except UnicodeDecodeError:
        raise BadPage("a key is not UTF-8") from None


def _unescaped(texts: list[str]) -> list[str]:
    """The texts of elements that are known to be well-formed, with XML's references resolved."""
    together = "".join(texts)
    if "&" not in together and "\r" not in together:
        return texts
    return [ElementTree.fromstring(f"<text>{text}</text>").text or "" for text in texts]


def _seconds(times: list[str]) -> list[float]:
    try:
        return zoned_seconds(times)
    except (ValueError, OverflowError) as error:
        raise BadPage(f"the time of an object is wrong: {short(str(error))}") from None
