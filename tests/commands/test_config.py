"""
C{rest-server config}: what would keep a server from starting, and where each value comes from.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import config
from resticserver.config.options import Options
from resticserver.errors import StartError
from resticserver.server import ResticServer

from ..support.certificates import make_certificate
from ..support.htpasswd import sha_line
from ..support.scratch import scratch_directory
from ..support.skipping import skipped

WITHOUT_STATE = "--path: an object store needs --state-dir, a local directory for what this server remembers"


class ConfigCase(SynchronousTestCase):
    """A data directory with a user."""

    def setUp(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REST_SERVER_")}
        self.patch(os, "environ", clean)
        self.folder = scratch_directory(self)
        self.data = self.folder / "data"
        self.data.mkdir()
        (self.data / ".htpasswd").write_text(sha_line("alice", "secret"))

    def run_config(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Status, output, and the lines of errors without the program's name."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = config.main(arguments)
        program = f"rest-server config {arguments[0]}: " if arguments else ""
        lines = err.getvalue().splitlines()
        self.assertEqual([], [line for line in lines if not line.startswith(program)])
        return status, out.getvalue(), [line.removeprefix(program) for line in lines]

    def write(self, name: str, text: str) -> Path:
        """A file beside the data directory."""
        path = self.folder / name
        path.write_text(text)
        return path


class CheckTests(ConfigCase):
    """C{rest-server config check}."""

    def check(self, *flags: str) -> tuple[int, list[str]]:
        """Status and lines, for the data directory."""
        status, out, lines = self.run_config("check", "--path", str(self.data), *flags)
        self.assertEqual("no problem found\n" if status == 0 else "", out)
        return status, lines

    def refused(self, *flags: str) -> list[str]:
        """The lines of a configuration with problems; a server's own start ends with one of them."""
        status, lines = self.check(*flags)
        self.assertEqual(1, status)
        return lines

    def test_right(self) -> None:
        """Nothing to report, and nothing is created."""
        before = sorted(self.folder.rglob("*"))
        flags = ("--log", str(self.folder / "access.log"), "--state-dir", str(self.folder / "a" / "b"))
        self.assertEqual((0, []), self.check(*flags))
        self.assertEqual((0, []), self.check("--workers=2", "--listen", "systemd:domain=INET:index=0"))
        self.assertEqual(before, sorted(self.folder.rglob("*")))
        status, _, _ = self.run_config("check", "--path", str(self.folder / "new" / "data"), "--no-auth")
        self.assertEqual(0, status)
        self.assertEqual(before, sorted(self.folder.rglob("*")))

    def test_warnings(self) -> None:
        """What the server would only log is no problem."""
        with (self.data / ".htpasswd").open("ab") as file:
            file.write(b"bob:plain\n")
        status, lines = self.check("--prometheus-no-auth")
        self.assertEqual(0, status)
        self.assertEqual(
            "warning: --prometheus-no-auth has no effect without --prometheus or --metrics-listen", lines[0]
        )
        self.assertTrue(lines[1].startswith("warning: Invalid htpasswd entry for bob."), lines)
        self.assertEqual(2, len(lines))

    def test_same_as_the_server(self) -> None:
        """The server's start is refused with the same line."""
        broken = self.write("policy.toml", "[[rule]]\nusers = 3\n")
        empty = self.write("empty.pem", "")
        for flags in (
            ("--policy", str(broken)),
            ("--policy", str(self.folder / "none.toml")),
            ("--htpasswd-file", str(self.folder / "none")),
            ("--htpasswd-file", str(self.data)),
            ("--tls",),
            ("--tls", "--tls-cert", str(empty), "--tls-key", str(empty)),
            ("--cpu-profile", str(self.folder)),
            ("--cpu-profile", str(self.folder / "none" / "x")),
            ("--log", str(self.folder)),
            ("--log", str(self.folder / "none" / "x")),
            ("--state-dir", str(broken)),
            ("--state-dir", str(broken / "x")),
            ("--listen", "nonsense"),
            ("--listen", "unix:@x"),
            ("--listen", "tcp:x"),
            ("--listen", "haproxy:unix:/x:mode=9"),
            ("--listen", f"unix:/{'x' * 108}"),
            ("--metrics-listen", ":99999"),
            ("--no-auth", "--path", str(broken)),
            ("--no-auth", "--path", str(broken / "x")),
        ):
            lines = self.refused(*flags)
            self.assertEqual([self.line_of_the_start("--path", str(self.data), *flags)], lines, flags)

    def line_of_the_start(self, *flags: str) -> str:
        """What a start says that fails; it comes no further than the listeners, which have no port."""
        options = Options()
        options.parseOptions(flags if "--listen" in flags else [*flags, "--listen=127.0.0.1:0"])
        try:
            server = ResticServer(options.settings, MemoryReactorClock(), options.where_it_stands)  # type: ignore[arg-type]
        except StartError as error:
            return options.where_it_stands(str(error))
        self.addCleanup(server._give_up)
        error_: Any = self.assertRaises((StartError, OSError), server._open)
        return options.where_it_stands(str(error_))

    def test_certificates(self) -> None:
        """Right ones, and a key that is another's."""
        (self.folder / "other").mkdir()
        one, other = make_certificate(self.folder), make_certificate(self.folder / "other")
        self.assertEqual((0, []), self.check("--tls", *one.flags))
        lines = self.refused("--tls", "--tls-cert", str(one.certificate), "--tls-key", str(other.key))
        self.assertEqual(1, len(lines))
        self.assertIn("does not match the certificate", lines[0])

    def test_several(self) -> None:
        """Each problem has a line, with the place where the flag was set."""
        file = self.write(
            "server.toml",
            f'colour = "red"\nlisten = [":1", "nonsense", ":99999"]\npolicy = "{self.folder}/none"\nworkers = 0\n',
        )
        self.assertEqual(
            [
                f"{file}: colour: unknown key; the keys are the flags of --help, without the leading dashes",
                f"{file}: workers 0: must be a number from 1 to 128, or auto",
                f"{file}: policy: cannot load the policy {self.folder}/none: No such file or directory",
                f"{file}: listen nonsense: neither host:port nor unix:/path nor an endpoint string",
                f"{file}: listen :99999: the port must be from 0 to 65535",
            ],
            self.refused("--config", str(file)),
        )

    def test_consequences(self) -> None:
        """What only follows from a flag that cannot be used is not reported."""
        (self.data / ".htpasswd").unlink()
        status, _, lines = self.run_config("check", "--path=s3://bucket", "--tls")
        self.assertEqual((1, [WITHOUT_STATE]), (status, lines[:1]))
        self.assertEqual([], [line for line in lines[1:] if not line.startswith("warning: ")])

    def test_missing_volume(self) -> None:
        """Users on a volume that is not mounted are no reason not to start, as for the server."""
        state = self.folder / "state"
        state.mkdir()
        (state / "volume-id").write_bytes(b"0123\n")
        (self.data / ".htpasswd").unlink()
        status, lines = self.check("--state-dir", str(state))
        self.assertEqual(0, status, lines)
        self.assertTrue(all("no volume is at" in line for line in lines), lines)

    @skipped(None if os.geteuid() == 0 else "needs root")
    def test_rights(self) -> None:
        """What the user of the command may not read or write is reported."""
        self.folder.chmod(0o755)
        self.data.chmod(0o755)
        (self.data / ".htpasswd").chmod(0o600)
        log = self.write("access.log", "")
        log.chmod(0o644)
        os.seteuid(65534)
        try:
            lines = self.refused("--log", str(log), "--state-dir", str(self.folder / "state"))
        finally:
            os.seteuid(0)
        denied = "Permission denied"
        self.assertEqual(
            [
                f"--state-dir: cannot use the state directory {self.folder}/state: {denied} ({self.folder} cannot be written)",
                f"--path: cannot use the data directory {self.data}: {denied}",
                f"--log: cannot open {log}: {denied}",
            ],
            [line for line in lines if not line.startswith("--htpasswd-file")],
        )
        self.assertIn(f"--htpasswd-file: cannot load {self.data}/.htpasswd: {denied}", str(lines))

    def test_usage(self) -> None:
        """A wrong command line has status 2."""
        for arguments, words in (
            ((), "required: COMMAND"),
            (("look",), "invalid choice"),
            (("check", "--bogus"), "unknown flag: --bogus"),
            (("check", "--json"), "unknown flag: --json"),
            (("check", "x"), "unexpected argument: x"),
            (("check", "--path"), "flag needs an argument: --path"),
            (("show", "--no-auth=perhaps"), "only true and false"),
            (("show", "--version"), "--version"),
        ):
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = config.main(arguments)
            self.assertEqual(2, status, arguments)
            self.assertIn(words, err.getvalue())
            self.assertEqual((1, ""), (err.getvalue().count("\n"), out.getvalue()))

    def test_help(self) -> None:
        """The flags of the server are there; a value may look like --help."""
        for command in ("check", "show"):
            status, out, _ = self.run_config(command, "--path", str(self.data), "--help")
            self.assertEqual(0, status)
            self.assertIn("--tls-client-ca FILE", out)
            self.assertEqual(command == "show", "--changed" in out)
        self.assertEqual(1, self.run_config("check", "--policy", "--help", "--path", str(self.data))[0])


class ShowTests(ConfigCase):
    """C{rest-server config show}."""

    def show(self, *arguments: str) -> dict[str, Any]:
        """The document."""
        status, out, lines = self.run_config("show", "--json", *arguments)
        self.assertEqual((0, []), (status, lines))
        document: dict[str, Any] = json.loads(out)
        return document

    def test_document(self) -> None:
        """All flags with value, origin and place; only those that are set with --changed."""
        file = self.write("server.toml", 'max-size = "1MB"\non-event = "cat --token secret"\n')
        self.patch(os, "environ", {**os.environ, "REST_SERVER_LISTEN": ":1 :2", "REST_SERVER_CONFIG": str(file)})
        changed = self.show("--changed", "--debug", "--path", "--json")
        self.assertEqual(
            {
                "debug": {"value": True, "origin": "command line", "place": "--debug"},
                "config": {"value": str(file), "origin": "environment", "place": "REST_SERVER_CONFIG"},
                "path": {"value": os.path.abspath("--json"), "origin": "command line", "place": "--path"},
                "max-size": {"value": "1MB", "origin": "file", "place": f"{file}: max-size"},
                "on-event": {"value": "cat (hidden)", "origin": "file", "place": f"{file}: on-event"},
                "listen": {"value": [":1", ":2"], "origin": "environment", "place": "REST_SERVER_LISTEN"},
            },
            changed,
        )
        everything = self.show("--debug", "--path", "--json")
        self.assertEqual(changed, {flag: everything[flag] for flag in changed})
        self.assertEqual({"value": "2", "origin": "default"}, everything["max-depth"])

    def test_table(self) -> None:
        """The same for people."""
        file = self.write("server.toml", 'max-size = "1MB"\n')
        status, out, _ = self.run_config("show", "--changed", "--config", str(file), "--tls=false", "--listen=:1")
        rows = [line.split(maxsplit=2) for line in out.splitlines()]
        self.assertEqual(
            [
                ["FLAG", "VALUE", "ORIGIN"],
                ["tls", "false", "command line"],
                ["config", str(file), "command line"],
                ["max-size", "1MB", f"{file}: max-size"],
                ["listen", ":1", "command line"],
            ],
            rows,
        )
        self.assertEqual(0, status)
        self.assertIn("policy ", self.run_config("show")[1])

    def test_problems(self) -> None:
        """A bad value is shown, and said to be bad; without a readable file nothing is shown."""
        status, out, lines = self.run_config("show", "--changed", "--max-size=5 lots")
        self.assertEqual((1, ["--max-size '5 lots' is not a size, such as 500GiB"]), (status, lines))
        self.assertIn("max-size  5 lots  command line", out)
        status, out, lines = self.run_config("show", "--config=/nowhere")
        self.assertEqual((1, "", ["--config: cannot read /nowhere: No such file or directory"]), (status, out, lines))
