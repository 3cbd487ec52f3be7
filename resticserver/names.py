"""
Names and paths: the valid names of repositories, objects and users, and the canonical form of a request's path.

Pure rules, no I/O. A path is parsed here once. Access rules and the store both use the L{Target} that comes of it and never the
raw bytes, so that no spelling can mean one thing to the policy and another to the disk.

Source: restic's REST backend document and rest-server's routes (the first reserved segment ends the folder part).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from .errors import NotFound

#: The object types that restic stores, in the order of its documentation.
TYPES = ("data", "index", "keys", "locks", "snapshots")
CONFIG = "config"

#: Segments that end the folder part of a path, so never a repository's or a user's name.
RESERVED = frozenset((*TYPES, CONFIG))

#: Folders that the server itself uses; 404 for all users, and no names of users.
OWN_FOLDERS = frozenset(("-", ".trash", ".rest-server", ".tmp", ".htpasswd"))

#: How deep repositories may lie at most.
MOST_FOLDERS = 16

#: The longest file name that the usual file systems take, in bytes.
MAX_NAME_BYTES = 255

_ID = re.compile(r"[0-9a-f]{64}\Z")
_SIMPLE_OBJECT = re.compile(rb"(/(?:[^/]+/)*)(data|index|keys|locks|snapshots)/([0-9a-f]{64})\Z")
_USER = re.compile(r"[\w@.\-]+\Z")


class Kind(Enum):
    """What a path names."""

    REPOSITORY = "repository"
    CONFIG = "config"
    LIST = "list"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Target:
    """
    The canonical form of a request's path.

    @ivar repository: folder names from the data directory down; empty for the repository at the root.
    @ivar kind: what is named inside that repository.
    @ivar type: the object type: one of L{TYPES}, C{"config"} for the config, C{""} for the repository itself.
    @ivar name: the object's id, C{"config"}, or C{""}.
    """

    repository: tuple[str, ...]
    kind: Kind
    type: str = ""
    name: str = ""

    @property
    def route(self) -> str:
        """The path inside the repository, as the API's routes have it."""
        if self.kind is Kind.REPOSITORY:
            return ""
        if self.kind is Kind.CONFIG:
            return CONFIG
        return f"{self.type}/{self.name}"


def is_object_id(name: str) -> bool:
    """Whether C{name} is the lower-case hex form of a SHA-256, as restic names its objects."""
    return _ID.match(name) is not None


def is_folder_name(name: str) -> bool:
    """
    Whether a decoded path segment may be a folder of a repository.

    Control characters and both slashes are refused: no real name has them, and attacks use them.
    """
    return (
        name not in ("", ".", "..")
        and name not in RESERVED
        and name not in OWN_FOLDERS
        and not any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in name)
        and len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
    )


#: Characters that file systems which fold names ignore, as HFS+ does: joiners, marks of direction, variation selectors.
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)

#: The short names (8.3) that Windows gives to our own folders.
_SHORT_NAME = re.compile(r"(?:rest-s|htpass|trash|tmp)~[0-9]+\Z")


@lru_cache(maxsize=4096)
def fold_name(name: str) -> str:
    """
    A folder's name in the form in which file systems that fold names may compare it: without case and Unicode form, and without
    what Windows drops (an NTFS stream such as C{::$DATA}, dots and spaces at the end). More names are equal here than on any
    one file system.
    """
    name = name.partition(":")[0]
    if name.isascii():
        return name.lower().rstrip(". ")
    name = _IGNORED.sub("", unicodedata.normalize("NFKC", name))
    while True:
        # upper() too: Unicode's case folding keeps the dotless i, which is an i on NTFS and exFAT.
        folded = unicodedata.normalize("NFKC", name.upper().casefold()).replace("i\u0307", "i").rstrip(". ")
        if folded == name:
            return name
        name = folded


def reserved_name(name: str) -> str | None:
    """
    The reserved name that C{name} may mean on a file system which folds names; C{None} if there is none. On other file systems
    C{name} is reserved only if it equals that name.
    """
    folded = fold_name(name)
    if folded in RESERVED or folded in OWN_FOLDERS:
        return folded
    if _SHORT_NAME.match(folded):
        return next(own for own in sorted(OWN_FOLDERS) if own[1:].startswith(folded.partition("~")[0]) and own != "-")
    return None


def is_user_name(name: str) -> bool:
    """Whether C{name} may be a user: letters of any script, digits, C{@ . _ -}, and no reserved name."""
    return _USER.match(name) is not None and is_folder_name(name)


def parse_prefix(text: str) -> tuple[str, ...]:
    """
    The folders of a C{--proxy-prefix}, as C{/backup} or C{/a/b/}.

    @raise ValueError: it is no such path.
    """
    segments = tuple(text.strip("/").split("/"))
    if not text.startswith("/") or any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"{text}: a path like /backup is needed")
    return segments


def path_below(path: bytes, prefix: tuple[str, ...]) -> bytes:
    """
    The part of a request's path below a prefix, still percent-encoded; the whole path if it does not begin with the prefix.

    @param path: in any form.
    """
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    segments = path[1:].split(b"/")
    try:
        if prefix and tuple(map(_segment, segments[: len(prefix)])) == prefix:
            return b"/" + b"/".join(segments[len(prefix) :])
    except NotFound:
        pass
    return path


def parse_target(path: bytes, max_depth: int = 2, prefix: tuple[str, ...] = ()) -> Target:
    """
    The canonical form of a request's path.

    @param path: the raw path of the request target, still percent-encoded, without the query. The absolute form of
        RFC 9112 section 3.2.2 is accepted too; its authority is ignored.
    @param max_depth: how many folders a repository may be deep.
    @param prefix: folders that must come first, and are no part of the repository.
    @raise NotFound: for every path that names nothing, whatever the reason.
    """
    if not path.startswith(b"/"):
        scheme, _, rest = path.partition(b"://")
        if scheme.lower() not in (b"http", b"https"):
            raise NotFound()
        path = b"/" + rest.partition(b"/")[2]
    simple = _SIMPLE_OBJECT.match(path)
    if simple is not None:
        # Most requests name an object, and there are few different folders, which are in a cache.
        return Target(
            _folders(simple[1], max_depth, prefix), Kind.OBJECT, simple[2].decode("ascii"), simple[3].decode("ascii")
        )
    segments = [_segment(raw) for raw in path[1:].split(b"/")]
    if prefix:
        if tuple(segments[: len(prefix)]) != prefix:
            raise NotFound()
        del segments[: len(prefix)]
    last = len(segments) - 1
    depth = 0
    while depth < last and segments[depth] not in RESERVED:
        if not is_folder_name(segments[depth]):
            raise NotFound()
        if depth == max_depth:
            raise NotFound(f"repositories lie at most {max_depth} folders deep here (--max-depth)")
        depth += 1
    repository, rest_ = tuple(segments[:depth]), segments[depth:]
    match rest_:
        case [""]:
            return Target(repository, Kind.REPOSITORY)
        case ["config"]:
            return Target(repository, Kind.CONFIG, CONFIG, CONFIG)
        case [object_type, ""] if object_type in TYPES:
            return Target(repository, Kind.LIST, object_type)
        case [object_type, name] if object_type in TYPES and is_object_id(name):
            return Target(repository, Kind.OBJECT, object_type, name)
    raise NotFound()


@lru_cache(maxsize=4096)
def _folders(path: bytes, max_depth: int, prefix: tuple[str, ...]) -> tuple[str, ...]:
    """
    The repository that a path names.

    @param path: with both its slashes.
    @raise NotFound: it names no repository.
    """
    target = parse_target(path, max_depth, prefix)
    if target.kind is not Kind.REPOSITORY:
        raise NotFound()
    return target.repository


def _segment(raw: bytes) -> str:
    """
    One decoded segment.

    @raise NotFound: it has an encoded slash, or is not UTF-8.
    """
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
        if b"/" in raw:
            raise NotFound()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise NotFound() from None


# --- why a name or a path is refused, as messages


def why_reserved(word: str) -> str:
    """The message for a reserved name in a repository's path."""
    return f'"{word}" is a reserved name, choose another repository path'


def why_no_folder(name: str) -> str:
    """Why a decoded path segment cannot be a folder of a repository; empty if it can."""
    if is_folder_name(name):
        return ""
    if name in RESERVED or name in OWN_FOLDERS:
        return f"{name!r} is a reserved name"
    if name in ("", ".", ".."):
        return f"{name!r} is no name" if name else "it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    (odd, *_) = (c for c in name if c in "/\\" or ord(c) < 32 or ord(c) == 127)
    return f"{name!r} has {odd!r} in it"


def why_no_user(name: str) -> str:
    """Why a text cannot be a user's name; empty if it can."""
    if is_user_name(name):
        return ""
    odd = next((c for c in name if not re.match(r"[\w@.\-]", c)), "")
    if odd:
        return f"{odd!r} is in it, and only letters, digits, '@', '.', '_' and '-' may be"
    return why_no_folder(name)


def why_no_repository(path: bytes, max_depth: int = 2, prefix: tuple[str, ...] = ()) -> str:
    """
    Why L{parse_target} finds no repository at a path: which part of it is wrong, and how.

    @return: a phrase; empty if the path is a repository's.
    """
    return _why_no_folders(path, max_depth, prefix, whole=True)


def why_nothing(path: bytes, max_depth: int = 2, prefix: tuple[str, ...] = ()) -> str:
    """
    Why L{parse_target} finds nothing at a path.

    @return: a phrase; empty if the path names something.
    """
    try:
        parse_target(path, max_depth, prefix)
    except NotFound:
        return _why_no_folders(path, max_depth, prefix, whole=False)
    return ""


def _why_no_folders(path: bytes, max_depth: int, prefix: tuple[str, ...], whole: bool) -> str:
    """
    What is wrong with a path.

    @param whole: whether it must be a repository's path; otherwise it may lead into one.
    """
    if not path.startswith(b"/"):
        scheme, _, rest = path.partition(b"://")
        if scheme.lower() not in (b"http", b"https"):
            return "a path begins with a slash"
        path = b"/" + rest.partition(b"/")[2]
    segments = []
    for raw in path[1:].split(b"/"):
        try:
            segments.append(_segment(raw))
        except NotFound:
            shown = ascii(raw.decode("latin-1"))
            return f"{shown} has a slash in it" if b"%2f" in raw.lower() else f"{shown} is not UTF-8"
    if prefix:
        if tuple(segments[: len(prefix)]) != prefix:
            return f"it is not below /{'/'.join(prefix)} (--proxy-prefix)"
        del segments[: len(prefix)]
    *folders, last = segments or [prefix[-1]]
    for number, folder in enumerate(folders):
        if folder in RESERVED:
            return why_reserved(folder) if whole else _why_not_inside(folder, segments[number + 1 :])
        if reason := why_no_folder(folder):
            return why_reserved(folder) if whole and folder in OWN_FOLDERS else f"folder {number + 1}: {reason}"
        if number == max_depth:
            return f"repositories lie at most {max_depth} folders deep here (--max-depth)"
    if not last:
        return ""
    if last in TYPES:
        return f"{last!r} is a reserved name, and a list ends in a slash: {last}/"
    return f"a repository's path ends in a slash: {last}/"


def _why_not_inside(word: str, rest: list[str]) -> str:
    """What is wrong with the path after a reserved name."""
    if word == CONFIG:
        return f"{CONFIG!r} is a reserved name and a file, so nothing stands behind it"
    if len(rest) > 1:
        return f"{word!r} is a reserved name, and behind it stands one name and no folder: {word}/ID"
    return f"{rest[0]!r} is no object's name: those have 64 digits, 0 to 9 and a to f"
