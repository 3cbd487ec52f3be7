"""
The PROXY protocol before HTTP or TLS: Twisted's implementation, with what its parsers do not support.

Source: HAProxy's "The PROXY protocol", versions 1 and 2.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory

#: How many bytes of a header of version 1, and of version 2, Twisted needs in one piece.
_FIRST_BYTES_1, _FIRST_BYTES_2 = 8, 16

#: Valid without addresses, but Twisted's parser requires some (and ignores them).
_UNKNOWN = b"PROXY UNKNOWN\r\n"

_log = Logger()


class ProxyProtocol(HAProxyProtocolWrapper):
    """A connection whose header may come in any pieces; a broken one closes the connection without a traceback."""

    _begun = b""

    def dataReceived(self, data: bytes) -> None:
        """Twisted calls this with received bytes."""
        if self._proxyInfo is not None:
            super().dataReceived(data)
            return
        data, self._begun = self._begun + data, b""
        if self._parser is None:
            if _may_begin(data):
                self._begun = data
                return
            if data.startswith(_UNKNOWN):
                data = _UNKNOWN.replace(b"\r", b" -\r") + data[len(_UNKNOWN) :]
        try:
            super().dataReceived(data)
        except Exception as error:
            if self._proxyInfo is not None:
                raise  # an error of the protocol above
            _log.debug("no PROXY header: {error}", error=error)
            self.loseConnection()


def _may_begin(data: bytes) -> bool:
    """Whether these may be the first bytes of a header, and more are needed."""
    first, second = V1Parser.PROXYSTR, V2Parser.PREFIX
    return (len(data) < _FIRST_BYTES_1 and data[: len(first)] == first[: len(data)]) or (
        len(data) < _FIRST_BYTES_2 and data[: len(second)] == second[: len(data)]
    )


class ProxyProtocolFactory(HAProxyWrappingFactory):
    """Puts L{ProxyProtocol} before a factory's protocols."""

    noisy = False
    protocol = ProxyProtocol  # type: ignore[assignment]


class ProxyProtocolEndpoint:
    """
    An endpoint whose clients send a PROXY header first.

    @ivar endpoint: the one below it.
    """

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen there."""
        listening: Deferred[IListeningPort] = self.endpoint.listen(ProxyProtocolFactory(factory))
        return listening
