"""
A small HTTP client for tests: one keep-alive connection, over TCP, TLS or a unix socket, and raw bytes where HTTP's own
clients are too polite.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import socket
import ssl
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from .waiting import PATIENCE_S

LIST_V2 = "application/vnd.x.restic.rest.v2"

#: Where a server listens: host and port, or a unix socket's path.
Address = tuple[str, int] | str


def object_id(body: bytes) -> str:
    """What restic calls an object with these bytes."""
    return hashlib.sha256(body).hexdigest()


def random_bytes(seed: int, length: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(length)


def connect(address: Address, timeout_s: float = PATIENCE_S) -> socket.socket:
    """A connected socket."""
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection
    return socket.create_connection(address, timeout_s)


def reset(connection: socket.socket) -> None:
    """Close with a RST instead of a FIN, as a client does that was killed with unread bytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes


def read_reply(connection: socket.socket, method: str = "GET") -> Reply:
    """
    Read one answer from a raw connection.

    @raise http.client.IncompleteRead: its body ended early.
    """
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    with response:
        return Reply(response.status, response.reason, response.headers, response.read())


def authorization(user: str, password: str) -> str:
    """The value of the header C{Authorization}."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address, tls: ssl.SSLContext | None, before: bytes) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._address = address
        self._tls = tls
        self._before = before

    def connect(self) -> None:
        self.sock = connect(self._address)
        if not isinstance(self._address, str):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(self._before)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname="localhost")


class Client:
    """
    One connection to a server; not for several threads.

    @param tls: with what to check the server's certificate, or C{None} for plain HTTP.
    @param before: what is sent before all else, as a header of the PROXY protocol.
    """

    def __init__(
        self,
        address: Address,
        user: str | None = None,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        before: bytes = b"",
    ) -> None:
        self._connection = _Connection(address, tls, before)
        self._headers = {} if user is None else {"Authorization": authorization(user, password)}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def request(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """
        One request and its whole answer.

        @param body: bytes go with Content-Length, an iterable in chunks.
        """
        self._connection.request(method, path, body, {**self._headers, **(headers or {})})
        response = self._connection.getresponse()
        return Reply(response.status, response.reason, response.headers, response.read())

    def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        """GET."""
        return self.request("GET", path, headers=headers)

    def head(self, path: str) -> Reply:
        """HEAD."""
        return self.request("HEAD", path)

    def post(self, path: str, body: bytes | Iterable[bytes] = b"") -> Reply:
        """POST."""
        return self.request("POST", path, body)

    def delete(self, path: str) -> Reply:
        """DELETE."""
        return self.request("DELETE", path)

    def create_repository(self, path: str = "/") -> None:
        """Make a repository's directories."""
        reply = self.post(f"{path}?create=true")
        assert reply.status == 200, reply

    def save(self, kind: str, body: bytes, repository: str = "/") -> str:
        """Store an object under its right name; the name."""
        name = object_id(body)
        reply = self.post(f"{repository}{kind}/{name}", body)
        assert reply.status == 200, reply
        return name

    def list(self, kind: str, repository: str = "/") -> dict[str, int]:
        """The names of a type with their sizes (version 2)."""
        reply = self.get(f"{repository}{kind}/", {"Accept": LIST_V2})
        assert reply.status == 200, reply
        assert reply.headers["Content-Type"] == LIST_V2, reply
        return {entry["name"]: entry["size"] for entry in json.loads(reply.body)}
