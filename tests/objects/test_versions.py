"""
Old versions of a bucket as its trash: what is a page of them, whether they are kept for long enough, and what can be restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Forbidden, StartError
from resticserver.objects.counting import BucketCounting
from resticserver.objects.engine import Absent, AccessRefused, EngineError
from resticserver.objects.layout import Keys
from resticserver.objects.pages import BadPage
from resticserver.objects.signed_requests import Asked
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore
from resticserver.objects.trash import BucketTrash, DeletedVersion
from resticserver.objects.versions import DAY_S, SEEN_S, S3Versions, Version, VersionsKept
from resticserver.objects.volume import BucketVolume
from resticserver.sizes import Amount
from resticserver.storage.layout import TRASH_CELL

from ..contract.store import DEEP, save
from ..support.memory_engine import MemoryEngine
from .test_store import NAME, InMemory

ID, OTHER = "ab" * 32, "cd" * 32
_SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Answers:
    """
    Requests that are answered as a test says.

    @ivar asked: what was requested.
    """

    def __init__(self, *bodies: bytes | Exception) -> None:
        self._bodies = list(bodies)
        self.asked: list[Asked] = []

    def get(self, query: Mapping[str, str], read: Callable[[bytes], Any]) -> Any:
        """See L{resticserver.objects.signed_requests.SignedRequests.get}."""
        return self.request(Asked(query), read)

    def request(self, asked: Asked, read: Callable[[bytes], Any]) -> Any:
        """See L{resticserver.objects.signed_requests.SignedRequests.request}."""
        self.asked.append(asked)
        body = self._bodies.pop(0)
        if isinstance(body, Exception):
            raise body
        return read(body)


def versions_of(*bodies: bytes | Exception) -> tuple[S3Versions, Answers]:
    """The versions of a bucket that answers so."""
    answers = Answers(*bodies)
    return S3Versions("s3://bucket", answers), answers  # type: ignore[arg-type]


def entry(tag: str, key: str, version: str, latest: str = "false", size: str = "<Size>5</Size>") -> str:
    """One version."""
    return (
        f"<{tag}><Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
        f"<LastModified>2026-11-27T18:41:30Z</LastModified>{size if tag == 'Version' else ''}<Owner><ID>x</ID></Owner></{tag}>"
    )


def page_of(*entries: str, end: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    """A page of versions."""
    return f"<ListVersionsResult {_SPACE}><Name>bucket</Name>{''.join(entries)}{end}</ListVersionsResult>".encode()


class PageTests(SynchronousTestCase):
    """Lists of versions."""

    def test_pages(self) -> None:
        """The next page is asked for with both markers."""
        more = "<IsTruncated>true</IsTruncated><NextKeyMarker>p/a%20b</NextKeyMarker><NextVersionIdMarker>2</NextVersionIdMarker>"
        coded = "<EncodingType>url</EncodingType>"
        versions, answers = versions_of(
            page_of(
                coded,
                entry("DeleteMarker", "p/a%20b", "3", "true"),
                entry("Version", "p/a%20b", "2", "false"),
                end=more,
            ),
            page_of(entry("Version", "p/c", "null", "true")),
        )
        found = [one for page in versions.pages("p/") for one in page]
        self.assertEqual(
            [
                Version("a b", "3", True, True, 0, 1795804890.0),
                Version("a b", "2", False, False, 5, 1795804890.0),
                Version("c", "null", False, True, 5, 1795804890.0),
            ],
            found,
        )
        self.assertEqual(
            ("p/a b", "2"), (answers.asked[1].query["key-marker"], answers.asked[1].query["version-id-marker"])
        )

    def test_folders(self) -> None:
        """The next page is asked for with a folder, which has no version."""
        more = "<IsTruncated>true</IsTruncated><NextKeyMarker>p/alice/</NextKeyMarker>"
        versions, answers = versions_of(
            page_of(
                entry("Version", "p/a", "1"), "<CommonPrefixes><Prefix>p/alice/</Prefix></CommonPrefixes>", end=more
            ),
            page_of("<CommonPrefixes><Prefix>p/bob/</Prefix></CommonPrefixes>"),
        )
        self.assertEqual(["alice", "bob"], versions.folders("p/"))
        self.assertEqual({"p/alice/"}, {answers.asked[1].query["key-marker"]})
        self.assertNotIn("version-id-marker", answers.asked[1].query)

    def test_none(self) -> None:
        """What is not exactly a page is refused."""
        for body, why in (
            (b"<Error><Code>x</Code></Error>", "not ListVersionsResult"),
            (page_of(entry("Version", "p/a", "1"), end=""), "does not say where"),
            (page_of(end="<IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker>"), "does not say where"),
            (page_of("<CommonPrefixes><Prefix>p/a/</Prefix></CommonPrefixes>"), "not asked for"),
            (page_of("<Error/>"), "something that no list of versions has"),
            (page_of(entry("Version", "q/a", "1")), "does not begin with the prefix"),
            (page_of(entry("Version", "p/a", "")), "no VersionId"),
            (page_of(entry("Version", "p/a", "1", "perhaps")), "is wrong"),
            (page_of(entry("Version", "p/a", "1", size="<Size>x</Size>")), "is wrong"),
            (page_of(entry("Version", "p/a", "1", size="")), "no Size"),
            (page_of(entry("Version", "p/a", "1"))[:-3], "no XML"),
        ):
            versions, _ = versions_of(body)
            error = self.assertRaises(BadPage, list, versions.pages("p/"))
            self.assertIn(why, str(error), body)

    def test_without_end(self) -> None:
        """An engine that sends the same page for ever."""
        more = "<IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker><NextVersionIdMarker>1</NextVersionIdMarker>"
        page = page_of(entry("Version", "a", "1"), end=more)
        versions, _ = versions_of(page, page, page)
        self.assertRaises(EngineError, list, versions.pages(""))

    def test_removal(self) -> None:
        """What is gone counts as removed."""
        versions, answers = versions_of(b"", Absent())
        versions.remove("a", "1")
        versions.remove("a", "1")
        self.assertEqual([Asked({"versionId": "1"}, "DELETE", "a")] * 2, answers.asked)


def status(text: str) -> bytes:
    """What the engine says of versioning."""
    return f"<VersioningConfiguration {_SPACE}>{text}</VersioningConfiguration>".encode()


def rule(days: int, prefix: str = "", is_on: bool = True, form: str = "<Filter><Prefix>{}</Prefix></Filter>") -> str:
    """A rule that removes old versions."""
    return (
        f"<Rule>{form.format(prefix)}<Status>{'Enabled' if is_on else 'Disabled'}</Status><NoncurrentVersionExpiration>"
        f"<NoncurrentDays>{days}</NoncurrentDays></NoncurrentVersionExpiration></Rule>"
    )


def rules(*texts: str) -> bytes:
    """All rules."""
    return f"<LifecycleConfiguration {_SPACE}>{''.join(texts)}</LifecycleConfiguration>".encode()


ENABLED = status("<Status>Enabled</Status>")


class KeptTests(SynchronousTestCase):
    """Whether what is deleted stays for long enough."""

    def problem(self, *bodies: bytes | Exception, days: int = 30) -> str:
        """Why it does not."""
        return VersionsKept(versions_of(*bodies)[0], "prefix/").problem(days * DAY_S)

    def test_kept(self) -> None:
        """With versions, and without a rule that is too short for what lies below the prefix."""
        for lifecycle in (
            Absent(),
            rules(),
            rules(rule(30)),
            rules(rule(1, is_on=False), rule(31, "prefix/")),
            rules(rule(1, "other/")),
            rules("<Rule><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"),
        ):
            self.assertEqual("", self.problem(ENABLED, lifecycle), lifecycle)

    def test_not_kept(self) -> None:
        """Without versions, or with a rule that is too short."""
        for text in ("", "<Status>Suspended</Status>"):
            self.assertIn("enable its versioning", self.problem(status(text)))
        self.assertIn("s3:GetBucketVersioning", self.problem(AccessRefused()))
        self.assertIn("s3:GetLifecycleConfiguration", self.problem(ENABLED, AccessRefused()))
        for lifecycle in (
            rules(rule(60), rule(29)),
            rules(rule(29, "pre")),
            rules(rule(29, "prefix/alice/")),
            rules(rule(29, "prefix/", form="<Filter><And><Prefix>{}</Prefix></And></Filter>")),
            rules(rule(29, "", form="<Prefix>{}</Prefix>")),
        ):
            self.assertIn("removes old versions after 29 days", self.problem(ENABLED, lifecycle), lifecycle)

    def test_trusted_for_a_minute(self) -> None:
        """Then it is asked again."""
        versions, answers = versions_of(ENABLED, rules(rule(30)), status(""))
        now = [0.0]
        kept = VersionsKept(versions, "", lambda: now[0])
        self.assertEqual("", kept.problem(DAY_S))
        self.assertIn("after 30 days", kept.problem(31 * DAY_S))
        now[0] = SEEN_S - 1
        self.assertEqual("", kept.problem(DAY_S))
        self.assertEqual(2, len(answers.asked))
        now[0] = SEEN_S
        self.assertIn("enable its versioning", kept.problem(DAY_S))


class DelayTests(InMemory, SynchronousTestCase):
    """A store that must keep what is deleted."""

    def make_delayed(self, *answers: bytes | Exception) -> ObjectStore:
        """
        A store that keeps for 30 days, with a repository.

        @param answers: of the bucket; none for one that knows no versions.
        """
        versions = versions_of(*answers)[0] if answers else None
        store = ObjectStore(self.engine, "", Spool(self.directory, 0), versions=versions)
        store.prepare()
        store.create_repository(DEEP)
        store.expect_kept(30 * DAY_S)
        return store

    def test_without_versions(self) -> None:
        """As with Azure: the start fails, and a rule of a later policy lets nothing be removed."""
        store = self.make_delayed()
        self.assertRegex(str(self.assertRaises(StartError, store.look)), r"^--delete-delay: .*only works with s3://")
        self.assert_refused(store)

    def test_switched_off(self) -> None:
        """While the server runs."""
        store = self.make_delayed(status("<Status>Suspended</Status>"))
        self.assert_refused(store)

    def test_shorter(self) -> None:
        """A rule that was set while the server runs."""
        store = self.make_delayed(ENABLED, rules(rule(29)))
        self.assert_refused(store)

    def test_unknown(self) -> None:
        """An engine that does not say whether it keeps versions."""
        store = self.make_delayed(EngineError(), EngineError())
        save(store, DEEP, "data", b"a pack")
        self.assertRaises(EngineError, store.remove_object, DEEP, "data", NAME, DAY_S)
        self.assertEqual(6, store.size_of(DEEP, "data", NAME))

    def assert_refused(self, store: ObjectStore) -> None:
        """Nothing is removed that is to be kept for 30 days; locks are."""
        save(store, DEEP, "data", b"a pack")
        save(store, DEEP, "locks", b"a pack")
        self.assertRaises(Forbidden, store.remove_object, DEEP, "data", NAME, 30 * DAY_S)
        self.assertRaises(Forbidden, store.delete_repository, DEEP, 30 * DAY_S)
        self.assertEqual(6, store.size_of(DEEP, "data", NAME))
        self.assertEqual(Amount(-6, -1), store.remove_object(DEEP, "locks", NAME, 30 * DAY_S))
        self.assertEqual(Amount(-6, -1), store.remove_object(DEEP, "data", NAME))


class FixedVersions:
    """Versions by their keys, the newest first: C{+} is an object, C{-} a marker."""

    def __init__(self, **versions: str) -> None:
        self.versions = versions
        self.removed: list[tuple[str, str]] = []

    def _below(self, prefix: str) -> dict[str, str]:
        keys = {f"host/data/{key[:2]}/{key}" if len(key) == 64 else f"host/{key}": key for key in sorted(self.versions)}
        return {full[len(prefix) :]: self.versions[key] for full, key in keys.items() if full.startswith(prefix)}

    def pages(self, prefix: str) -> Iterator[list[Version]]:
        """See L{S3Versions.pages}; a page for each version."""
        for key, kinds in self._below(prefix).items():
            for number, kind in enumerate(kinds):
                yield [Version(key, f"v{number}", kind == "-", number == 0, 7, 1000.0 - number)]

    def folders(self, prefix: str) -> list[str]:
        """See L{S3Versions.folders}."""
        return sorted({key.partition("/")[0] for key in self._below(prefix) if "/" in key})

    def content(self, key: str, version_id: str) -> bytes:
        """See L{S3Versions.content}."""
        return f"{key} {version_id}".encode()

    def remove(self, key: str, version_id: str) -> None:
        """See L{S3Versions.remove}."""
        self.removed.append((key, version_id))


class TrashTests(SynchronousTestCase):
    """What can be restored."""

    def use(self, **versions: str) -> None:
        """A repository with these versions."""
        self.engine, keys = MemoryEngine(), Keys("")
        self.versions = FixedVersions(**versions)
        self.counting = BucketCounting(self.engine, keys, BucketVolume(self.engine, keys.volume_marker), 2)
        self.counting.versions = self.versions  # type: ignore[assignment]
        self.trash = BucketTrash(self.engine, self.versions, keys, self.counting)  # type: ignore[arg-type]
        self.found: list[DeletedVersion] = list(self.trash.objects(("host",)))

    def test_deleted(self) -> None:
        """Of an object that is deleted its version is there; to restore it is to remove the marker."""
        self.use(**{ID: "-+", OTHER: "+", "other": "-+", "locks": "-+"})
        (one,) = self.found
        self.assertEqual((("host",), "data", ID, 7, 1000.0), one[:5])
        self.assertIsNone(one.ends_s(10))
        self.assertTrue(self.trash.restore(one))
        self.assertEqual([(f"host/data/ab/{ID}", "v0")], self.versions.removed)

    def test_deleted_twice(self) -> None:
        """All markers above the newest version go, the newest one last, whichever version is meant: they are the same object."""
        for number in (0, 1):
            self.use(**{ID: "--+-+"})
            self.assertEqual([999.0, 997.0], [one.deleted_s for one in self.found])
            self.assertTrue(self.trash.restore(self.found[number]))
            self.assertEqual(["v1", "v0"], [version for _, version in self.versions.removed])

    def test_there_again(self) -> None:
        """What is there is not touched."""
        self.use(**{ID: "+-+"})
        (one,) = self.found
        self.assertEqual(999.0, one.deleted_s)
        self.assertFalse(self.trash.restore(one))
        self.assertEqual([], self.versions.removed)

    def test_config(self) -> None:
        """A config is told by the hash of its content."""
        self.use(config="-+")
        (one,) = self.found
        self.assertEqual(("config", "host/config"), (one.object_type, one.key))
        self.assertEqual(64, len(one.name))
        self.assertTrue(self.trash.restore(one))
        self.assertEqual([("host/config", "v0")], self.versions.removed)

    def test_older_config(self) -> None:
        """Of another repository that was at this path before; it is copied, and only where there is no config."""
        self.use(config="-+-+")
        newest, older = self.found
        self.assertNotEqual(newest.name, older.name)
        self.assertTrue(self.trash.restore(older))
        self.assertEqual({"host/config": b"host/config v3"}, self.engine.objects)
        self.assertEqual([], self.versions.removed)
        self.assertFalse(self.trash.restore(older))
        self.engine.objects["host/config"] = b"host/config v1"
        self.assertRaises(FileExistsError, self.trash.restore, older)

    def test_another_config(self) -> None:
        """What was deleted is not what is there now."""
        self.use(config="+-+")
        (one,) = self.found
        self.engine.objects["host/config"] = b"another"
        self.assertRaises(FileExistsError, self.trash.restore, one)
        self.engine.objects["host/config"] = b"host/config v2"
        self.assertFalse(self.trash.restore(one))

    def test_ended_meanwhile(self) -> None:
        """A rule of the bucket has removed it."""
        self.use(config="-+-+")
        with mock.patch.object(self.versions, "content", side_effect=Absent()):
            self.assertRaises(FileNotFoundError, self.trash.restore, self.found[1])

    def test_repositories(self) -> None:
        """One that was deleted as a whole is listed and counted, one of which only markers are left is not."""
        for kinds, expected in (("-+", [("host",)]), ("-", []), ("+", [])):
            self.use(**{ID: kinds})
            self.assertEqual(expected, self.trash.repositories(), kinds)
        self.use(config="-+")
        self.assertEqual([("host",)], self.trash.repositories())
        self.use(locks="-+")
        self.assertEqual([], self.trash.repositories())

    def test_emptied(self) -> None:
        """Versions are removed, and no markers."""
        self.use(**{ID: "-+-+"})
        self.assertEqual(Amount(14, 2), self.trash.remove(("host",), self.found))
        self.assertEqual(["v1", "v3"], [version for _, version in self.versions.removed])

    def test_counted(self) -> None:
        """Old versions are the trash in the count."""
        self.use(**{ID: "-+-+", OTHER: "+", "config": "+-+", "locks": "-+"})
        self.assertEqual({TRASH_CELL: Amount(21, 3)}, self.counting.count(("host",), (TRASH_CELL,)))
        self.assertEqual(Amount(21, 3), self.counting.known(("host",))[TRASH_CELL])
        self.counting.versions = None
        self.assertEqual({TRASH_CELL: Amount()}, self.counting.count(("host",), (TRASH_CELL,)))
