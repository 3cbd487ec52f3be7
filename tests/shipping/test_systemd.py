"""
The units of F{etc/systemd} in a booted systemd, installed and changed by the commands and drop-ins of F{docs/operations.md},
with the real restic.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

from ..support.certificates import make_certificate
from ..support.scratch import scratch_directory
from .debian import MachineTestCase, no_machines
from .machine import Machine

CHECKOUT = Path(__file__).resolve().parents[2]
OPERATIONS = CHECKOUT / "docs" / "operations.md"

SERVICE, SOCKET = "restic-rest.service", "restic-rest.socket"
USER, PASSWORD = "alice", "wonderland"

#: What the program layer has done already.
_DONE = ("apt-get ", "python3 -m venv ", "/opt/resticserver/bin/pip install")

#: What restic prints when a request failed and it tries again.
RETRY = re.compile(r"retry|returned error", re.IGNORECASE)


def documented(after: str, language: str) -> str:
    """The first code block of a language that follows these words in the document."""
    text = OPERATIONS.read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", text[text.index(after) :], re.DOTALL | re.MULTILINE)
    assert found is not None, after
    return found[1]


def follow(machine: Machine, after: str) -> str:
    """Run the commands that follow these words in the document, in the checkout."""
    lines = [line for line in documented(after, "sh").splitlines() if not line.startswith(_DONE)]
    return machine.shell(answered("\n".join(["cd /root/checkout", *lines])))


def answered(script: str) -> str:
    """The same where each C{user add} reads the password."""
    return re.sub(r"\S*rest-server user add", rf"echo {PASSWORD} | \g<0>", script)


def drop_in(machine: Machine, unit: str, content: str, name: str = "test") -> None:
    """Write a drop-in and load it."""
    machine.write(f"/etc/systemd/system/{unit}.d/{name}.conf", content)
    machine.succeed("systemctl", "daemon-reload")


class Client:
    """
    The restic of a machine with a repository.

    @param server: the server's address after C{https://} or the like, without the user.
    """

    def __init__(self, machine: Machine, server: str, *flags: str, scheme: str = "http", name: str = "laptop") -> None:
        self._machine = machine
        self._command: tuple[str, ...] = (
            "env",
            "RESTIC_PASSWORD=of the repository",
            "RESTIC_CACHE_DIR=/var/tmp/cache",
            "restic",
        )
        self._command += ("-r", f"rest:{scheme}://{USER}:{PASSWORD}@{server}/{name}", *flags)

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed; its output."""
        return self._machine.succeed(*self._command, *arguments)

    def try_to(self, *arguments: str) -> tuple[int, str]:
        """Run a command; its status, and all that it printed."""
        done = self._machine.run(*self._command, *arguments)
        return done.returncode, done.stdout + done.stderr

    def first_backup(self) -> None:
        """Everything that a new user does."""
        self.run("init")
        self.run("backup", "/usr/lib/python3.11/email", "/etc")
        self.run("check", "--read-data")

    def number_of_snapshots(self) -> int:
        """How many snapshots there are."""
        return self.run("snapshots", "--json").count('"short_id"')


class SystemdTestCase(MachineTestCase):
    """A machine with the units."""

    skip = no_machines()

    def new(self) -> Machine:
        """A machine with the checkout's files that the documents use, not booted yet."""
        machine = self.machine()
        machine.copy(CHECKOUT / "etc", "/root/checkout/etc")
        return machine

    def serving(self) -> Machine:
        """A booted machine with the service, as the documents install it."""
        machine = self.new()
        machine.boot()
        follow(machine, "## Run as a systemd service")
        return machine

    def assert_serves(self, machine: Machine, unit: str = SERVICE) -> None:
        """The service is active and has no complaint."""
        self.assertEqual("active", machine.show(unit, "ActiveState"))
        self.assertNotIn("Traceback", machine.journal("--boot"))


class ServiceTests(SystemdTestCase):
    """The documented default: service and socket."""

    def test_default(self) -> None:
        """From the installation to a backup, with the user's rights, the status, a reload, and after the next boot."""
        machine = self.serving()
        self.assert_serves(machine)
        for unit in (SERVICE, SOCKET):
            self.assertEqual("enabled", machine.show(unit, "UnitFileState"))
            self.assertEqual("active", machine.show(unit, "ActiveState"))
        client = Client(machine, "127.0.0.1:8000")
        client.first_backup()
        self.assertEqual("listening on [::]:8000; requests in flight: 0", machine.show(SERVICE, "StatusText"))

        others = machine.shell("find /var/lib/restic /var/log/restic ! -user restic-rest -o ! -group restic-rest")
        self.assertEqual("", others)
        modes = machine.succeed("stat", "--format=%a %n", "/var/lib/restic", "/var/log/restic").splitlines()
        self.assertEqual(["700 /var/lib/restic", "750 /var/log/restic"], modes)
        self.assertIn("POST /laptop/", machine.read("/var/log/restic/access.log"))
        self.assertNotIn("d41d8", machine.run("runuser", "-u", "nobody", "--", "ls", "/var/lib/restic").stdout)

        self.assertIn("401", self.status_of(machine, "bob"))
        machine.shell(answered("/opt/resticserver/bin/rest-server user add --path /var/lib/restic bob"))
        machine.succeed("systemctl", "reload", SERVICE)
        machine.wait_for(lambda: self.status_of(machine, "bob") == "404", what="the reload")

        machine.shut_down()
        machine.boot()
        self.assertIn("shutdown cleanly", machine.journal("--boot=-1", f"--unit={SERVICE}"))
        self.assert_serves(machine)
        self.assertEqual(1, client.number_of_snapshots())
        self.assertEqual("", machine.shell("systemctl --failed --no-legend --plain | grep restic || true"))

    @staticmethod
    def status_of(machine: Machine, user: str) -> str:
        """The answer to a user's question for a repository that does not exist."""
        url = f"http://{user}:{PASSWORD}@127.0.0.1:8000/nothing/config"
        return machine.succeed("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url)

    def test_exposure(self) -> None:
        """systemd's own judgement, of the units as they are loaded, and nothing for it to complain about."""
        machine = self.serving()
        follow(machine, "### Several servers on one machine")
        for unit in (SERVICE, "restic-rest@photos.service"):
            judged = machine.succeed("systemd-analyze", "security", "--no-pager", unit)
            found = re.search(r"Overall exposure level for \S+: ([0-9.]+) (\w+)", judged)
            assert found is not None, judged
            print(f"{unit}: exposure {found[1]} ({found[2]}) of 10")
            self.assertLessEqual(float(found[1]), 1.5)
        units = (SERVICE, SOCKET, "restic-rest@photos.service", "restic-rest@photos.socket")
        verified = machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
        self.assertEqual((0, ""), (verified.returncode, verified.stderr))

    def test_without_socket(self) -> None:
        """The socket unit is disabled: the server listens where its file says."""
        machine = self.serving()
        machine.write("/etc/rest-server.toml", 'listen = "127.0.0.1:8123"\n')
        follow(machine, "**No socket unit**")
        self.assert_serves(machine)
        self.assertIn("listening on 127.0.0.1:8123", machine.show(SERVICE, "StatusText"))
        Client(machine, "127.0.0.1:8123").first_backup()

    def test_stop(self) -> None:
        """The service alone comes back with the next connection; together with its socket it stays stopped."""
        machine = self.serving()
        machine.succeed("systemctl", "stop", SERVICE)
        self.assertEqual("401", self.status_of(machine, "nobody"))
        follow(machine, "To stop the server for longer")
        refused = machine.run("curl", "--silent", "http://127.0.0.1:8000/")
        self.assertEqual(7, refused.returncode)
        machine.succeed("systemctl", "start", SERVICE)
        self.assertEqual("401", self.status_of(machine, "nobody"))

    def test_workers(self) -> None:
        """--workers: each process is there, one that is killed is replaced, and a restart loses nothing."""
        machine = self.new()
        machine.boot()
        machine.write("/etc/rest-server.toml", "workers = 2\n")
        follow(machine, "## Run as a systemd service")
        client = Client(machine, "127.0.0.1:8000")
        client.first_backup()
        pids = self.workers(machine)
        self.assertEqual(2, len(pids))
        machine.shell(f"kill -KILL {pids[0]}")
        machine.wait_for(lambda: len(self.workers(machine)) == 2 and pids[0] not in self.workers(machine))
        machine.succeed("systemctl", "restart", SERVICE)
        self.assertEqual("0", machine.show(SERVICE, "NRestarts"))
        self.assertFalse(set(pids) & set(self.workers(machine)))
        self.assertEqual(1, client.number_of_snapshots())
        self.assert_serves(machine)

    @staticmethod
    def workers(machine: Machine) -> list[str]:
        """The processes of the service but for the first."""
        main = machine.show(SERVICE, "MainPID")
        group = machine.show(SERVICE, "ControlGroup")
        return [pid for pid in machine.read(f"/sys/fs/cgroup{group}/cgroup.procs").split() if pid != main]


class RecoveryTests(SystemdTestCase):
    """What ends the server, and what must not be noticed."""

    def test_watchdog(self) -> None:
        """A server that is stuck is replaced within WatchdogSec and a second."""
        machine = self.serving()
        watchdog_s = 3.0
        drop_in(machine, SERVICE, f"[Service]\nWatchdogSec={watchdog_s:g}\n")
        machine.succeed("systemctl", "restart", SERVICE)
        first = machine.show(SERVICE, "MainPID")
        # Not right after its start: what counts is the time after the last sign of life.
        time.sleep(1)
        stopped_us = float(machine.shell(f"kill -STOP {first}; cut -d' ' -f1 /proc/uptime")) * 1e6
        machine.wait_for(
            lambda: (
                machine.show(SERVICE, "MainPID") not in ("0", first)
                and machine.show(SERVICE, "ActiveState") == "active"
            )
        )
        started_us = float(machine.show(SERVICE, "ExecMainStartTimestampMonotonic"))
        took_s = (started_us - stopped_us) / 1e6
        print(f"WatchdogSec={watchdog_s:g}: started again {took_s:.2f} s after SIGSTOP")
        self.assertIn("Watchdog timeout", machine.journal("--boot"))
        self.assertLessEqual(took_s, watchdog_s + 1)
        Client(machine, "127.0.0.1:8000").first_backup()

    def test_crashes(self) -> None:
        """Ten crashes in ten seconds: systemd goes on, and no client is refused."""
        machine = self.serving()
        client = Client(machine, "127.0.0.1:8000")
        client.first_backup()
        script = f"""
        for number in 0 1 2 3 4 5 6 7 8 9; do
            pid=0
            while [ "$pid" = 0 ]; do pid=$(systemctl show --value --property=MainPID {SERVICE}); done
            kill -KILL "$pid"
            cut -d' ' -f1 /proc/uptime
            while [ "$pid" = "$(systemctl show --value --property=MainPID {SERVICE})" ]; do :; done
        done
        """
        times = [float(line) for line in machine.shell(script).split()]
        print(f"10 crashes within {times[-1] - times[0]:.1f} s")
        status, said = client.try_to("snapshots")
        self.assertEqual(0, status, said)
        self.assertNotRegex(said, RETRY)
        machine.wait_for(lambda: machine.show(SERVICE, "ActiveState") == "active")
        self.assertEqual("10", machine.show(SERVICE, "NRestarts"))
        self.assertEqual("active", machine.show(SOCKET, "ActiveState"))
        client.run("check", "--read-data")
        # Five starts within ten seconds are where systemd gives up by default.
        self.assertLess(times[5] - times[0], 10, "too slow to show that there is no start limit")

    def test_broken_file(self) -> None:
        """A configuration that cannot be used: the port stays open, and the corrected file is taken without a command."""
        machine = self.serving()
        machine.write("/etc/rest-server.toml", "no-such-flag = true\n")
        machine.run("systemctl", "restart", SERVICE)
        machine.wait_for(lambda: int(machine.show(SERVICE, "NRestarts")) > 5)
        self.assertEqual("active", machine.show(SOCKET, "ActiveState"))
        self.assertIn("no-such-flag", machine.journal("--boot", f"--unit={SERVICE}"))
        waiting = machine.start("curl", "--silent", "--show-error", "http://127.0.0.1:8000/-/health")
        machine.write("/etc/rest-server.toml", "")
        _, err = waiting.communicate(timeout=60)
        self.assertEqual((0, ""), (waiting.returncode, err))

    def test_restarts_under_backups(self) -> None:
        """Ten restarts during a loop of backups: no run fails, and restic never has to try again."""
        machine = self.serving()
        client = Client(machine, "127.0.0.1:8000")
        client.run("init")
        machine.shell("mkdir /srv/files; head -c 8M /dev/urandom >/srv/files/first")
        runs: list[tuple[int, str]] = []
        ended = threading.Event()

        def back_up() -> None:
            while not ended.is_set():
                machine.shell("head -c 8M /dev/urandom >/srv/files/next")
                runs.append(client.try_to("backup", "--verbose", "/srv/files"))

        backups = threading.Thread(target=back_up)
        backups.start()
        try:
            for number in range(10):
                # While a run is in progress, at ever other moments of it.
                time.sleep(1 + 0.3 * number)
                machine.succeed("systemctl", "restart", SERVICE)
        finally:
            ended.set()
            backups.join()
        failed = [said for status, said in runs if status]
        retries = [line for _, said in runs for line in said.splitlines() if RETRY.search(line)]
        print(f"10 restarts during {len(runs)} backups: {len(failed)} failed, {len(retries)} lines of retries")
        self.assertEqual(([], []), (failed, retries))
        self.assertGreater(len(runs), 3)
        client.run("check", "--read-data")
        self.assertEqual(len(runs), client.number_of_snapshots())
        self.assert_serves(machine)


class ChangedTests(SystemdTestCase):
    """What administrators change, by the drop-ins of the document."""

    def test_tls(self) -> None:
        """TLS with a key that only a group may read, and a renewal."""
        machine = self.serving()
        scratch = scratch_directory(self)
        certificate = make_certificate(scratch)
        machine.shell("groupadd --system ssl-cert; install -d -m 0750 -g ssl-cert /etc/keys")
        machine.write("/etc/keys/cert.pem", certificate.certificate.read_bytes())
        machine.write("/etc/keys/key.pem", certificate.key.read_bytes(), mode=0o640, owner="root:ssl-cert")
        machine.write("/root/ca.pem", certificate.authority.read_bytes())
        keys = 'tls = true\ntls-cert = "/etc/keys/cert.pem"\ntls-key = "/etc/keys/key.pem"\n'
        machine.write("/etc/rest-server.toml", keys)
        drop_in(machine, SERVICE, documented("**A TLS key of a group**", "ini"))
        machine.succeed("systemctl", "restart", SERVICE)
        Client(machine, "127.0.0.1:8000", "--cacert", "/root/ca.pem", scheme="https").first_backup()

        renewed = make_certificate(scratch)
        machine.write("/etc/keys/cert.pem.new", renewed.certificate.read_bytes())
        machine.write("/etc/keys/key.pem.new", renewed.key.read_bytes(), mode=0o640, owner="root:ssl-cert")
        machine.write("/root/ca.pem", renewed.authority.read_bytes())
        machine.shell("cd /etc/keys; mv key.pem.new key.pem; mv cert.pem.new cert.pem")
        machine.succeed("systemctl", "reload", SERVICE)
        client = Client(machine, "127.0.0.1:8000", "--cacert", "/root/ca.pem", scheme="https")
        # systemctl does not always wait for the end of a reload.
        ask = "curl --silent --show-error --cacert /root/ca.pem https://127.0.0.1:8000/-/health"
        machine.wait_for(lambda: machine.run("sh", "-c", ask).returncode == 0, what="the renewed certificate")
        self.assertEqual(1, client.number_of_snapshots())
        self.assert_serves(machine)

    def test_sockets(self) -> None:
        """A port below 1024, then a unix socket that only a group may use."""
        machine = self.serving()
        for after in ("**Another port**", "**A unix socket**"):
            follow(machine, "To stop the server for longer")
            drop_in(machine, SOCKET, documented(after, "ini"))
            machine.succeed("systemctl", "start", SERVICE)
            self.assert_serves(machine)
            if after == "**Another port**":
                Client(machine, "127.0.0.1:443").first_backup()
                self.assertIn("listening on [::]:443;", machine.show(SERVICE, "StatusText"))
        self.assertIn("listening on /run/restic-rest/rest.sock;", machine.show(SERVICE, "StatusText"))
        ask = "curl --silent --unix-socket /run/restic-rest/rest.sock http://server/-/ready"
        self.assertIn("ready", machine.shell(f"runuser -u www-data -- {ask}"))
        self.assertNotEqual(0, machine.run("sh", "-c", f"runuser -u nobody -- {ask}").returncode)

    def test_other_directory(self) -> None:
        """Data on a disk that is missing at first, is mounted, and is lost while the server runs."""
        machine = self.serving()
        mount = "/etc/systemd/system/srv-restic.mount"
        machine.write(mount, "[Mount]\nWhat=tmpfs\nWhere=/srv/restic\nType=tmpfs\nOptions=size=none\n")
        drop_in(machine, SERVICE, documented("**Another data directory.**", "ini"))
        machine.succeed("systemctl", "stop", SOCKET, SERVICE)
        started = machine.run("systemctl", "start", SERVICE)
        self.assertEqual(1, started.returncode)
        self.assertIn("dependency", started.stderr)
        self.assertEqual("inactive", machine.show(SERVICE, "ActiveState"))

        machine.write(mount, "[Mount]\nWhat=/var/disk\nWhere=/srv/restic\nType=none\nOptions=bind\n")
        machine.shell("mkdir /var/disk; systemctl daemon-reload; systemctl start srv-restic.mount")
        follow(machine, "**Another data directory.**")
        machine.succeed("systemctl", "start", SERVICE)
        client = Client(machine, "127.0.0.1:8000")
        client.first_backup()
        self.assertEqual(0, machine.run("test", "-e", "/var/disk/laptop/config").returncode)
        machine.succeed("umount", "/srv/restic")
        missing = (
            "not ready: the volume with the repositories is missing; listening on [::]:8000; requests in flight: 0"
        )
        machine.wait_for(lambda: machine.show(SERVICE, "StatusText") == missing, what="the status of a missing disk")
        ask = "http://127.0.0.1:8000/-/ready"
        self.assertIn("missing", machine.succeed("curl", "--silent", ask))
        machine.succeed("mount", "--bind", "/var/disk", "/srv/restic")
        machine.wait_for(lambda: "not ready" not in machine.show(SERVICE, "StatusText"), what="the disk's return")
        client.run("backup", "/etc")
        self.assertEqual("0", machine.show(SERVICE, "NRestarts"))

    def test_other_user(self) -> None:
        """The owner of existing data."""
        machine = self.serving()
        Client(machine, "127.0.0.1:8000").first_backup()
        machine.succeed("useradd", "--system", "backup-owner")
        drop_in(machine, SERVICE, documented("**Another user**", "ini").replace("backup", "backup-owner"))
        machine.succeed("systemctl", "restart", SERVICE)
        self.assertEqual(1, Client(machine, "127.0.0.1:8000").number_of_snapshots())
        self.assertEqual("", machine.shell("find /var/lib/restic /var/log/restic ! -user backup-owner"))
        # The next boot changes nothing back.
        machine.shut_down()
        machine.boot()
        self.assertEqual("", machine.shell("find /var/lib/restic /var/log/restic ! -user backup-owner"))
        Client(machine, "127.0.0.1:8000").run("check")

    def test_from_dynamic_user(self) -> None:
        """Data of the earlier unit, whose user systemd created, are where they were and belong to the new one."""
        machine = self.serving()
        follow(machine, "To stop the server for longer")
        machine.shell("userdel restic-rest; rm -r /var/lib/restic /var/log/restic")
        drop_in(machine, SERVICE, "[Service]\nDynamicUser=yes\nUser=\nGroup=\n")
        machine.write("/etc/rest-server.toml", "no-auth = true\n")
        machine.succeed("systemctl", "start", SERVICE)
        self.assertEqual("private/restic", machine.succeed("readlink", "/var/lib/restic").strip())
        Client(machine, "127.0.0.1:8000").first_backup()
        machine.shell("rm -r /etc/systemd/system/restic-rest.service.d")
        machine.shell("systemctl stop restic-rest.service; systemd-sysusers restic-rest.conf")
        machine.shell("systemd-tmpfiles --create restic-rest.conf; systemctl daemon-reload")
        machine.succeed("systemctl", "start", SERVICE)
        self.assertEqual("directory", machine.succeed("stat", "--format=%F", "/var/lib/restic").strip())
        self.assertEqual("", machine.shell("find /var/lib/restic /var/log/restic ! -user restic-rest"))
        self.assertEqual(1, Client(machine, "127.0.0.1:8000").number_of_snapshots())
        self.assert_serves(machine)


class TemplateTests(SystemdTestCase):
    """Several servers on one machine."""

    def test_template(self) -> None:
        """Two more servers: one on a unix socket and one on a port; each with its own file, data and log."""
        machine = self.serving()
        drop_in(machine, "restic-rest@archive.socket", documented("**A port of its own**", "ini"))
        follow(machine, "### Several servers on one machine")
        commands = documented("### Several servers on one machine", "sh").replace("photos", "archive")
        machine.shell(answered(commands))
        for name, server in (("restic-rest@archive.service", "127.0.0.1:8001"), (SERVICE, "127.0.0.1:8000")):
            self.assert_serves(machine, name)
            Client(machine, server, name=server.replace(":", "-")).first_backup()
        self.assert_serves(machine, "restic-rest@photos.service")
        answer = machine.shell("curl --silent --unix-socket /run/restic-rest/photos.sock http://server/-/ready")
        self.assertIn("ready", answer)
        self.assertEqual(0, machine.run("test", "-e", "/var/lib/restic-archive/127.0.0.1-8001/config").returncode)
        self.assertIn("127.0.0.1-8001", machine.read("/var/log/restic-archive/access.log"))
        self.assertEqual(1, machine.run("test", "-e", "/var/lib/restic/127.0.0.1-8001").returncode)
        machine.shut_down()
        machine.boot()
        for unit in ("restic-rest@archive.service", "restic-rest@photos.service", SERVICE):
            self.assert_serves(machine, unit)
        self.assertEqual(1, Client(machine, "127.0.0.1:8001", name="127.0.0.1-8001").number_of_snapshots())
