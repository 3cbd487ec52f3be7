"""
L{resticserver.commands.scrub}: what the command finds, prints and returns.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import scrub
from resticserver.commands.scrub import bar_text
from resticserver.storage.scrub import Progress
from resticserver.threads.rate_limit import RateLimit

from ..support.scratch import contents_below, scratch_directory
from ..support.scrub import REPOSITORY, ScrubBench

COMMAND: Any = scrub


class ScrubTests(SynchronousTestCase):
    """C{rest-server scrub}."""

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.names = self.bench.put(*range(30))

    def scrub(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = scrub.main(["--path", str(self.bench.path), *arguments])
        return status, out.getvalue(), err.getvalue()

    def document(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Status, and what it prints as JSON."""
        status, out, err = self.scrub("--json", *arguments)
        self.assertEqual("", err)
        document: dict[str, Any] = json.loads(out)
        return status, document

    def test_all_is_well(self) -> None:
        """Status 0, one line, and the repository is as it was."""
        before = contents_below(self.bench.path)
        status, out, err = self.scrub()
        self.assertEqual((0, ""), (status, err))
        self.assertRegex(out, r"\Achecked 31 objects, 29.30 KiB, in \d+ s: no problems\n\Z")
        self.assertEqual(before, contents_below(self.bench.path))

    def test_what_is_wrong(self) -> None:
        """Status 1; each by its id, as text and as JSON."""
        self.scrub()
        self.bench.flip(self.names[0])
        os.truncate(self.bench.file(self.names[1]), 10)
        os.utime(self.bench.file(self.names[1]), (1, 1))
        self.bench.file(self.names[2]).unlink()
        status, document = self.document()
        self.assertEqual(1, status)
        found = {(one["problem"], one["type"], one["name"]) for one in document["problems"]}
        expected = {
            ("damaged", "data", self.names[0]),
            ("damaged", "data", self.names[1]),
            ("missing", "data", self.names[2]),
        }
        self.assertEqual(expected, found)
        self.assertTrue(document["complete"])
        self.assertEqual({"alice/laptop"}, {one["repository"] for one in document["problems"]})
        status, out, _ = self.scrub()
        self.assertEqual(1, status)
        for kind, object_type, name in expected:
            self.assertRegex(out, f"alice/laptop +{kind} +{object_type}/{name}")
        self.assertIn("2 damaged, 1 missing", out)

    def test_accept_missing(self) -> None:
        """What is missing was removed on purpose; what is damaged stays so."""
        self.scrub()
        self.bench.file(self.names[2]).unlink()
        self.assertEqual(1, self.scrub()[0])
        self.assertEqual(0, self.scrub("--accept-missing")[0])
        self.assertEqual(0, self.scrub()[0])
        self.bench.flip(self.names[0])
        self.assertEqual(1, self.scrub("--accept-missing")[0])

    def test_deleted_through_the_server(self) -> None:
        """A server without --scrub-interval notes deletions from the first scrub on."""
        self.scrub()
        self.bench.store.remove_object(REPOSITORY, "data", self.names[2])
        self.assertEqual(0, self.scrub()[0])

    def test_some_repositories(self) -> None:
        """The others are not read. Options stand before or after them."""
        self.bench.store.create_repository(("bob",))
        (self.bench.path / "bob" / "config").write_bytes(b"x")
        self.bench.flip(self.names[0])
        self.assertEqual(0, self.scrub("bob")[0])
        self.assertEqual(1, self.scrub("bob", "--rate", "1G", "alice/laptop/")[0])
        self.assertEqual(1, self.scrub("--rate", "1G", "alice/laptop", "--json")[0])

    def test_wrong_calls(self) -> None:
        """Status 2, and one line that says why."""
        for arguments, why in (
            (("carol",), "carol: there is no such repository"),
            (("..",), "is no repository"),
            (("--rate", "fast"), "--rate 'fast'"),
            (("--nonsense",), "--nonsense"),
            (("--path", "/nonexistent"), "there is no such directory"),
            (("--path", "s3://bucket"), "an object store needs --state-dir"),
            (("--path", "az://bucket", "--state-dir", self.mktemp()), "no storage account"),
        ):
            status, out, err = self.scrub(*arguments)
            self.assertEqual((2, ""), (status, out), arguments)
            self.assertIn(why, err)
            self.assertEqual(1, err.count("\n"), err)

    def test_volume_is_gone(self) -> None:
        """An empty mount point is not a server on which all is well."""
        state = scratch_directory(self)
        (state / "volume-id").write_bytes(b"0123456789abcdef\n")
        status, _, err = self.scrub("--state-dir", str(state))
        self.assertEqual(2, status)
        self.assertIn("cannot scrub", err)

    def test_interrupted(self) -> None:
        """The next call goes on, and reports what the first one has found."""
        self.bench.flip(sorted(self.names)[0])
        takes = [0]

        class Interrupts(RateLimit):
            def take(inner, size_bytes: int) -> None:
                takes[0] += 1
                if takes[0] > 20:
                    inner.stop()
                super().take(size_bytes)

        patch = self.patch(COMMAND, "RateLimit", Interrupts)
        self.assertNotEqual(0, self.scrub()[0])
        patch.restore()
        status, out, err = self.scrub()
        self.assertIn("continuing the scrub of", err)
        self.assertEqual(1, status)
        self.assertIn(sorted(self.names)[0], out)
        checked = int(out.partition("checked ")[2].partition(" ")[0])
        self.assertLess(checked, 31)
        status, out, err = self.scrub()
        self.assertEqual("", err)
        self.assertIn("checked 31 objects", out)

    def test_skipped(self) -> None:
        """A directory that cannot be read is named."""
        self.scrub()
        folder = self.bench.file(self.names[0]).parent
        folder.rename(folder.with_name("elsewhere"))
        folder.write_bytes(b"")
        status, _, err = self.scrub()
        self.assertEqual(1, status)
        self.assertIn(f"cannot read {folder}: Not a directory", err)

    def test_no_place_for_results(self) -> None:
        """Without a place to write to it works all the same, and says so."""
        self.patch(COMMAND.ScrubState, "_may_be_here", lambda state: False)
        self.bench.flip(self.names[0])
        status, out, err = self.scrub()
        self.assertEqual(1, status)
        self.assertIn(self.names[0], out)
        self.assertIn("the results are not kept", err)

    def test_bar(self) -> None:
        """The bar of a terminal: how much, how fast, how long."""
        text = bar_text(Progress(1000 << 20, 250 << 20, 250 << 20, 10), 10 << 20)
        self.assertEqual("[#######.......................]  25 %  250 MiB of 1000 MiB  10 MiB/s  1 min 15 s left", text)
        self.assertIn("  0 %", bar_text(Progress(), 0.0))
