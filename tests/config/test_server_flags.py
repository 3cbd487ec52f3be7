"""
L{resticserver.config.server_flags}: the subcommands have the server's settings.
"""

from __future__ import annotations

import argparse
import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.console import OneLineParser
from resticserver.config.server_flags import add_server_flags, server_settings
from resticserver.sizes import Limit


class ServerFlagsTests(SynchronousTestCase):
    """Where the values come from."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.file.write_text('path = "/srv/file"\nmax-size = "1MB"\nno-auth = true\n')

    def asked(self, *arguments: str) -> argparse.Namespace:
        """Parsed arguments of a subcommand."""
        parser = OneLineParser("rest-server try")
        add_server_flags(parser, "path", "max-size", "max-depth")
        return parser.parse_args(arguments)

    def test_order(self) -> None:
        """The command line comes before the environment, and that before the file."""
        named = {"REST_SERVER_CONFIG": str(self.file)}
        for environment, arguments, path in (
            (named, (), "/srv/file"),
            ({}, ("--config", str(self.file)), "/srv/file"),
            ({**named, "REST_SERVER_PATH": "/srv/environment"}, (), "/srv/environment"),
            ({**named, "REST_SERVER_PATH": "/srv/environment"}, ("--path", "/srv/flag"), "/srv/flag"),
        ):
            with patch.dict(os.environ, environment, clear=True):
                settings = server_settings(self.asked(*arguments), "rest-server try")
            self.assertEqual((path, Limit(1_000_000)), (settings.path, settings.limit))

    def test_nothing_set(self) -> None:
        """Without any of them the server's defaults apply."""
        with patch.dict(os.environ, {}, clear=True):
            settings = server_settings(self.asked(), "rest-server try")
        self.assertEqual(("/tmp/restic", Limit(), 2), (settings.path, settings.limit, settings.max_depth))

    def test_object_store(self) -> None:
        """A command on a bucket needs no users, as the server does; it needs a state directory."""
        parser = OneLineParser("rest-server try")
        add_server_flags(parser, "path", "state-dir")
        with patch.dict(os.environ, {}, clear=True):
            asked = parser.parse_args(["--path=s3://bucket/x", "--state-dir=/var/lib/x"])
            settings = server_settings(asked, "rest-server try")
            self.assertEqual(("s3://bucket/x", "/var/lib/x"), (settings.path, settings.state_dir))
            with redirect_stderr(io.StringIO()) as err, self.assertRaises(SystemExit):
                server_settings(parser.parse_args(["--path=s3://bucket/x"]), "rest-server try")
        self.assertIn("an object store needs --state-dir", err.getvalue())

    def test_refused(self) -> None:
        """What the server refuses is refused here, in one line that names the place, with status 2."""
        with self.file.open("a") as file:
            file.write('colour = "red"\n')
        for arguments, words in (
            (("--config", str(self.file)), f"rest-server try: {self.file}: colour: unknown key"),
            (("--config", "/none"), "rest-server try: --config: cannot read /none: No such file"),
            (("--max-depth", "99"), "rest-server try: --max-depth 99"),
        ):
            err = io.StringIO()
            with patch.dict(os.environ, {}, clear=True), redirect_stderr(err):
                error = self.assertRaises(SystemExit, server_settings, self.asked(*arguments), "rest-server try")
            self.assertEqual(2, error.code)
            self.assertTrue(err.getvalue().startswith(words), err.getvalue())
            self.assertEqual(1, len(err.getvalue().splitlines()))
