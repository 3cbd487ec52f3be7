"""
Connections to an object store through urllib3, which are kept open and used again.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import PoolManager, ProxyManager, make_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ..errors import StartError
from .timeouts import STORE_TIMEOUT_S

#: How many connections are kept open: as many as the server has threads for requests.
_CONNECTIONS = 32


def connections_to(endpoint: str, ca_file: str | None, ca_variable: str) -> PoolManager:
    """
    The connections: directly, or through the proxy that the environment names (obstore does the same). Certificates are
    verified against the file that is set, or against what the system and C{SSL_CERT_FILE} say.

    @param endpoint: the URL of the service.
    @param ca_file: the certificates to trust instead of the system's; C{None} for those.
    @param ca_variable: what has named that file, for messages.
    @raise StartError: that file cannot be used.
    """
    parts = urlsplit(endpoint)
    options: dict[str, Any] = {"num_pools": 2, "maxsize": _CONNECTIONS}
    if parts.scheme == "https":
        options["ssl_context"] = _tls(ca_file, ca_variable)
    manager = _manager(parts.scheme, parts.netloc, options)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return manager


def _manager(scheme: str, netloc: str, options: dict[str, Any]) -> PoolManager:
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(netloc):
        return PoolManager(**options)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = None
    if parts.username is not None:
        headers = make_headers(proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    return ProxyManager(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", proxy_headers=headers, **options)


def _tls(ca_file: str | None, ca_variable: str) -> ssl.SSLContext:
    """
    What certificates are verified against.

    @raise StartError: the file with the authorities cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        # An ssl.SSLError has only the library's own words.
        reason = "it has no valid certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise StartError(f"--path: cannot read {ca_file} ({ca_variable}): {reason}") from None


class _Patient:
    """
    Sends for L{STORE_TIMEOUT_S}. urllib3 has the time-out for connecting hold while a request is sent as well, and a large
    object may take longer.
    """

    sock: Any

    def send(self, data: Any) -> None:
        """See C{http.client.HTTPConnection}."""
        # The head is the first that is sent, and connects.
        if self.sock is not None:
            self.sock.settimeout(STORE_TIMEOUT_S)
        super().send(data)  # type: ignore[misc]


class _Connection(_Patient, HTTPConnection):
    """Without TLS."""


class _TLSConnection(_Patient, HTTPSConnection):
    """With TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection
