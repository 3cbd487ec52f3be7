"""
Answers through the reactor's thread, the slower way, with back-pressure: a pool job reads a chunk while the one before is
on its way. Lists go so, and objects where sendfile and TLS transfers cannot.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from ...storage.interface import Stored
from ..http1.ranges import Part
from ..http1.socket_writer import STALL_S

#: How much one pool job reads of an object.
READ_BYTES = 256 << 10


@implementer(IPushProducer)
class ChunkProducer:
    """
    Writes what pool jobs read: one chunk on its way, one in hand.

    @param abort: closes the connection.
    @param fetch: starts a job that reads the next chunk, empty at the end.
    """

    def __init__(
        self,
        consumer: IConsumer,
        reactor: IReactorTime,
        abort: Callable[[], None],
        fetch: Callable[[], Deferred[bytes]],
    ) -> None:
        self._consumer = consumer
        self._reactor = reactor
        self._abort = abort
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
        if self._paused:
            self._in_hand = chunk
        else:
            self._pass_on(chunk)

    def _pass_on(self, chunk: bytes) -> None:
        if chunk:
            self._consumer.write(chunk)
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

    def _unwatch(self) -> None:
        stall, self._stall = self._stall, None
        if stall is not None and stall.active():
            stall.cancel()

    def pauseProducing(self) -> None:
        """The transport's call: enough for now."""
        self._paused = True
        if self._stall is None and self._done is not None:
            self._stall = self._reactor.callLater(STALL_S, self._abort)

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
        chunk = stored.read(offset, min(READ_BYTES, end - offset))
        if not chunk:
            raise OSError(errno.EIO, "the file became shorter while it was sent")
        offset += len(chunk)
        return chunk

    return read
