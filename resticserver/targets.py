"""
The target of a request: which repository and what in it a path names, and why other paths name nothing.

A path is parsed here once (L{parse_target}). Access rules and the store both use the L{Target} that comes of it and never the
raw bytes, so that no spelling can mean one thing to the policy and another to the disk.

Source: restic's REST backend document and rest-server's routes (the first reserved segment ends the folder part).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from .errors import NotFound
from .names import CONFIG, OWN_FOLDERS, RESERVED, TYPES, is_folder_name, is_object_id, why_no_folder, why_reserved

_SIMPLE_OBJECT = re.compile(rb"(/(?:[^/]+/)*)(data|index|keys|locks|snapshots)/([0-9a-f]{64})\Z")


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


def parse_prefix(text: str) -> tuple[str, ...]:
    """
    The folders of a C{--proxy-prefix}, as C{/backup} or C{/a/b/}.

    @raise ValueError: it is no such path.
    """
    segments = tuple(text.strip("/").split("/"))
    if not text.startswith("/") or any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"{text}: must be a path such as /backup")
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
            raise NotFound(f"a repository may be at most {max_depth} folders deep (--max-depth)")
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
            return "the path must begin with a slash"
        path = b"/" + rest.partition(b"/")[2]
    segments = []
    for raw in path[1:].split(b"/"):
        try:
            segments.append(_segment(raw))
        except NotFound:
            shown = ascii(raw.decode("latin-1"))
            return f"{shown} contains an encoded slash" if b"%2f" in raw.lower() else f"{shown} is not UTF-8"
    if prefix:
        if tuple(segments[: len(prefix)]) != prefix:
            return f"it is not below /{'/'.join(prefix)} (--proxy-prefix)"
        del segments[: len(prefix)]
    if not segments:
        prefix, segments = prefix[:-1], [prefix[-1]]
    *folders, last = segments
    for number, folder in enumerate(folders):
        if folder in RESERVED:
            return why_reserved(folder) if whole else _why_not_inside(folder, segments[number + 1 :])
        if reason := why_no_folder(folder):
            return why_reserved(folder) if whole and folder in OWN_FOLDERS else f"folder {number + 1}: {reason}"
        if number == max_depth:
            return f"a repository may be at most {max_depth} folders deep (--max-depth)"
    if not last:
        return ""
    whole_path = "/".join(("", *prefix, *folders, last, ""))
    if last in TYPES:
        return f"{last!r} is a reserved name, and the path of a list must end with a slash: {whole_path}"
    return f"the path of a repository must end with a slash: {whole_path}"


def _why_not_inside(word: str, rest: list[str]) -> str:
    """What is wrong with the path after a reserved name."""
    if word == CONFIG:
        return f"{CONFIG!r} is a reserved name and a file: the path must end there"
    if len(rest) > 1:
        return f"{word!r} is a reserved name, and only an object's name may follow it: {word}/ID"
    return f"{rest[0]!r} is not an object's name: it must be 64 hexadecimal digits in lower case"
