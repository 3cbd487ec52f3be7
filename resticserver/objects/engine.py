"""
What an object store must be able to do for repositories to lie in it, and what can go wrong there.

All calls block, for as long as the engine takes, and are made in a pool. A key is the whole name of an object in its bucket.
The implementations never try a request again: only the caller knows whether a second attempt is safe.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ..errors import InsufficientStorage, Unavailable
from ..storage.interface import WantedPart

#: What can be stored: small content as it is, large content as the mapping of a file.
Content = bytes | mmap.mmap

#: All of an object.
WHOLE = WantedPart()


class EngineError(Unavailable):
    """
    A request to the engine failed, and it is not known what it has done. Clients are told 503, and try again.

    @ivar detail: what the engine or the library said, for the log.
    """

    default = "the object store does not answer as it should"

    def __init__(self, message: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.args = (self.message, detail)
        self.detail = detail


class BucketMissing(EngineError):
    """There is no such bucket, or another one stands in its place."""

    default = "the bucket with the repositories is missing"


class AccessRefused(EngineError):
    """The engine does not take the server's credentials, or they do not allow this. Nothing was done."""

    default = "the object store refuses the server's credentials"


class EngineFull(InsufficientStorage):
    """The engine is full, or a quota of its own is reached. Nothing was done."""

    default = "no space left in the object store"


class Absent(Exception):
    """There is no object of that key. (The bucket may be missing as well: a HEAD does not tell.)"""


class Exists(Exception):
    """The object was not stored, since there is one of that key; or one is being stored or removed right now."""


class BeyondTheEnd(Exception):
    """A part begins at or after the object's end."""


class Found(NamedTuple):
    """
    An object of a list.

    @ivar key: without the prefix that was asked for.
    @ivar modified_s: when it was stored, in seconds since 1970, by the engine's clock.
    """

    key: str
    size_bytes: int
    modified_s: float


class Body(Protocol):
    """An object that is being read."""

    @property
    def size_bytes(self) -> int:
        """The size of the whole object."""

    @property
    def start(self) -> int:
        """Where the part begins that is being read; C{end} where it ends."""

    @property
    def end(self) -> int:
        """See C{start}."""

    def read(self) -> bytes | memoryview:
        """
        The next bytes, as many as are convenient; empty at the end of the part.

        @raise EngineError: the connection ended early.
        """

    def close(self) -> None:
        """Let go of the connection; idempotent, and harmless at any point."""


class Engine(Protocol):
    """
    One bucket of an object store. Safe from several threads. Each method may raise L{EngineError} and its subclasses.
    """

    @property
    def name(self) -> str:
        """The bucket as the administrator has named it, without secrets, for messages: C{s3://bucket}."""

    @property
    def endpoint(self) -> str:
        """The URL of the engine."""

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """
        Store an object if there is none of that key, in one request that the engine decides.

        @param sha256: of the content, if it is known: other content is then refused where the engine verifies it.
        @raise Exists: there is one. It may be our own, if an earlier attempt has failed.
        @raise EngineFull: there is no space.
        """

    def put(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """
        Store an object, in the place of one that is there.

        @param sha256: see L{put_new}.
        @raise EngineFull: there is no space.
        """

    def size_of(self, key: str) -> int:
        """
        The size of an object in bytes.

        @raise Absent: there is none.
        """

    def get(self, key: str, wanted: WantedPart = WHOLE) -> Body:
        """
        Begin to read an object.

        @raise Absent: there is none.
        @raise BeyondTheEnd: the part begins at or after the end.
        """

    def remove(self, key: str) -> None:
        """Remove an object; one that is missing counts as removed."""

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """
        All objects whose key begins with a prefix, in the order of their keys, in pages as they come. A list is whole or
        raises: it never ends early without an error.

        @param after: only keys that come after this one, without the prefix.
        """

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """
        What lies directly below a prefix, which ends with a slash or is empty, by a list with a delimiter.

        @return: the names of the folders, and those of the objects, without the prefix and the slash.
        """

    def check_bucket(self) -> None:
        """
        Check with one request that the bucket is there and may be listed.

        @raise BucketMissing: it is not there.
        """
