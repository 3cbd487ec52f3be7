"""
A request's body as a stream: from the channel to whoever takes it, with back-pressure.

A body first waits for its taker in a small bound (the route may still be checking a password); then it is either
delivered, in batches, by one pool job at a time, or discarded. Above a high-water mark reading is paused, below a low one
it goes on. No thread ever waits for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from ...errors import ServerError

#: A client that sends no byte of a body for so long is given up; restic itself gives up after five minutes.
SILENCE_S = 310.0
#: How much may wait before a taker is there.
WAITING_BYTES = 64 << 10
#: Reading pauses when this much is queued for the pool, and goes on below the low mark.
HIGH_WATER_BYTES = 512 << 10
LOW_WATER_BYTES = 256 << 10
#: Pieces are put together up to this size.
JOINED_BYTES = 4 << 10


class Source(Protocol):
    """What a body is fed by: the channel."""

    def hold_body(self) -> None:
        """Read no more for now."""

    def release_body(self) -> None:
        """Read on."""


class Body:
    """
    The body of one request.

    @ivar expected_bytes: what is still to come by C{Content-Length}; C{None} for a chunked body.
    @ivar received_bytes: what has come.
    @ivar ended: whether all of it has come.
    """

    # How each begins. Most requests have no body and change none of these, so they are not set for each.
    received_bytes = 0
    _queued_bytes = 0
    _held = False
    _error: ServerError | None = None
    _write: Callable[[Sequence[bytes]], Deferred[None]] | None = None
    _writing = False
    _delivered: Deferred[None] | None = None
    _whole: Deferred[list[bytes]] | None = None
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
        How long it is; C{None} as long as nobody knows. Of one that is here that is known also without a C{Content-Length}.
        """
        if self.ended:
            return self.received_bytes
        return None if self.expected_bytes is None else self.received_bytes + self.expected_bytes

    # --- the channel's side

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
            # A client may send a byte at a time, and each would be an object of fifty.
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
        self._pump()

    def fail(self, error: ServerError) -> None:
        """The rest will never be understood; whoever takes the body is told."""
        self._error = error
        if self._whole is not None:
            whole, self._whole = self._whole, None
            whole.errback(error)
        self._pump()

    # --- the route's side

    def deliver(self, write: Callable[[Sequence[bytes]], Deferred[None]]) -> Deferred[None]:
        """
        Hand the body to a taker.

        @param write: takes the next chunks and fires when it is done with them; it is called again only then.
        @return: fires when everything was taken; fails with the taker's error, or with
            L{resticserver.errors.BadRequest} if the body cannot be understood to its end. Cancelling it stops the delivery.
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

        @return: fires with its pieces, or fails with L{resticserver.errors.BadRequest} if the body cannot be understood to
            its end.
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
        """What came so far; the rest is read by others, who say so by L{taken}."""
        waiting, self._chunks = self._chunks, []
        self._queued_bytes = 0
        self._release()
        return waiting

    def taken(self, size_bytes: int) -> None:
        """Others have read so much."""
        assert self.expected_bytes is not None
        self.received_bytes += size_bytes
        self.expected_bytes -= size_bytes

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
