"""
C{rest-server health} against real servers, in each way that they listen.
"""

from __future__ import annotations

import shutil
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.waiting import wait_until
from .test_metrics import own_address


class HealthTests(SynchronousTestCase):
    """The command as a process."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"

    def start(self, *flags: str) -> ServerProcess:
        """Start a server."""
        return start_server(self, self.data, *flags)

    def health(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Status and output."""
        done = subprocess.run(
            [installed("rest-server"), "health", *arguments],
            capture_output=True,
            text=True,
            env=server_environment(environment),
            timeout=60,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def test_addresses(self) -> None:
        """TCP, endpoint strings, the PROXY protocol, Unix sockets, TLS, with and without worker processes."""
        files = make_certificate(self.scratch)
        socket = f"unix:{self.scratch}/s.sock"
        for flags in ((), ("--workers", "2")):
            server = self.start(
                *files.flags, *flags, "--listen", "127.0.0.1:0", "--listen", "tcp:0:interface=127.0.0.1",
                "--listen", "haproxy:tcp:0:interface=127.0.0.1", "--listen", socket,
                "--listen", "127.0.0.1:0:plain=yes",
            )  # fmt: skip
            server.wait_for_line(r"start server on /")
            ports = [line.rpartition(":")[2] for line in server.err if "start server on 127" in line]
            tls, endpoint, proxied = ports[:3]
            for address in (
                f"127.0.0.1:{tls}", f"tcp:{endpoint}:interface=127.0.0.1",
                f"haproxy:tcp:{proxied}:interface=127.0.0.1", socket,
            ):  # fmt: skip
                self.assertEqual((0, "ready"), self.health("--tls", "--listen", address), address)
                self.assertEqual(2, self.health("--listen", address)[0], address)
            self.assertEqual((0, "ready"), self.health(REST_SERVER_TLS="true", REST_SERVER_LISTEN=socket))
            self.assertEqual((0, "ready"), self.health("--cacert", str(files.authority), f"https://127.0.0.1:{tls}"))
            self.assertEqual(0, server.stop(), server.err)

    def test_client_certificates(self) -> None:
        """Where clients must have a certificate, the address for metrics can be asked."""
        files = make_certificate(self.scratch)
        server = self.start(
            *files.flags, "--tls-client-ca", str(files.authority), "--metrics-listen", "127.0.0.1:0:plain=yes"
        )
        address = own_address(server)
        flags = ("--tls", "--listen", f"127.0.0.1:{server.port}")
        variable = {"REST_SERVER_TLS_CLIENT_CA": str(files.authority)}
        self.assertEqual(
            (0, "ready"), self.health(*flags, "--metrics-listen", f"127.0.0.1:{address[1]}:plain=yes", **variable)
        )
        status, output = self.health(*flags, **variable)
        self.assertEqual(2, status)
        self.assertIn("clients must have a certificate", output)

    def test_data_directory_gone(self) -> None:
        """A server without its data directory is not ready, and says why; one that has ended cannot be asked."""
        server = self.start()
        flags = ("--listen", f"127.0.0.1:{server.port}")
        self.assertEqual((0, "ready"), self.health(*flags))
        shutil.move(self.data, self.scratch / "elsewhere")
        # The last result may be two seconds old.
        wait_until(lambda: self.health(*flags)[0] == 1, what="a server that is not ready")
        found = self.health(*flags)
        self.assertEqual(1, found[0], found)
        self.assertRegex(found[1], r"^rest-server health: not ready: .*(directory|volume)")
        server.stop()
        self.assertEqual((2, f"rest-server health: {server.url}: Connection refused"), self.health(*flags))
