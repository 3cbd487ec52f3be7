"""
Reading an object from a bucket: one request for the part that a client wants, passed on as it comes.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import NotFound, RangeNotSatisfiable
from ..storage.interface import WantedPart
from ..storage.layout import Repository
from .engine import WHOLE, Absent, BeyondTheEnd, Body, Engine, EngineError


class ReadsFrom(Protocol):
    """The store as its objects see it."""

    @property
    def engine(self) -> Engine:
        """Where objects are stored."""

    def key(self, repository: Repository, object_type: str, name: str) -> str:
        """The key of an object."""

    def missing(self) -> NotFound:
        """
        What to raise for an object that is not there.

        @raise Unavailable: the bucket is not there either.
        """


class ObjectStored:
    """See L{resticserver.storage.interface.Stored}."""

    size_bytes = 0
    _key = ""
    _body: Body | None = None

    def __init__(self, store: ReadsFrom, repository: Repository, object_type: str, name: str) -> None:
        self._store = store
        self._repository = repository
        self._object_type = object_type
        self._name = name
        #: Where the body that is open goes on, and what was read of it and not given out.
        self._offset = 0
        self._left: bytes | memoryview = b""

    def open(self, wanted: WantedPart | None = None) -> None:
        """See L{resticserver.storage.interface.Stored.open}."""
        self._key = self._store.key(self._repository, self._object_type, self._name)
        engine = self._store.engine
        try:
            try:
                self._begin(WHOLE if wanted is None else wanted)
            except BeyondTheEnd:
                size_bytes = engine.size_of(self._key)
                if size_bytes:
                    raise RangeNotSatisfiable(size_bytes) from None
                self._begin(WHOLE)  # of an empty object every range is the whole
        except Absent:
            raise self._store.missing() from None
        assert self._body is not None
        self.size_bytes = self._body.size_bytes

    def _begin(self, wanted: WantedPart) -> None:
        body = self._body = self._store.engine.get(self._key, wanted)
        self._offset = body.start
        # The first bytes as well: what goes wrong until they come can still be answered with a status.
        self._left = body.read() if body.start < body.end else b""

    def open_nowait(self) -> bool:
        """See L{resticserver.storage.interface.Stored.open_nowait}: an engine never answers at once."""
        return False

    def fileno(self) -> int:
        """See L{resticserver.storage.interface.Stored.fileno}: there is none."""
        return -1

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """See L{resticserver.storage.interface.Stored.read}."""
        if offset >= self.size_bytes or not length:
            return b""
        if self._body is None or offset != self._offset or (not self._left and offset >= self._body.end):
            self._end()
            try:
                self._begin(WantedPart(offset))
            except (Absent, BeyondTheEnd) as error:
                raise EngineError("", "an object was removed while it was read") from error
            if self._body is None or self._body.size_bytes != self.size_bytes:
                raise EngineError("", "an object was replaced while it was read")
        if not self._left:
            self._left = self._body.read()
            if not self._left:
                raise EngineError("", "a body ended early")
        piece, self._left = self._left, b""
        if len(piece) > length:
            piece, self._left = piece[:length], piece[length:]
        self._offset += len(piece)
        return piece

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """See L{resticserver.storage.interface.Stored.read_nowait}: an engine never answers at once."""
        return None

    def close(self) -> None:
        """See L{resticserver.storage.interface.Stored.close}."""
        self._end()

    def _end(self) -> None:
        body, self._body = self._body, None
        self._left = b""
        if body is not None:
            body.close()
