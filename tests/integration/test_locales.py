"""
Names of files in other locales than UTF-8's: on disk they are UTF-8 in every one, and no line of the log is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import Cleans, scratch_directory
from ..support.server import REST_SERVER, TWISTD, ServerProcess, installed, server_environment, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until

NAME = "b\u00fcro"
#: Letters that are in Latin-1, and some that are not.
NAMES = (NAME, "\u0431\u044e\u0440\u043e", "\U0001f4be", "bu\u0308ro")

#: Python's own way out of the C locale is closed.
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def latin_1_locale(test: Cleans) -> dict[str, str]:
    """The environment of a German who is in the last century; the C locale's where such a locale cannot be made."""
    directory = scratch_directory(test)
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/de_DE").exists():
        return C_LOCALE
    made = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(directory / "de_DE.ISO-8859-1")]
    subprocess.run(made, check=False, capture_output=True)  # it complains about its own source
    return {"LOCPATH": str(directory), "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


class LocaleTests(SynchronousTestCase):
    """Both front doors and the subcommands, in the C locale and in one with Latin-1."""

    def setUp(self) -> None:
        self.directory = scratch_directory(self)
        self.data = self.directory / NAME / "data"
        self.locales = (C_LOCALE, latin_1_locale(self))

    def run_command(self, environment: dict[str, str], *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
        """Run a subcommand."""
        return subprocess.run(
            [installed("rest-server"), *arguments],
            env=server_environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def check_server(self, server: ServerProcess, data: Path) -> None:
        """Make repositories and look at their folders."""
        with server.client() as client:
            for name in NAMES:
                path = f"/{quote(name)}/"
                client.create_repository(path)
                self.assertEqual(200, client.post(f"{path}config", name.encode()).status)
                self.assertEqual(name.encode(), client.get(f"{path}config").body)
                pack = client.save("data", name.encode() * 9, path)
                self.assertEqual({pack: len(name.encode()) * 9}, client.list("data", path))
        folders = set(os.listdir(os.fsencode(data)))
        self.assertEqual({name.encode() for name in NAMES}, folders - {b".rest-server"})
        self.assertEqual(name.encode(), (data / name / "config").read_bytes())

    def test_folders(self) -> None:
        """Repositories made by the server have UTF-8's names, through both front doors and with several processes."""
        for number, environment in enumerate(self.locales):
            for door, flags in ((REST_SERVER, ()), (TWISTD, ()), (REST_SERVER, ("--workers", "2"))):
                data = self.directory / f"{NAME}{number}{door}{len(flags)}"
                server = start_server(self, data, *flags, door=door, extra=environment)
                self.check_server(server, data)
                server.wait_for_line(rf"Data directory: .*{NAME}")
                server.wait_for_line(r"Creating repository directories in .*b\\xfcro")
                if door == REST_SERVER:
                    self.assertEqual(0, server.stop())
                else:
                    server.stop()
                said = [*server.err, *server.out]
                self.assertEqual([], [line for line in said if "Traceback" in line or "observer" in line])

    def test_folders_that_are_there(self) -> None:
        """Those that restic or another server made are found, and after a restart in another locale too."""
        folder = self.data / NAME
        (folder / "keys").mkdir(parents=True)
        (folder / "config").write_bytes(b"config")
        for environment in ({}, *self.locales, {}):
            server = start_server(self, self.data, "--max-size", "1G", "--prometheus", extra=environment)
            with server.client() as client:
                self.assertEqual(b"config", client.get(f"/{quote(NAME)}/config").body)
                wait_until(lambda: f'repo="{NAME}"'.encode() in client.get("/metrics").body)
            server.stop()

    def test_settings(self) -> None:
        """Files that flags and a configuration file name, users and prefixes."""
        self.data.mkdir(parents=True)
        users = self.data.parent / "be\u00fctzer"
        users.write_text(sha_line("j\u00fcrgen", "\u00fc"))
        log = self.data.parent / "zugr\u00fcffe"
        config = self.data.parent / "k\u00f6nfig"
        config.write_text(f'path = "{self.data}"\nhtpasswd-file = "{users}"\nlog = "{log}"\n', encoding="utf-8")
        for environment in self.locales:
            server = ServerProcess(
                [
                    *(installed("rest-server"), "--config", str(config), "--listen", "127.0.0.1:0", "--private-repos"),
                    *("--proxy-prefix", "/\u00fcber"),
                ],
                self.directory,
                environment,
            )
            self.addCleanup(server.clean_up)
            with server.client("j\u00fcrgen", "\u00fc") as client:
                self.assertEqual(
                    200, client.post(f"/{quote(chr(252))}ber/{quote('j' + chr(252) + 'rgen')}/?create=true").status
                )
            self.assertEqual(0, server.stop())
            self.assertIn("j\u00fcrgen", log.read_text(encoding="utf-8"))
            self.assertTrue((self.data / "j\u00fcrgen" / "keys").is_dir())

    def test_events(self) -> None:
        """A command that is told of events is told the name, and has the locale that the server was started with."""
        told = self.directory / "told"
        for environment in self.locales:
            command = f"/bin/sh -c '(cat; echo; locale charmap) > {told}.new; mv {told}.new {told}'"
            server = start_server(self, self.data, "--on-event", command, extra=environment)
            with server.client() as client:
                client.create_repository(f"/{quote(NAME)}/")
                self.assertEqual(200, client.post(f"/{quote(NAME)}/config", b"config").status)
                wait_until(told.exists)
                event, charmap = told.read_text(encoding="ascii").split("\n", 1)
                self.assertEqual(NAME, json.loads(event)["repository"])
                self.assertNotIn("UTF-8", charmap)
                self.assertEqual(200, client.delete(f"/{quote(NAME)}/config").status)
            server.stop()
            told.unlink()

    def test_bytes(self) -> None:
        """A directory whose name is not UTF-8 is named by its bytes, as the shell gives them."""
        data = os.fsencode(self.directory) + b"/b\xfcro"
        for environment in ({}, *self.locales):
            for door in (REST_SERVER, TWISTD):
                server = start_server(self, Path(os.fsdecode(data)), door=door, extra=environment)
                with server.client() as client:
                    client.create_repository(f"/{quote(NAME)}/")
                server.stop()
                self.assertEqual([NAME.encode()], [name for name in os.listdir(data) if name != b".rest-server"])

    def test_subcommands(self) -> None:
        """They name repositories and users as the server does, and take names in UTF-8 and in the locale's encoding."""
        (self.data / NAME / "keys").mkdir(parents=True)
        policy = self.directory / "policy"
        policy.write_text(
            f'[[rule]]\nusers = ["j\u00fcrgen"]\nrepositories = ["{NAME}"]\nrights = "read"\n', encoding="utf-8"
        )
        for environment in self.locales:
            usage = self.run_command(environment, "usage", "--path", str(self.data))
            self.assertEqual((0, b""), (usage.returncode, usage.stderr))
            self.assertIn(NAME.encode(), usage.stdout)
            listed = self.run_command(environment, "usage", "--json", "--path", str(self.data))
            self.assertEqual(NAME, json.loads(listed.stdout)["repositories"][0]["repository"])
            spellings: list[str | bytes] = ["j\u00fcrgen"]
            if environment is not C_LOCALE:
                spellings.append("j\u00fcrgen".encode("latin-1"))
            for user in spellings:
                checked = self.run_command(
                    environment, "policy", "check", "--policy", str(policy), user, "GET", f"/{NAME}/config"
                )
                self.assertEqual((0, b"allowed by rule 1: read\n"), (checked.returncode, checked.stdout), user)
                htpasswd = self.directory / "users"
                added = subprocess.run(
                    [installed("rest-server"), "user", "add", "--cost", "4", "--htpasswd-file", str(htpasswd), user],
                    env=server_environment(environment),
                    input=b"secret\n",
                    capture_output=True,
                    check=False,
                )
                self.assertEqual((0, b""), (added.returncode, added.stderr))
                self.assertTrue(htpasswd.read_bytes().startswith("j\u00fcrgen:".encode()))
                htpasswd.unlink()

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """restic's backup by the server in such a locale is one for restic on the disk."""
        make_tree(self.directory / "tree", 1, 1 << 20)
        server = start_server(self, self.data, extra=self.locales[1])
        restic = Restic(self, f"http://127.0.0.1:{server.port}/{quote(NAME)}/", self.directory)
        restic.create()
        restic.succeed("backup", "tree")
        restic.succeed("check")
        config = (self.data / NAME / "config").read_bytes()
        self.assertNotEqual("", object_id(config))
