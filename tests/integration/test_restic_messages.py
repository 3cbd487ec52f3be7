"""
The messages of F{docs/troubleshooting.md}: that restic still prints them, word for word, when what the page names as their
cause happens. The real restic against real servers.
"""

from __future__ import annotations

import datetime
import random
import re
import signal
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.htpasswd import sha_line
from ..support.processes import process_test
from ..support.restic import SKIP_WITHOUT_RESTIC, ImpatientRestic
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import PATIENCE_S, wait_until

PAGE = Path(__file__).parent.parent.parent / "docs" / "troubleshooting.md"


POLICY = """
[[rule]]
users = ["alice"]
repositories = ["alice/**"]
rights = "append"

[[rule]]
users = ["bob"]
repositories = ["**"]
rights = "read"
"""


def documented() -> list[str]:
    """The messages of the page: all code in the first column of its tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cell = re.match(r"\| (`.*?`) \|", line)
        if cell is not None:
            found += re.findall(r"`([^`]+)`", cell[1])
    return found


def pattern_of(message: str) -> str:
    """A message of the page as a regular expression; three dots stand for anything."""
    return ".*".join(re.escape(part) for part in message.split("…"))


@process_test
class MessageTests(SynchronousTestCase):
    """Each test is a cause; it says which message restic prints for it."""

    skip = SKIP_WITHOUT_RESTIC

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()
        self.files = self.scratch / "files"
        self.files.mkdir()
        (self.files / "file").write_bytes(bytes(3 << 20))

    def restic(self, url: str, *flags: str) -> ImpatientRestic:
        """restic at a repository."""
        return ImpatientRestic(self, url, self.scratch, *flags)

    def with_users(self, *flags: str, users: str = "alice") -> ServerProcess:
        """A server with users, whose password is C{right}."""
        htpasswd = self.scratch / "users"
        htpasswd.write_text("".join(sha_line(user, "right") for user in users.split()))
        return start_server(self, self.data, "--htpasswd-file", str(htpasswd), *flags)

    def assert_says(self, message: str, restic: ImpatientRestic, *arguments: str) -> None:
        """restic prints a message of the page, and is then interrupted: it would try again for a long time."""
        self.assertIn(message, documented())
        pattern = pattern_of(message)
        printed = restic.run_until(pattern, *arguments).out
        self.assertRegex(printed, pattern)

    # --- reaching the server

    def test_not_running(self) -> None:
        """No server."""
        server = start_server(self, self.data)
        server.stop()
        self.assert_says("dial tcp …: connect: connection refused", self.restic(f"{server.url}/r/"), "snapshots")

    def test_no_host(self) -> None:
        """A host name that never resolves (RFC 6761)."""
        restic = self.restic("http://backup.invalid:8000/r/")
        self.assert_says("dial tcp: lookup …: no such host", restic, "snapshots")

    def test_wrong_scheme(self) -> None:
        """https:// for a server without TLS, and the other way round."""
        plain = start_server(self, self.data)
        restic = self.restic(f"https://127.0.0.1:{plain.port}/r/")
        self.assert_says("http: server gave HTTP response to HTTPS client", restic, "snapshots")
        tls = start_server(self, self.data, *make_certificate(self.scratch).flags)
        restic = self.restic(f"http://127.0.0.1:{tls.port}/r/")
        self.assert_says("400 Client sent an HTTP request to an HTTPS server", restic, "snapshots")

    # --- certificates

    def tls_server(self, names: list[x509.GeneralName], days: tuple[int, int] = (-1, 1)) -> tuple[str, Path]:
        """A server with a certificate that has signed itself: its port, and the certificate."""
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days[0]))
            .not_valid_after(now + datetime.timedelta(days[1]))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path = self.scratch / "own.pem"
        path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, private, serialization.NoEncryption()))
        server = start_server(self, self.data, "--tls", "--tls-cert", str(path), "--tls-key", str(path))
        return str(server.port), path

    def test_unknown_authority(self) -> None:
        """No --cacert."""
        server = start_server(self, self.data, *make_certificate(self.scratch).flags)
        restic = self.restic(f"https://127.0.0.1:{server.port}/r/")
        self.assert_says("x509: certificate signed by unknown authority", restic, "snapshots")

    def test_other_name(self) -> None:
        """The name or the address of the URL is not in the certificate."""
        port, pem = self.tls_server([x509.DNSName("backup.example.org")])
        restic = self.restic(f"https://localhost:{port}/r/", "--cacert", str(pem))
        self.assert_says("x509: certificate is valid for …, not …", restic, "snapshots")
        restic = self.restic(f"https://127.0.0.1:{port}/r/", "--cacert", str(pem))
        message = "x509: cannot validate certificate for … because it doesn't contain any IP SANs"
        self.assert_says(message, restic, "snapshots")

    def test_expired(self) -> None:
        """A certificate of the day before yesterday."""
        port, pem = self.tls_server([x509.DNSName("localhost")], (-2, -1))
        restic = self.restic(f"https://localhost:{port}/r/", "--cacert", str(pem))
        self.assert_says("x509: certificate has expired or is not yet valid", restic, "snapshots")

    def test_no_client_certificate(self) -> None:
        """--tls-client-ca, and a restic without a certificate."""
        made = make_certificate(self.scratch)
        server = start_server(self, self.data, *made.flags, "--tls-client-ca", str(made.authority))
        restic = self.restic(f"https://127.0.0.1:{server.port}/r/", "--cacert", str(made.authority))
        self.assert_says("remote error: tls: …certificate…", restic, "snapshots")

    # --- users and rights

    def test_login(self) -> None:
        """No password, a wrong one, and another user's folder."""
        server = self.with_users("--private-repos")
        host = f"127.0.0.1:{server.port}"
        message = "unexpected HTTP response (401): 401 authentication required"
        self.assert_says(message, self.restic(f"http://{host}/alice/r/"), "snapshots")
        message = "unexpected HTTP response (401): 401 wrong user or password"
        self.assert_says(message, self.restic(f"http://alice:wrong@{host}/alice/r/"), "snapshots")
        message = "403 private repositories: the path must start with your user name"
        self.assert_says(message, self.restic(f"http://alice:right@{host}/bob/r/"), "snapshots")

    def test_guessing(self) -> None:
        """More wrong passwords than --auth-failures."""
        server = self.with_users("--auth-failures", "1/minute", "--trusted-proxy", "none")
        restic = self.restic(f"http://alice:wrong@127.0.0.1:{server.port}/r/")
        for _ in range(3):
            restic.run("snapshots")
        self.assert_says("403 too many failed logins from your address, try again later", restic, "snapshots")

    def test_policy(self) -> None:
        """What a rule refuses."""
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        server = self.with_users("--policy", str(policy), users="alice bob")
        restic = self.restic(f"http://alice:right@127.0.0.1:{server.port}/bob/r/")
        self.assert_says("403 you have no access to this repository", restic, "snapshots")
        restic = self.restic(f"http://alice:right@127.0.0.1:{server.port}/alice/r/")
        self.assert_says("403 you may not create this repository", restic, "init")

    def test_append_only(self) -> None:
        """forget with --append-only."""
        server = start_server(self, self.data, "--append-only")
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        restic.succeed("backup", str(self.files))
        self.assert_says("blob not removed, server response: 403 …append…", restic, "forget", "latest")

    def test_read_only(self) -> None:
        """A backup to a server that is for reading only."""
        writing = start_server(self, self.data)
        self.restic(f"{writing.url}/r/").create()
        writing.stop()
        server = start_server(self, self.data, "--read-only")
        restic = self.restic(f"{server.url}/r/")
        self.assert_says("server response unexpected: 403 …read…", restic, "backup", str(self.files))

    # --- repositories

    def test_paths(self) -> None:
        """Paths without a repository, with one, and that cannot have one."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        self.assert_says("<config/> does not exist", restic, "snapshots")
        restic.create()
        self.assert_says("Fatal: config file already exists", restic, "init")
        message = "404 a repository may be at most 2 folders deep (--max-depth)"
        self.assert_says(message, self.restic(f"{server.url}/a/b/c/"), "init")
        message = '405 "data" is a reserved name, choose another repository path'
        self.assert_says(message, self.restic(f"{server.url}/a/data/"), "init")
        other = self.restic(f"{server.url}/r/", "--password-command", "echo other")
        self.assert_says("Fatal: wrong password or no key found", other, "snapshots")

    def test_locked(self) -> None:
        """A prune while a backup runs."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        running = restic.start("backup", str(self.files))
        locks = self.data / "r" / "locks"
        wait_until(lambda: running.poll() is not None or any(locks.iterdir()), PATIENCE_S, "a lock")
        running.send_signal(signal.SIGKILL)
        running.communicate()
        self.assertTrue(any(locks.iterdir()), "the backup ended before it was killed")
        self.assert_says("unable to create lock in backend: repository is already locked", restic, "prune")

    # --- space

    def test_quota(self) -> None:
        """--max-size."""
        server = start_server(self, self.data, "--max-size", "100KiB")
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        (self.files / "file").write_bytes(random_bytes())
        self.assert_says("507 quota of … exceeded: upload of …, … left", restic, "backup", str(self.files))

    def test_min_free(self) -> None:
        """--min-free."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        server.stop()
        server = start_server(self, self.data, "--min-free", "1000TiB")
        restic = self.restic(f"{server.url}/r/")
        message = "507 … of the server's disk must stay free: upload of …, … left"
        self.assert_says(message, restic, "backup", str(self.files))

    # --- the disk

    def test_volume(self) -> None:
        """The disk is not mounted."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        self.data.rename(self.scratch / "elsewhere")
        self.data.mkdir()
        self.assert_says("503 …volume…", restic, "snapshots")

    def test_damage(self) -> None:
        """A pack with another byte."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        (self.files / "file").write_bytes(random_bytes())
        restic.succeed("backup", str(self.files))
        pack = max((self.data / "r" / "data").glob("*/*"), key=lambda path: path.stat().st_size)
        with pack.open("r+b") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
        self.assert_says("Pack ID does not match, want …, got …", restic, "check", "--read-data")

    def test_server_error(self) -> None:
        """An object that cannot be read."""
        server = start_server(self, self.data)
        restic = self.restic(f"{server.url}/r/")
        restic.create()
        config = self.data / "r" / "config"
        config.unlink()
        config.mkdir()
        self.assert_says("500 Internal Server Error", restic, "snapshots")


class PageTests(SynchronousTestCase):
    """The page."""

    def test_every_message(self) -> None:
        """Each message of the page is tried here, and is there once."""
        messages = documented()
        self.assertGreater(len(messages), 20)
        self.assertEqual(sorted(set(messages)), sorted(messages))
        source = Path(__file__).read_text(encoding="utf-8")
        self.assertEqual(
            [], [message for message in messages if f'"{message}"' not in source and f"'{message}'" not in source]
        )


def random_bytes() -> bytes:
    """3 MiB that restic cannot compress."""
    return random.Random(1).randbytes(3 << 20)
