"""
A server and a shipped proxy in front of it, and clients from another address than the proxy's.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..support.certificates import ServerCertificate, make_certificate
from ..support.client import Client
from ..support.htpasswd import bcrypt_line
from ..support.proxy import AddressRelay
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic
from ..support.scratch import Cleans, scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import wait_until
from .examples import WEB_USER, ProxyExample, Wiring, disk_directory, free_port, program

CURL = shutil.which("curl")
#: Where clients come from: not the proxy's address, which is 127.0.0.1.
CLIENT = "127.0.0.2"
#: How much the tests of one setting write: an object of 500 MB, the server's and the client's copies.
_MOST_BYTES = 1500 << 20


@dataclass(frozen=True)
class Answered:
    """What curl was answered."""

    status: int
    http: str
    body: str


def make_object(path: Path, size_bytes: int) -> str:
    """A file whose blocks all differ; its name as an object."""
    block = hashlib.shake_128(b"block").digest(1 << 20)
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(size_bytes >> 20):
            numbered = number.to_bytes(8, "big") + block[8:]
            hashed.update(numbered)
            file.write(numbered)
    return hashed.hexdigest()


class Setting:
    """
    A server and a proxy in front of it.

    @ivar directory: the server's and the clients' files; C{data} below it is the data directory.
    @ivar server: the server, after L{serve}.
    @ivar proxy: the proxy, after L{start_proxy}.
    """

    def __init__(self, test: Cleans, kind: type[ProxyExample]) -> None:
        self._test = test
        self.kind = kind
        self.directory = scratch_directory(test, _MOST_BYTES)
        # The workers of nginx and Apache go to the socket as another user.
        self.directory.chmod(0o711)
        self.log = self.directory / "access.log"
        self.certificate: ServerCertificate = make_certificate(self.directory)
        self._htpasswd = self.directory / "users"
        self._htpasswd.write_text(bcrypt_line("alice", "secret"))
        self._socket = self.directory / "rest.sock"
        self._server_port = free_port()
        self.port = free_port()
        self.server: ServerProcess
        self.proxy: ProxyExample

    def serve(self, *flags: str, listen: str = "") -> None:
        """Start the server as the head of the shipped file says it."""
        unix = self.kind.unix
        listen = listen.format(port=self._server_port) or (
            f"unix:{self._socket}" if unix else f"127.0.0.1:{self._server_port}"
        )
        trusted = "none" if unix else "127.0.0.1"
        self.server = start_server(
            self._test,
            self.directory / "data",
            *("--listen", listen, "--trusted-proxy", trusted, "--htpasswd-file", str(self._htpasswd)),
            *("--private-repos", "--log", str(self.log), *flags),
        )
        if unix:
            # As SocketGroup= of the socket unit does it.
            shutil.chown(self._socket, group=WEB_USER)

    def start_proxy(self, *changes: tuple[str, str]) -> None:
        """
        Start the proxy.

        @param changes: what is changed in the shipped file besides addresses and paths.
        """
        server = self._socket if self.kind.unix else self._server_port
        wiring = Wiring(disk_directory(self._test), self.port, self.certificate, server)
        self.proxy = self.kind(self._test, wiring, changes)
        wait_until(lambda: self.curl("/-/ready").status == 200, what=self.proxy.said)

    def restic(self, repository: str, kind: type[Restic] = Restic) -> Restic:
        """restic, from the client's address."""
        relay = AddressRelay(self._test, self.port, CLIENT)
        url = f"https://alice:secret@127.0.0.1:{relay.port}/alice/{repository}"
        return kind(self._test, url, self.directory, "--cacert", str(self.certificate.authority))

    def client(self) -> Client:
        """From the proxy's own address."""
        return Client(("127.0.0.1", self.port), "alice", "secret", tls=self.certificate.client_context())

    def curl_command(self, path: str, *arguments: str, password: str = "secret") -> list[str]:
        """curl, from the client's address, as restic would ask."""
        url = f"https://127.0.0.1:{self.port}{path}"
        trust = ("--cacert", str(self.certificate.authority), "--interface", CLIENT, "--user", f"alice:{password}")
        return [str(CURL), "--silent", "--show-error", "--path-as-is", *trust, "-H", "Expect:", *arguments, url]

    def curl(self, path: str, *arguments: str, password: str = "secret") -> Answered:
        """Run curl to its end, however that is; status 0 is no answer."""
        written = "\n%{http_code} %{http_version}"
        command = self.curl_command(path, "--write-out", written, *arguments, password=password)
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        body, _, status = done.stdout.rpartition("\n")
        code, http = status.split()
        return Answered(int(code), http, body + done.stderr)

    def lines(self) -> list[str]:
        """The server's access log without the proxy's own health checks."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not re.match(r'127\.0\.0\.1 - - .*"GET /-/ready ', line)]

    def wait_for_log(self, pattern: str) -> None:
        """Wait for a line of the access log; it comes after the answer."""
        wait_until(lambda: any(re.search(pattern, line) for line in self.lines()), what=lambda: (pattern, self.lines()))


def needs(kind: type[ProxyExample]) -> str | None:
    """Why a proxy cannot be tried here, or C{None}."""
    if program(kind.program) is None:
        return f"{kind.program} is not installed"
    if CURL is None:
        return "curl is not installed"
    return SKIP_WITHOUT_RESTIC
