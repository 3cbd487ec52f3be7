"""
The quick start and the migration guide, command by command, as a reader runs them: in a freshly made Debian that boots
systemd, as root, each fence of the page after the other in one shell.

Nothing of a page is left out: every fence must be one of C{sh}, and each must have run to its end. What a reader has to
replace is replaced by L{QUICK_START} and L{MIGRATION}, and by nothing else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ..support.scratch import scratch_directory
from .debian import MachineTestCase, no_machines, wheels
from .machine import Machine

CHECKOUT = Path(__file__).parent.parent.parent
#: The checkout in the machine: the commands run in it.
THERE = "/root/checkout"

#: What the reader of the quick start replaces. C{refused} and C{password} are defined in L{PRELUDE}.
QUICK_START = {
    # The client is the same machine.
    "scp root@backup.example.org:": "cp ",
    "alice:PASSWORD@": "alice:$(password alice)@",
    "admin:ADMIN-PASSWORD@": "admin:$(password admin)@",
    # A prompt at a terminal; otherwise the password is read from a pipe.
    "rest-server status https": "password metrics | rest-server status https",
    # The shell does not end after a command with an exclamation mark, whatever its status is.
    "\n! ": "\nrefused ",
}

#: What the reader of the migration guide replaces.
MIGRATION = {"alice:PASSWORD@": "alice:secret@"}

PRELUDE = """
set -e
cd /root/checkout
password() { sed -n "s/^$1,//p" /root/users.csv; }
refused() { if "$@"; then echo "not refused: $*"; return 1; fi; }
"""

#: The password of the repository that an earlier server has stored.
REPOSITORY_PASSWORD = "the password of the tests"

#: The unit that is taken over: rest-server's own example with a directory filled in. The last command of the service waits
#: for its port, because a script runs the next command sooner than a reader.
OLD_UNIT = """
[Unit]
Description=Rest Server
After=network.target

[Service]
Type=simple
User=www-data
Group=www-data
ExecStart=/usr/local/bin/rest-server --path /srv/restic --private-repos
ExecStartPost=/bin/sh -c 'until curl --silent http://localhost:8000/; do sleep 0.1; done'
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""

#: In place of the Go program, which Debian does not package: rclone serves the same directory and htpasswd file by the same
#: protocol.
OLD_PROGRAM = """#!/bin/sh
[ "$*" = "--path /srv/restic --private-repos" ] || exit 64
exec /usr/local/bin/rclone --config= --cache-dir=/tmp/rclone serve restic --addr :8000 \\
    --htpasswd /srv/restic/.htpasswd --private-repos /srv/restic
"""

FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
#: A word in capitals, with one of these at its end, that a reader has to replace.
PLACEHOLDER = re.compile(r"\b(?!RESTIC_)[A-Z][A-Z-]*PASSWORD\b|:PASSWORD@")


def fences(page: str) -> list[str]:
    """
    The commands of a page.

    @raise AssertionError: there is a fence of another kind, or one that is indented.
    """
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    found = FENCE.findall(text)
    assert {language for _, language, _ in found} == {"sh"}, f"{page}: only fences of sh can be run"
    assert text.count("```") == 2 * len(found), f"{page}: a fence that is indented or does not end"
    return [commands for _, _, commands in found]


def script(commands: list[str], placeholders: Mapping[str, str], before: str = "") -> str:
    """
    All commands as one script, which prints a line before each fence and at its end.

    @param placeholders: what is replaced; each must occur.
    @param before: commands before the first fence.
    """
    parts = [PRELUDE, before]
    for number, fence in enumerate(commands, 1):
        parts.append(f"echo '@@ {number}'\n{fence}")
    whole = "\n".join([*parts, f"echo '@@ all {len(commands)} fences'\n"])
    for word, replacement in placeholders.items():
        assert word in whole, f"{word!r} does not occur"
        whole = whole.replace(word, replacement)
    assert not PLACEHOLDER.search(whole), f"not replaced: {PLACEHOLDER.findall(whole)}"
    return whole


class DocumentCase(MachineTestCase):
    """A machine with a checkout and the wheels of everything that an installation needs."""

    def fresh_machine(self) -> Machine:
        """
        A booted machine. It has no network, so pip is told where the wheels are.
        """
        machine = self.machine(with_program=False)
        scratch = scratch_directory(self, 256 << 20)
        found = wheels(scratch)
        # For `pip install .`, which builds a wheel.
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", str(found), "setuptools", "wheel"], check=True, capture_output=True)
        for wheel in found.glob("resticserver-*.whl"):
            wheel.unlink()  # it is what the reader builds
        machine.copy(found, "/root/wheels")
        machine.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /root/wheels\n")
        copy = scratch / "checkout"
        left_out = shutil.ignore_patterns(
            "_trial_temp*", ".*", "build", "dist", "tests", "benchmarks", "backups", "*.egg-info", "__pycache__"
        )
        shutil.copytree(CHECKOUT, copy, ignore=left_out)
        machine.copy(copy, THERE)
        machine.write("/etc/hosts", "127.0.0.1 localhost backup.example.org\n::1 localhost\n")
        machine.write("/root/Documents/letter", "a letter\n")
        return machine

    def follow(self, machine: Machine, commands: list[str], placeholders: Mapping[str, str], before: str = "") -> str:
        """Run the commands of a page; what they printed."""
        machine.write("/root/page.sh", script(commands, placeholders, before))
        done = machine.run("bash", "/root/page.sh", timeout_s=900)
        begun = re.findall(r"^@@ (\d+)$", done.stdout, re.MULTILINE)
        fence = commands[int(begun[-1]) - 1] if begun else before
        self.assertEqual(0, done.returncode, f"in\n{fence}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        self.assertEqual([str(number) for number in range(1, len(commands) + 1)], begun)
        self.assertIn(f"@@ all {len(commands)} fences", done.stdout)
        return done.stdout


class QuickStartTests(DocumentCase):
    """F{docs/quick-start.md}."""

    skip = no_machines()

    def test_page(self) -> None:
        """
        All commands succeed, a backup is restored, the server is still there after a reboot, and the rights are those that
        the page promises.
        """
        machine = self.fresh_machine()
        machine.boot()
        printed = self.follow(machine, fences("quick-start.md"), QUICK_START)
        self.assertIn("no errors were found", printed)
        self.assertEqual("a letter\n", machine.read("/root/restored/root/Documents/letter"))
        self.assertEqual("600", machine.succeed("stat", "--format=%a", "/root/users.csv").strip())
        machine.shut_down()
        machine.boot()
        curl = "curl --silent --show-error --cacert /var/lib/restic/public_key"
        url = "https://backup.example.org:8000"
        machine.shell(f"{curl} --fail {url}/-/ready")
        for user in ("alice", "bob", "metrics"):
            login = f"-u {user}:$(sed -n s/^{user},//p /root/users.csv)"
            request = f"-X DELETE -o /dev/null -w '%{{http_code}}' {url}/alice/laptop/config"
            self.assertEqual("403", machine.shell(f"{curl} {login} {request}"), user)
        # The server is not root, and the port is systemd's.
        self.assertEqual("active", machine.show("restic-rest.socket", "ActiveState"))
        pid = machine.show("restic-rest.service", "MainPID")
        self.assertNotEqual("0", machine.succeed("stat", "--format=%u", f"/proc/{pid}").strip())


class MigrationTests(DocumentCase):
    """F{docs/migrating.md}."""

    skip = no_machines() or (
        None if shutil.which("rclone") else "rclone is not installed (Debian: apt-get install rclone)"
    )

    def test_page(self) -> None:
        """A repository of another server is used here and there again, and nothing of it is lost."""
        machine = self.fresh_machine()
        rclone = shutil.which("rclone")
        assert rclone is not None
        machine.copy(Path(rclone), "/usr/local/bin/rclone")
        machine.write("/usr/local/bin/rest-server", OLD_PROGRAM, mode=0o755)
        machine.write("/etc/systemd/system/rest-server.service", OLD_UNIT)
        machine.boot()
        self.leave_as_rest_server(machine)
        before = f"export RESTIC_PASSWORD='{REPOSITORY_PASSWORD}'"
        printed = self.follow(machine, fences("migrating.md"), MIGRATION, before)
        self.assertIn("systemd socket activation mode", printed)
        self.assertEqual("active", machine.show("rest-server.service", "ActiveState"))
        self.assertEqual("inactive", machine.show("restic-rest.service", "ActiveState"))
        left = machine.succeed("find", "/srv/restic", "-name", "*rest-server*")
        self.assertEqual("", left)
        owners = machine.succeed("find", "/srv/restic", "!", "-user", "www-data")
        self.assertEqual("", owners)
        # One by the earlier server, one by this one, one by the earlier one again.
        counted = machine.shell(
            f"{before}; restic -r /srv/restic/alice/laptop snapshots --json | grep -o '\"short_id\"' | wc -l"
        )
        self.assertEqual("3", counted.strip())
        machine.shell(f"{before}; restic -r /srv/restic/alice/laptop check --read-data")

    def leave_as_rest_server(self, machine: Machine) -> None:
        """
        A data directory as rest-server leaves it: its users, its modes and owner, a repository that was made through the
        server, and the temporary file of an upload that was cut short.
        """
        user = "python3 -m venv /root/venv && /root/venv/bin/pip install --quiet bcrypt"
        machine.shell(user)
        entry = "import bcrypt; print('alice:' + bcrypt.hashpw(b'secret', bcrypt.gensalt(5)).decode())"
        machine.succeed("install", "-d", "-o", "www-data", "-g", "www-data", "-m", "0700", "/srv/restic")
        htpasswd = machine.succeed("/root/venv/bin/python", "-c", entry) + "bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n"
        machine.write("/srv/restic/.htpasswd", htpasswd, mode=0o600, owner="www-data:www-data")
        machine.shell("systemctl daemon-reload; systemctl enable --now rest-server.service")
        machine.shell(
            f"""
            export RESTIC_PASSWORD='{REPOSITORY_PASSWORD}' RESTIC_REPOSITORY=rest:http://alice:secret@localhost:8000/alice/laptop
            restic init
            restic backup /root/Documents
            find /srv/restic -type f -exec chmod 0600 {{}} + -o -type d -exec chmod 0700 {{}} +
            cd /srv/restic/alice/laptop/data
            mkdir -p ab
            : >ab/ab{"0" * 62}.rest-server-temp123456
            chown -R www-data: /srv/restic
            """
        )


class PageTests(DocumentCase):
    """What keeps a page from being left out, without a machine."""

    def test_all_kinds(self) -> None:
        """Both pages have commands, and all of them are found."""
        for page, placeholders in (("quick-start.md", QUICK_START), ("migrating.md", MIGRATION)):
            commands = fences(page)
            self.assertGreater(len(commands), 5, page)
            self.assertIn("systemctl", script(commands, placeholders))

    def test_replaced(self) -> None:
        """A placeholder that is not replaced, or does not occur, is a failure."""
        self.assertRaises(AssertionError, script, ["restic -r rest:http://alice:PASSWORD@x/"], {})
        self.assertRaises(AssertionError, script, ["true"], {"PASSWORD": "x"})
        self.assertIn("alice:x@", script(["http://alice:PASSWORD@"], {":PASSWORD@": ":x@"}))

    def test_ends_at_a_failure(self) -> None:
        """A command that fails ends the page there, also one that should have been refused and was not."""
        for failing in ("false", "! true", "cat missing\ntrue"):
            replaced = {"\n! ": "\nrefused "} if failing.startswith("! ") else {}
            whole = script(["true\n", f"true\n{failing}\n", "true\n"], replaced)
            done = subprocess.run(
                ["bash"], input=whole.replace(THERE, "/"), capture_output=True, text=True, check=False
            )
            self.assertNotEqual(0, done.returncode, failing)
            self.assertTrue(done.stdout.startswith("@@ 1\n@@ 2\n"), failing)
            self.assertNotIn("@@ 3", done.stdout, failing)
