"""
L{InspectedOptions}: every problem that the server would end with, one after the other, and the origin of each value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.inspection import COMMAND_LINE, DEFAULT, ENVIRONMENT, FILE, FlagValue, InspectedOptions
from resticserver.config.options import Options
from resticserver.config.settings import Settings

from .test_options import ERRORS, FLAGS


class InspectionCase(SynchronousTestCase):
    """A command line, an environment and a file."""

    def setUp(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REST_SERVER_")}
        self.patch(os, "environ", clean)
        self.file = Path(self.mktemp()).absolute()

    def inspected(
        self, *arguments: str, file: str | None = None, environment: Mapping[str, str] | None = None
    ) -> InspectedOptions:
        """What was found."""
        self.patch(os, "environ", {**os.environ, **(environment or {})})
        if file is not None:
            self.file.write_text(file)
            arguments = ("--config", str(self.file), *arguments)
        options = InspectedOptions()
        options.inspect(arguments)
        return options


class ProblemTests(InspectionCase):
    """L{InspectedOptions.inspect}."""

    def test_same_settings(self) -> None:
        """Without problems the settings are the server's."""
        for arguments, _ in FLAGS:
            if "--help=false" in arguments:
                continue
            options = Options()
            options.parseOptions(arguments)
            wanted: Settings = options.settings
            inspected = self.inspected(*arguments)
            self.assertEqual((wanted, [], True), (inspected.settings, inspected.problems, inspected.complete))

    def test_same_lines(self) -> None:
        """Of a wrong flag it says what the server says, here first."""
        for arguments, _ in ERRORS:
            options = Options()
            with self.assertRaises(SystemExit) as caught:
                options.parseOptions(arguments)
            line = str(caught.exception.code).removeprefix("rest-server: ")
            try:
                found = self.inspected(*arguments).problems[:1]
            except UsageError as error:
                found = [str(error)]
            self.assertEqual([line], found, arguments)

    def test_all(self) -> None:
        """Each problem of each place has its line, and what is right holds."""
        options = self.inspected(
            "--shutdown-timeout=soon",
            "--tls-client-auth=perhaps",
            file='max-sise = "1"\nno-auth = "yes"\nmax-size = "5 lots"\nmax-depth = 3\nlisten = [""]\n',
            environment={"REST_SERVER_POLICY": " ", "REST_SERVER_DEBUG": "perhaps", "REST_SERVER_LISTEN": "'x"},
        )
        self.assertEqual(
            [
                "REST_SERVER_LISTEN: No closing quotation",
                "REST_SERVER_POLICY is empty: set it to a value, or unset it",
                f"{self.file}: max-sise: unknown key; the keys are the flags of --help, without the leading dashes",
                f"{self.file}: no-auth: must be true or false, without quotes",
                f"{self.file}: listen: it is empty: set it to a value, or remove the key",
                "REST_SERVER_DEBUG=perhaps: only true and false are allowed",
                "--tls-client-auth needs --tls-client-ca",
                f"{self.file}: max-size '5 lots' is not a size, such as 500GiB",
                "--shutdown-timeout soon: must be a number of seconds",
            ],
            options.problems,
        )
        self.assertEqual((3, 0), (options.settings.max_depth, options.settings.max_size_bytes))
        self.assertEqual({"tls-client-auth", "max-size", "shutdown-timeout"}, options.ignored)

    def test_contradictions(self) -> None:
        """Several contradictions of one flag, and a repeatable flag with a bad value."""
        options = self.inspected(
            "--no-auth", "--private-repos", "--policy=p", "--trusted-proxy=x", "--trusted-proxy=::1"
        )
        self.assertEqual(
            [
                "--private-repos cannot be combined with --no-auth, because it needs users",
                "--policy cannot be combined with --no-auth, because it needs users",
                "--trusted-proxy x: neither an address nor a network",
            ],
            options.problems,
        )
        self.assertIs(None, options.settings.trusted_proxies)

    def test_no_file(self) -> None:
        """A file that cannot be read is the only problem: nothing is known of the rest."""
        options = self.inspected("--config=/nowhere", "--max-size=x")
        self.assertEqual("--config: cannot read /nowhere: No such file or directory", options.problems[0])
        self.assertFalse(options.complete)
        options = self.inspected(file="a = [")
        self.assertEqual(1, len(options.problems))
        self.assertFalse(options.complete)

    def test_usage(self) -> None:
        """What is no command line of a server."""
        for arguments in (("--bogus",), ("x",), ("--path",), ("--version",), ("-v",), ("-x",)):
            self.assertRaises(UsageError, self.inspected, *arguments)

    def test_no_secrets_in_problems(self) -> None:
        """A command that cannot be used is named without its arguments, a URL without its password."""
        for flag, value in (
            ("--on-event", "/no/such --token secret"),
            ("--on-event", "cat 'secret"),
            ("--path", "rest:https://alice:secret@example.org/"),
        ):
            with self.assertRaises(SystemExit) as caught:
                Options().parseOptions([flag, value])
            problems = self.inspected(flag, value).problems
            self.assertEqual([str(caught.exception.code).removeprefix("rest-server: ")], problems)
            self.assertNotIn("secret", problems[0])


class ValueTests(InspectionCase):
    """L{InspectedOptions.flag_values}."""

    def value(self, flag: str, *arguments: str, **named: str | Mapping[str, str]) -> FlagValue:
        """The value of one flag."""
        values = self.inspected(*arguments, **named).flag_values()  # type: ignore[arg-type]
        return next(one for one in values if one.flag == flag)

    def test_all_flags(self) -> None:
        """Every flag has one value."""
        flags = [one.flag for one in self.inspected().flag_values()]
        expected = {str(flag[0]) for flag in (*Options.optFlags, *Options.optParameters)} | {"listen", "trusted-proxy"}
        self.assertEqual(sorted(expected), sorted(flags))
        self.assertEqual({DEFAULT}, {one.origin for one in self.inspected().flag_values()})

    def test_origins(self) -> None:
        """The command line wins over the environment, the environment over the file."""
        file = 'path = "/file"\nmax-depth = 3\nno-auth = true\nlisten = [":1", ":2"]\n'
        environment = {"REST_SERVER_PATH": "/environment", "REST_SERVER_MAX_DEPTH": "4"}
        for flag, arguments, wanted in (
            ("path", ("--path", "/line"), ("/line", COMMAND_LINE, "--path")),
            ("path", (), ("/environment", ENVIRONMENT, "REST_SERVER_PATH")),
            ("max-depth", (), ("4", ENVIRONMENT, "REST_SERVER_MAX_DEPTH")),
            ("no-auth", (), (True, FILE, f"{self.file}: no-auth")),
            ("no-auth", ("--no-auth=false",), (False, COMMAND_LINE, "--no-auth")),
            ("listen", (), ((":1", ":2"), FILE, f"{self.file}: listen")),
            ("config", (), (str(self.file), COMMAND_LINE, "--config")),
            ("workers", (), ("1", DEFAULT, "")),
            ("debug", (), (False, DEFAULT, "")),
        ):
            self.assertEqual(FlagValue(flag, *wanted), self.value(flag, *arguments, file=file, environment=environment))

    def test_config_from_environment(self) -> None:
        """The file itself may be named by a variable."""
        self.file.write_text("")
        found = self.value("config", environment={"REST_SERVER_CONFIG": str(self.file)})
        self.assertEqual(FlagValue("config", str(self.file), ENVIRONMENT, "REST_SERVER_CONFIG"), found)

    def test_defaults(self) -> None:
        """A default that follows from other flags is the value that the server uses."""
        self.assertEqual((":8000",), self.value("listen").value)
        self.assertEqual("/srv/.htpasswd", self.value("htpasswd-file", "--path=/srv").value)
        self.assertEqual(None, self.value("htpasswd-file", "--path=/srv", "--no-auth").value)
        self.assertEqual("/srv/private_key", self.value("tls-key", "--path=/srv", "--tls").value)
        self.assertEqual(None, self.value("tls-key", "--path=/srv").value)
        self.assertEqual("/srv/.rest-server", self.value("state-dir", "--path=/srv").value)
        self.assertEqual("5M", self.value("bandwidth-up", "--bandwidth=5M").value)
        self.assertEqual(("127.0.0.0/8", "::1/128"), self.value("trusted-proxy").value)

    def test_absolute(self) -> None:
        """Relative paths are shown as the server uses them."""
        self.assertEqual(os.path.abspath("x"), self.value("path", "--path=x").value)
        self.assertEqual("-", self.value("log", "--log=-").value)

    def test_bad_values(self) -> None:
        """A value that cannot be used is shown as it was given."""
        self.assertEqual("5 lots", self.value("max-size", "--max-size=5 lots").value)
        self.assertEqual("s3://x", self.value("path", "--path=s3://x").value)
        self.assertEqual(("x",), self.value("trusted-proxy", "--trusted-proxy=x").value)

    def test_secrets(self) -> None:
        """Arguments of a command, and passwords in URLs, are hidden."""
        self.assertEqual("cat (hidden)", self.value("on-event", "--on-event=cat --token x").value)
        self.assertEqual("cat", self.value("on-event", "--on-event=cat").value)
        self.assertEqual("(hidden)", self.value("on-event", "--on-event=cat 'x").value)
        self.assertEqual("s3://(hidden)@host/x", self.value("policy", "--policy=s3://u:secret@host/x").value)
