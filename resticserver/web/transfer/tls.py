"""
Transfers between a TLS connection's socket and pool jobs: also the cipher's work is done past the reactor's thread.

OpenSSL's connection is for one thread at a time. So while a transfer lives, the reactor's side of it rests: nothing is read
(L{StreamingChannel.begin_direct_read}), and whoever wants to end the connection ends the running job first
(L{SocketTransfer.interrupt}).
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, cast

from OpenSSL.SSL import Error, WantReadError
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet

from ...storage.interface import Stored
from ...threads.serial_jobs import SerialJobs
from ..http1.ranges import Part
from ..http1.tls_writer import RECORD_BYTES, TlsWriter, encrypt
from .plain import ReceiveTransfer, SendfileTransfer, thread_buffer

if TYPE_CHECKING:
    from ..http1.request import StreamingRequest

#: How much is read and encrypted before it is sent.
_CHUNK_BYTES = 256 << 10
#: How much of the socket's bytes is taken at a time, and how much is decrypted before it is written.
_RAW_BYTES = 1 << 20
_PLAIN_BYTES = 1 << 20
#: How many records one job decrypts: more than its bytes need where a client fills them, and five milliseconds of work where it
#: puts a byte into each. Then it waits for its turn among those who do such things.
_MOST_RECORDS = 1024


def _writer(request: StreamingRequest) -> TlsWriter:
    return cast(TlsWriter, request.channel.writer)


class TlsSendTransfer(SendfileTransfer):
    """Sends a head and a part of a file."""

    def __init__(
        self,
        request: StreamingRequest,
        duplicate: socket.socket,
        jobs: SerialJobs,
        reactor: IReactorFDSet,
        head: bytes,
        stored: Stored,
        part: Part,
    ) -> None:
        super().__init__(request, duplicate, jobs, reactor, head, stored, part)
        self._connection = _writer(request).connection
        self._stored = stored
        self._encrypted = memoryview(b"")

    def _move(self) -> bool:
        """In the pool: encrypt and send until the socket would block."""
        try:
            while not self._stopped:
                while self._encrypted:
                    self._encrypted = self._encrypted[self._socket.send(self._encrypted, socket.MSG_DONTWAIT) :]
                if self._offset == self._end_offset and not self._head:
                    return True
                head, self._head = self._head, b""
                self._encrypted = memoryview(encrypt(self._connection, head, self._next_chunk()))
        except BlockingIOError:
            pass
        except Error as error:
            raise ConnectionLost() from error
        return False

    def _next_chunk(self) -> bytes:
        chunk = self._stored.read(self._offset, min(_CHUNK_BYTES, self._end_offset - self._offset))
        if not chunk and self._offset < self._end_offset:
            raise OSError(errno.EIO, "the file became shorter while it was sent")
        self._offset += len(chunk)
        self._request.sent_bytes = self._offset - self._start_offset  # for the record, also of a lost one
        return chunk


class TlsReceiveTransfer(ReceiveTransfer):
    """Takes the rest of a body of known length."""

    # OpenSSL keeps the begin of a record until its end is there. To wait for more than can still come would be for ever.
    most_held_bytes = 2 * RECORD_BYTES

    def _take(self) -> None:
        """In the pool: decrypt and write until the socket would block, or until others should have their turn."""
        connection = _writer(self._request).connection
        raw, plain = thread_buffer("raw", _RAW_BYTES), thread_buffer("plain", _PLAIN_BYTES)
        until = self.taken_bytes + self.job_bytes
        filled = 0
        records = 0
        self._crowded = False
        try:
            while self._left_bytes > filled and not self._stopped:
                records += 1
                if records > _MOST_RECORDS:
                    self._more = self._crowded = True
                    break
                try:
                    wanted = min(self._left_bytes - filled, RECORD_BYTES)
                    filled += connection.recv_into(plain[filled:], wanted)
                except WantReadError:
                    if self.taken_bytes + filled >= until:
                        self._more = True
                        break
                    length = self._socket.recv_into(raw, 0, socket.MSG_DONTWAIT)
                    if length == 0:
                        raise ConnectionLost() from None
                    connection.bio_write(raw[:length])
                if filled + RECORD_BYTES > _PLAIN_BYTES:
                    whole, filled = filled, 0
                    self._taken(plain[:whole])
        except BlockingIOError:
            pass
        except Error as error:
            raise ConnectionLost() from error
        if filled:
            self._taken(plain[:filled])
