"""
Credentials: where they are found, and how they change while the server runs.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.objects.credentials import OBSTORE_TTL, RELOAD_PAUSE_S, Credential, Credentials
from resticserver.objects.engine import AccessRefused

from ..support.processes import process_test
from .environment import aws_environment

NAME = "s3://bucket"


def profile(key: str, name: str = "default") -> str:
    """A profile in the credentials file."""
    return f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = geheim-{key}\n"


def credential(key: str, token: str | None = None) -> Credential:
    """What that profile has."""
    return Credential(key, f"geheim-{key}", token)


class CredentialsCase(SynchronousTestCase):
    """An environment of its own, and a clock for the pause between two reloads."""

    now = 1000.0

    def make(self) -> Credentials:
        """The credentials as they are found now."""
        return Credentials(NAME, clock=lambda: self.now)

    def assert_refused(self, *words: str) -> None:
        """There are none, in one line with these words."""
        message = str(self.assertRaises(StartError, self.make))
        self.assertTrue(message.startswith(f"--path: {NAME}: no credentials"), message)
        self.assertTrue(message.isprintable(), message)
        self.assertNotIn("geheim", message)
        for word in words:
            self.assertIn(word, message)


class SourceTests(CredentialsCase):
    """Where credentials come from."""

    def test_none(self) -> None:
        """The message names the usual variables and files."""
        aws_environment(self)
        self.assert_refused("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "~/.aws/credentials", "role")

    def test_environment(self) -> None:
        """The environment wins over the file."""
        home = aws_environment(self, AWS_ACCESS_KEY_ID="E", AWS_SECRET_ACCESS_KEY="geheim-E", AWS_SESSION_TOKEN="t")
        (home / ".aws/credentials").write_text(profile("F"))
        self.assertEqual(credential("E", "t"), self.make().current())

    def test_profiles(self) -> None:
        """The files have profiles; other files can be named."""
        home = aws_environment(self, AWS_PROFILE="backup")
        (home / ".aws/credentials").write_text(profile("F") + profile("B", "backup"))
        self.assertEqual(credential("B"), self.make().current())
        (home / "other").write_text(profile("O", "backup"))
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(home / "other")
        self.assertEqual(credential("O"), self.make().current())
        (home / "other").write_text("")
        os.environ["AWS_CONFIG_FILE"] = str(home / "config")
        (home / "config").write_text(profile("C", "profile backup"))
        self.assertEqual(credential("C"), self.make().current())

    def test_faults(self) -> None:
        """A profile that is missing, a file that cannot be read, a half of a pair: the message says so."""
        home = aws_environment(self, AWS_PROFILE="missing")
        self.assert_refused("missing", "could not be found")
        del os.environ["AWS_PROFILE"]
        (home / ".aws/credentials").write_text("[default\ngeheim")
        self.assert_refused(str(home / ".aws/credentials"))
        (home / ".aws/credentials").write_text("[default]\naws_access_key_id = geheim\n")
        self.assert_refused("aws_secret_access_key")

    def test_container(self) -> None:
        """The metadata of a container are asked; what expires soon is asked for again."""
        served: list[str] = []
        lifetimes = [timedelta(minutes=5), timedelta(hours=1)]

        class Metadata(BaseHTTPRequestHandler):
            """Each answer has another key."""

            def do_GET(self) -> None:
                """Answer with a key that is valid for the next of the times."""
                served.append(self.path)
                expires = datetime.now(UTC) + lifetimes[min(len(served), len(lifetimes)) - 1]
                body = json.dumps(
                    {
                        "AccessKeyId": f"M{len(served)}",
                        "SecretAccessKey": f"geheim-M{len(served)}",
                        "Token": "t",
                        "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        uri = f"http://127.0.0.1:{server.server_address[1]}/role"
        aws_environment(self, AWS_CONTAINER_CREDENTIALS_FULL_URI=uri)
        credentials = self.make()
        self.assertEqual(credential("M2", "t"), credentials.current())
        self.assertEqual(["/role"] * 2, served)
        self.assertTrue(credentials.reload())
        self.assertEqual(credential("M3", "t"), credentials.current())


class ChangeTests(CredentialsCase):
    """What happens when credentials change while they are in use."""

    def setUp(self) -> None:
        self.file = aws_environment(self) / ".aws/credentials"
        self.file.write_text(profile("A"))
        self.credentials = self.make()
        self.assertEqual(credential("A"), self.credentials.current())

    def replace(self, text: str) -> None:
        """Put another file in the place of the credentials."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    def test_replaced(self) -> None:
        """A file that is replaced or written anew is read for the next request."""
        self.replace(profile("B"))
        self.assertEqual(credential("B"), self.credentials.current())
        self.file.write_text(profile("CC"))
        self.assertEqual(credential("CC"), self.credentials.current())
        self.assertEqual("CC", self.credentials()["access_key_id"])

    def test_config_that_appears(self) -> None:
        """The other file is looked at as well, if it was not there before."""
        self.file.with_name("config").write_text("[default]\nregion = x\n")
        self.replace("")
        self.file.with_name("config").write_text(profile("C"))
        self.assertEqual(credential("C"), self.credentials.current())

    def test_unusable(self) -> None:
        """A file without valid credentials changes nothing, and is logged once, without its content."""
        for text in ("", "[default\ngeheim", "[default]\naws_access_key_id = geheim\n"):
            with capturedLogs() as logs:
                self.replace(text)
                self.assertEqual([credential("A")] * 3, [self.credentials.current() for _ in range(3)])
            (line,) = [formatEvent(event) for event in logs]
            self.assertIn(f"{NAME}: the credentials cannot be read again, the old ones stay in use: ", line)
            self.assertNotIn("geheim", line)
        self.file.unlink()
        self.assertEqual(credential("A"), self.credentials.current())
        self.replace(profile("B"))
        self.assertEqual(credential("B"), self.credentials.current())

    def test_refused(self) -> None:
        """After a refusal another try is worth it only if there are others now."""
        self.assertFalse(self.credentials.reload(credential("A")))
        self.assertFalse(self.credentials.reload())
        self.replace(profile("B"))
        self.assertTrue(self.credentials.reload(credential("A")))
        self.assertFalse(self.credentials.reload(credential("B")))

    def test_change_that_the_file_does_not_show(self) -> None:
        """After a refusal the file is read in any case, but not more often than every few seconds."""
        status = os.stat(self.file)

        def rewrite(key: str) -> None:
            self.file.write_text(profile(key))
            os.utime(self.file, ns=(status.st_atime_ns, status.st_mtime_ns))

        rewrite("B")
        self.assertEqual(credential("A"), self.credentials.current())
        self.assertTrue(self.credentials.reload())
        rewrite("C")
        self.assertFalse(self.credentials.reload())
        self.now += RELOAD_PAUSE_S
        self.assertTrue(self.credentials.reload())
        self.assertEqual(credential("C"), self.credentials.current())

    def test_threads(self) -> None:
        """Several threads see one change; none gets a mixture."""
        seen: set[Credential] = set()
        ended = threading.Event()

        def look() -> None:
            while not ended.is_set():
                seen.add(self.credentials.current())

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(20):
                self.replace(profile(f"K{number}"))
                self.credentials.current()
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        self.assertEqual(credential("K19"), self.credentials.current())
        self.assertTrue(seen <= {credential("A"), *(credential(f"K{number}") for number in range(20))})

    def test_expired(self) -> None:
        """Credentials that cannot be renewed are an error of the engine."""

        class Expired:
            """As botocore's object behaves."""

            def get_frozen_credentials(self) -> None:
                """Fail."""
                raise RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired.")

        self.credentials._source = Expired()
        error = self.assertRaises(AccessRefused, self.credentials.current)
        self.assertIn("cannot be renewed: Credentials were refreshed", error.detail)


class FormTests(CredentialsCase):
    """What others get."""

    def setUp(self) -> None:
        aws_environment(self, AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="geheim", AWS_SESSION_TOKEN="geheim2")
        self.credentials = self.make()

    def test_obstore(self) -> None:
        """obstore gets the pair, the token and a time after which it asks again."""
        given = self.credentials()
        expires = given.pop("expires_at")
        self.assertEqual({"access_key_id": "AKIA", "secret_access_key": "geheim", "token": "geheim2"}, given)
        # It asks again as soon as less than five minutes are left.
        self.assertTrue(timedelta(seconds=10) < OBSTORE_TTL < timedelta(minutes=5))
        self.assertTrue(timedelta(0) < expires - datetime.now(UTC) <= OBSTORE_TTL)

    def test_signature(self) -> None:
        """A signature names the key and the region, and changes with the query; the secret is not in it."""
        url = "http://127.0.0.1:9000/bucket?list-type=2&prefix=a%2Fb"
        headers = self.credentials.sign("GET", url, "eu-west-1")
        authorization = headers["Authorization"]
        self.assertRegex(authorization, r"Credential=AKIA/\d{8}/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-")
        self.assertEqual("geheim2", headers["X-Amz-Security-Token"])
        self.assertNotIn("geheim", authorization)
        other = self.credentials.sign("GET", f"{url}&x=1", "eu-west-1")
        self.assertNotEqual(authorization.rpartition("=")[2], other["Authorization"].rpartition("=")[2])

    def test_secrets_are_not_shown(self) -> None:
        """No object shows them, and the library logs them nowhere."""
        records: list[str] = []

        class Collect(logging.Handler):
            """Keeps what the root logger gets."""

            def emit(self, record: logging.LogRecord) -> None:
                """Keep it."""
                records.append(record.getMessage())

        handler = Collect(level=logging.INFO)
        logging.getLogger().addHandler(handler)
        self.addCleanup(logging.getLogger().removeHandler, handler)
        with capturedLogs() as logs:
            credentials = self.make()
            credentials.sign("GET", "http://127.0.0.1:9000/b", "x")
            shown = f"{credentials!r} {credentials.current()!r} {credentials.current()}"
        text = "\n".join([shown, *records, *(formatEvent(event) for event in logs)])
        self.assertNotIn("geheim", text)
        self.assertNotIn("AKIA", text)


@process_test
class ImportTests(SynchronousTestCase):
    """What an import costs."""

    def test_lazy(self) -> None:
        """To import the modules loads neither botocore nor urllib3 nor obstore: not everybody uses or has them."""
        program = (
            "import sys\n"
            "from resticserver.objects import credentials, location, s3, s3_list, s3_requests, s3_settings\n"
            "print([name for name in ('botocore', 'urllib3', 'obstore') if name in sys.modules])\n"
        )
        root = str(Path(__file__).parent.parent.parent)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False)
        self.assertEqual(("[]\n", ""), (done.stdout, done.stderr))
