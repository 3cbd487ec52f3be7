"""
The systemd units: that systemd takes them, and that they fit the server that they start.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.options import Options

from ..support.scratch import scratch_directory
from ..support.server import installed

UNITS = Path(__file__).resolve().parents[2] / "etc" / "systemd"
SERVICE = UNITS / "restic-rest.service"
SOCKET = UNITS / "restic-rest.socket"

SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
SKIP_WITHOUT_SYSTEMD = None if SYSTEMD_ANALYZE else "systemd-analyze is not installed"

#: systemd's own scale, 0 to 10: "OK" ends at 4.
MOST_EXPOSURE = 2.0


def settings(unit: Path, commented: bool = False) -> list[tuple[str, str]]:
    """The settings of a unit in order, or those that its comments offer."""
    pattern = r"^#([A-Z]\w*)=(.*)$" if commented else r"^([A-Z]\w*)=(.*)$"
    return re.findall(pattern, unit.read_text(), re.MULTILINE)


class UnitTests(SynchronousTestCase):
    """The service beside the program."""

    def setUp(self) -> None:
        self.service = dict(settings(SERVICE))

    def command_lines(self) -> list[list[str]]:
        """The command of the service and those in its comments."""
        found = [*settings(SERVICE), *settings(SERVICE, commented=True)]
        return [shlex.split(value) for name, value in found if name == "ExecStart"]

    def test_commands(self) -> None:
        """Both front doors are there and understand their flags, and data and log lie where the service may write."""
        doors = {}
        for program, *arguments in self.command_lines():
            door = Path(program).name
            if door == "twistd":
                self.assertEqual(arguments[:3], ["--nodaemon", "--pidfile=", "restic-rest"])
                del arguments[:3]
            options = Options()
            options.parseOptions(arguments)
            doors[door] = options.settings
        self.assertEqual(set(doors), {"rest-server", "twistd"})
        for own in doors.values():
            self.assertEqual(own.path, f"/var/lib/{self.service['StateDirectory']}")
            if own.log is not None:
                self.assertEqual(Path(own.log).parent, Path("/var/log", self.service["LogsDirectory"]))

    def test_stop(self) -> None:
        """systemd waits longer than the server itself does for its transfers."""
        options = Options()
        options.parseOptions([])
        self.assertGreater(float(self.service["TimeoutStopSec"]), options.settings.shutdown_timeout_s)

    def test_hardening(self) -> None:
        """What is there for safety, and what must not be."""
        for name, value in {
            "NoNewPrivileges": "yes",
            "PrivateDevices": "yes",
            "PrivateTmp": "yes",
            "ProtectSystem": "strict",
            "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
            "UMask": "0077",
        }.items():
            self.assertEqual(self.service.get(name), value, name)
        # cffi's callbacks, which TLS needs, are memory that is written and executed.
        self.assertNotIn("MemoryDenyWriteExecute", self.service)

    def test_mounts(self) -> None:
        """The disk with the data is mounted first."""
        for program, *arguments in self.command_lines():
            if Path(program).name == "rest-server":
                options = Options()
                options.parseOptions(arguments)
                self.assertEqual(options.settings.path, self.service["RequiresMountsFor"])

    def test_socket(self) -> None:
        """The port is that of the server's default; a unix socket, where somebody wants one, is not everyone's."""
        options = Options()
        options.parseOptions([])
        self.assertEqual([f":{dict(settings(SOCKET))['ListenStream']}"], list(options.settings.listen))
        self.assertEqual(dict(settings(SOCKET, commented=True))["SocketMode"], "0660")


class VerifyTests(SynchronousTestCase):
    """The units under C{systemd-analyze}."""

    skip = SKIP_WITHOUT_SYSTEMD

    def setUp(self) -> None:
        self.units = scratch_directory(self)
        program = installed("rest-server")
        for unit in (SERVICE, SOCKET):
            # Only the path of the program is ours to change.
            text = re.sub(r"^ExecStart=\S+", f"ExecStart={program}", unit.read_text(), flags=re.MULTILINE)
            (self.units / unit.name).write_text(text)

    def analyze(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run C{systemd-analyze} in the directory of the copies."""
        assert SYSTEMD_ANALYZE is not None
        return subprocess.run(
            [SYSTEMD_ANALYZE, *arguments],
            cwd=self.units,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def verify(self) -> str:
        """What C{verify} has to say of the units themselves (others of the machine may have faults of their own)."""
        verified = self.analyze(
            "verify", "--man=no", "--recursive-errors=no", "./restic-rest.service", "./restic-rest.socket"
        )
        said = [line for line in verified.stderr.splitlines() if "restic-rest" in line]
        return "\n".join(said if said or verified.returncode == 0 else [verified.stderr])

    def test_verify(self) -> None:
        """Not one complaint."""
        self.assertEqual(self.verify(), "")

    def test_verify_twistd(self) -> None:
        """Nor of the service with the command that its comment offers."""
        service = self.units / SERVICE.name
        text = re.sub(r"^ExecStart=.*\n", "", service.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^#(ExecStart|SuccessExitStatus)=", r"\1=", text, flags=re.MULTILINE)
        service.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={installed('twistd')}", text, flags=re.MULTILINE))
        self.assertIn("restic-rest --path", service.read_text())
        self.assertEqual(self.verify(), "")

    def test_verify_unix_socket(self) -> None:
        """Nor of the socket in the unix form that its comment offers."""
        socket = self.units / SOCKET.name
        text = re.sub(r"^ListenStream=.*\n", "", socket.read_text(), flags=re.MULTILINE)
        socket.write_text(re.sub(r"^#([A-Z])", r"\1", text[text.index("[Unit]") :], flags=re.MULTILINE))
        self.assertEqual(self.verify(), "")

    def test_verify_notices(self) -> None:
        """The check can fail."""
        service = self.units / SERVICE.name
        service.write_text(service.read_text() + "\n[Service]\nNoSuchSetting=yes\n")
        self.assertIn("NoSuchSetting", self.verify())

    def test_exposure(self) -> None:
        """systemd's own judgement of the hardening, which is printed."""
        judged = self.analyze("security", "--offline=yes", "--no-pager", "./restic-rest.service")
        match = re.search(r"Overall exposure level for \S+: ([0-9.]+) (\w+)", judged.stdout)
        if match is None:
            self.skipTest(f"this systemd cannot judge a unit offline: {judged.stderr.strip()}")
        print(f"restic-rest.service: exposure {match[1]} ({match[2]}) of 10")
        self.assertLessEqual(float(match[1]), MOST_EXPOSURE)
