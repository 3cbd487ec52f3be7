"""
A request's body as a stream, from the channel to its taker, with back-pressure.

A body first waits for its taker, up to a small bound: the route may still be checking a password. Then it is either delivered,
in batches, to one pool job at a time, or discarded. Reading pauses above a high-water mark and resumes below a low one. No thread
ever waits for the network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from ...errors import ServerError

#: How much may wait for a taker.
WAITING_BYTES = 64 << 10
#: Reading pauses when this much is queued for the pool, and resumes below the low mark.
HIGH_WATER_BYTES = 512 << 10
LOW_WATER_BYTES = 256 << 10
#: Small pieces are joined up to this size.
JOINED_BYTES = 4 << 10


class Source(Protocol):
    """What gives a body its bytes."""

    def hold_body(self) -> None:
        """Read no more for now."""

    def release_body(self) -> None:
        """Read on."""


class Body:
    """
    The body of one request.

    @ivar expected_bytes: how much is still to come by C{Content-Length}; C{None} for a chunked body.
    @ivar received_bytes: how much has come.
    @ivar ended: whether all of it has come.
    """

    # Initial values. Most requests have no body and change none of these, so the constructor does not set them.
    received_bytes = 0
    _queued_bytes = 0
    _held = False
    _error: ServerError | None = None
    _write: Callable[[Sequence[bytes]], Deferred[None]] | None = None
    _writing = False
    _delivered: Deferred[None] | None = None
    _whole: Deferred[list[bytes]] | None = None
    _dropped: Deferred[None] | None = None
    _discard_limit: int | None = None
    _on_excess: Callable[[], None] | None = None

    def __init__(self, source: Source, length: int | None) -> None:
        self._source = source
        self.expected_bytes = length
        self.ended = length == 0
        self._chunks: list[bytes] = []

    @property
    def whole_bytes(self) -> int | None:
        """
        Its length, known by C{Content-Length} or once all of it is here; else C{None}.
        """
        if self.ended:
            return self.received_bytes
        return None if self.expected_bytes is None else self.received_bytes + self.expected_bytes

    # --- the channel's calls

    def feed(self, data: bytes) -> None:
        """More bytes came."""
        self.received_bytes += len(data)
        if self.expected_bytes is not None:
            self.expected_bytes -= len(data)
        if self._discard_limit is not None:
            self._discard_limit -= len(data)
            if self._discard_limit < 0 and self._on_excess is not None:
                on_excess, self._on_excess = self._on_excess, None
                on_excess()
            return
        if self._chunks and len(self._chunks[-1]) + len(data) <= JOINED_BYTES:
            # A client may send one byte at a time, and an object for each would take fifty.
            self._chunks[-1] += data
        else:
            self._chunks.append(data)
        self._queued_bytes += len(data)
        if self._queued_bytes > (WAITING_BYTES if self._write is None else HIGH_WATER_BYTES) and not self._held:
            self._held = True
            self._source.hold_body()
        self._pump()

    def end(self) -> None:
        """All of it came."""
        self.ended = True
        if self._whole is not None:
            whole, self._whole = self._whole, None
            whole.callback(self.take_waiting())
        self._fire_dropped()
        self._pump()

    def fail(self, error: ServerError) -> None:
        """The rest cannot be parsed: the taker gets the error."""
        self._error = error
        if self._whole is not None:
            whole, self._whole = self._whole, None
            whole.errback(error)
        self._fire_dropped()
        self._pump()

    # --- the route's calls

    def deliver(self, write: Callable[[Sequence[bytes]], Deferred[None]]) -> Deferred[None]:
        """
        Hand the body to a taker.

        @param write: takes the next chunks and fires when it is done with them. It is called again only then.
        @return: fires when everything was taken; fails with the taker's error, or with
            L{resticserver.errors.BadRequest} if the body cannot be parsed. Cancelling it stops the delivery.
        """
        assert self._write is None
        self._write = write
        self._delivered = Deferred(lambda _: self._stop())
        delivered = self._delivered
        self._pump()
        return delivered

    def whole(self) -> Deferred[list[bytes]]:
        """
        Wait for all of a body that fits into L{WAITING_BYTES}.

        @return: fires with its pieces, or fails with L{resticserver.errors.BadRequest} if the body cannot be parsed.
        """
        whole: Deferred[list[bytes]] = Deferred(lambda _: self._forget_whole())
        if self._error is not None:
            whole.errback(self._error)
        elif self.ended:
            whole.callback(self.take_waiting())
        else:
            self._whole = whole
        return whole

    def _forget_whole(self) -> None:
        self._whole = None

    def take_waiting(self) -> list[bytes]:
        """What came so far. A transfer may read the rest (L{taken})."""
        waiting, self._chunks = self._chunks, []
        self._queued_bytes = 0
        self._release()
        return waiting

    def taken(self, size_bytes: int) -> None:
        """A transfer has read so much of the body."""
        assert self.expected_bytes is not None
        self.received_bytes += size_bytes
        self.expected_bytes -= size_bytes

    def drop(self) -> Deferred[None]:
        """
        Drop what came and what comes, before the answer.

        @return: fires when all of it came, or when the rest cannot be parsed.
        """
        dropped: Deferred[None] = Deferred(lambda _: self._forget_dropped())
        if self.ended or self._error is not None:
            dropped.callback(None)
        else:
            self._dropped = dropped
            self.discard(sys.maxsize, _ignore_excess)
        return dropped

    def _forget_dropped(self) -> None:
        self._dropped = None

    def _fire_dropped(self) -> None:
        dropped, self._dropped = self._dropped, None
        if dropped is not None:
            dropped.callback(None)

    def discard(self, limit_bytes: int, on_excess: Callable[[], None]) -> None:
        """
        Drop what came and what comes.

        @param on_excess: called once when more than C{limit_bytes} came from now on.
        """
        self._stop()
        self._release()
        self._discard_limit = limit_bytes
        self._on_excess = on_excess

    def _stop(self) -> None:
        self._delivered = None
        self._chunks = []
        self._queued_bytes = 0

    def _pump(self) -> None:
        if self._write is None or self._delivered is None or self._writing:
            return
        if self._error is not None:
            self._fire(self._error)
        elif self._chunks:
            chunks, self._chunks = self._chunks, []
            self._queued_bytes = 0
            self._writing = True
            writing = self._write(chunks)
            self._release()
            writing.addCallbacks(lambda _: self._written(), self._failed)
        elif self.ended:
            self._fire(None)

    def _release(self) -> None:
        if self._held and self._queued_bytes <= LOW_WATER_BYTES:
            self._held = False
            self._source.release_body()

    def _written(self) -> None:
        self._writing = False
        self._pump()

    def _failed(self, failure: object) -> None:
        self._writing = False
        self._fire(failure)

    def _fire(self, result: object) -> None:
        delivered, self._delivered = self._delivered, None
        self._chunks = []
        if delivered is None:
            return
        if result is None:
            delivered.callback(None)
        else:
            delivered.errback(result)  # type: ignore[arg-type]


def _ignore_excess() -> None:
    """There is no limit."""
