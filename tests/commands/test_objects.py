"""
C{rest-server objects probe} with real engines.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import objects

from ..support.azurite import Azurite, without_azure
from ..support.engines import CephRGW, RcloneS3, RealEngine, SeaweedFS, shared_engine
from ..support.processes import process_test

CHECKSUM, SIGNED_HASH = "the checksum of an upload is verified", "the signed hash of an upload is verified"
VERSIONS = "deleted objects are kept as old versions (--delete-delay)"
ALL = os.environ.get("OBJECTS") == "all"


class ProbeCase(SynchronousTestCase):
    """The command."""

    kind: type[RealEngine] = SeaweedFS
    skip = SeaweedFS.reason()

    def setUp(self) -> None:
        self.engine = shared_engine(self.kind)
        self.bucket = self.engine.new_bucket(self)
        others = {name: value for name, value in without_azure().items() if not name.startswith("AWS_")}
        patched = mock.patch.dict(os.environ, {**others, **self.engine.environment()}, clear=True)
        patched.start()
        self.addCleanup(patched.stop)

    def run_probe(self, *arguments: str, bucket: str = "") -> tuple[int, str, str]:
        """Its exit status, what it prints, and what it complains of."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = objects.main(["probe", *arguments, f"{self.engine.scheme}://{bucket or self.bucket}/some/place"])
        return status, out.getvalue(), err.getvalue()

    def problems(self) -> dict[str, str]:
        """What was tried, and what is wrong with it."""
        status, out, _ = self.run_probe("--json")
        self.assertEqual(0, status)
        document = json.loads(out)
        self.assertTrue(document["usable"])
        self.assertGreater(document["put_4_KiB_ms"], 0)
        self.assertEqual([], self.engine.keys(self.bucket))
        return {one["name"]: one["problem"] for one in document["findings"]}


@process_test
class SeaweedTests(ProbeCase):
    """SeaweedFS."""

    def test_findings(self) -> None:
        """It keeps what it must, and verifies checksums alone; versions are off at first."""
        problems = self.problems()
        self.assertEqual("", problems[CHECKSUM])
        self.assertEqual("wrong bytes are answered 200", problems[SIGNED_HASH])
        self.assertEqual("versioning is off", problems[VERSIONS])
        self.assertEqual(7, len(problems))
        self.assertEqual({SIGNED_HASH, VERSIONS}, {name for name, problem in problems.items() if problem})

    def test_text(self) -> None:
        """A line for each, the times, and whether it can be used."""
        status, out, err = self.run_probe()
        self.assertEqual((0, ""), (status, err))
        lines = out.splitlines()
        self.assertIn(f"no   {SIGNED_HASH}: wrong bytes are answered 200", lines)
        self.assertEqual(f"s3://{self.bucket}/some/place can be used", lines[-1])

    def test_versions(self) -> None:
        """With versions, and a rule for them."""
        body = b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status>'
        self.engine.request("PUT", f"/{self.bucket}", "versioning=", body + b"</VersioningConfiguration>")
        status, out, _ = self.run_probe()
        self.assertEqual(0, status)
        self.assertIn(f"yes  {VERSIONS}\n", out)

    def test_missing(self) -> None:
        """A bucket that is not there."""
        status, out, err = self.run_probe(bucket="no-such-bucket")
        self.assertEqual((2, ""), (status, out))
        self.assertIn("s3://no-such-bucket/some/place: the bucket with the repositories is missing", err)


@process_test
class RcloneTests(ProbeCase):
    """An engine that cannot be used."""

    kind = RcloneS3
    skip = RcloneS3.reason()

    def test_findings(self) -> None:
        """The exit status says so, and the line why."""
        status, out, _ = self.run_probe()
        self.assertEqual(1, status)
        self.assertIn("no   a second upload of a name is refused (If-None-Match: *): the condition is ignored", out)
        self.assertIn("can not be used", out)


@process_test
class CephTests(ProbeCase):
    """Ceph verifies the other hash."""

    kind = CephRGW
    skip = (None if ALL else "OBJECTS=all tries all engines") or CephRGW.reason()

    def test_findings(self) -> None:
        """It keeps what it must."""
        problems = self.problems()
        self.assertEqual("", problems[SIGNED_HASH])
        self.assertEqual("wrong bytes are answered 200", problems[CHECKSUM])


@process_test
class AzuriteTests(ProbeCase):
    """Azure has no such hashes."""

    kind = Azurite
    skip = (None if ALL else "OBJECTS=all tries all engines") or Azurite.reason()

    def test_findings(self) -> None:
        """It keeps what it must."""
        self.assertEqual([""] * 4, list(self.problems().values()))
