"""
Flags from a file and from the environment: each flag in each of them, which one holds, and what is said of bad ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.options import Options
from resticserver.config.settings import Settings
from resticserver.config.sources import FlagNames, from_file, variable

from .test_options import FLAGS, SWITCHES


class ConfigurationCase(SynchronousTestCase):
    """A file and an environment."""

    def setUp(self) -> None:
        for name in list(os.environ):
            if name.startswith("REST_SERVER_"):
                self.patch(
                    os,
                    "environ",
                    {key: value for key, value in os.environ.items() if not key.startswith("REST_SERVER_")},
                )
        self.file = Path(self.mktemp()).absolute()

    def write(self, text: str) -> None:
        """The file."""
        self.file.write_text(text)

    def settings(
        self, *arguments: str, file: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Settings:
        """What holds."""
        self.patch(os, "environ", {**os.environ, **(environment or {})})
        if file is not None:
            self.write(file)
            arguments = ("--config", str(self.file), *arguments)
        options = Options()
        options.parseOptions(arguments)
        settings: Settings = options.settings
        return settings

    def refused(self, *arguments: str, file: str | None = None, environment: Mapping[str, str] | None = None) -> str:
        """The one line that says what is wrong."""
        with self.assertRaises(SystemExit) as caught:
            self.settings(*arguments, file=file, environment=environment)
        message = str(caught.exception.code)
        self.assertNotIn("\n", message)
        self.assertTrue(message.startswith("rest-server: "), message)
        return message.removeprefix("rest-server: ")


class SameTests(ConfigurationCase):
    """Each flag means the same wherever it is given."""

    def test_each(self) -> None:
        """All flags that the command line's own test has, in a file and in the environment."""
        tried = 0
        for arguments, _ in FLAGS:
            wanted = self.settings(*arguments)
            given: dict[str, list[str | bool]] = {}
            left = iter(arguments)
            for argument in left:
                name, equals, value = argument.removeprefix("--").partition("=")
                switch = f"--{name}" in dict(SWITCHES)
                given.setdefault(name, []).append(
                    (value != "false" if equals else True) if switch else value if equals else next(left)
                )
            if any(len(values) > 1 and name not in ("listen", "trusted-proxy") for name, values in given.items()):
                continue
            if {"help", "version"} & given.keys() or any(value == "" for values in given.values() for value in values):
                continue
            tried += 1
            lines, variables = [], {}
            for name, values in given.items():
                if isinstance(values[0], bool):
                    lines.append(f"{name} = {str(values[0]).lower()}")
                    variables[variable(name)] = str(values[0]).lower()
                else:
                    texts = [f"'{value}'" if "'" not in str(value) else f'"{value}"' for value in values]
                    several = name in ("listen", "trusted-proxy")
                    lines.append(f"{name} = [{', '.join(texts)}]" if several else f"{name} = {texts[0]}")
                    variables[variable(name)] = " ".join(map(str, values)) if several else str(values[0])
            self.assertEqual(wanted, self.settings(file="\n".join(lines)), lines)
            before = dict(os.environ)
            self.assertEqual(wanted, self.settings(environment=variables), variables)
            self.patch(os, "environ", before)
        self.assertGreater(tried, 30)

    def test_switches(self) -> None:
        """Each can be switched on and off, but where it makes no sense alone."""
        for flag, name in SWITCHES:
            key = flag.removeprefix("--")
            self.assertTrue(getattr(self.settings(file=f"{key} = true"), name), flag)
            self.assertFalse(getattr(self.settings(file=f"{key} = false"), name), flag)
            before = dict(os.environ)
            self.assertTrue(getattr(self.settings(environment={variable(key): "1"}), name), flag)
            self.assertFalse(getattr(self.settings(environment={variable(key): "False"}), name), flag)
            self.patch(os, "environ", before)

    def test_numbers(self) -> None:
        """Numbers need no quotes in a file."""
        settings = self.settings(file="workers = 3\nmax-size = 1000000\nshutdown-timeout = 2.5\nmax-depth = 0")
        self.assertEqual(
            (3, 1_000_000, 2.5, 0),
            (settings.workers, settings.max_size_bytes, settings.shutdown_timeout_s, settings.max_depth),
        )

    def test_file_named_by_the_environment(self) -> None:
        """C{REST_SERVER_CONFIG}, unless the command line names another one."""
        self.write("max-size = '1KiB'")
        environment = {"REST_SERVER_CONFIG": str(self.file)}
        self.assertEqual(1024, self.settings(environment=environment).max_size_bytes)
        other = Path(self.mktemp())
        other.write_text("max-size = '2KiB'")
        self.assertEqual(2048, self.settings(f"--config={other}", environment=environment).max_size_bytes)


class ExampleTests(ConfigurationCase):
    """C{etc/rest-server.toml}."""

    def test_example(self) -> None:
        """It holds as it is, and with everything that is commented out in it."""
        text = (Path(__file__).parents[2] / "etc" / "rest-server.toml").read_text()
        self.assertEqual("/var/lib/restic", self.settings(file=text).path)
        settings = self.settings(file=re.sub("^#(?=[a-z-]+ = )", "", text, flags=re.MULTILINE))
        self.assertEqual(
            (True, True, 2 << 40, 5.0),
            (settings.tls, settings.append_only, settings.max_size_bytes, settings.min_free_percent),
        )
        self.assertEqual("127.0.0.1:9100", settings.metrics_listen)


class OrderTests(ConfigurationCase):
    """The command line, then the environment, then the file."""

    def test_order(self) -> None:
        """A value, a list as a whole, and a switch, also one that is switched off."""
        file = "max-size = '1KiB'\nlisten = [':1', ':2']\nappend-only = true\nmax-depth = 5"
        environment = {
            "REST_SERVER_MAX_SIZE": "2KiB",
            "REST_SERVER_LISTEN": ":3 unix:'/with space'",
            "REST_SERVER_APPEND_ONLY": "false",
        }
        settings = self.settings(file=file)
        self.assertEqual((1024, (":1", ":2"), True, 5), self.parts(settings))
        settings = self.settings(file=file, environment=environment)
        self.assertEqual((2048, (":3", "unix:/with space"), False, 5), self.parts(settings))
        settings = self.settings(
            "--max-size", "3KiB", "--listen", ":4", "--append-only", file=file, environment=environment
        )
        self.assertEqual((3072, (":4",), True, 5), self.parts(settings))
        self.assertFalse(self.settings("--append-only=false", file=file, environment={}).append_only)

    @staticmethod
    def parts(settings: Settings) -> tuple[object, ...]:
        """What is looked at."""
        return settings.max_size_bytes, settings.listen, settings.append_only, settings.max_depth

    def test_together(self) -> None:
        """What needs each other may be given in different places."""
        settings = self.settings("--tls", file="tls-cert = '/c.pem'", environment={"REST_SERVER_TLS_KEY": "/k.pem"})
        self.assertEqual((True, "/c.pem", "/k.pem"), (settings.tls, settings.tls_cert, settings.tls_key))


#: A value that cannot be, for every flag that can be refused before anything is opened, and flags that it has to stand with.
BAD: dict[str, tuple[str, ...]] = {
    **{flag.removeprefix("--"): ("perhaps",) for flag, _ in SWITCHES},
    "path": ("s3://x",),
    "state-dir": ("s3://bucket",),
    "htpasswd-file": ("https://host/users",),
    "policy": ("https://host/policy",),
    "tls-cert": ("https://host/cert", "--tls"),
    "tls-key": ("https://host/key", "--tls"),
    "tls-client-ca": ("https://host/ca", "--tls"),
    "tls-client-auth": ("perhaps", "--tls", "--tls-client-ca=x"),
    "tls-client-user": ("perhaps", "--tls", "--tls-client-ca=x"),
    "tls-min-ver": ("1.1", "--tls"),
    "log": ("syslog://host",),
    "log-format": ("xml", "--log=-"),
    "cpu-profile": ("https://host/profile",),
    "max-depth": ("many",),
    "proxy-prefix": ("backup",),
    "proxy-auth-username": ("not a header",),
    "trusted-proxy": ("nobody",),
    "auth-failures": ("many",),
    "header-timeout": ("soon",),
    "stall-timeout": ("0",),
    "max-connections": ("many",),
    "max-connections-per-address": ("many",),
    "max-object-size": ("lots",),
    "max-uploads": ("many",),
    "bandwidth": ("1",),
    "bandwidth-up": ("lots",),
    "bandwidth-down": ("lots",),
    "max-size": ("lots",),
    "min-free": ("lots",),
    "delete-delay": ("soon",),
    "spool-dir": ("s3://bucket",),
    "spool-size": ("lots",),
    "scrub-interval": ("monthly",),
    "scrub-rate": ("fast",),
    "warn-snapshot-age": ("never",),
    "warn-first-snapshot": ("tomorrow",),
    "warn-lock-age": ("-1",),
    "warn-quota": ("101%",),
    "warn-disk": ("full",),
    "warn-certificate": ("soon",),
    "warn-scrub": ("0.5",),
    "on-event": ("/no/such/program",),
    "workers": ("many",),
    "shutdown-timeout": ("soon",),
}
#: What is refused only when it is opened (tests.integration.test_starting has them).
LATER = {"listen", "metrics-listen", "config"}


class EverywhereTests(ConfigurationCase):
    """The line names the flag, the variable, or the file and its key: where the bad value was given."""

    def test_each(self) -> None:
        """Every flag in all three places."""
        options = {str(row[0]) for row in (*Options.optFlags, *Options.optParameters)} | {"listen", "trusted-proxy"}
        self.assertEqual(options, BAD.keys() | LATER)
        for flag, (value, *others) in BAD.items():
            line = self.refused(f"--{flag}={value}", *others)
            self.assertRegex(line, f"^--{flag}\\b")
            self.assertRegex(
                self.refused(*others, file=f"{flag} = '{value}'"), f"^{re.escape(str(self.file))}: {flag}\\b"
            )
            before = dict(os.environ)
            line = self.refused(
                *others, environment={variable(flag): f"'{value}'" if flag == "trusted-proxy" else value}
            )
            self.assertRegex(line, f"^{variable(flag)}\\b")
            self.patch(os, "environ", before)

    def test_together(self) -> None:
        """The same where two flags do not go together."""
        environment = {"REST_SERVER_PRIVATE_REPOS": "true"}
        before = dict(os.environ)
        self.assertTrue(
            self.refused("--no-auth", environment=environment).startswith(
                "REST_SERVER_PRIVATE_REPOS cannot be combined with --no-auth"
            )
        )
        self.patch(os, "environ", before)
        self.assertTrue(
            self.refused("--no-auth", file="policy = '/x'").startswith(
                f"{self.file}: policy cannot be combined with --no-auth"
            )
        )


class RefusedTests(ConfigurationCase):
    """One line that says what is wrong and where it stands."""

    def test_file(self) -> None:
        """Keys, types, values, and text that is no TOML."""
        for text, wanted in (
            ("max_size = '1'", "max_size: unknown key"),
            ("[server]\npath = '/x'", "server: unknown key"),
            ("config = 'x'", "config: unknown key"),
            ("help = true", "help: unknown key"),
            ("no-auth = 'true'", "no-auth: must be true or false, without quotes"),
            ("no-auth = 1", "no-auth: must be true or false, without quotes"),
            ("max-size = true", "max-size: must be a string in quotes or a number"),
            ("max-size = ['1']", "max-size: must be one value, not a list"),
            ("listen = [[':1']]", "listen: must be a string in quotes or a number"),
            ("policy = ''", "policy: it is empty"),
            ("max-size = '5 lots'", "max-size '5 lots' is not a size"),
            ("tls-cert = 'x'", "tls-cert needs --tls"),
            ("workers = 0", "workers 0: must be a number from 1"),
            ("path = /x", "Invalid value (at line 1, column 8)"),
            ("path = '/x'\npath = '/y'", "Cannot overwrite a value"),
            ("a = " + "[" * 5000, ""),
        ):
            message = self.refused(file=text)
            self.assertTrue(message.startswith(f"{self.file}: {wanted}"), message)

    def test_not_read(self) -> None:
        """Files that are none, and a flag without a name."""
        for path, reason in (
            ("/nowhere/x.toml", "No such file"),
            ("/", "Is a directory"),
            ("/dev/null", "not a regular file"),
        ):
            self.assertIn(f"--config: cannot read {path}: {reason}", self.refused("--config", path))
        self.assertIn("must not be empty", self.refused("--config="))
        self.file.write_bytes(b"path = '\xff'")
        self.assertIn("not UTF-8", self.refused("--config", str(self.file)))

    def test_environment(self) -> None:
        """The variable is named."""
        for name, value, wanted in (
            ("MAX_SIZE", "5 lots", "REST_SERVER_MAX_SIZE '5 lots' is not a size"),
            ("NO_AUTH", "perhaps", "REST_SERVER_NO_AUTH=perhaps: only true and false are allowed"),
            ("POLICY", "", "REST_SERVER_POLICY is empty"),
            ("LISTEN", "'x", "REST_SERVER_LISTEN: No closing quotation"),
            ("TLS_KEY", "/k", "REST_SERVER_TLS_KEY needs --tls"),
            ("CONFIG", "", "REST_SERVER_CONFIG must not be empty"),
            ("CONFIG", "/nowhere", "REST_SERVER_CONFIG: cannot read /nowhere: No such file or directory"),
        ):
            before = dict(os.environ)
            self.assertIn(wanted, self.refused(environment={f"REST_SERVER_{name}": value}))
            self.patch(os, "environ", before)

    def test_flags_are_named_as_flags(self) -> None:
        """A bad flag is not blamed on the file that has the same key."""
        self.assertTrue(self.refused("--max-size", "x", file="max-size = '1KiB'").startswith("--max-size 'x' is"))

    def test_names_of_others(self) -> None:
        """Kubernetes makes such variables, for a service that is called rest-server."""
        settings = self.settings(
            environment={
                "REST_SERVER_PORT": "tcp://10.0.0.1:8000",
                "REST_SERVER_SERVICE_HOST": "10.0.0.1",
                "REST_SERVER_PORT_8000_TCP_ADDR": "10.0.0.1",
            }
        )
        self.assertEqual(self.settings(), settings)

    def test_help_and_version(self) -> None:
        """They do without a file that is broken."""
        for flag in ("--help", "--version", "-h", "-v"):
            with self.assertRaises(SystemExit) as caught:
                self.settings(flag, "--config", "/nowhere")
            self.assertEqual(0, caught.exception.code)


class FileTests(SynchronousTestCase):
    """L{from_file}."""

    def test_source(self) -> None:
        """What is given says where it stands."""
        path = Path(self.mktemp())
        path.write_text("a = true\nb = ['x', 1]\nc = 2.5\n")
        found = from_file(str(path), FlagNames(frozenset("a"), frozenset("b"), frozenset("c")))
        self.assertEqual(
            {"a": ("true",), "b": ("x", "1"), "c": ("2.5",)}, {key: given.values for key, given in found.items()}
        )
        self.assertEqual(f"{path}: b", found["b"].source)
