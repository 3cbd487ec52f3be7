"""
Transfers between a plain socket and pool jobs: the bytes of large bodies never pass through the reactor's thread.

The jobs use a duplicate of the socket: the reactor may close its own when the client is gone, and the number of a closed
descriptor can become another client's at once. The duplicate is closed only after the last job. A job moves bytes until the
socket would block. Then the transfer waits in the reactor, as a descriptor of its own: no thread ever waits for the network.

Transfers know sockets and files, and no requests (L{resticserver.web.transfer.body} does).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ...limits.bandwidth import Share
from ...storage.interface import Chunks, Stored
from ...threads.reactor import IReactor
from ..http1.ranges import Part
from ..http1.turns import Turns

if TYPE_CHECKING:
    from ..http1.tls_records import TlsRecords  # OpenSSL takes its time to import

#: How often a transfer checks whether its client has sent less than the low-water mark, of which the reactor does not tell.
LOOK_S = 5.0

#: How much one sendfile call is asked for.
_SENDFILE_BYTES = 4 << 20
#: Where sendfile is refused: how much is read at a time.
_READ_BYTES = 256 << 10
_MSG_MORE: int = getattr(socket, "MSG_MORE", 0)

#: How much one call takes from the socket.
_RECEIVE_BYTES = 1 << 20
#: A TCP socket counts as readable only when so much is there: else a job would start for every few segments.
_LOW_WATER_BYTES = 256 << 10

#: Runs a job in a pool; the one before must have ended.
RunsJobs = Callable[[Callable[[], bool]], Deferred[bool]]

_buffers = threading.local()

B = TypeVar("B")


class LentSocket(NamedTuple):
    """
    What a transfer gets of a connection.

    @ivar duplicate: of the socket. The transfer closes it.
    @ivar abort: closes the connection; C{stall}: because the client moved no byte for C{stall_timeout_s}.
    @ivar turns: of transfers whose clients' bytes take long to decrypt.
    @ivar records: what encrypts and decrypts; C{None} without TLS.
    @ivar share: grants the bytes that may be moved; C{None} without a limit.
    """

    duplicate: socket.socket
    reactor: IReactor
    abort: Callable[[], None]
    stall: Callable[[], None]
    stall_timeout_s: float
    turns: Turns
    records: TlsRecords | None = None
    share: Share | None = None


class SocketTransfer:
    """
    What both directions share: jobs one after the other, the waiting between them, and every end.

    It is its own descriptor for the reactor, over the duplicate.

    With a limit of bandwidth, each job moves at most what was granted before. Without a grant no job runs: the transfer waits
    for it in the reactor, as it waits for its socket.

    @ivar _more: whether the last job ended before the socket would block, so that there is more to do now.
    """

    def __init__(self, lent: LentSocket, run: RunsJobs) -> None:
        self._socket = lent.duplicate
        self._reactor = lent.reactor
        self._abort = lent.abort
        self._stall_abort = lent.stall
        self._run = run
        self._stall_s = lent.stall_timeout_s
        self._share = lent.share
        self._asking: Deferred[int] | None = None
        self._more = False
        self._running = False
        self._waiting = False
        self._stopped = False
        self._stall: IDelayedCall | None = None
        self._done: Deferred[None] | None = None
        self._then: Callable[[], None] | None = None

    def start(self) -> Deferred[None]:
        """Begin; fires when everything was moved, fails when the client is gone or with what a job raised."""
        self._done = Deferred(lambda _: self._stop())
        done = self._done
        self._next()
        return done

    def _move(self) -> bool:
        """In the pool: move bytes. Returns whether all were moved."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Let the reactor call when the socket is ready."""
        raise NotImplementedError

    def _unwait(self) -> None:
        """Undo L{_wait}."""
        raise NotImplementedError

    def _left(self) -> int:
        """How many bytes are still to be moved."""
        raise NotImplementedError

    def _allow(self, size_bytes: int) -> None:
        """Let the next job move at most so many bytes."""
        raise NotImplementedError

    def _unused(self) -> int:
        """How many of the bytes that were allowed the job has not moved."""
        raise NotImplementedError

    def _next(self) -> None:
        """Run the next job, once it may move bytes."""
        if self._share is None:
            self._run_job()
        else:
            asking = self._asking = self._share.take(self._left())
            asking.addCallbacks(self._granted, lambda failure: failure.trap(CancelledError))

    def _granted(self, size_bytes: int) -> None:
        self._asking = None
        self._allow(size_bytes)
        self._run_job()

    def _run_job(self) -> None:
        self._running = True
        self._run(self._move).addCallbacks(self._moved, self._failed)

    def interrupt(self, then: Callable[[], None]) -> bool:
        """
        End the running job by shutting the connection down (L{resticserver.web.http1.gate.SocketHolder}).

        @param then: called when the job has ended, before its result is used.
        """
        if not self._running:
            return False
        self._then = then
        self._shut_down()
        return True

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already

    def _ended(self) -> None:
        """A job has ended."""
        self._running = False
        if self._share is not None:
            self._share.give_back(self._unused())
        then, self._then = self._then, None
        if then is not None:
            then()

    def _moved(self, all_of_it: bool) -> None:
        interrupted = self._then is not None
        self._ended()
        if self._stopped:
            self._close()
        elif all_of_it:
            self._finish(None)
        elif self._more and not interrupted:
            self._next()
        else:
            self._watch()
            self._waiting = True
            self._wait()

    def _failed(self, failure: Failure) -> None:
        self._ended()
        if failure.check(ConnectionError):
            failure = Failure(ConnectionLost())
        self._finish(failure)

    def _finish(self, result: Failure | None) -> None:
        done, self._done = self._done, None
        self._close()
        if done is not None:
            done.callback(result)

    def _stop(self) -> None:
        """The client is gone or the server stops: end the running job, then close."""
        self._stopped = True
        self._done = None
        if self._running:
            self._shut_down()
        else:
            self._close()

    def _close(self) -> None:
        self._unwatch()
        self._stop_waiting()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        # Not at once: epoll may have reported both the socket and its duplicate as lost, and the reactor still goes through
        # those events. A new client that got the duplicate's number meanwhile would be given the duplicate's event.
        self._reactor.callLater(0, self._socket.close)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._unwait()

    def _watch(self) -> None:
        self._unwatch()
        self._stall = self._reactor.callLater(self._stall_s, self._stalled)

    def _unwatch(self) -> None:
        stall, self._stall = self._stall, None
        if stall is not None and stall.active():
            stall.cancel()

    def _stalled(self) -> None:
        self._stall_abort()

    # --- the reactor's side (IReadDescriptor, IWriteDescriptor)

    def fileno(self) -> int:
        """The duplicate's descriptor."""
        return self._socket.fileno()

    def _ready(self) -> None:
        """The reactor's call: the socket is ready again."""
        self._stop_waiting()
        self._unwatch()
        self._next()

    doRead = _ready
    doWrite = _ready

    def connectionLost(self, reason: Failure) -> None:
        """The reactor's call: the socket broke while we waited for it."""
        self._waiting = False
        self._finish(Failure(ConnectionLost()))

    def logPrefix(self) -> str:
        """The reactor's call."""
        return type(self).__name__


class SendfileTransfer(SocketTransfer):
    """
    Sends a head and a part of a file, or of an object in an object store. Nothing else writes to the socket meanwhile
    (L{resticserver.web.http1.channel.StreamingChannel.may_lend}).

    @param progress: called in the pool with the number of bytes of the part that were sent so far.
    """

    def __init__(
        self, lent: LentSocket, run: RunsJobs, progress: Callable[[int], None], head: bytes, stored: Stored, part: Part
    ) -> None:
        super().__init__(lent, run)
        self._progress = progress
        self._head = head
        self._file = stored.fileno()
        self._stored = stored
        #: Read of an object that is no file, and not sent yet.
        self._chunk = memoryview(b"")
        self._offset = part.start
        self._end_offset = part.start + part.length
        self._start_offset = part.start
        #: Up to where the next job may send.
        self._until_offset = self._end_offset
        self._by_sendfile = True

    def _left(self) -> int:
        return max(1, self._end_offset - self._offset)

    def _allow(self, size_bytes: int) -> None:
        self._until_offset = min(self._end_offset, self._offset + size_bytes)

    def _unused(self) -> int:
        return self._until_offset - self._offset

    def _move(self) -> bool:
        """In the pool: send until the socket would block."""
        until_offset = self._until_offset
        self._more = False
        try:
            while self._head:
                self._head = self._head[self._socket.send(self._head, _MSG_MORE | socket.MSG_DONTWAIT) :]
            while self._offset < until_offset and not self._stopped:
                length = min(until_offset - self._offset, _SENDFILE_BYTES)
                sent = self._send_part(length)
                if sent == 0:
                    raise OSError(errno.EIO, "the file became shorter while it was sent")
                self._offset += sent
                self._progress(self._offset - self._start_offset)
            self._more = True
        except BlockingIOError:
            pass
        return not self._head and self._offset == self._end_offset

    def _send_part(self, length: int) -> int:
        if self._file < 0:
            if not self._chunk:
                self._chunk = memoryview(self._stored.read(self._offset, min(length, _READ_BYTES)))
            sent = self._socket.send(self._chunk[:length], socket.MSG_DONTWAIT)
            self._chunk = self._chunk[sent:]
            return sent
        if self._by_sendfile:
            try:
                return os.sendfile(self._socket.fileno(), self._file, self._offset, length)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                self._by_sendfile = False  # some FUSE file systems
        chunk = os.pread(self._file, min(length, _READ_BYTES), self._offset)
        return self._socket.send(chunk, socket.MSG_DONTWAIT) if chunk else 0

    def _wait(self) -> None:
        self._reactor.addWriter(self)  # type: ignore[arg-type]

    def _unwait(self) -> None:
        self._reactor.removeWriter(self)  # type: ignore[arg-type]


class ReceiveTransfer(SocketTransfer):
    """
    Takes the rest of a body of known length from the socket. Nothing else reads from it meanwhile
    (L{resticserver.web.http1.exchange.Exchange.lend}).

    @param first: what came before; it is written first.
    @param left_bytes: what is still to come.
    @param write: called in the pool with the next bytes, which are good only during the call.
    @cvar job_bytes: how much one job takes before another upload may have its thread.
    @cvar most_held_bytes: how much of what is left may have come already, and not be in the socket.
    @ivar taken_bytes: how much of the body was taken from the connection.
    """

    job_bytes = 8 << 20
    most_held_bytes = 0

    def __init__(
        self, lent: LentSocket, run: RunsJobs, first: Chunks, left_bytes: int, write: Callable[[Chunks], None]
    ) -> None:
        super().__init__(lent, run)
        self._turns = lent.turns
        self._first = first
        self._left_bytes = left_bytes
        self._write = write
        #: How much may have been taken when the next job ends.
        self._until_bytes = left_bytes
        #: Whether the last job ended because the client's bytes take long.
        self._crowded = False
        self._pending_bytes = 0
        self._silent_s = self._look_s = 0.0
        self.taken_bytes = 0

    def _left(self) -> int:
        return self._left_bytes

    def _allow(self, size_bytes: int) -> None:
        self._until_bytes = self.taken_bytes + size_bytes

    def _unused(self) -> int:
        return self._until_bytes - self.taken_bytes

    def _move(self) -> bool:
        """In the pool: take and write until the socket would block, or until it is other uploads' turn."""
        first, self._first = self._first, ()
        if first:
            self._write(first)
        self._more = False
        self._take()
        return self._left_bytes == 0

    def _take(self) -> None:
        buffer = thread_buffer("received", _RECEIVE_BYTES, _memory)
        until = min(self._until_bytes, self.taken_bytes + self.job_bytes)
        try:
            while self.taken_bytes < until and not self._stopped:
                wanted = min(until - self.taken_bytes, _RECEIVE_BYTES)
                length = self._socket.recv_into(buffer, wanted, socket.MSG_DONTWAIT)
                if length == 0:
                    raise ConnectionLost()
                self._taken(buffer[:length])
            self._more = True
        except BlockingIOError:
            pass

    def _taken(self, piece: memoryview) -> None:
        """These bytes of the body have left the connection, also if they cannot be written."""
        self._left_bytes -= len(piece)
        self.taken_bytes += len(piece)
        self._write((piece,))

    def _moved(self, all_of_it: bool) -> None:
        if self._crowded and not self._stopped and self._then is None:
            self._ended()
            self._turns.wait(self)
        else:
            super()._moved(all_of_it)

    def go_on(self) -> None:
        """It is this upload's turn (L{resticserver.web.http1.turns.Waits})."""
        if not self._stopped:
            self._next()

    def abort(self) -> None:
        """Close the connection (L{resticserver.web.http1.turns.Waits})."""
        self._abort()

    def _wait(self) -> None:
        self._set_low_water(max(1, min(_LOW_WATER_BYTES, self._left_bytes - self.most_held_bytes)))
        self._pending_bytes = self._kernel_has()
        self._reactor.addReader(self)  # type: ignore[arg-type]

    def _unwait(self) -> None:
        self._reactor.removeReader(self)  # type: ignore[arg-type]

    def _close(self) -> None:
        self._set_low_water(1)
        super()._close()

    def _set_low_water(self, size_bytes: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
        except OSError:
            pass  # a hint only, and the socket may be gone

    def _kernel_has(self) -> int:
        """How much waits in the kernel."""
        try:
            waiting: int = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, b"\0" * 4))[0]
            return waiting
        except OSError:
            return 0

    def _watch(self) -> None:
        self._silent_s = 0.0
        self._look_later()

    def _look_later(self) -> None:
        self._unwatch()
        self._look_s = min(LOOK_S, self._stall_s - self._silent_s)
        self._stall = self._reactor.callLater(self._look_s, self._stalled)

    def _stalled(self) -> None:
        # Below the low-water mark the reactor does not call. A slow client is not a silent one.
        pending_bytes = self._kernel_has()
        self._silent_s = self._silent_s + self._look_s if pending_bytes == self._pending_bytes else 0.0
        self._pending_bytes = pending_bytes
        if self._silent_s >= self._stall_s:
            super()._stalled()
        else:
            self._look_later()


def _memory(size_bytes: int) -> memoryview:
    return memoryview(bytearray(size_bytes))


def thread_buffer(name: str, size_bytes: int, make: Callable[[int], B]) -> B:
    """
    A buffer of this thread's own: so the number of threads bounds the memory, and not the number of uploads.

    @param name: of what it is for, which always has the same size.
    @param make: makes it.
    """
    buffer: B | None = getattr(_buffers, name, None)
    if buffer is None:
        buffer = make(size_bytes)
        setattr(_buffers, name, buffer)
    return buffer
