"""
TLS at a running server: what OpenSSL's own client is refused, clients with certificates, and a renewal under load.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import Authority, ServerCertificate, make_certificate
from ..support.client import Client, connect, object_id, random_bytes
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until

OPENSSL = shutil.which("openssl")

#: Arguments of s_client -> whether there is a connection. SECLEVEL=0 lets the client offer what it would not by itself.
OFFERS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("-tls1_3",), True),
    (("-tls1_2",), True),
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), True),
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"), True),
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"), True),
    (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), False),
    (("-tls1", "-cipher", "ALL:@SECLEVEL=0"), False),
    # CBC, no forward secrecy, no authentication
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"), False),
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"), False),
    (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"), False),
    (("-tls1_2", "-cipher", "AES128-GCM-SHA256:@SECLEVEL=0"), False),
    (("-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"), False),
)


class TlsCase(SynchronousTestCase):
    """A server with TLS."""

    def setUp(self) -> None:
        self.directory = scratch_directory(self, 200 << 20)
        self.authority = Authority()
        self.files: ServerCertificate = make_certificate(self.directory, self.authority)

    def start(self, *flags: str) -> ServerProcess:
        """Start it with this certificate."""
        return start_server(self, self.directory / "data", *self.files.flags, *flags)

    def client_file(self, name: str, authority: Authority | None = None) -> Path:
        """A client's certificate and key."""
        return (authority or self.authority).issue_to_file(self.directory / f"{name}.pem", name)

    def context(self, client_file: Path | None = None) -> ssl.SSLContext:
        """A client's side of TLS, which believes the server's authority alone."""
        context = self.files.client_context()
        if client_file is not None:
            context.load_cert_chain(client_file)
        return context


class RefusedTests(TlsCase):
    """What is not spoken."""

    if OPENSSL is None:
        skip = "openssl is not installed"

    def test_offers(self) -> None:
        """TLS 1.2 and 1.3 with authenticated encryption and forward secrecy; nothing else."""
        server = self.start()
        for offer, taken in OFFERS:
            done = subprocess.run(
                [str(OPENSSL), "s_client", "-connect", f"127.0.0.1:{server.port}", "-alpn", "h2,http/1.1", *offer],
                input=b"",
                capture_output=True,
                timeout=60,
            )
            said = (done.stdout + done.stderr).decode("utf-8", "replace")
            self.assertEqual(taken, done.returncode == 0, (offer, said))
            if taken:
                self.assertIn("ALPN protocol: http/1.1", said)
            else:
                self.assertRegex(said, "alert|no protocols available|unsupported protocol", offer)
        with Client(("127.0.0.1", server.port), tls=self.context()) as client:
            self.assertEqual(404, client.get("/config").status)


class ClientCertificateTests(TlsCase):
    """C{--tls-client-ca}."""

    def refused(self, server: ServerProcess, context: ssl.SSLContext) -> bool:
        """Whether the server ends the connection instead of an answer."""
        try:
            with Client(("127.0.0.1", server.port), tls=context) as client:
                client.get("/alice/config")
        except (ssl.SSLError, ConnectionError):
            return True
        return False

    def test_who(self) -> None:
        """A certificate of the authority is its user; of another authority, or none, is no connection."""
        clients = Authority("clients")
        authority_file = self.directory / "clients.pem"
        authority_file.write_bytes(clients.pem)
        server = self.start("--tls-client-ca", str(authority_file), "--private-repos")
        with Client(("127.0.0.1", server.port), tls=self.context(self.client_file("alice", clients))) as client:
            client.create_repository("/alice/")
            self.assertEqual(403, client.post("/bob/?create=true").status)
        for wrong in (self.client_file("bob"), self.client_file("carol", Authority("clients")), None):
            self.assertTrue(self.refused(server, self.context(wrong)), wrong)
        stranger = self.client_file("no name", clients)
        with Client(("127.0.0.1", server.port), tls=self.context(stranger)) as client:
            self.assertEqual(401, client.get("/alice/config").status)
        server.stop()
        self.assertFalse(server.said("Traceback|Unhandled"), server.err)

    def test_optional(self) -> None:
        """Besides passwords: either says who it is, and both must say the same."""
        users = self.directory / "users"
        users.write_text(sha_line("bob", "secret"))
        server = self.start(
            *("--tls-client-ca", str(self.files.authority), "--tls-client-auth", "optional"),
            *("--htpasswd-file", str(users), "--private-repos", "--log", str(self.directory / "log")),
        )
        alice, bob = self.context(self.client_file("alice")), self.context(self.client_file("bob"))
        address = ("127.0.0.1", server.port)
        for context, user, password, path, status in (
            (self.context(), None, "", "/bob/config", 401),
            (self.context(), "bob", "secret", "/bob/config", 404),
            (self.context(), "bob", "wrong", "/bob/config", 401),
            (alice, None, "", "/alice/config", 404),
            (alice, "bob", "secret", "/alice/config", 401),
            (alice, "bob", "secret", "/bob/config", 401),
            (bob, "bob", "secret", "/bob/config", 404),
            (bob, "bob", "wrong", "/bob/config", 401),
        ):
            with Client(address, user, password, tls=context) as client:
                self.assertEqual(status, client.get(path).status, (user, path))

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """restic with C{--tls-client-cert} backs up; its name is in the log."""
        log = self.directory / "access.log"
        flags = ("--tls-client-ca", str(self.files.authority), "--private-repos", "--log", str(log))
        server = self.start(*flags)
        tls = ("--cacert", str(self.files.authority), "--tls-client-cert", str(self.client_file("alice")))
        restic = Restic(self, f"https://127.0.0.1:{server.port}/alice/pc", self.directory, *tls)
        make_tree(self.directory / "tree", seed=3, size_bytes=2 << 20)
        restic.create()
        restic.succeed("backup", str(self.directory / "tree"))
        restic.succeed("check", "--read-data")
        self.assertRegex(log.read_text(), r'127\.0\.0\.1 - alice \[.*"POST /alice/pc/data/\S+ HTTP/1\.1" 200')


class LeavingTests(TlsCase):
    """Clients that say nonsense, or nothing, and go."""

    def test_nothing_is_logged(self) -> None:
        """
        Whoever opens a connection, sends what is no request and ends it, at any moment and in any way (as every check of a
        certificate does), leaves no traceback.
        """
        server = self.start()
        context = self.files.client_context()
        for number in range(200):
            with context.wrap_socket(connect(("127.0.0.1", server.port)), server_hostname="localhost") as connection:
                says_something = number % 4
                if says_something:
                    connection.send(b"\n" if number % 2 else b"no request\r\n\r\n")
                with contextlib.suppress(OSError, ssl.SSLError):
                    if number % 3 == 1 and says_something:
                        connection.recv(10)
                    if number % 3 < 2:
                        connection.unwrap()
        self.assertEqual(0, server.stop())
        self.assertEqual([], [line for line in server.err if "Error" in line or "Traceback" in line])

    def test_refused_upload(self) -> None:
        """A client that sends all of a large body before it reads gets its refusal as a whole, and then the end."""
        server = self.start("--append-only", "--max-size", "1KiB")
        context = self.files.client_context()
        body = random_bytes(1, 3 << 20)
        for _ in range(5):
            with Client(("127.0.0.1", server.port), tls=context) as client:
                reply = client.post(f"/data/{object_id(body)}", body)
                self.assertIn(reply.status, (404, 507))
        self.assertEqual(0, server.stop())
        self.assertEqual([], [line for line in server.err if "Error" in line or "Traceback" in line])


class HandshakeTests(TlsCase):
    """Connections that do not become TLS connections."""

    PROXY = b"PROXY TCP4 192.0.2.99 192.0.2.1 5555 8000\r\n"

    def plain(self, port: int, request: bytes, before: bytes = b"") -> bytes:
        """All that a client gets that speaks without TLS; a reset raises."""
        with connect(("127.0.0.1", port)) as connection:
            connection.sendall(before + request)
            got = b""
            while more := connection.recv(65536):
                got += more
        return got

    def check_plain(self, port: int, before: bytes = b"") -> None:
        """Whatever the request: 400, a sentence, and an end that is none but an end."""
        large = b"POST /data/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
        sentence = b"Client sent an HTTP request to an HTTPS server."
        for request in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET ",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROPFIND / HTTP/1.1\r\n\r\n",
            large,
        ):
            got = self.plain(port, request, before)
            self.assertTrue(got.startswith(b"HTTP/1.1 400 " + sentence[:-1] + b"\r\n"), got)
            self.assertTrue(got.endswith(b"Connection: close\r\n\r\n" + sentence + b"\n"), got)
        got = self.plain(port, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", before)
        self.assertTrue(got.endswith(b"Connection: close\r\n\r\n"), got)
        with connect(("127.0.0.1", port)) as connection:
            for byte in before + b"GET":
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
            connection.sendall(b" /")
            self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 400 "))

    def test_plain_http(self) -> None:
        """Plain HTTP at each kind of listener with TLS; TLS works there as before."""
        key, certificate = self.files.key, self.files.certificate
        for listen, flags, before in (
            ("127.0.0.1:0", (), b""),
            ("127.0.0.1:0", ("--workers", "2"), b""),
            ("haproxy:tcp:0:interface=127.0.0.1", (), self.PROXY),
            ("haproxy:tcp:0:interface=127.0.0.1", ("--workers", "2"), self.PROXY),
            (f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}", (), b""),
            (f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}", ("--workers", "2"), b""),
        ):
            server = self.start("--listen", listen, *flags)
            self.check_plain(server.port, before)
            server.wait_for_line(
                rf"TLS handshake with {'192.0.2.99' if before else '127.0.0.1'} failed: the client sent plain HTTP$"
            )
            plain = connect(("127.0.0.1", server.port))
            plain.sendall(before)
            with self.context().wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertIn(b" 404 ", connection.recv(100))
            self.assertEqual(0, server.stop(), listen)
            self.assertEqual([], [line for line in server.err if "Error" in line or "Traceback" in line])

    def test_tls_endpoint(self) -> None:
        """The endpoint C{tls:} too, which takes a directory of certificates."""
        directory = self.directory / "pems"
        directory.mkdir()
        (directory / "localhost.pem").write_bytes(self.files.certificate.read_bytes() + self.files.key.read_bytes())
        server = self.start("--listen", f"tls:{directory}:0:interface=127.0.0.1")
        self.check_plain(server.port)
        server.wait_for_line("TLS handshake with 127.0.0.1 failed: the client sent plain HTTP$")

    def test_metrics_listener(self) -> None:
        """The listener for metrics answers plain HTTP in the same way, and both are counted."""
        for flags in ((), ("--workers", "2")):
            server = self.start("--metrics-listen", "127.0.0.1:0", "--prometheus-no-auth", *flags)
            port = int(server.wait_for_line(r"metrics on 127\.0\.0\.1:(\d+)")[1])
            for each in (port, server.port, server.port):
                self.plain(each, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            with Client(("127.0.0.1", port), tls=self.context()) as client:
                counted = wait_until(
                    lambda: b"rest_server_tls_handshake_failures_total 3.0\n" in client.get("/metrics").body,
                    what="the count",
                )
                self.assertTrue(counted)

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """restic shows its user what is wrong."""
        server = self.start()
        restic = Restic(self, f"{server.url}/", self.directory)
        said = restic.run("cat", "config")
        self.assertIn("Client sent an HTTP request to an HTTPS server", said.out + said.err)

    def test_reasons(self) -> None:
        """One line with address and reason for each that fails; no word of those who say nothing."""
        server = self.start("--tls-client-ca", str(self.files.authority))
        address = ("127.0.0.1", server.port)
        for _ in range(20):
            connect(address).close()
        for data, reason in (
            (b"\x16\x03\x01\x00\x05hello", ".+"),
            (b"SSH-2.0-x\r\n", ".+"),
            (b"\x00\x01\x02", ".+"),
        ):
            with connect(address) as connection:
                connection.sendall(data)
                with contextlib.suppress(OSError):
                    while connection.recv(100):
                        pass
            server.wait_for_line(f"^TLS handshake with 127.0.0.1 failed: {reason}$")
        with connect(address) as connection:
            connection.sendall(b"\x16\x03\x01")
        server.wait_for_line("^TLS handshake with 127.0.0.1 failed: the client closed the connection$")
        with self.assertRaises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(connect(address), server_hostname="localhost")
        server.wait_for_line(
            r"^TLS handshake with 127.0.0.1 failed: .*unknown ca \(the client does not trust the certificate\)$"
        )
        with (
            contextlib.suppress(OSError),
            self.context().wrap_socket(connect(address), server_hostname="localhost") as tls,
        ):
            tls.recv(1)
        server.wait_for_line("^TLS handshake with 127.0.0.1 failed: peer did not return a certificate$")
        lines = [line for line in server.err if "handshake" in line]
        self.assertEqual(6, len(lines), lines)
        self.assertEqual(0, server.stop())
        self.assertEqual([], [line for line in server.err if "Error" in line or "Traceback" in line])

    def test_scanner(self) -> None:
        """However many there are, the log has a few lines of them."""
        server = self.start("--prometheus")
        for _ in range(100):
            self.plain(server.port, b"GET / HTTP/1.1\r\n\r\n")
        with Client(("127.0.0.1", server.port), tls=self.context()) as client:
            self.assertIn(b"rest_server_tls_handshake_failures_total 100.0\n", client.get("/metrics").body)
        self.assertEqual(10, len([line for line in server.err if "handshake" in line]))


class SlowReaderTests(TlsCase):
    """The server stops while a client still reads."""

    def test_gets_all_of_its_answer(self) -> None:
        """
        What was answered before the stop comes whole to a client that takes it slowly, with TLS's own end behind it: small
        enough to be in the kernel, and more than that.
        """
        server = self.start("--shutdown-timeout", "600")
        bodies = [random_bytes(1, 200 << 10), random_bytes(2, 6 << 20)]
        with Client(("127.0.0.1", server.port), tls=self.files.client_context()) as client:
            client.create_repository()
            names = [client.save("data", body) for body in bodies]
            for name in names:
                client.get(f"/data/{name}")
        connections = []
        for name in names:
            plain = connect(("127.0.0.1", server.port))
            connection = self.files.client_context().wrap_socket(plain, server_hostname="localhost")
            self.addCleanup(connection.close)
            connection.sendall(f"GET /data/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connections.append(connection)
        received = [bytearray(connection.recv(1000)) for connection in connections]
        server.signal(signal.SIGTERM)
        time.sleep(3)
        for connection, got, body in zip(connections, received, bodies, strict=True):
            # A reset, or an end of the socket without one of TLS, raises here.
            while more := connection.recv(65536):
                got += more
                time.sleep(0.005)
            self.assertEqual(body, bytes(got.partition(b"\r\n\r\n")[2]))
            connection.close()
        self.assertEqual(0, server.wait())


class RenewalTests(TlsCase):
    """A certificate that is replaced while everybody works."""

    def serial(self, port: int) -> int:
        """The serial number of the certificate that a new connection is shown."""
        with self.context().wrap_socket(connect(("127.0.0.1", port)), server_hostname="localhost") as connection:
            shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def test_under_load(self) -> None:
        """
        Old connections go on and new ones are made all the time; no request fails, and the new serial is there without a
        signal. A broken renewal in between changes nothing.
        """
        server = self.start()
        context = self.context()
        body = random_bytes(seed=9, length=300_000)
        name = object_id(body)
        with Client(("127.0.0.1", server.port), tls=context) as client:
            client.create_repository()
            client.save("data", body)
        failures: list[BaseException] = []
        done = [0, 0]
        stop = threading.Event()

        def work(number: int, keep: bool) -> None:
            client = Client(("127.0.0.1", server.port), tls=context)
            try:
                while not stop.is_set():
                    reply = client.get(f"/data/{name}") if done[keep] % 2 else client.post(f"/data/{name}", body)
                    assert reply.status == 200, reply
                    done[keep] += 1
                    if not keep:
                        client.close()
            except BaseException as error:
                failures.append(error)
            finally:
                client.close()

        def more() -> None:
            """Wait until some more requests were served."""
            enough = sum(done) + 10
            wait_until(lambda: sum(done) > enough, what="load")

        threads = [threading.Thread(target=work, args=(number, number % 2 == 0)) for number in range(4)]
        for thread in threads:
            thread.start()
        old = self.serial(server.port)
        try:
            for _ in range(2):
                more()
                self.files.certificate.write_bytes(b"broken")
                server.wait_for_line("could not reload the TLS certificate")
                self.assertEqual(old, self.serial(server.port))
                make_certificate(self.directory, self.authority)
                (self.directory / "ca.pem").write_bytes(self.authority.pem)
                wait_until(lambda: self.serial(server.port) != old, what="the new serial")
                old = self.serial(server.port)
            more()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual([], failures)
        self.assertTrue(all(done), done)

    def test_sighup(self) -> None:
        """The signal reads the files again in any case."""

        server = self.start()
        server.signal(signal.SIGHUP)
        server.wait_for_line("Reloaded TLS certificate .*, valid until 20")
