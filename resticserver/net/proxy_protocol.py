"""
The PROXY protocol before HTTP or TLS: Twisted's, with what its parsers leave out.

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

#: What Twisted wants to see at once of a header of version 1, and of version 2.
_FIRST_BYTES_1, _FIRST_BYTES_2 = 8, 16

#: Valid without addresses, which Twisted's parser insists on (and does not look at).
_UNKNOWN = b"PROXY UNKNOWN\r\n"

_log = Logger()


class ProxyProtocol(HAProxyProtocolWrapper):
    """A connection whose header may come in any pieces, and is no traceback when it is broken."""

    _begun = b""

    def dataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes came in."""
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
                raise  # what stands above is to blame
            _log.debug("no PROXY header: {error}", error=error)
            self.loseConnection()


def _may_begin(data: bytes) -> bool:
    """Whether these are the first bytes of a header, too few to tell."""
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
    An endpoint whose clients speak the PROXY protocol first.

    @ivar endpoint: where they come in.
    """

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen there."""
        listening: Deferred[IListeningPort] = self.endpoint.listen(ProxyProtocolFactory(factory))
        return listening
