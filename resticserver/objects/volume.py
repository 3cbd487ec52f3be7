"""
The marker of a bucket, C{.rest-server/id} below the prefix: an empty bucket of the same name, where another one was, must not
look like a server without repositories.
"""

from __future__ import annotations

import secrets
from contextlib import suppress

from twisted.logger import Logger

from ..storage.volume import MOST_MARKER_BYTES, Volume
from .engine import Absent, BucketMissing, Engine, EngineError, Exists

_log = Logger()


class BucketVolume(Volume):
    """
    See L{Volume}. Each look is one request.

    @param key: of the marker.
    """

    words = "the object store"
    missing = BucketMissing.default
    # A look costs a request, and an object that is not there asks for one anyway.
    lately_s = 10.0

    def __init__(self, engine: Engine, key: str) -> None:
        super().__init__()
        self._engine = engine
        self._key = key

    def _look(self) -> bytes | None:
        """
        See L{Volume}.

        @raise EngineError: it cannot be looked at.
        """
        try:
            body = self._engine.get(self._key)
        except Absent:
            return None
        try:
            found = b""
            while len(found) < MOST_MARKER_BYTES and (piece := body.read()):
                found += piece
        finally:
            body.close()
        return found[:MOST_MARKER_BYTES].strip() or b"-"

    def _log_gone(self, is_another: bool) -> None:
        """See L{Volume}."""
        accept = "restart the server"
        if self.remembered_in is not None:
            accept = f"stop the server, remove {self.remembered_in} and start it again"
        what = "another bucket is" if is_another else "no marker of an earlier run is"
        _log.error(
            "{what} at {place}: every request is answered 503 until the right one is back. "
            "To use {place} as it is now, {accept}",
            what=what,
            place=self._engine.name,
            accept=accept,
        )

    def _log_back(self) -> None:
        """See L{Volume}."""
        _log.info("the bucket at {place} is back", place=self._engine.name)

    def mark(self) -> None:
        """See L{Volume.mark}."""
        self.check()
        if self.known is not None:
            return
        try:
            with suppress(Exists):  # another front end has written one
                self._engine.put_new(self._key, secrets.token_hex(16).encode("ascii") + b"\n")
        except EngineError as error:
            _log.warn(
                "cannot write {key} ({error}): a bucket that was replaced will not be detected",
                key=self._key,
                error=error.detail or error.message,
            )
        self.check()
