"""
Answers as streams: from the pool to the socket, with back-pressure, never through the reactor thread's time.

Plain sockets get their objects by C{sendfile} from pool jobs; everything else (TLS, lists, other transports) by chunks that
a pool job reads while the one before is on its way.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorFDSet, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..storage.interface import Stored
from .ranges import Part
from .request import StreamingRequest

T = TypeVar("T")

#: A client that takes no byte for so long is given up; restic itself gives up after five minutes.
STALL_S = 300.0
#: How much one pool job reads for a connection that cannot take sendfile.
READ_BYTES = 256 << 10
#: How much one sendfile call is asked for.
_SENDFILE_BYTES = 4 << 20
_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)

#: Whether this platform's sendfile is the one that is tested here.
SENDFILE = sys.platform == "linux"

_log = Logger()


class Pool(Protocol):
    """Runs blocking calls elsewhere."""

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)}; the Deferred fires with its result in the reactor's thread."""


class Jobs:
    """
    Pool jobs on one thing (an upload, an open file): one at a time, and its end after the last of them.

    Whoever waits for a job may be cancelled (the client is gone); the job is not, and the end still comes after it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._running = False
        self._closing: Callable[[], None] | None = None
        self._closed = False

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run a job; the one before must have ended."""
        assert not self._running and not self._closed
        self._running = True
        waiting: Deferred[T] = Deferred()
        self._pool.run(job, *args).addBoth(self._ended, waiting)
        return waiting

    def _ended(self, result: Any, waiting: Deferred[Any]) -> None:
        self._running = False
        if self._closing is not None:
            self._run_closing()
        waiting.callback(result)

    def close(self, job: Callable[[], None]) -> None:
        """Run C{job} when the running one has ended, and none after it. Only the first call counts."""
        if self._closed:
            return
        self._closed = True
        self._closing = job
        if not self._running:
            self._run_closing()

    def _run_closing(self) -> None:
        job, self._closing = self._closing, None
        assert job is not None
        self._pool.run(job).addErrback(lambda failure: _log.failure("could not clean up", failure))


@implementer(IPushProducer)
class ChunkProducer:
    """
    Writes what pool jobs read to a request: one chunk on its way, one in hand.

    @param read: called in the pool; the next chunk, empty at the end.
    """

    def __init__(self, request: StreamingRequest, jobs: Jobs, read: Callable[[], bytes]) -> None:
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


class SendfileTransfer:
    """
    Sends a head and a part of a file over a plain socket by pool jobs, each until the socket would block.

    The jobs work on a duplicate of the socket: the reactor may close its own when the client is gone, and the number of a
    closed descriptor can become another client's at once. The duplicate is closed only behind the last job. Nothing else
    writes to the socket meanwhile (L{resticserver.web.channel.StreamingChannel.may_write_directly}).

    It is its own write descriptor for the reactor, over the duplicate.
    """

    def __init__(
        self, request: StreamingRequest, jobs: Jobs, reactor: IReactorFDSet, head: bytes, stored: Stored, part: Part
    ) -> None:
        transport: Any = request.channel.transport
        self._request = request
        self._jobs = jobs
        self._reactor = reactor
        self._head = head
        self._file = stored.fileno()
        self._offset = part.start
        self._end_offset = part.start + part.length
        self._start_offset = part.start
        self._socket = socket.socket(fileno=os.dup(transport.fileno()))
        self._by_sendfile = True
        self._running = False
        self._waiting = False
        self._stopped = False
        self._stall: IDelayedCall | None = None
        self._done: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Begin; fires when the kernel has everything, fails when the client is gone or the file cannot be read."""
        self._done = Deferred(lambda _: self._stop())
        done = self._done
        self._next()
        return done

    def _next(self) -> None:
        self._running = True
        self._jobs.run(self._send).addCallbacks(lambda _: self._sent(), self._failed)

    def _send(self) -> None:
        """In the pool: send until the socket would block."""
        try:
            while self._head:
                self._head = self._head[self._socket.send(self._head, _MSG_MORE | socket.MSG_DONTWAIT) :]
            while self._offset < self._end_offset and not self._stopped:
                length = min(self._end_offset - self._offset, _SENDFILE_BYTES)
                sent = self._send_part(length)
                if sent == 0:
                    raise OSError(errno.EIO, "the file became shorter while it was sent")
                self._offset += sent
                self._request.sent_bytes = self._offset - self._start_offset  # for the record, also of a lost one
        except BlockingIOError:
            pass

    def _send_part(self, length: int) -> int:
        if self._by_sendfile:
            try:
                return os.sendfile(self._socket.fileno(), self._file, self._offset, length)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                self._by_sendfile = False  # some FUSE file systems
        chunk = os.pread(self._file, min(length, READ_BYTES), self._offset)
        return self._socket.send(chunk, socket.MSG_DONTWAIT) if chunk else 0

    def _sent(self) -> None:
        self._running = False
        if self._stopped:
            self._close()
        elif not self._head and self._offset == self._end_offset:
            self._finish(None)
        else:
            self._watch()
            self._waiting = True
            self._reactor.addWriter(self)  # type: ignore[arg-type]

    def _failed(self, failure: Failure) -> None:
        self._running = False
        if failure.check(ConnectionError):
            failure = Failure(ConnectionLost())
        self._finish(failure)

    def _finish(self, result: Failure | None) -> None:
        done, self._done = self._done, None
        self._close()
        if done is not None:
            done.callback(result)  # type: ignore[arg-type]

    def _stop(self) -> None:
        """The client is gone or the server stops: end the job that runs, close behind it."""
        self._stopped = True
        self._done = None
        if self._running:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone already, which is all that was wanted
        else:
            self._close()

    def _close(self) -> None:
        self._unwatch()
        if self._waiting:
            self._waiting = False
            self._reactor.removeWriter(self)  # type: ignore[arg-type]
        # Not at once: epoll may have reported both the socket and its duplicate as lost, and the reactor, still on its
        # way through those events, would give the duplicate's to a new client that got its number meanwhile.
        self._request.site.reactor.callLater(0, self._socket.close)

    def _watch(self) -> None:
        self._unwatch()
        self._stall = self._request.site.reactor.callLater(STALL_S, self._request.abort)

    def _unwatch(self) -> None:
        stall, self._stall = self._stall, None
        if stall is not None and stall.active():
            stall.cancel()

    # --- the reactor's side (IWriteDescriptor)

    def fileno(self) -> int:
        """The duplicate's descriptor."""
        return self._socket.fileno()

    def doWrite(self) -> None:
        """The reactor's call: the socket takes more."""
        self._waiting = False
        self._reactor.removeWriter(self)  # type: ignore[arg-type]
        self._unwatch()
        self._next()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor's call: the socket broke while we waited for it."""
        self._waiting = False
        self._finish(Failure(ConnectionLost()))

    def logPrefix(self) -> str:
        """The reactor's call."""
        return "sendfile"


def send_part(request: StreamingRequest, jobs: Jobs, stored: Stored, part: Part) -> Deferred[None]:
    """
    Send a part of an open object as the body of an answer whose headers are set.

    @return: fires when everything is on its way.
    """
    channel = request.channel
    transport = channel.transport
    reactor = IReactorFDSet(request.site.reactor, None)
    if (
        SENDFILE
        and reactor is not None
        and stored.fileno() >= 0
        and isinstance(transport, FileDescriptor)
        and not ISSLTransport.providedBy(transport)
        and channel.may_write_directly()
    ):
        head = channel.take_head(request)
        return SendfileTransfer(request, jobs, reactor, head, stored, part).start()
    return ChunkProducer(request, jobs, _reader(stored, part)).start()


def _reader(stored: Stored, part: Part) -> Callable[[], bytes]:
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


def batches(pieces: Iterator[bytes], size_bytes: int) -> Callable[[], bytes]:
    """Joins small pieces to chunks of about C{size_bytes}; empty at the end."""

    def read() -> bytes:
        batch = bytearray()
        for piece in pieces:
            batch += piece
            if len(batch) >= size_bytes:
                break
        return bytes(batch)

    return read
