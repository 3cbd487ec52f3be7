"""
Transfers between a TLS connection's socket and pool jobs: the jobs do the cipher's work as well.

OpenSSL's connection is for one thread at a time. So the reactor's side of it rests while a transfer lives
(L{resticserver.web.http1.gate.ReadGate.lend}), and closing the connection ends the running job first
(L{SocketTransfer.interrupt}).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from OpenSSL.SSL import Error
from twisted.internet.error import ConnectionLost

from ...storage.interface import Chunks, Stored
from ..http1.ranges import Part
from ..http1.tls_records import RECORD_BYTES, Space, TlsRecords, encrypted_bytes
from .plain import LentSocket, ReceiveTransfer, RunsJobs, SendfileTransfer, thread_buffer

#: How much is read and encrypted before it is sent. OpenSSL keeps memory for it in each connection that was used so.
_CHUNK_BYTES = 256 << 10
#: How much of the socket's bytes is taken at a time, how much of it OpenSSL gets at a time (more leaves the processor's cache
#: before it is decrypted), and how much is decrypted before it is written.
_RAW_BYTES = 1 << 20
_FED_BYTES = 128 << 10
_PLAIN_BYTES = 1 << 20
#: The longest head of an answer that is encrypted together with the first chunk.
_HEAD_BYTES = 16 << 10
#: How many records one job decrypts: more than its bytes need if the client fills them, and five milliseconds of work if it puts
#: a byte into each. Then the transfer waits for its turn (L{LentSocket.turns}).
_MOST_RECORDS = 1024


class TlsSendTransfer(SendfileTransfer):
    """Sends a head and a part of a file."""

    def __init__(
        self, lent: LentSocket, run: RunsJobs, progress: Callable[[int], None], head: bytes, stored: Stored, part: Part
    ) -> None:
        super().__init__(lent, run, progress, head, stored, part)
        self._records = records_for(lent)
        self._stored = stored
        self._encrypted = memoryview(b"")

    def _move(self) -> bool:
        """In the pool: encrypt and send until the socket would block."""
        until_offset = self._until_offset
        records = self._records
        space = thread_buffer("encrypted", _HEAD_BYTES + encrypted_bytes(_CHUNK_BYTES), Space)
        self._more = False
        try:
            while not self._stopped:
                while self._encrypted:
                    self._encrypted = self._encrypted[self._socket.send(self._encrypted, socket.MSG_DONTWAIT) :]
                self._encrypted = records.take(space)  # what there was no space for before
                if self._encrypted:
                    continue
                if self._offset == until_offset and not self._head:
                    self._more = True
                    return until_offset == self._end_offset
                head, self._head = self._head[:_HEAD_BYTES], self._head[_HEAD_BYTES:]
                if head:
                    records.encrypt(head)
                chunk = self._next_chunk()
                if chunk:
                    records.encrypt(chunk)
                self._encrypted = records.take(space)
        except BlockingIOError:
            self._encrypted = memoryview(bytes(self._encrypted))  # the next job may have another thread, and its space
        except Error as error:
            raise ConnectionLost() from error
        return False

    def _next_chunk(self) -> bytes | memoryview:
        chunk = self._stored.read(self._offset, min(_CHUNK_BYTES, self._until_offset - self._offset))
        if not chunk and self._offset < self._until_offset:
            raise OSError(errno.EIO, "the file became shorter while it was sent")
        self._offset += len(chunk)
        self._progress(self._offset - self._start_offset)
        return chunk


class TlsReceiveTransfer(ReceiveTransfer):
    """Takes the rest of a body of known length."""

    # OpenSSL keeps the begin of a record until its end is there. A low-water mark of all that is left would never be reached.
    most_held_bytes = 2 * RECORD_BYTES

    def __init__(
        self, lent: LentSocket, run: RunsJobs, first: Chunks, left_bytes: int, write: Callable[[Chunks], None]
    ) -> None:
        super().__init__(lent, run, first, left_bytes, write)
        self._records = records_for(lent)

    def _take(self) -> None:
        """In the pool: decrypt and write until the socket would block, or until it is other uploads' turn."""
        tls = self._records
        raw, plain = thread_buffer("raw", _RAW_BYTES, Space), thread_buffer("plain", _PLAIN_BYTES, Space)
        unfed = raw.view[:0]
        until = self.taken_bytes + self.job_bytes
        left_bytes = self._until_bytes - self.taken_bytes
        filled = 0
        records = 0
        self._crowded = False
        try:
            while left_bytes > filled and not self._stopped:
                records += 1
                if records > _MOST_RECORDS:
                    self._crowded = True
                    break
                length = tls.decrypt(plain, filled, min(left_bytes - filled, RECORD_BYTES))
                if not length:
                    if not unfed:
                        if self.taken_bytes + filled >= until:
                            break
                        unfed = raw.view[: self._socket.recv_into(raw.view, 0, socket.MSG_DONTWAIT)]
                        if not unfed:
                            raise ConnectionLost()
                    now, unfed = unfed[:_FED_BYTES], unfed[_FED_BYTES:]
                    tls.feed(now)
                    continue
                filled += length
                if filled + RECORD_BYTES > _PLAIN_BYTES:
                    whole, filled = filled, 0
                    left_bytes -= whole
                    self._taken(plain.view[:whole])
            self._more = True
        except BlockingIOError:
            pass
        except Error as error:
            raise ConnectionLost() from error
        finally:
            if unfed:
                tls.feed(unfed)  # of the next job, or of the next request
        if filled:
            self._taken(plain.view[:filled])


def records_for(lent: LentSocket) -> TlsRecords:
    """What encrypts and decrypts for a transfer over TLS."""
    assert lent.records is not None
    return lent.records
