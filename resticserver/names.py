"""
The valid names of repositories, folders, objects and users. Pure rules, no I/O.

Source: restic's REST backend document and rest-server's routes (the first reserved segment ends the folder part).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

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
_USER = re.compile(r"[\w@.\-]+\Z")


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
        return f"{name!r} is not a name" if name else "it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    (odd, *_) = (c for c in name if c in "/\\" or ord(c) < 32 or ord(c) == 127)
    return f"{name!r} contains {odd!r}"


def why_no_user(name: str) -> str:
    """Why a text cannot be a user's name; empty if it can."""
    if is_user_name(name):
        return ""
    odd = next((c for c in name if not re.match(r"[\w@.\-]", c)), "")
    if odd:
        return f"it contains {odd!r}; only letters, digits, '@', '.', '_' and '-' are allowed"
    return why_no_folder(name)
