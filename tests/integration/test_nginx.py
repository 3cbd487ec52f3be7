"""
The real nginx in front of the real server: with nginx's defaults, and with the example that is shipped.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import ServerCertificate, make_certificate
from ..support.client import Client, connect, read_reply
from ..support.htpasswd import bcrypt_line
from ..support.restic import RESTIC, Restic, make_tree
from ..support.scratch import scratch_directory
from ..support.server import start_server
from ..support.waiting import PATIENCE_S, wait_until

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else None)
EXAMPLE = Path(__file__).resolve().parents[2] / "etc" / "nginx" / "restic-rest.conf"

SURROUNDINGS = """
daemon off;
# For its worker, which else could not enter the test's directory. (There is one: alone, a master that inherits sockets crashes.)
user root;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {server}
}}
"""


class NginxTests(SynchronousTestCase):
    """restic to nginx to the server."""

    if NGINX is None:
        skip = "nginx is not installed"
    elif RESTIC is None:
        skip = "restic is not installed"

    def setUp(self) -> None:
        self.directory = scratch_directory(self, 200 << 20)
        self.log = self.directory / "access.log"
        self.socket = self.directory / "rest.sock"
        self.tree = self.directory / "tree"
        # nginx inherits this socket, so nobody else can have its port, and whoever answers there is our nginx.
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.port: int = self.listening.getsockname()[1]

    def nginx(self, server: str) -> None:
        """Start nginx with one server block, which listens on C{self.port}."""
        assert NGINX is not None
        configuration = self.directory / "nginx.conf"
        configuration.write_text(SURROUNDINGS.format(directory=self.directory, server=server))
        descriptor = self.listening.fileno()
        said = self.directory / "nginx.err"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                [NGINX, "-p", str(self.directory), "-c", str(configuration)],
                stderr=stderr,
                pass_fds=(descriptor,),
                # As an nginx that is replaced hands its sockets over to the new one.
                env={**os.environ, "NGINX": f"{descriptor};"},
            )
        # When nginx has ended, connections must fail instead of waiting.
        self.listening.close()

        def stop() -> None:
            process.terminate()
            process.wait(PATIENCE_S)

        self.addCleanup(stop)
        pid_file = self.directory / "nginx.pid"

        def started() -> bool:
            self.assertIsNone(process.poll(), f"nginx ended: {said.read_text()}")
            return pid_file.exists() and pid_file.read_text() == f"{process.pid}\n"

        wait_until(started, what="nginx")

    def lines(self) -> list[str]:
        """The server's access log."""
        return self.log.read_text().splitlines()

    def round_trip(self, restic: Restic, size_bytes: int) -> None:
        """Back up, check, restore, compare."""
        make_tree(self.tree, seed=11, size_bytes=size_bytes)
        restic.succeed("init")
        restic.succeed("backup", str(self.tree))
        restic.succeed("check", "--read-data")
        restic.succeed("restore", "latest", "--target", str(self.directory / "back"))
        restored = self.directory / "back" / self.tree.relative_to("/")
        subprocess.run(["diff", "-r", str(self.tree), str(restored)], check=True)

    def test_defaults(self) -> None:
        """
        Two lines of configuration: HTTP/1.0 to the server, bodies through nginx's files. (Its limit of 1 MiB a body is the
        one default that no real backup can live with, so this one is small.) Passwords are the server's.
        """
        htpasswd = self.directory / "users"
        htpasswd.write_text(bcrypt_line("alice", "secret"))
        flags = ("--listen", "127.0.0.1:0", "--htpasswd-file", str(htpasswd), "--private-repos", "--log", str(self.log))
        server = start_server(self, self.directory / "data", *flags)
        self.nginx(
            f"server {{ listen 127.0.0.1:{self.port}; location / {{ proxy_pass http://127.0.0.1:{server.port}; }} }}"
        )
        restic = Restic(self, f"http://alice:secret@127.0.0.1:{self.port}/alice/pc", self.directory)
        self.round_trip(restic, 500 << 10)
        self.assertTrue(
            any(
                re.match(r"127\.0\.0\.1 - alice \[.*\"POST /alice/pc/data/\S+ HTTP/1.0\" 200", line)
                for line in self.lines()
            )
        )
        with Client(("127.0.0.1", self.port), "alice", "wrong") as client:
            reply = client.get("/alice/pc/config")
            self.assertEqual(401, reply.status)
            self.assertIn("Basic", reply.headers["WWW-Authenticate"])

    def example(self, certificate: ServerCertificate) -> str:
        """The shipped example with this test's files, and with the lines for passwords that its comments offer."""
        text = EXAMPLE.read_text()
        for shipped, ours in (
            ("    listen [::]:443 ssl http2;\n", ""),
            ("443 ssl http2", f"127.0.0.1:{self.port} ssl http2"),
            ("/etc/ssl/backup.pem", str(certificate.certificate)),
            ("/etc/ssl/backup.key", str(certificate.key)),
            ("/run/restic/rest.sock", str(self.socket)),
            ("/etc/nginx/restic.htpasswd", str(self.directory / "nginx.htpasswd")),
            ("#auth_basic", "auth_basic"),
            ("#proxy_set_header", "proxy_set_header"),
            ("    #location", "    location"),
            ("    #    proxy_pass", "        proxy_pass"),
            ("    #}", "    }"),
        ):
            self.assertIn(shipped, text)
            text = text.replace(shipped, ours)
        return text

    def test_example(self) -> None:
        """TLS and passwords are nginx's, the server is told who it is; the log has the client's address and user."""
        certificate = make_certificate(self.directory)
        # nginx reads no bcrypt where the system's crypt has none; this form it has itself.
        made = subprocess.run(["openssl", "passwd", "-apr1", "secret"], capture_output=True, text=True, check=True)
        (self.directory / "nginx.htpasswd").write_text(f"alice:{made.stdout}")
        flags = ("--listen", f"unix:{self.socket}", "--proxy-auth-username", "X-Remote-User", "--private-repos")
        start_server(self, self.directory / "data", *flags, "--log", str(self.log), "--trusted-proxy", "none")
        self.nginx(self.example(certificate))
        url = f"https://alice:secret@127.0.0.1:{self.port}/alice/pc"
        restic = Restic(self, url, self.directory, "--cacert", str(certificate.authority))
        self.round_trip(restic, 40 << 20)
        self.assertTrue(
            any(
                re.match(r"127\.0\.0\.1 - alice \[.*\"POST /alice/pc/data/\S+ HTTP/1.1\" 200", line)
                for line in self.lines()
            )
        )
        self.assertEqual([], [line for line in self.lines() if not line.startswith("127.0.0.1 - alice ")])
        context = certificate.client_context()
        with Client(("127.0.0.1", self.port), "alice", "wrong", tls=context) as client:
            self.assertEqual(401, client.get("/alice/pc/config").status)
        with Client(("127.0.0.1", self.port), "alice", "secret", tls=context) as client:
            # What a client says of itself does not come through.
            forged = {"X-Remote-User": "bob", "X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
            self.assertEqual(403, client.get("/bob/pc/config", forged).status)
            self.assertEqual(200, client.get("/alice/pc/config", forged).status)
        self.assertTrue(all(line.startswith("127.0.0.1 - alice ") for line in self.lines()))
        with Client(("127.0.0.1", self.port), tls=context) as client:
            self.assertEqual(
                [200, 200, 401], [client.get(f"/-/{name}").status for name in ("health", "ready", "status")]
            )

    def test_headers_from_anyone(self) -> None:
        """Not from a trusted network: neither the user header nor the address is believed."""
        flags = ("--proxy-auth-username", "X-Remote-User", "--trusted-proxy", "192.0.2.0/24", "--log", str(self.log))
        server = start_server(self, self.directory / "data", *flags)
        with Client(("127.0.0.1", server.port)) as client:
            reply = client.get("/config", {"X-Remote-User": "alice", "X-Forwarded-For": "203.0.113.9"})
            self.assertEqual(401, reply.status)
        wait_until(lambda: self.log.exists() and self.lines(), what="a log line")
        self.assertTrue(self.lines()[0].startswith("127.0.0.1 - - "), self.lines())

    def test_proxy_protocol_on_a_unix_socket(self) -> None:
        """Unix sockets are trusted, so also this one is the group's alone; the headers that come through it count."""
        listen = ("--listen", f"haproxy:unix:{self.socket}")
        server = start_server(
            self, self.directory / "data", *listen, "--proxy-auth-username", "X-Remote-User", "--log", str(self.log)
        )
        self.assertEqual(0o660, stat.S_IMODE(self.socket.stat().st_mode))
        with connect(str(self.socket)) as connection:
            connection.sendall(b"PROXY UNKNOWN\r\nGET /config HTTP/1.1\r\nHost: x\r\nX-Remote-User: alice\r\n\r\n")
            self.assertEqual(404, read_reply(connection).status)
        with connect(str(self.socket)) as connection:
            connection.sendall(b"PROXY TCP4 1.2.3.4 5.6.7.8 a b\r\n")
            self.assertEqual(b"", connection.recv(100))
        wait_until(lambda: self.log.exists() and self.lines(), what="a log line")
        self.assertTrue(self.lines()[0].startswith("- - alice "), self.lines())
        server.stop()
        self.assertFalse(self.socket.exists())
        self.assertFalse(server.said("Traceback"), server.err)

    def test_proxy_protocol(self) -> None:
        """C{haproxy:} endpoints: the claimed address is the client's, if a trusted proxy claims it; TLS stands above it."""
        certificate = make_certificate(self.directory)
        for networks, address in ((("127.0.0.0/8",), "203.0.113.9"), (("192.0.2.0/24",), "127.0.0.1")):
            for tls in (False, True):
                trusted = [part for network in networks for part in ("--trusted-proxy", network)]
                flags = ("--no-auth", *trusted, *(certificate.flags if tls else ()), "--log", str(self.log))
                listen = ("--listen", "haproxy:tcp:0:interface=127.0.0.1")
                self.log.unlink(missing_ok=True)
                server = start_server(self, self.directory / "data", *listen, *flags)
                with connect(("127.0.0.1", server.port)) as connection:
                    connection.sendall(b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 8000\r\n")
                    if tls:
                        connection = certificate.client_context().wrap_socket(connection, server_hostname="localhost")
                    with connection:
                        connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\nX-Remote-User: root\r\n\r\n")
                        self.assertEqual(404, read_reply(connection).status)
                wait_until(lambda: self.log.exists() and self.lines(), what="a log line")
                self.assertTrue(self.lines()[0].startswith(f"{address} - - "), (networks, tls, self.lines()))
                server.stop()
