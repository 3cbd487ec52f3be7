"""
The systemd units: that systemd takes them, and that they fit the server that they start.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.options import Options
from resticserver.config.settings import Settings

from ..support.scratch import scratch_directory
from ..support.server import installed

ETC = Path(__file__).resolve().parents[2] / "etc"
UNITS = ETC / "systemd"
SERVICE, TEMPLATE = UNITS / "restic-rest.service", UNITS / "restic-rest@.service"
SOCKET, TEMPLATE_SOCKET = UNITS / "restic-rest.socket", UNITS / "restic-rest@.socket"

SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
SKIP_WITHOUT_SYSTEMD = None if SYSTEMD_ANALYZE else "systemd-analyze is not installed"

#: systemd's own scale, 0 to 10: "OK" ends at 4.
MOST_EXPOSURE = 1.5


def settings(unit: Path, commented: bool = False) -> list[tuple[str, str]]:
    """The settings of a unit in order, or those that its comments offer."""
    pattern = r"^#([A-Z]\w*)=(.*)$" if commented else r"^([A-Z]\w*)=(.*)$"
    return re.findall(pattern, unit.read_text(), re.MULTILINE)


def lines(file: Path) -> list[str]:
    """The lines that are no comments."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


class UnitTests(SynchronousTestCase):
    """The service beside the program."""

    def setUp(self) -> None:
        self.service = dict(settings(SERVICE))

    def command_lines(self) -> list[list[str]]:
        """The command of the service and those in its comments."""
        found = [*settings(SERVICE), *settings(SERVICE, commented=True)]
        return [shlex.split(value) for name, value in found if name == "ExecStart"]

    def environment(self) -> dict[str, str]:
        """The variables that the service sets."""
        pairs = [value for name, value in settings(SERVICE) if name == "Environment"]
        return dict(pair.split("=", 1) for pair in pairs)

    def test_commands(self) -> None:
        """Both front doors are there, and data and log lie where the service may write."""
        doors = set()
        for program, *arguments in self.command_lines():
            door = Path(program).name
            if door == "twistd":
                self.assertEqual(arguments[:3], ["--nodaemon", "--pidfile=", "restic-rest"])
                del arguments[:3]
            self.assertEqual(arguments, [])
            doors.add(door)
        self.assertEqual(doors, {"rest-server", "twistd"})
        own = self.parsed()
        self.assertEqual(own.path, f"/var/lib/{self.service['StateDirectory']}")
        self.assertEqual(own.log, f"/var/log/{self.service['LogsDirectory']}/access.log")

    def parsed(self) -> Settings:
        """What the server takes from the service's variables, with an empty file."""
        empty = scratch_directory(self) / "rest-server.toml"
        empty.write_text("")
        environment = self.environment()
        self.assertEqual("/etc/rest-server.toml", environment["REST_SERVER_CONFIG"])
        for name, value in {**environment, "REST_SERVER_CONFIG": str(empty)}.items():
            self.patch_environment(name, value)
        options = Options()
        options.parseOptions([])
        return options.settings

    def patch_environment(self, name: str, value: str) -> None:
        """Set a variable for this test."""
        self.patch(os, "environ", {**os.environ, name: value})

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
        self.assertEqual(self.parsed().path, self.service["RequiresMountsFor"])

    def test_starts(self) -> None:
        """However often the server ends, neither unit gives up, and the socket is enabled with the service."""
        self.assertEqual("0", self.service["StartLimitIntervalSec"])
        self.assertEqual("on-failure", self.service["Restart"])
        self.assertEqual(SOCKET.name, self.service["Also"])
        self.assertEqual("0", dict(settings(SOCKET))["TriggerLimitIntervalSec"])
        self.assertIn(SERVICE.name, dict(settings(SOCKET))["WantedBy"].split())

    def test_user(self) -> None:
        """The user of the service is the one that the other files make and give the directory to."""
        user = self.service["User"]
        self.assertEqual(user, self.service["Group"])
        self.assertEqual(lines(ETC / "sysusers.d" / "restic-rest.conf")[0].split()[:3], ["u", user, "-"])
        directory = f"/var/lib/{self.service['StateDirectory']}"
        made = lines(ETC / "tmpfiles.d" / "restic-rest.conf")
        self.assertEqual(made, [f"d {directory} :{self.service['StateDirectoryMode']} :{user} :{user} -"])

    def test_template(self) -> None:
        """The template is the service with another name, file, data and log."""
        of_its_own = {
            "Description=Repository server for restic": "Description=Repository server for restic (%i)",
            "/etc/rest-server.toml": "/etc/rest-server/%i.toml",
            "/var/lib/restic": "/var/lib/restic-%i",
            "/var/log/restic/": "/var/log/restic-%i/",
            "Directory=restic": "Directory=restic-%i",
            "=restic-rest.socket": "=restic-rest@%i.socket",
        }
        expected = []
        for name, value in settings(SERVICE):
            line = f"{name}={value}"
            for old, new in of_its_own.items():
                line = line.replace(old, new)
            expected.append(line)
        self.assertEqual(expected, [f"{name}={value}" for name, value in settings(TEMPLATE)])
        self.assertIn("restic-rest@%i.service", dict(settings(TEMPLATE_SOCKET))["WantedBy"].split())
        self.assertEqual("0", dict(settings(TEMPLATE_SOCKET))["TriggerLimitIntervalSec"])

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
        for unit in (SERVICE, SOCKET, TEMPLATE, TEMPLATE_SOCKET):
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
        units = (f"./{unit.name}" for unit in (SERVICE, SOCKET, TEMPLATE, TEMPLATE_SOCKET))
        verified = self.analyze("verify", "--man=no", "--recursive-errors=no", *units)
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
        self.assertRegex(service.read_text(), r"(?m)^ExecStart=\S+/twistd .* restic-rest$")
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
        for unit in (SERVICE.name, TEMPLATE.name):
            judged = self.analyze("security", "--offline=yes", "--no-pager", f"./{unit}")
            match = re.search(r"Overall exposure level for \S+: ([0-9.]+) (\w+)", judged.stdout)
            if match is None:
                self.skipTest(f"this systemd cannot judge a unit offline: {judged.stderr.strip()}")
            print(f"{unit}: exposure {match[1]} ({match[2]}) of 10")
            self.assertLessEqual(float(match[1]), MOST_EXPOSURE)
