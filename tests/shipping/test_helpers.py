"""
The files for certbot, logrotate and fail2ban, by these programs (certbot's hook as certbot calls it), with the real server.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import Authority, make_certificate
from ..support.client import Client
from ..support.htpasswd import sha_line
from ..support.scratch import scratch_directory
from ..support.server import REST_SERVER, TWISTD, ServerProcess, start_server
from ..support.waiting import wait_until
from .examples import ETC, program, substituted

LOGROTATE = program("logrotate")
FAIL2BAN = ("fail2ban-client", "fail2ban-server")
#: Debian's user and group without any right.
NOBODY = 65534
ATTACKER = "203.0.113.9"


class CertbotTests(SynchronousTestCase):
    """The deploy hook."""

    skip = None if os.geteuid() == 0 and shutil.which("setpriv") else "only root can give files to a group"

    def setUp(self) -> None:
        self.directory = scratch_directory(self)
        self.directory.chmod(0o755)
        self.authority = Authority()
        self.lineage = self.directory / "live" / "backup.example.org"
        self.target = self.directory / "tls"

    def renew(self) -> int:
        """A new certificate, as certbot keeps it: links to files of root's; its serial number."""
        archive = self.directory / "archive"
        archive.mkdir(mode=0o700, exist_ok=True)
        self.lineage.mkdir(parents=True, exist_ok=True)
        made = make_certificate(archive, self.authority)
        for name, file in (("fullchain.pem", made.certificate), ("privkey.pem", made.key)):
            (self.lineage / name).unlink(missing_ok=True)
            (self.lineage / name).symlink_to(file)
        made.key.chmod(0o600)
        return x509.load_pem_x509_certificate(made.certificate.read_bytes()).serial_number

    def deploy(self, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the hook as certbot does."""
        environment = {
            **os.environ,
            "RENEWED_LINEAGE": str(self.lineage),
            "RENEWED_DOMAINS": "backup.example.org",
            "RESTIC_TLS_DIRECTORY": str(self.target),
            "RESTIC_TLS_GROUP": "nogroup",
            **settings,
        }
        return subprocess.run([ETC / "certbot" / "restic-rest"], env=environment, capture_output=True, text=True)

    def served(self, port: int) -> int:
        """The serial number of the certificate that a server has."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        with (
            socket.create_connection(("127.0.0.1", port)) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secure,
        ):
            certificate = secure.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate).serial_number

    def test_renewal(self) -> None:
        """The server has each renewed certificate within seconds, and its group may read it."""
        first = self.renew()
        self.assertEqual(0, self.deploy().returncode)
        flags = ("--tls", "--tls-cert", f"{self.target}/fullchain.pem", "--tls-key", f"{self.target}/privkey.pem")
        server = start_server(self, self.directory / "data", *flags)
        self.assertEqual(first, self.served(server.port))
        for _ in range(3):
            renewed = self.renew()
            done = self.deploy()
            self.assertEqual((0, "", ""), (done.returncode, done.stdout, done.stderr))
            wait_until(lambda: self.served(server.port) == renewed, what=lambda: server.err)
        self.assertFalse(server.said("Traceback"), server.err)
        self.assertEqual({"privkey.pem", "fullchain.pem", "combined.pem"}, set(os.listdir(self.target)))
        for groups, status in ((f"--groups={NOBODY}", 0), ("--clear-groups", 1)):
            other = ("setpriv", "--reuid=1234", "--regid=1234", groups)
            read = subprocess.run([*other, "cat", self.target / "privkey.pem"], capture_output=True)
            self.assertEqual(status, read.returncode, read)
        # HAProxy's file has both.
        ssl.create_default_context().load_cert_chain(self.target / "combined.pem")

    def test_other_certificate(self) -> None:
        """With a domain set, the renewal of another certificate changes nothing."""
        self.renew()
        self.assertEqual(0, self.deploy(RESTIC_TLS_DOMAIN="www.example.org").returncode)
        self.assertFalse(self.target.exists())
        self.assertEqual(0, self.deploy(RESTIC_TLS_DOMAIN="backup.example.org").returncode)
        self.assertTrue((self.target / "privkey.pem").exists())

    def test_failures(self) -> None:
        """What cannot be copied leaves the previous files, and certbot is told."""
        self.renew()
        self.deploy()
        before = {path.name: path.read_bytes() for path in self.target.iterdir()}
        self.renew()
        (self.lineage / "fullchain.pem").unlink()
        self.assertNotEqual(0, self.deploy().returncode)
        self.renew()
        done = self.deploy(RESTIC_TLS_GROUP="no-such-group")
        self.assertNotEqual(0, done.returncode)
        self.assertIn("no-such-group", done.stderr)
        self.assertEqual(before, {path.name: path.read_bytes() for path in self.target.iterdir()})
        done = self.deploy(RENEWED_LINEAGE="")
        self.assertEqual(1, done.returncode)
        self.assertIn("RENEWED_LINEAGE", done.stderr)


class LogrotateTests(SynchronousTestCase):
    """The rotation of the access log."""

    if LOGROTATE is None:
        skip = "logrotate is not installed"
    elif os.geteuid() != 0:
        skip = "logrotate wants to be root"

    def test_paths(self) -> None:
        """The log is where the unit and the OpenRC script put it."""
        text = (ETC / "logrotate" / "restic-rest").read_text()
        logs = [path for paths in re.findall(r"^(/.+) \{$", text, re.MULTILINE) for path in paths.split(" ")]
        of_systemd = ["/var/log/restic/access.log", "/var/log/restic-*/access.log"]
        self.assertEqual([*of_systemd, "/var/log/restic/server.log"], logs)
        for unit, path in (("restic-rest", of_systemd[0]), ("restic-rest@", "/var/log/restic-%i/access.log")):
            text = (ETC / "systemd" / f"{unit}.service").read_text()
            self.assertIn(f"REST_SERVER_LOG={path}\n", text)
        script = (ETC / "openrc" / "restic-rest").read_text()
        self.assertIn('restic_rest_logs:=/var/log/restic}"', script)
        self.assertIn("--log ${restic_rest_logs}/access.log", script)
        self.assertIn('error_log="${restic_rest_logs}/server.log"', script)

    def test_rotation(self) -> None:
        """No line is lost or in the wrong file, with the reload of systemd and of OpenRC, and with another owner."""
        for reload in ("systemctl reload restic-rest*.service", "rc-service restic-rest reload"):
            self.rotate(reload)

    def rotate(self, reload: str) -> None:
        """
        Two rotations.

        @param reload: the command that this machine has; it is a stand-in that does what the unit's C{ExecReload=} does.
        """
        directory = scratch_directory(self)
        logs = directory / "restic"
        logs.mkdir(mode=0o750)
        server = start_server(self, directory / "data", "--log", str(logs / "access.log"))
        commands = directory / "bin"
        commands.mkdir()
        name, arguments = reload.split(" ", 1)
        for other in ("systemctl", "rc-service"):
            works = f'[ "$*" = "{arguments}" ] && exec kill -HUP {server.pid}' if other == name else "exit 127"
            (commands / other).write_text(f"#!/bin/sh\n{works}\n")
            (commands / other).chmod(0o755)
        # As the unit and the OpenRC script leave them.
        for path in (logs, logs / "access.log"):
            os.chown(path, NOBODY, NOBODY)
        (logs / "server.log").write_text("one line\n")
        configuration = directory / "logrotate.conf"
        configuration.write_text(
            substituted((ETC / "logrotate" / "restic-rest").read_text(), [("/var/log/restic", str(logs))])
        )
        configuration.chmod(0o644)
        for number in range(1, 4):
            with server.client() as client:
                client.get(f"/n{number}/config")
            wait_until(lambda: f"/n{number}/" in (logs / "access.log").read_text(), what="a line")
            if number < 3:
                self.force(configuration, directory, commands)
                wait_until((logs / "access.log").exists, what=reload)
        self.assertIn("/n3/", (logs / "access.log").read_text())
        self.assertIn("/n2/", (logs / "access.log.1").read_text())
        compressed = subprocess.run(
            ["gzip", "-dc", logs / "access.log.2.gz"], capture_output=True, text=True, check=True
        )
        self.assertIn("/n1/", compressed.stdout)
        self.assertEqual("", (logs / "server.log").read_text())

    def force(self, configuration: Path, directory: Path, commands: Path) -> None:
        """Rotate now."""
        done = subprocess.run(
            [str(LOGROTATE), "--force", "--state", str(directory / "state"), str(configuration)],
            env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        self.assertEqual((0, ""), (done.returncode, done.stderr))


class Fail2banTests(SynchronousTestCase):
    """The jail, from a wrong password to a ban. (tests/integration/test_fail2ban.py has the filter.)"""

    skip = None if all(map(shutil.which, FAIL2BAN)) else "fail2ban is not installed"

    def test_ban(self) -> None:
        """The client's address is banned, and not the proxy's, for each front door and each format of the access log."""
        for door, log_format in ((REST_SERVER, "combined"), (REST_SERVER, "json"), (TWISTD, "combined")):
            self.ban(door, log_format)

    def ban(self, door: str, log_format: str) -> None:
        """Guess passwords until fail2ban acts."""
        directory = scratch_directory(self)
        (directory / "users").write_text(sha_line("alice", "secret"))
        flags = (
            "--htpasswd-file",
            str(directory / "users"),
            "--auth-failures",
            "0",
            "--log",
            str(directory / "access.log"),
        )
        server = start_server(self, directory / "data", *flags, "--log-format", log_format, door=door)
        log = directory / "server.log"
        log.touch()
        banned = directory / "banned"
        client = self.start_fail2ban(directory, log, banned)
        for number in range(1, 21):
            with server.client("alice", "wrong") as attacker:
                self.assertEqual(401, attacker.get("/config", {"X-Forwarded-For": ATTACKER}).status)
            wait_until(lambda: self.failures(server) == number, what=lambda: server.err)
        with Client(("127.0.0.1", server.port), "alice", "secret") as other:
            self.assertEqual(404, other.get("/config", {"X-Forwarded-For": "203.0.113.10"}).status)
        self.assertFalse(banned.exists())
        # As OpenRC's supervisor writes it.
        with log.open("a") as file:
            file.write("".join(f"{line}\n" for line in [*server.err, *server.out]))
        wait_until(banned.exists, what=lambda: (log.read_text(), (directory / "fail2ban.log").read_text()))
        self.assertEqual(f"{ATTACKER} 8000\n", banned.read_text())
        shown = subprocess.run([*client, "status", "restic-rest"], capture_output=True, text=True, check=True)
        self.assertIn(f"Banned IP list:\t{ATTACKER}", shown.stdout)

    def failures(self, server: ServerProcess) -> int:
        """How many the server has logged."""
        return sum("auth failure from" in line for line in [*server.err, *server.out])

    def start_fail2ban(self, directory: Path, log: Path, banned: Path) -> tuple[str, ...]:
        """Start a fail2ban of the test's own, with the shipped files and an action that writes to a file; how to ask it."""
        settings = directory / "fail2ban"
        shutil.copytree("/etc/fail2ban", settings, ignore=shutil.ignore_patterns("jail.d"))
        (settings / "jail.d").mkdir()
        shipped = ETC / "fail2ban"
        shutil.copy(shipped / "filter.d" / "restic-rest.conf", settings / "filter.d")
        jail = substituted(
            (shipped / "jail.d" / "restic-rest.conf").read_text(),
            [
                ("\nbackend = systemd\n", "\n"),
                ("#backend = auto", "backend = polling"),
                ("#logpath = /var/log/restic/server.log", f"logpath = {log}"),
                ("#datepattern", "datepattern"),
            ],
        )
        (settings / "jail.d" / "restic-rest.conf").write_text(f"{jail}banaction = write\n")
        action = f"[Definition]\nactionban = echo <ip> <port> >>{banned}\nactionunban =\n"
        (settings / "action.d" / "write.conf").write_text(f"{action}[Init]\nport = 0\n")
        database = f"[Definition]\ndbfile = {directory}/database\nlogtarget = {directory}/fail2ban.log\n"
        (settings / "fail2ban.local").write_text(database)
        names = ("-c", str(settings), "-s", str(directory / "socket"), "-p", str(directory / "pid"))
        server = subprocess.Popen(["fail2ban-server", *names, "-f", "start"], stdin=subprocess.DEVNULL)

        def stop() -> None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)

        self.addCleanup(stop)
        client = ("fail2ban-client", *names)
        wait_until(
            lambda: subprocess.run([*client, "status", "restic-rest"], capture_output=True).returncode == 0,
            what="fail2ban",
        )
        return client
