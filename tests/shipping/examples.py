"""
The proxies from Debian, each with the file that is shipped for it. What differs from the file is what an administrator changes:
addresses, and paths of certificates and sockets.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..support.certificates import ServerCertificate
from ..support.scratch import Cleans
from ..support.server import children_of
from ..support.waiting import PATIENCE_S, wait_until

ETC = Path(__file__).resolve().parents[2] / "etc"
#: Debian's user of web servers.
WEB_USER = "www-data"


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def program(name: str) -> str | None:
    """Where a program is, also where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def substituted(text: str, substitutions: Sequence[tuple[str, str]]) -> str:
    """
    Replace parts of a shipped file.

    @raise AssertionError: a part is not in it.
    """
    for shipped, ours in substitutions:
        assert shipped in text, f"the shipped file has no {shipped!r}"
        text = text.replace(shipped, ours)
    return text


def disk_directory(test: Cleans) -> Path:
    """
    A directory on a disk, removed after the test: the kernel counts what is written there (C{/proc/PID/io}), and does not count
    what is written to memory.
    """
    path = Path(tempfile.mkdtemp(prefix="restic-test-", dir="/var/tmp"))
    path.chmod(0o755)
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    return path


@dataclass(frozen=True)
class Wiring:
    """
    What lies around a proxy.

    @ivar directory: for the proxy's own files.
    @ivar port: where it listens on 127.0.0.1, with TLS.
    @ivar server: the restic server's unix socket, or its port on 127.0.0.1.
    """

    directory: Path
    port: int
    certificate: ServerCertificate
    server: Path | int


class ProxyExample:
    """
    A proxy as a child process.

    @cvar program: its name.
    @cvar example: the shipped file, below F{etc/}.
    @cvar unix: whether the file's server is a unix socket.
    @cvar versions: those of HTTP that it offers, as curl's flags.
    """

    program: ClassVar[str]
    example: ClassVar[str]
    unix: ClassVar[bool]
    versions: ClassVar[tuple[str, ...]] = ("--http1.1", "--http2")

    def __init__(self, test: Cleans, wiring: Wiring, changes: Sequence[tuple[str, str]] = ()) -> None:
        self.wiring = wiring
        self._said = wiring.directory / "said"
        text = substituted((ETC / self.example).read_text(), changes)
        command = self.prepare(substituted(text, self.substitutions()))
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                cwd=wiring.directory,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        test.addCleanup(self.stop)
        wait_until(self._listens, what=self.program)

    def substitutions(self) -> list[tuple[str, str]]:
        """What an administrator changes."""
        raise NotImplementedError

    def prepare(self, text: str) -> list[str]:
        """Write the configuration; the command that starts the proxy in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the proxy needs in its environment."""
        return {}

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.program} ended: {self.said()}"
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.wiring.port)) == 0

    def said(self) -> str:
        """Its output, and its error log if it has one."""
        errors = self.wiring.directory / "error.log"
        return self._said.read_text(errors="replace") + (errors.read_text(errors="replace") if errors.exists() else "")

    def pids(self) -> list[int]:
        """Its processes."""
        found = [self.process.pid]
        for pid in found:
            found += children_of(pid)
        return found

    def stop(self) -> None:
        """End it with all its processes."""
        pids = self.pids()
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            for pid in pids[1:]:
                # A worker whose parent did not end it.
                if Path(f"/proc/{pid}").exists() and self.program in Path(f"/proc/{pid}/comm").read_text():
                    os.kill(pid, 9)

    def _write(self, name: str, text: str) -> Path:
        path = self.wiring.directory / name
        path.write_text(text)
        return path

    def _own_directory(self, name: str) -> Path:
        """A directory that the proxy's workers may write to."""
        path = self.wiring.directory / name
        path.mkdir()
        shutil.chown(path, WEB_USER, WEB_USER)
        return path


class Nginx(ProxyExample):
    """nginx; the file is included by its main file."""

    program = "nginx"
    example = "nginx/restic-rest.conf"
    unix = True

    def substitutions(self) -> list[tuple[str, str]]:
        """Addresses and paths."""
        return [
            ("    listen [::]:443 ssl http2;\n", ""),
            ("443 ssl http2", f"127.0.0.1:{self.wiring.port} ssl http2"),
            ("backup.example.org", "localhost"),
            ("/etc/ssl/backup.pem", str(self.wiring.certificate.certificate)),
            ("/etc/ssl/backup.key", str(self.wiring.certificate.key)),
            ("/run/restic/rest.sock", str(self.wiring.server)),
        ]

    def prepare(self, text: str) -> list[str]:
        """The main file has nothing but what nginx needs to run here."""
        directory = self.wiring.directory
        temporary = self._own_directory("temporary")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "\n".join(f"    {kind}_temp_path {temporary}/{kind};" for kind in kinds)
        main = self._write(
            "nginx.conf",
            f"daemon off;\nuser {WEB_USER};\npid {directory}/nginx.pid;\nerror_log {directory}/error.log;\n"
            f"events {{ }}\nhttp {{\n    access_log off;\n{paths}\n{text}\n}}\n",
        )
        return [str(program(self.program)), "-p", str(directory), "-e", f"{directory}/error.log", "-c", str(main)]


class Haproxy(ProxyExample):
    """HAProxy; the file is its whole configuration."""

    program = "haproxy"
    example = "haproxy/haproxy.cfg"
    unix = False

    def substitutions(self) -> list[tuple[str, str]]:
        """Addresses and paths."""
        certificate = self.wiring.certificate
        both = self._write("backup.pem", certificate.certificate.read_text() + certificate.key.read_text())
        return [
            ("bind :443 ssl", f"bind 127.0.0.1:{self.wiring.port} ssl"),
            ("/etc/haproxy/backup.pem", str(both)),
            ("127.0.0.1:8000", f"127.0.0.1:{self.wiring.server}"),
        ]

    def prepare(self, text: str) -> list[str]:
        """Nothing around it."""
        # -W as Debian's unit has it; -db stays in the foreground.
        return [str(program(self.program)), "-W", "-db", "-f", str(self._write("haproxy.cfg", text))]


class Caddy(ProxyExample):
    """Caddy; the file is its whole configuration."""

    program = "caddy"
    example = "caddy/Caddyfile"
    unix = True

    def substitutions(self) -> list[tuple[str, str]]:
        """Addresses and paths."""
        certificate = self.wiring.certificate
        sites = [f"https://{name}:{self.wiring.port}" for name in ("127.0.0.1", "localhost")]
        return [
            ("\nbackup.example.org {", f"\n{', '.join(sites)} {{\n\tbind 127.0.0.1"),
            ("/etc/ssl/backup.pem", str(certificate.certificate)),
            ("/etc/ssl/backup.key", str(certificate.key)),
            ("unix//run/restic/rest.sock", f"unix/{self.wiring.server}"),
        ]

    def prepare(self, text: str) -> list[str]:
        """Nothing around it."""
        return [str(program(self.program)), "run", "--config", str(self._write("Caddyfile", text))]

    def environment(self) -> dict[str, str]:
        """Where it writes, and where its own interface listens."""
        directory = str(self.wiring.directory)
        return {
            "HOME": directory,
            "XDG_DATA_HOME": directory,
            "XDG_CONFIG_HOME": directory,
            "TMPDIR": directory,
            "CADDY_ADMIN": f"unix/{directory}/admin.sock",
        }


class Apache(ProxyExample):
    """Apache; the file is a site, and names the modules that it needs."""

    program = "apache2"
    example = "apache/restic-rest.conf"
    unix = True

    #: Those that Debian enables at once and that have to do with requests.
    _ALWAYS = (
        "mpm_event",
        "authz_core",
        "alias",
        "dir",
        "mime",
        "negotiation",
        "deflate",
        "filter",
        "reqtimeout",
        "env",
    )
    _MODULES = Path("/etc/apache2/mods-available")

    def substitutions(self) -> list[tuple[str, str]]:
        """Addresses and paths."""
        return [
            ("<VirtualHost *:443>", f"<VirtualHost 127.0.0.1:{self.wiring.port}>"),
            ("ServerName backup.example.org", "ServerName localhost"),
            ("/etc/ssl/backup.pem", str(self.wiring.certificate.certificate)),
            ("/etc/ssl/backup.key", str(self.wiring.certificate.key)),
            ("/run/restic/rest.sock", str(self.wiring.server)),
        ]

    def prepare(self, text: str) -> list[str]:
        """The main file has Debian's modules with Debian's settings, those that the file names, and the ports."""
        named = re.search(r"^#\s+a2enmod (.+)$", text, re.MULTILINE)
        assert named is not None
        directory = self.wiring.directory
        loaded: list[Path] = []
        for name in (*self._ALWAYS, *named[1].split()):
            self._add(name, loaded)
        main = self._write(
            "apache2.conf",
            f"ServerRoot /etc/apache2\nDefaultRuntimeDir {directory}\nPidFile {directory}/apache.pid\nServerName localhost\n"
            f"User {WEB_USER}\nGroup {WEB_USER}\nErrorLog {directory}/error.log\nListen 127.0.0.1:{self.wiring.port}\n"
            + "".join(f"Include {path}\n" for path in loaded)
            + f"Include {self._write('site.conf', text)}\n",
        )
        return [str(program(self.program)), "-f", str(main), "-DFOREGROUND"]

    def _add(self, name: str, loaded: list[Path]) -> None:
        """As a2enmod does: first what a module depends on, then its settings."""
        load = self._MODULES / f"{name}.load"
        if load in loaded:
            return
        depends = re.search(r"^# Depends: (.+)$", load.read_text(), re.MULTILINE)
        for needed in depends[1].split() if depends else ():
            self._add(needed, loaded)
        settings = load.with_suffix(".conf")
        loaded += [load, *([settings] if settings.exists() else [])]

    def environment(self) -> dict[str, str]:
        """What Debian's settings ask for."""
        directory = str(self.wiring.directory)
        return {f"APACHE_{name}_DIR": directory for name in ("RUN", "LOCK", "LOG")}


class Lighttpd(ProxyExample):
    """lighttpd; the file is included by its main file."""

    program = "lighttpd"
    example = "lighttpd/50-restic-rest.conf"
    unix = False
    versions = ("--http1.1",)

    def substitutions(self) -> list[tuple[str, str]]:
        """Addresses and paths."""
        return [
            ('$SERVER["socket"] == ":443"', f'$SERVER["socket"] == "127.0.0.1:{self.wiring.port}"'),
            ("/etc/ssl/backup.pem", str(self.wiring.certificate.certificate)),
            ("/etc/ssl/backup.key", str(self.wiring.certificate.key)),
            ('"port" => 8000', f'"port" => {self.wiring.server}'),
        ]

    def prepare(self, text: str) -> list[str]:
        """The main file has those of Debian's settings that have to do with requests."""
        directory = self.wiring.directory
        shipped = Path("/etc/lighttpd/lighttpd.conf").read_text()
        debian = re.search(r"^server\.feature-flags .*?^server\.http-parseopts = \(.*?^\)$", shipped, re.M | re.S)
        assert debian is not None
        main = self._write(
            "lighttpd.conf",
            f'server.document-root = "{self._own_directory("www")}"\n'
            f'server.upload-dirs = ( "{self._own_directory("uploads")}" )\n'
            f'server.errorlog = "{directory}/error.log"\nserver.username = "{WEB_USER}"\nserver.groupname = "{WEB_USER}"\n'
            f'server.bind = "127.0.0.1"\nserver.port = {free_port()}\nserver.modules = ( "mod_access" )\n{debian[0]}\n'
            f'include "{self._write("50-restic-rest.conf", text)}"\n',
        )
        (directory / "error.log").touch()
        shutil.chown(directory / "error.log", WEB_USER, WEB_USER)
        return [str(program(self.program)), "-D", "-f", str(main)]
