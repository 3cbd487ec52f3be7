"""
Answers as streams: from the pool to the socket, with back-pressure, never through the reactor thread's time.

Plain sockets get their objects by C{sendfile} from pool jobs (L{resticserver.web.transfer.plain}); everything else (TLS, lists,
other transports) by chunks that a pool job reads while the one before is on its way.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from ...storage.interface import Stored
from ...threads.serial_jobs import SerialJobs
from ..http1.ranges import Part
from ..http1.request import StreamingRequest
from ..http1.socket_writer import STALL_S

#: How much one pool job reads for a connection that cannot take sendfile.
READ_BYTES = 256 << 10


@implementer(IPushProducer)
class ChunkProducer:
    """
    Writes what pool jobs read to a request: one chunk on its way, one in hand.

    @param read: called in the pool; the next chunk, empty at the end.
    """

    def __init__(self, request: StreamingRequest, jobs: SerialJobs, read: Callable[[], bytes]) -> None:
        self._request = request
        self._jobs = jobs
        self._read = read
        self._paused = False
        self._in_hand: bytes | None = None
        self._stall: IDelayedCall | None = None
        self._done: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Begin; fires when everything was written, fails with what C{read} raised or when the client is gone."""
        self._done = Deferred(lambda _: self._forget())
        done = self._done
        self._request.registerProducer(self, True)
        self._fetch()
        return done

    def _fetch(self) -> None:
        self._jobs.run(self._read).addCallbacks(self._fetched, self._end)

    def _fetched(self, chunk: bytes) -> None:
        if self._done is None:
            return
        if self._paused:
            self._in_hand = chunk
        else:
            self._pass_on(chunk)

    def _pass_on(self, chunk: bytes) -> None:
        if chunk:
            self._request.write(chunk)
            self._fetch()
        else:
            self._end(None)

    def _end(self, result: Failure | None) -> None:
        done = self._done
        self._forget()
        if done is not None:
            if self._request.channel_or_none() is not None:
                self._request.unregisterProducer()
            done.callback(result)  # type: ignore[arg-type]

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
            self._stall = self._request.site.reactor.callLater(STALL_S, self._request.abort)

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
