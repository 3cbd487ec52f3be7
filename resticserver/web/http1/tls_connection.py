"""
The server's side of a TLS connection: Twisted's, with these differences.

 - Bytes are decrypted in slices (L{resticserver.web.http1.turns}), and not while the channel pauses reading. Twisted decrypts all
   that a read brought: 64 KiB are nearly 3,000 records if a client puts one byte into each.
 - A client that has closed its half may still wait for its answer.
 - Plain HTTP gets an answer that says so. To OpenSSL it would be a broken record.
 - A handshake that fails leaves one line in the log.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from OpenSSL.SSL import Error, SysCallError, ZeroReturnError
from twisted.internet import tcp
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IProtocolFactory, IReactorTime
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

from .addresses import address_text
from .replies import date_now
from .socket_writer import SocketWriter
from .tls_records import RECORD_BYTES, TlsRecords, records_of
from .tls_writer import REACTOR_SPACE, TlsWriter, taken
from .turns import Turns

#: How many records one slice decrypts: a fifth of a millisecond if they are tiny. If the client fills them, a read brings 33 at
#: most.
SLICE_RECORDS = 64
#: How long a client that was answered in plain HTTP may take to close its half. Its request may still be on its way: a socket
#: that is closed with unread bytes is reset, and the client would lose the answer.
LINGER_S = 10.0

#: How a request in plain HTTP begins. A TLS connection begins with the byte 22.
_PLAIN = re.compile(rb"[A-Za-z]{1,20} ")
_MAY_BE_PLAIN = re.compile(rb"[A-Za-z]{1,20}\Z")
_SENTENCE = b"Client sent an HTTP request to an HTTPS server."


def behind_tls(connection_creator: Any, factory: IProtocolFactory) -> TLSMemoryBIOFactory:
    """
    A factory behind TLS.

    @param connection_creator: what Twisted's takes.
    @param factory: the site.
    """
    made = TLSMemoryBIOFactory(connection_creator, False, factory)
    made.protocol = TlsConnection
    return made


#: Parts of OpenSSL's reasons for the alerts of clients that refuse the server's certificate.
_DISTRUST = ("alert unknown ca", "alert bad certificate", "alert certificate unknown")


class TlsSite(Protocol):
    """What a TLS connection needs of its site (L{resticserver.web.http1.site.RepositorySite})."""

    reactor: IReactorTime
    turns: Turns

    def handshake_failed(self, address: str, why: str) -> None:
        """A TLS handshake failed."""


class TlsConnection(BufferingTLSTransport):
    """
    One connection. Its channel belongs to a L{resticserver.web.http1.site.RepositorySite}.
    """

    transport: Any
    _writer: SocketWriter | None
    _records: TlsRecords | None = None

    #: The first bytes, until they show whether this is TLS.
    _first = b""
    _begun = False
    #: Whether the client sent plain HTTP, and got its answer.
    _plain = False
    _lingering: IDelayedCall | None = None
    #: Why OpenSSL refused the handshake.
    _why_not = ""
    #: Whether there may be more to decrypt; whether that waits for its turn; whether it happens now.
    _behind = False
    _queued = False
    _flushing = False
    #: Whether the channel pauses reading.
    _resting = False
    #: Whether the client has closed its half.
    _ended = False
    #: Whether an answer was written since decrypting began, and with it all that OpenSSL had to send.
    written = False

    @property
    def _site(self) -> TlsSite:
        site: Any = self.factory.wrappedFactory
        while hasattr(site, "wrappedFactory"):  # haproxy:ssl: has the PROXY protocol inside
            site = site.wrappedFactory
        return site  # type: ignore[no-any-return]

    def makeConnection(self, transport: Any) -> None:
        """Twisted's call: the connection is there."""
        self._writer = SocketWriter(transport) if isinstance(transport, tcp.Connection) else None
        super().makeConnection(transport)

    def make_sender(self) -> TlsWriter | None:
        """The writer for its answers; C{None} if its socket cannot be had (the PROXY protocol is between them)."""
        return TlsWriter(self) if isinstance(self.transport, tcp.Connection) else None

    def _flushSendBIO(self) -> None:
        """
        Send what OpenSSL has to send, at once if that is possible. While something waits to be written no transfer can begin, and
        session tickets are written just when the first request comes.
        """
        said = taken(self.records)
        if said:
            (self._writer or self.transport).write(said)

    @property
    def records(self) -> TlsRecords:
        """What encrypts and decrypts."""
        if self._records is None:
            self._records = records_of(self._tlsConnection)
        return self._records

    # --- reading

    def dataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes came in."""
        if self._handshakeDone and not self._appSendBuffer:
            self.records.feed(data)
            self._flushReceiveBIO()
            return
        if not self._begun:
            data, self._first = self._first + data, b""
            if _MAY_BE_PLAIN.match(data):
                self._first = data
                return
            self._begun = True
            if _PLAIN.match(data):
                self._refuse_plain(data)
                return
        elif self._plain:
            return
        super().dataReceived(data)

    def _flushReceiveBIO(self) -> None:
        """Decrypt one slice of what came, and pass it on."""
        if self._flushing or self._queued or self._resting:
            self._behind = True
            return
        self._flushing = True
        self.written = False
        try:
            self._behind = not self._decrypt_slice()
        finally:
            self._flushing = False
        if self.connected and not self._lostTLSConnection:
            if not self.written:
                self._flushSendBIO()
            if self._behind and not self._resting:
                self._wait_for_turn()

    def _decrypt_slice(self) -> bool:
        """Decrypt up to L{SLICE_RECORDS}. Returns whether that was all."""
        records, space = self.records, REACTOR_SPACE
        data = b""
        for _ in range(SLICE_RECORDS):
            if self._lostTLSConnection or self._aborted or self._ended:
                return True
            try:
                length = records.decrypt(space, 0, RECORD_BYTES)
            except ZeroReturnError:
                self._pass_on(data)
                if self._resting:
                    return False  # OpenSSL reports it again
                self._input_ended()
                return True
            except Error:
                failure = Failure()
                self._pass_on(data)
                self._tlsShutdownFinished(failure)
                return True
            data += space.view[:length]
            if not length or records.is_drained():
                self._pass_on(data)
                return True
            if len(data) >= RECORD_BYTES:
                self._pass_on(data)
                data = b""
                if self._resting:
                    return False
        self._pass_on(data)
        return False

    def _pass_on(self, data: bytes) -> None:
        if data and not self._aborted:
            self.wrappedProtocol.dataReceived(data)

    def _input_ended(self) -> None:
        """The client has closed its half."""
        self._ended = True
        above = IHalfCloseableProtocol(self.wrappedProtocol, None)
        if above is not None:
            above.readConnectionLost()
        else:
            self._shutdownTLS()
            self._tlsShutdownFinished(None)

    def read_on(self) -> None:
        """A transfer had OpenSSL's connection and may have left bytes in it: decrypt them when reading goes on."""
        self._behind = True

    def _wait_for_turn(self) -> None:
        self._queued = True
        self.transport.pauseProducing()
        self._site.turns.wait(self)

    def go_on(self) -> None:
        """It is this connection's turn (L{resticserver.web.http1.turns.Waits})."""
        self._queued = False
        if not self.connected or self._resting:
            return
        self._flushReceiveBIO()
        if not self._behind:
            self.transport.resumeProducing()

    def abort(self) -> None:
        """Abort the connection (L{resticserver.web.http1.turns.Waits})."""
        if self.connected:
            self.abortConnection()

    # --- the channel's back-pressure

    def pauseProducing(self) -> None:
        """The channel pauses reading."""
        self._resting = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The channel reads on: first what came already, but never within this call, for the channel is busy."""
        self._resting = False
        if self._queued or self._flushing:
            return
        if self._behind and self.connected:
            self._wait_for_turn()
        else:
            self.transport.resumeProducing()

    # --- plain HTTP

    def _refuse_plain(self, begin: bytes) -> None:
        """
        Answer a request that came without TLS in plain HTTP, and linger so that the client can read that.

        @param begin: of the request.
        """
        self._plain = True
        transport: Any = self.transport
        body = b"" if begin.startswith(b"HEAD ") else _SENTENCE + b"\n"
        transport.write(
            b"HTTP/1.1 400 %s\r\nDate: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%s" % (_SENTENCE[:-1], date_now(), len(_SENTENCE) + 1, body)
        )
        transport.loseWriteConnection()
        self._site.handshake_failed(address_text(transport.getPeer()), "the client sent plain HTTP")
        self._lingering = self._site.reactor.callLater(LINGER_S, transport.abortConnection)

    # --- the end

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None and not self._handshakeDone and not self._why_not:
            self._why_not = _words(reason.value)
        super()._tlsShutdownFinished(reason)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Twisted's call: the connection is gone."""
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        if not self._plain and not self._handshakeDone and (self._begun or self._first):
            # A connection without a byte is a load balancer's check that the port is open.
            aborted = self._aborted and not self._why_not
            why_not = "it timed out" if aborted else self._why_not or "the client closed the connection"
            self._site.handshake_failed(address_text(self.transport.getPeer()), why_not)
        super().connectionLost(reason)


def _words(error: BaseException | None) -> str:
    """OpenSSL's reasons of an error."""
    if isinstance(error, Error) and not isinstance(error, SysCallError) and error.args and error.args[0]:
        said = ", ".join(dict.fromkeys(reason for _, _, reason in error.args[0] if reason))
        return f"{said} (the client does not trust the certificate)" if any(a in said for a in _DISTRUST) else said
    return ""
