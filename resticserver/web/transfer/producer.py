"""
Answers through the reactor's thread, the slower way, with back-pressure: a pool job reads a chunk while the one before is
on its way. Lists go so, and objects where sendfile and TLS transfers cannot.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from ...limits.bandwidth import Share
from ...storage.interface import Stored
from ..http1.ranges import Part

#: How much one pool job reads of an object.
READ_BYTES = 256 << 10


class Pace(NamedTuple):
    """
    How fast a client must take, and may take, what is written.

    @ivar stall_timeout_s: how long it may take nothing; C{stall} is called then, and closes the connection.
    @ivar share: grants the bytes that may be written; C{None} without a limit.
    """

    stall_timeout_s: float
    stall: Callable[[], None]
    share: Share | None = None


@implementer(IPushProducer)
class ChunkProducer:
    """
    Writes what pool jobs read: one chunk on its way, one in hand.

    @param fetch: starts a job that reads the next chunk, empty at the end.
    """

    def __init__(
        self, consumer: IConsumer, reactor: IReactorTime, pace: Pace, fetch: Callable[[], Deferred[bytes]]
    ) -> None:
        self._consumer = consumer
        self._reactor = reactor
        self._pace = pace
        self._share = pace.share
        self._asking: Deferred[int] | None = None
        #: What was fetched and may not be written yet.
        self._held_up = b""
        self._fetch = fetch
        self._paused = False
        self._in_hand: bytes | None = None
        self._stall: IDelayedCall | None = None
        self._done: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Begin; fires when everything was written, fails with the job's error or when the client is gone."""
        self._done = Deferred(lambda _: self._forget())
        done = self._done
        self._consumer.registerProducer(self, True)
        self._next()
        return done

    def _next(self) -> None:
        self._fetch().addCallbacks(self._fetched, self._end)

    def _fetched(self, chunk: bytes) -> None:
        if self._done is None:
            return
        if self._share is None or not chunk:
            self._take(chunk)
        else:
            self._ask(self._share, chunk)

    def _ask(self, share: Share, chunk: bytes) -> None:
        """Wait until some of a chunk may be written."""
        asking = self._asking = share.take(len(chunk))
        asking.addCallbacks(partial(self._granted, chunk), lambda failure: failure.trap(CancelledError))

    def _granted(self, chunk: bytes, size_bytes: int) -> None:
        self._asking = None
        self._held_up = chunk[size_bytes:]
        self._take(chunk[:size_bytes])

    def _take(self, chunk: bytes) -> None:
        if self._paused:
            self._in_hand = chunk
        else:
            self._pass_on(chunk)

    def _pass_on(self, chunk: bytes) -> None:
        if chunk:
            self._consumer.write(chunk)
            held_up, self._held_up = self._held_up, b""
            if held_up and self._share is not None:
                self._ask(self._share, held_up)
            else:
                self._next()
        else:
            self._end(None)

    def _end(self, result: Failure | None) -> None:
        done = self._done
        self._forget()
        if done is not None:
            self._consumer.unregisterProducer()
            done.callback(result)

    def _forget(self) -> None:
        self._done = None
        self._in_hand = None
        self._unwatch()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _unwatch(self) -> None:
        stall, self._stall = self._stall, None
        if stall is not None and stall.active():
            stall.cancel()

    def pauseProducing(self) -> None:
        """The transport's call: enough for now."""
        self._paused = True
        if self._stall is None and self._done is not None:
            self._stall = self._reactor.callLater(self._pace.stall_timeout_s, self._pace.stall)

    def resumeProducing(self) -> None:
        """The transport's call: more."""
        self._paused = False
        self._unwatch()
        chunk, self._in_hand = self._in_hand, None
        if chunk is not None:
            self._pass_on(chunk)

    def stopProducing(self) -> None:
        """The transport's call: the client is gone."""
        self._end(Failure(ConnectionLost()))


def reader(stored: Stored, part: Part) -> Callable[[], bytes]:
    """Reads a part, chunk by chunk."""
    offset, end = part.start, part.start + part.length

    def read() -> bytes:
        nonlocal offset
        if offset == end:
            return b""
        chunk = bytes(stored.read(offset, min(READ_BYTES, end - offset)))
        if not chunk:
            raise OSError(errno.EIO, "the file became shorter while it was sent")
        offset += len(chunk)
        return chunk

    return read
