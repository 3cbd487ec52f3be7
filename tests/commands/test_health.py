"""
C{rest-server health} against small servers of the tests' own: which address it asks, what it prints, and its exit status.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import health as command

from ..support.certificates import make_certificate
from ..support.scratch import scratch_directory

READY = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nready\n"
REASON = b"the data directory cannot be written: Read-only file system\n"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%s" % (len(REASON), REASON)


def _request_of(connection: socket.socket) -> bytes:
    """All that a client sends before it waits, in several pieces if the PROXY header is one; of TLS, what comes first."""
    received = b""
    while not received.endswith(b"\r\n\r\n") and (more := connection.recv(1 << 16)):
        received += more
        if received.startswith(b"\x16"):
            break
    return received


class HealthCase(SynchronousTestCase):
    """Runs the command in an environment of its own."""

    def setUp(self) -> None:
        others = {name: value for name, value in os.environ.items() if not name.startswith("REST_SERVER_")}
        self.patch(os, "environ", others)
        self.scratch = scratch_directory(self)
        self.received: list[bytes] = []

    def health(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = command.main(arguments)
        self.assertLessEqual(len((out.getvalue() + err.getvalue()).splitlines()), 1, err.getvalue())
        return status, out.getvalue(), err.getvalue()

    def unknown(self, *arguments: str) -> str:
        """Why it could not ask."""
        status, out, err = self.health(*arguments)
        self.assertEqual((2, ""), (status, out), err)
        self.assertTrue(err.startswith("rest-server health: "), err)
        return err.removeprefix("rest-server health: ").rstrip("\n")

    def listen(
        self,
        reply: bytes | Callable[[socket.socket], None] = READY,
        listening: socket.socket | None = None,
        context: ssl.SSLContext | None = None,
    ) -> int:
        """Answer each connection so, in a thread; the port."""
        if listening is None:
            listening = socket.create_server(("127.0.0.1", 0))
        opened: socket.socket = listening

        def serve() -> None:
            while True:
                try:
                    connection = opened.accept()[0]
                except OSError:
                    return
                with contextlib.suppress(OSError), connection:
                    connection.settimeout(10)
                    if context is not None:
                        connection = context.wrap_socket(connection, server_side=True)
                    with connection:
                        self.received.append(_request_of(connection))
                        if isinstance(reply, bytes):
                            connection.sendall(reply)
                        else:
                            reply(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(opened.close)
        # close(2) does not wake accept(2).
        self.addCleanup(opened.shutdown, socket.SHUT_RDWR)
        name = opened.getsockname()
        return 0 if isinstance(name, str) else int(name[1])


class AnswerTests(HealthCase):
    """What the answers mean."""

    def test_ready(self) -> None:
        """200 is ready; the page is asked for once, without a password."""
        port = self.listen()
        self.assertEqual((0, "ready\n", ""), self.health("--listen", f"127.0.0.1:{port}"))
        [request] = self.received
        self.assertTrue(request.startswith(b"GET /-/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n"), request)
        self.assertNotIn(b"Authorization", request)

    def test_not_ready(self) -> None:
        """503 is not ready, for the reason that the server gives; one without a text has its status line."""
        port = self.listen(NOT_READY)
        self.assertEqual(
            (1, "", f"rest-server health: not ready: {REASON.decode()}"), self.health(f"http://127.0.0.1:{port}")
        )
        port = self.listen(b"HTTP/1.1 503 Too Many Connections\r\nContent-Length: 0\r\n\r\n")
        status, _, err = self.health(f"http://127.0.0.1:{port}")
        self.assertEqual((1, "rest-server health: not ready: Too Many Connections\n"), (status, err))

    def test_reason_is_one_plain_line(self) -> None:
        """Nothing that a terminal would act on is printed, and not more than a line."""
        port = self.listen(b"HTTP/1.1 503 x\r\n\r\n\x1b[2Jred \xc3\xbc" + b"y" * 10_000 + b"\nmore\n")
        status, _, err = self.health(f"http://127.0.0.1:{port}")
        self.assertEqual(1, status)
        self.assertIn("not ready: [2Jred \\xfcyyyy", err)
        self.assertLess(len(err), 400)

    def test_other_answers(self) -> None:
        """Other statuses, other protocols, and no answer at all leave the question open."""
        for reply, words in (
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
            (b"HTTP/1.1 401 x\r\n\r\n", "status 401"),
            (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
            (b"", "closed the connection"),
        ):
            self.assertIn(words, self.unknown(f"http://127.0.0.1:{self.listen(reply)}"))

    def test_refused(self) -> None:
        """Nothing listens there."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        self.assertEqual(f"http://127.0.0.1:{port}: Connection refused", self.unknown(f"http://127.0.0.1:{port}"))
        path = self.scratch / "none.sock"
        self.assertEqual(f"unix:{path}: No such file or directory", self.unknown(f"unix:{path}"))

    def test_timeout(self) -> None:
        """C{--timeout} holds for everything together, also if the server goes on to send a byte now and then."""

        def slowly(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                connection.sendall(b"A")
                time.sleep(0.05)

        port = self.listen(slowly)
        self.assertIn("did not answer in time", self.unknown("--timeout", "0.3", f"http://127.0.0.1:{port}"))
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        self.assertIn("in time", self.unknown("--timeout", "0.1", f"https://127.0.0.1:{silent.getsockname()[1]}"))

    def test_endless(self) -> None:
        """An answer without an end is not read to its end."""

        def endless(connection: socket.socket) -> None:
            while True:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536)

        self.assertEqual(0, self.health(f"http://127.0.0.1:{self.listen(endless)}")[0])


class AddressTests(HealthCase):
    """Which address is asked, and how."""

    def test_url(self) -> None:
        """A path of a URL stands before the page's, for a proxy."""
        port = self.listen()
        self.assertEqual(0, self.health(f"http://127.0.0.1:{port}/backup/a%20b/")[0])
        self.assertTrue(self.received[0].startswith(b"GET /backup/a%20b/-/ready HTTP"), self.received)

    def test_unix(self) -> None:
        """A Unix socket, of the server's flags or explicit."""
        path = str(self.scratch / "s.sock")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        self.listen(listening=listening)
        for arguments in ((f"unix:{path}",), ("--listen", f"unix:{path}:mode=600")):
            self.assertEqual((0, "ready\n", ""), self.health(*arguments))

    def test_tls(self) -> None:
        """
        The certificate is not verified at the server's own address, nor on loopback; C{--cacert} has it verified there too.
        """
        files = make_certificate(self.scratch)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        port = self.listen(context=context)
        url = f"https://127.0.0.1:{port}"
        self.assertEqual((0, "ready\n", ""), self.health("--tls", "--listen", f"127.0.0.1:{port}"))
        self.assertEqual((0, "ready\n", ""), self.health(url))
        self.assertEqual((0, "ready\n", ""), self.health("--cacert", str(files.authority), url))
        other = self.scratch / "other"
        other.mkdir()
        self.assertIn("certificate is not valid", self.unknown("--cacert", str(make_certificate(other).authority), url))
        self.assertIn("No such file", self.unknown("--cacert", str(self.scratch / "none.pem"), url))
        (self.scratch / "no.pem").write_text("no certificate")
        self.assertIn(f"{self.scratch}/no.pem: ", self.unknown("--cacert", str(self.scratch / "no.pem"), url))
        self.assertIn("does not speak TLS", self.unknown("--tls", "--listen", f"127.0.0.1:{self.listen()}"))

    def test_names_of_other_machines_are_verified(self) -> None:
        """A certificate of an authority that the system does not know is refused for a URL that is not loopback."""
        files = make_certificate(self.scratch)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        port = self.listen(context=context)
        connect = socket.create_connection
        self.patch(socket, "create_connection", lambda where, left: connect(("127.0.0.1", port), left))
        self.assertIn("certificate is not valid", self.unknown(f"https://backup.example.org:{port}"))

    def test_proxy_protocol(self) -> None:
        """A listener for a proxy gets the header that it needs."""
        port = self.listen()
        self.assertEqual(0, self.health("--listen", f"haproxy:tcp:{port}:interface=127.0.0.1")[0])
        self.assertTrue(self.received[0].startswith(b"PROXY UNKNOWN\r\n"), self.received)

    def test_simplest(self) -> None:
        """Of several listeners the one without TLS and PROXY protocol is asked."""
        port = self.listen()
        flags = ("--tls", "--listen", "127.0.0.1:1", "--listen", "haproxy:tcp:2", "--listen", "127.0.0.1:0")
        self.assertEqual(0, self.health(*flags, "--metrics-listen", f"127.0.0.1:{port}:plain=yes")[0])
        self.assertEqual(1, len(self.received))

    def test_environment(self) -> None:
        """The server's variables count, as does its file; flags win."""
        port = self.listen()
        os.environ["REST_SERVER_LISTEN"] = f"127.0.0.1:{port}"
        self.assertEqual(0, self.health()[0])
        self.assertIn("127.0.0.1:1: ", self.unknown("--listen", "127.0.0.1:1"))
        del os.environ["REST_SERVER_LISTEN"]
        file = self.scratch / "rest-server.toml"
        file.write_text(f'listen = ["127.0.0.1:{port}"]\nmax-size = "1TiB"\n')
        self.assertEqual(0, self.health("--config", str(file))[0])
        os.environ["REST_SERVER_CONFIG"] = str(file)
        self.assertEqual(0, self.health()[0])
        os.environ["REST_SERVER_MAX_SIZE"] = "much"
        self.assertTrue(self.unknown().startswith("REST_SERVER_MAX_SIZE"))

    def test_no_address_to_ask(self) -> None:
        """Listeners that cannot be asked are named with the reason."""
        self.assertIn("127.0.0.1:0: the system chose the port; fd:3: it is a socket", self.unknown(
            "--listen", "127.0.0.1:0", "--listen", "fd:3"
        ))  # fmt: skip
        os.environ["REST_SERVER_TLS_CLIENT_CA"] = "/ca.pem"
        self.assertIn(":8000: clients must have a certificate", self.unknown("--tls"))

    def test_bad_arguments(self) -> None:
        """Each is one line and status 2."""
        for arguments, words in (
            (("ftp://host",), "ADDRESS must be a URL"),
            (("host:8000",), "ADDRESS must be a URL"),
            (("http://",), "ADDRESS must be a URL"),
            (("unix:",), "ADDRESS must be a URL"),
            (("http://user:secret@host/",), "must not contain a user or a password"),
            (("http://host:99999",), "http://host:99999: "),
            (("http://[::1",), "http://[::1: "),
            (("--timeout", "0", "http://host"), "--timeout"),
            (("--timeout", "soon", "http://host"), "--timeout"),
            (("--tls", "http://host"), "ADDRESS cannot be combined"),
            (("--running", "http://host"), "ADDRESS cannot be combined"),
            (("--running", "--tls"), "--running cannot be combined"),
            (("--cacert", "ca.pem"), "--cacert needs a URL"),
            (("--unknown",), "unrecognized arguments"),
            (("a", "b"), "unrecognized arguments"),
            (("--listen", "8000"), "8000: neither host:port"),
        ):
            self.assertIn(words, self.unknown(*arguments), arguments)
        self.assertNotIn("secret", self.unknown("http://user:secret@host/"))


class RunningTests(HealthCase):
    """C{--running}: flags and environment of the server that runs."""

    def setUp(self) -> None:
        super().setUp()
        self.proc = self.scratch / "proc"
        self.proc.mkdir()
        (self.proc / "self").mkdir()
        self.patch(command, "Path", lambda _: self.proc)

    def process(self, pid: int, *words: str, **environment: str) -> Path:
        """A process as the kernel shows it."""
        directory = self.proc / str(pid)
        directory.mkdir()
        (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
        variables = (f"{name}={value}\0".encode() for name, value in environment.items())
        (directory / "environ").write_bytes(b"".join(variables))
        return directory

    def test_found(self) -> None:
        """The server's own flags and variables are used, and not those of this process; other processes are passed over."""
        port = self.listen()
        self.process(1, "/bin/init")
        self.process(2)
        self.process(7, "/usr/bin/python3", "/usr/bin/rest-server", "health", "--running")
        self.process(8, "/usr/bin/python3", "/usr/bin/rest-server", "user", "add", "alice")
        (self.process(9, "x") / "cmdline").unlink()
        os.environ["REST_SERVER_LISTEN"] = "127.0.0.1:1"
        os.environ["REST_SERVER_TLS"] = "true"
        server = ("/usr/bin/python3", "/usr/bin/rest-server")
        self.process(20, *server, "--path", "/data", "--listen", f"127.0.0.1:{port}", REST_SERVER_MAX_SIZE="1T", A="b")
        self.assertEqual((0, "ready\n", ""), self.health("--running"))
        self.assertEqual("1T", os.environ["REST_SERVER_MAX_SIZE"])
        self.assertFalse({"REST_SERVER_TLS", "A"} & os.environ.keys())

    def test_only_environment(self) -> None:
        """A server without flags, configured by variables alone; and one under twistd."""
        port = self.listen()
        found = self.process(5, "python3", "/usr/bin/rest-server", REST_SERVER_LISTEN=f"127.0.0.1:{port}")
        self.assertEqual(0, self.health("--running")[0])
        for file in found.iterdir():
            file.unlink()
        found.rmdir()
        self.process(6, "python3", "/usr/bin/twistd", "-n", "restic-rest", "--listen", f"127.0.0.1:{port}")
        self.assertEqual(0, self.health("--running")[0])

    def test_none_and_several(self) -> None:
        """It does not guess."""
        self.assertEqual("no rest-server is running", self.unknown("--running"))
        self.process(10, "python3", "rest-server")
        (self.proc / "10" / "environ").unlink()
        self.assertIn("cannot read the environment of process 10: No such file", self.unknown("--running"))
        self.process(9, "python3", "rest-server", "--no-auth")
        self.assertIn("several servers run (processes 9, 10)", self.unknown("--running"))
