"""
Spellings of repositories' paths, on file systems that fold names and that a fake makes of the usual one.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import NoSuchRepository, NotFound
from resticserver.names import OWN_FOLDERS, RESERVED, fold_name, is_folder_name, reserved_name
from resticserver.storage import folding
from resticserver.storage.folding import Spelling, folds_case, means_reserved
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Publisher

from ..contract.store import id_of, save
from ..support.scratch import files_below, scratch_directory

Fold = Callable[[str], str]


def case(name: str) -> str:
    """As ext4 folds: case, and the canonical Unicode form."""
    return unicodedata.normalize("NFD", name.casefold())


def ascii_case(name: str) -> str:
    """As XFS folds with C{ascii-ci}."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def form(name: str) -> str:
    """As ZFS folds with C{normalization=formKC}."""
    return unicodedata.normalize("NFKC", name)


def windows(name: str) -> str:
    """As SMB shares of Windows do, short names included."""
    name = name.partition(":")[0].rstrip(". ").upper()
    return name if len(name) <= 8 else name[:6] + "~1"


class FoldingCase(SynchronousTestCase):
    """A directory whose names are folded by a fake of the system's calls."""

    def setUp(self) -> None:
        self.top = scratch_directory(self) / "data"
        self.top.mkdir()
        self.spelling = Spelling(str(self.top))

    def fold(self, fold: Fold, kind: str | None = "ext4", stored: Fold = str) -> None:
        """
        Have the names below the directory folded.

        @param kind: what the kernel calls the file system.
        @param stored: the form in which new names are stored.
        """
        real_listdir = os.listdir

        def real_path(path: Any, new: bool = False) -> Any:
            if not isinstance(path, str) or not path.startswith(f"{self.top}/"):
                return path
            found = str(self.top)
            for name in path[len(found) + 1 :].split("/"):
                try:
                    names = real_listdir(found)
                except OSError:
                    names = []
                there = next((other for other in names if fold(other) == fold(name)), stored(name) if new else name)
                found = f"{found}/{there}"
            return found

        def faked(real: Callable[..., Any], new: bool = False) -> Callable[..., Any]:
            return lambda path, *rest, **named: real(real_path(path, new), *rest, **named)

        for name in ("lstat", "stat", "open", "listdir", "scandir", "rmdir", "unlink", "chmod"):
            self.patch(os, name, faked(getattr(os, name)))
        self.patch(os, "mkdir", faked(os.mkdir, new=True))
        self.patch(folding, "type_of", lambda fd: kind)

    def make(self, *repository: str) -> None:
        """Make a repository's folder as the store does."""
        self.spelling.make(repository, Publisher(0o600, 0o700).make_directory)

    def refused(self, *repository: str) -> None:
        """It is there, and not under this name."""
        self.assertRaises(NoSuchRepository, self.spelling.look, repository)
        self.assertFalse(self.spelling.is_exact(repository))


class SpellingTests(FoldingCase):
    """L{Spelling}."""

    def test_exact(self) -> None:
        """Where names are exact each name is its own folder, and a name that means something elsewhere is one as well."""
        self.patch(folding, "type_of", lambda fd: "ext4")
        for name in ("secret", "SECRET", "DATA", ".TMP", "Keys.", "x~1", "a:b", "m\u00fcller", "mu\u0308ller", "007"):
            self.make(name)
            self.assertTrue(self.spelling.look((name,)))
            self.assertTrue(self.spelling.is_exact((name,)), name)
        self.assertEqual(10, len(os.listdir(self.top)))

    def test_costs_nothing(self) -> None:
        """Where names are exact nothing is asked of the system for a minute."""
        self.patch(folding, "type_of", lambda fd: "xfs")
        now = [1000.0]
        self.patch(time, "monotonic", lambda: now[0])
        self.make("alice", "laptop")
        os.rmdir(self.top / "alice" / "laptop")
        os.rmdir(self.top / "alice")
        for name in ("lstat", "stat", "open", "listdir", "scandir"):
            self.patch(os, name, None)
        now[0] += 59
        self.assertTrue(self.spelling.is_exact(("alice", "laptop")))
        self.assertTrue(self.spelling.look(("alice", "laptop")))
        now[0] += 2
        self.assertFalse(self.spelling.is_exact(("alice", "laptop")))
        self.assertRaises(TypeError, self.spelling.look, ("alice", "laptop"))

    def test_folds(self) -> None:
        """Whatever is folded: only the name in the directory's list is one, at every depth, also for new folders."""
        for number, (fold, kind, other) in enumerate(
            (
                (case, "ext4", "STRASSE-M\u00dcLLER"),
                (case, "tmpfs", "stra\u00dfe-mu\u0308ller"),
                (case, None, "Stra\u00dfe-M\u00fcller"),
                (ascii_case, "xfs", "STRA\u00dfE-m\u00fcller"),
                (case, "nfs4", "strasse-m\u00fcller"),
                (form, "zfs", "stra\u00dfe-mu\u0308ller"),
                (form, "nfs", "\uff53tra\u00dfe-m\u00fcller"),
                (windows, "cifs", "STRA\u1e9e\u007e1"),
                (windows, "fuseblk", "STRASS~1"),
            )
        ):
            self.top = scratch_directory(self) / f"data{number}"
            self.top.mkdir()
            self.spelling = Spelling(str(self.top))
            self.fold(fold, kind)
            there = "stra\u00dfe-m\u00fcller"
            self.make(there, there)
            self.assertTrue(self.spelling.look((there, there)), kind)
            if fold(other) != fold(there):
                self.assertFalse(self.spelling.look((other,)))
                continue
            for repository in ((other,), (other, there), (there, other), (other, other), (there, other, "new")):
                self.refused(*repository)
                self.assertRaises(NotFound, self.make, *repository)
            self.assertEqual([there], os.listdir(self.top))
            self.assertEqual([there], os.listdir(self.top / there))

    def test_stored_in_another_form(self) -> None:
        """A name that is listed in another form than it was given is none, and is not left there."""
        self.fold(case, "hfsplus", stored=lambda name: unicodedata.normalize("NFD", name))
        self.make("a")
        self.assertRaises(NotFound, self.make, "m\u00fcller")
        self.assertRaises(NotFound, self.make, "a", "m\u00fcller", "x")
        self.assertEqual((["a"], []), (os.listdir(self.top), os.listdir(self.top / "a")))
        self.make("mu\u0308ller")
        self.assertTrue(self.spelling.look(("mu\u0308ller",)))
        self.refused("m\u00fcller")

    def test_made_meanwhile(self) -> None:
        """A folder that somebody else makes in another spelling between the look and its use is not taken, and stays."""
        self.fold(case)
        publisher = Publisher(0o600, 0o700)

        def make_directory(path: str) -> bool:
            os.mkdir(self.top / "secret")
            return publisher.make_directory(path)

        self.assertRaises(NotFound, self.spelling.make, ("SECRET",), make_directory)
        self.assertEqual(["secret"], os.listdir(self.top))

    def test_reserved(self) -> None:
        """In an empty directory and beside what is reserved: no spelling of it can be made, and nothing is left."""
        for beside in ((), (".tmp", "data", "keys")):
            for name in ("DATA", ".Tmp", "\u212aeys"):
                self.top = scratch_directory(self) / "data"
                self.top.mkdir()
                self.spelling = Spelling(str(self.top))
                for one in beside:
                    (self.top / one).mkdir()
                self.fold(case)
                self.assertRaises(NotFound, self.make, name)
                self.assertEqual(sorted(beside), sorted(os.listdir(self.top)))

    def possible(self, depth: int) -> set[tuple[str, ...]]:
        """Where repositories may lie."""
        store = LocalStore(str(self.top), max_depth=depth)
        return set(store.counting.possible_repositories())

    def test_reserved_that_is_there(self) -> None:
        """A folder whose name is a reserved one in another case is no repository where case is folded, elsewhere it is."""
        (self.top / "DATA" / "ab").mkdir(parents=True)
        (self.top / ".Rest-Server").mkdir()
        (self.top / "alice").mkdir()
        self.assertEqual({(), ("DATA",), (".Rest-Server",), ("alice",)}, self.possible(1))
        self.assertTrue(self.spelling.look(("DATA",)))
        self.fold(case, "exfat")
        self.assertEqual({(), ("alice",)}, self.possible(2))
        self.assertRaises(NoSuchRepository, Spelling(str(self.top)).look, ("DATA",))
        self.assertTrue(means_reserved(str(self.top), "DATA"))

    def test_no_rights(self) -> None:
        """A directory that may be entered and not listed: its inodes tell; where case is folded nothing is given."""
        self.make("secret")
        self.make("other")

        def denied(path: Any) -> Any:
            raise PermissionError(13, "Permission denied", path)

        for fold in (str, case):
            self.fold(fold)
            with_rights = os.scandir, os.listdir
            self.patch(os, "scandir", denied)
            self.patch(os, "listdir", denied)
            spelling = Spelling(str(self.top))
            self.assertFalse(spelling.look(("missing",)))
            if fold is str:
                self.assertTrue(spelling.look(("secret",)))
                self.assertFalse(spelling.look(("SECRET",)))
            else:
                self.assertRaises(PermissionError, spelling.look, ("SECRET",))
            self.patch(os, "scandir", with_rights[0])
            self.patch(os, "listdir", with_rights[1])

    def test_missing(self) -> None:
        """What is not there at all is not there, whatever is folded."""
        self.fold(case, "fuseblk")
        self.make("alice")
        for repository in (("bob",), ("alice", "new"), ("bob", "new")):
            self.assertFalse(self.spelling.look(repository))
            self.assertFalse(self.spelling.has(repository))
        self.assertEqual(["alice"], os.listdir(self.top))

    def test_errors(self) -> None:
        """An error of the disk is neither a yes nor a no."""
        self.fold(case, "fuseblk")

        def broken(path: Any) -> Any:
            raise OSError(5, "Input/output error", path)

        self.patch(os, "listdir", broken)
        self.assertRaises(OSError, self.spelling.look, ("alice",))

    def test_case_is_told_by_any_entry(self) -> None:
        """An entry with letters tells whether case is folded; two that differ in case only say that it is not."""
        self.assertIsNone(folds_case(str(self.top)))
        (self.top / "123").mkdir()
        (self.top / "\u00e4").mkdir()
        self.assertIsNone(folds_case(str(self.top)))
        for name in ("abc", "ABC"):
            (self.top / name).mkdir()
            self.assertIs(False, folds_case(str(self.top)))
        os.rmdir(self.top / "ABC")
        self.fold(case)
        self.assertIs(True, folds_case(str(self.top)))


class StoreTests(FoldingCase):
    """L{LocalStore} on such a file system."""

    def test_no_verb(self) -> None:
        """No verb of the store reaches a repository by another spelling, nor does a commit after the names have changed."""
        self.fold(case, "fuseblk")
        store = LocalStore(str(self.top))
        store.prepare()
        store.create_repository(("secret",))
        body = b"content"
        name = id_of(body)
        save(store, ("secret",), "locks", body)
        before = files_below(self.top)
        wrong = ("SECRET",)
        self.assertRaises(NotFound, store.create_repository, wrong)
        self.assertRaises(NotFound, store.delete_repository, wrong)
        self.assertRaises(NotFound, store.size_of, wrong, "locks", name)
        self.assertRaises(NotFound, store.stored(wrong, "locks", name).open)
        self.assertRaises(NotFound, store.list_objects(wrong, "locks", True).open)
        self.assertRaises(NotFound, store.list_objects(wrong, "data", True).open)
        self.assertRaises(NotFound, store.remove_object, wrong, "locks", name)
        self.assertRaises(NotFound, store.upload(wrong, "locks", name).open)
        self.assertIsNone(store.size_nowait(wrong, "locks", name))
        self.assertFalse(store.stored(wrong, "locks", name).open_nowait())
        self.assertFalse(store.counting.is_repository(wrong))
        self.assertEqual(0, sum(amount.size_bytes for amount in store.counting.known(wrong).values()))
        self.assertEqual(0, sum(amount.size_bytes for amount in store.counting.count(wrong, range(5)).values()))
        self.assertIsNone(store.counting.oldest_lock_s(wrong))
        self.assertEqual(before, files_below(self.top))
        upload = store.upload(("secret",), "locks", id_of(b"new"))
        upload.open()
        upload.write([b"new"])
        os.rename(self.top / "secret", self.top / "Secret")
        self.assertRaises(NoSuchRepository, upload.commit)
        upload.abort()
        self.assertEqual({one.replace("secret", "Secret") for one in before}, files_below(self.top))


class NamesTests(SynchronousTestCase):
    """L{fold_name} and L{reserved_name}."""

    def test_reserved(self) -> None:
        """Every reserved name is found in every spelling that some file system takes for it."""
        for name in RESERVED | OWN_FOLDERS:
            for spelling in (
                *(
                    name,
                    name.upper(),
                    name.title(),
                    name.swapcase(),
                    f"{name}.",
                    f"{name} ",
                    f"{name} . ",
                    f"{name}::$DATA",
                ),
                *(name.replace("s", "\u017f"), name.replace("k", "\u212a"), name.replace("i", "\u0131"), f"{name}:x"),
                *(name.replace("i", "\u0130"), "".join(chr(ord(c) + 0xFEE0) for c in name), f"{name}\ufe0f"),
                name.replace("e", "e\u200c"),
            ):
                self.assertEqual(name, reserved_name(spelling), spelling)
        for spelling, name in (
            ("REST-S~1", ".rest-server"),
            ("htpass~2", ".htpasswd"),
            ("TMP~1", ".tmp"),
            ("TRASH~1", ".trash"),
        ):
            self.assertEqual(name, reserved_name(spelling))

    def test_others(self) -> None:
        """Other names are not reserved, though they begin or end like one."""
        for name in (
            "database",
            "data1",
            "d\u00e1ta",
            "keys2",
            "x.tmp",
            "tmp",
            "rest-server",
            "con",
            "--",
            "alice",
            "...",
        ):
            self.assertTrue(is_folder_name(name), name)
            self.assertIsNone(reserved_name(name), name)

    def test_folds_to_itself(self) -> None:
        """What is folded stays when it is folded again."""
        for name in (
            "Stra\u00dfe",
            "\u0130stanbul",
            "M\u00dcLLER",
            "\u03a3\u03c2",
            "\ufb01le",
            "\u1e9e. .",
            "a\u200db",
        ):
            self.assertEqual(fold_name(name), fold_name(fold_name(name)))
