"""
What every repository store must do, whatever it keeps objects in: one set of checks, run against each of them.

A store's test mixes L{StoreContract} into a TestCase and says how a store is made and what is behind it. The checks
speak
to the store as the API does (C{open}, C{write}, C{commit}, and C{abort} on every failure) and look behind it only by
C{contents} and C{plant}.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from resticserver.errors import Forbidden, HashMismatch, NoSuchRepository, NotFound
from resticserver.names import TYPES
from resticserver.sizes import Amount
from resticserver.storage.interface import Entry, Listing, Outcome, RepositoryStore

T = TypeVar("T")

Repository = tuple[str, ...]

#: A repository at the root of the data directory, and one as deep as they go.
ROOT: Repository = ()
DEEP: Repository = ("alice", "laptop")

#: More buffers than one writev(2) takes.
MANY_CHUNKS = 2500

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as _Base
else:
    _Base = object


def id_of(content: bytes) -> str:
    """What restic calls an object of this content."""
    return hashlib.sha256(content).hexdigest()


def key_of(repository: Repository, kind: str, name: str) -> str:
    """Where an object lies below the store's root, in the layout of restic's local backend."""
    inner = ("config",) if kind == "config" else ("data", name[:2], name) if kind == "data" else (kind, name)
    return "/".join((*repository, *inner))


def write_all(store: RepositoryStore, repository: Repository, kind: str, name: str, chunks: Sequence[bytes]) -> Outcome:
    """Upload as the API does it: whatever fails, the upload is aborted."""
    upload = store.upload(repository, kind, name)
    try:
        upload.open()
        upload.write(chunks)
        return upload.commit()
    except BaseException:
        upload.abort()
        raise


def save(store: RepositoryStore, repository: Repository, kind: str, content: bytes, name: str = "") -> Outcome:
    """Upload C{content}, under its hash if C{name} does not say otherwise."""
    return write_all(store, repository, kind, name or id_of(content), [content])


def load(store: RepositoryStore, repository: Repository, kind: str, name: str) -> bytes:
    """A stored object's bytes."""
    stored = store.stored(repository, kind, name)
    try:
        stored.open()
        content = b""
        while chunk := stored.read(len(content), 1 << 20):
            content += chunk
        return content
    finally:
        stored.close()


def entries(store: RepositoryStore, repository: Repository, kind: str, with_sizes: bool = True) -> list[Entry]:
    """A whole list, sorted; without sizes where they are not asked for, also if they come."""
    listing = store.list_objects(repository, kind, with_sizes)
    try:
        listing.open()
        return sorted(entry if with_sizes else Entry(entry.name, 0) for entry in lines_of(listing))
    finally:
        listing.close()


def lines_of(listing: Listing) -> Iterator[Entry]:
    """An open list, line by line."""
    for objects in listing:
        yield from objects


def at_once(jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run each job in a thread of its own, all starting together; their results or what they raised, in order."""
    start = threading.Barrier(len(jobs))
    results: list[Any] = [None] * len(jobs)

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = jobs[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class StoreContract(_Base):
    """
    The checks. C{make_store}, C{contents} and C{plant} are the store's own.
    """

    def make_store(self, verify: bool = True) -> RepositoryStore:
        """A prepared store; all stores of one test keep their objects in the same place."""
        raise NotImplementedError

    def contents(self) -> dict[str, bytes]:
        """Everything behind the store by its key, temporary things and what nobody can see included."""
        raise NotImplementedError

    def plant(self, key: str, content: bytes) -> None:
        """Put bytes behind the store's back under a key, which may be new and may be taken."""
        raise NotImplementedError

    def store_with(self, repository: Repository = ROOT, verify: bool = True) -> RepositoryStore:
        """A store with one empty repository in it."""
        store = self.make_store(verify)
        store.create_repository(repository)
        return store

    # --- repositories

    def test_create_makes_every_type(self) -> None:
        """A new repository lists every type as empty and has no config."""
        for repository in (ROOT, ("alice",), DEEP):
            store = self.store_with(repository)
            for kind in TYPES:
                self.assertEqual([], entries(store, repository, kind))
            with self.assertRaises(NotFound):
                store.size_of(repository, "config", "config")

    def test_create_is_idempotent(self) -> None:
        """To create a repository again changes nothing in it."""
        store = self.store_with(DEEP)
        save(store, DEEP, "data", b"a pack")
        save(store, DEEP, "config", b"a config", "config")
        before = self.contents()
        store.create_repository(DEEP)
        self.assertEqual(before, self.contents())

    def test_create_by_many_at_once(self) -> None:
        """Several clients may create one repository at the same time."""
        store = self.make_store()
        results = at_once([lambda: store.create_repository(DEEP)] * 8)
        self.assertEqual([None] * 8, results)
        self.assertEqual(Outcome.STORED, save(store, DEEP, "data", b"a pack"))

    def test_unknown_repository(self) -> None:
        """Where there is no repository nothing is found, and nothing is made by asking or by uploading."""
        store = self.store_with(("alice",))
        before = self.contents()
        name = id_of(b"a pack")
        for kind, object_name in (("data", name), ("locks", name), ("config", "config")):
            with self.assertRaises(NotFound):
                write_all(store, ("bob",), kind, object_name, [b"a pack"])
            with self.assertRaises(NotFound):
                store.size_of(("bob",), kind, object_name)
            with self.assertRaises(NotFound):
                load(store, ("bob",), kind, object_name)
            self.assertEqual(Amount(), store.remove_object(("bob",), kind, object_name))
        for with_sizes in (True, False):
            with self.assertRaises(NotFound):
                entries(store, ("bob",), "data", with_sizes)
        self.assertEqual(before, self.contents())
        with self.assertRaises(NotFound):
            entries(store, ("bob",), "locks")

    def test_repositories_are_apart(self) -> None:
        """What one repository holds is not in another, also where one lies below the other."""
        store = self.make_store()
        for repository in (ROOT, ("alice",), DEEP):
            store.create_repository(repository)
            save(store, repository, "keys", repr(repository).encode())
        for repository in (ROOT, ("alice",), DEEP):
            content = repr(repository).encode()
            self.assertEqual([Entry(id_of(content), len(content))], entries(store, repository, "keys"))

    # --- uploads

    def test_delete_repository(self) -> None:
        """All that restic stored is gone, also its directories; other repositories, also one below, stay."""
        store = self.make_store()
        for repository in (ROOT, ("alice",), DEEP):
            store.create_repository(repository)
            for kind in ("config", *TYPES):
                save(store, repository, kind, b"x", "config" if kind == "config" else "")
        before = self.contents()
        store.delete_repository(("alice",))
        gone = set(before) - set(self.contents())
        kinds = ("config", *TYPES)
        self.assertEqual({key_of(("alice",), kind, id_of(b"x")) for kind in kinds}, gone)
        self.assertRaises(NoSuchRepository, store.delete_repository, ("alice",))
        self.assertRaises(NotFound, store.size_of, ("alice",), "config", "config")
        self.assertRaises(NoSuchRepository, save, store, ("alice", "pc"), "data", b"y")
        self.assertEqual(1, store.size_of(DEEP, "config", "config"))
        store.delete_repository(ROOT)
        self.assertEqual(1, store.size_of(DEEP, "config", "config"))
        store.create_repository(ROOT)
        self.assertEqual([], entries(store, ROOT, "data"))

    def test_delete_while_uploaded(self) -> None:
        """An upload into a repository that is deleted before its end finds no repository, and leaves nothing."""
        for kind in TYPES:
            store = self.store_with(("alice",))
            upload = store.upload(("alice",), kind, id_of(b"xyz"))
            upload.open()
            upload.write([b"xyz"])
            save(store, ("alice",), "config", b"x", "config")
            store.delete_repository(("alice",))
            self.assertRaises(NoSuchRepository, upload.commit)
            upload.abort()
            self.assertEqual({}, {key: content for key, content in self.contents().items() if key.startswith("alice/")})

    def test_delete_no_repository(self) -> None:
        """What was never made cannot be deleted."""
        self.assertRaises(NoSuchRepository, self.make_store().delete_repository, ("nobody",))

    def test_open_again_after_create(self) -> None:
        """An upload whose repository was missing may be opened again when it is there."""
        store = self.make_store()
        upload = store.upload(DEEP, "data", id_of(b"x"))
        self.assertRaises(NoSuchRepository, upload.open)
        store.create_repository(DEEP)
        upload.open()
        upload.write([b"x"])
        self.assertIs(Outcome.STORED, upload.commit())

    def test_upload_of_each_type(self) -> None:
        """An object of each type is stored, found by its size, loaded and listed."""
        store = self.store_with(DEEP)
        for kind in TYPES:
            content = f"one of {kind}".encode()
            name = id_of(content)
            self.assertEqual(Outcome.STORED, save(store, DEEP, kind, content))
            self.assertEqual(len(content), store.size_of(DEEP, kind, name))
            self.assertEqual(content, load(store, DEEP, kind, name))
            self.assertEqual([Entry(name, len(content))], entries(store, DEEP, kind))
            self.assertEqual([Entry(name, 0)], entries(store, DEEP, kind, with_sizes=False))
        self.assertEqual(
            {key_of(DEEP, kind, id_of(f"one of {kind}".encode())): f"one of {kind}".encode() for kind in TYPES},
            self.contents(),
        )

    def test_visible_only_after_commit(self) -> None:
        """Until its commit an upload can be neither found, loaded, listed nor removed."""
        store = self.store_with()
        content, name = b"a pack", id_of(b"a pack")
        upload = store.upload(ROOT, "data", name)
        upload.open()
        upload.write([content])
        with self.assertRaises(NotFound):
            store.size_of(ROOT, "data", name)
        with self.assertRaises(NotFound):
            load(store, ROOT, "data", name)
        self.assertEqual([], entries(store, ROOT, "data"))
        self.assertEqual([], entries(store, ROOT, "data", with_sizes=False))
        self.assertEqual(Amount(), store.remove_object(ROOT, "data", name))
        self.assertEqual(Outcome.STORED, upload.commit())
        self.assertEqual(content, load(store, ROOT, "data", name))

    def test_abort_leaves_nothing(self) -> None:
        """An upload that is aborted, at whatever step, leaves nothing; to abort again is allowed."""
        store = self.store_with()
        for kind, name in (("data", id_of(b"a pack")), ("config", "config")):
            for steps in range(3):
                upload = store.upload(ROOT, kind, name)
                if steps > 0:
                    upload.open()
                if steps > 1:
                    upload.write([b"a ", b"pack"])
                upload.abort()
                upload.abort()
                self.assertEqual({}, self.contents())

    def test_abort_after_commit_does_nothing(self) -> None:
        """C{commit} and C{abort} may be called again after a commit, as every failure path may do."""
        store = self.store_with()
        upload = store.upload(ROOT, "data", id_of(b"a pack"))
        upload.open()
        upload.write([b"a pack"])
        self.assertEqual(Outcome.STORED, upload.commit())
        self.assertEqual(Outcome.STORED, upload.commit())
        upload.abort()
        self.assertEqual({key_of(ROOT, "data", id_of(b"a pack")): b"a pack"}, self.contents())

    def test_wrong_hash(self) -> None:
        """Bytes that are not what the name promises are refused, and nothing is left."""
        store = self.store_with()
        for kind in TYPES:
            with self.assertRaises(HashMismatch):
                save(store, ROOT, kind, b"other bytes", id_of(b"a pack"))
            with self.assertRaises(HashMismatch):
                write_all(store, ROOT, kind, id_of(b"a pack"), [b"a pac"])
            with self.assertRaises(HashMismatch):
                write_all(store, ROOT, kind, id_of(b"a pack"), [])
        self.assertEqual({}, self.contents())

    def test_wrong_hash_not_verified(self) -> None:
        """Without verification the name is believed, as long as it is free."""
        store = self.store_with(verify=False)
        self.assertEqual(Outcome.STORED, save(store, ROOT, "data", b"other bytes", id_of(b"a pack")))
        self.assertEqual(b"other bytes", load(store, ROOT, "data", id_of(b"a pack")))

    def test_empty_object(self) -> None:
        """An object may be empty, whether its body came as no chunk or as empty ones."""
        for kind, chunks in (("data", []), ("keys", [b""]), ("index", [b"", b""])):
            store = self.store_with()
            self.assertEqual(Outcome.STORED, write_all(store, ROOT, kind, id_of(b""), chunks))
            self.assertEqual(0, store.size_of(ROOT, kind, id_of(b"")))
            self.assertEqual(b"", load(store, ROOT, kind, id_of(b"")))
            self.assertEqual([Entry(id_of(b""), 0)], entries(store, ROOT, kind))

    def test_many_chunks_in_one_write(self) -> None:
        """One write takes more chunks than one system call does, empty ones among them."""
        for verify in (True, False):
            store = self.store_with(verify=verify)
            chunks = [b"%d," % (number + verify) * (number % 7) for number in range(MANY_CHUNKS)]
            content = b"".join(chunks)
            self.assertEqual(Outcome.STORED, write_all(store, ROOT, "data", id_of(content), chunks))
            self.assertEqual(content, load(store, ROOT, "data", id_of(content)))

    def test_large_object_in_many_writes(self) -> None:
        """The bytes of many writes are stored in their order."""
        store = self.store_with()
        chunks = [hashlib.sha512(b"%d" % number).digest() * 512 for number in range(200)]
        content = b"".join(chunks)
        upload = store.upload(ROOT, "data", id_of(content))
        upload.open()
        for first in range(0, len(chunks), 3):
            upload.write(chunks[first : first + 3])
        self.assertEqual(Outcome.STORED, upload.commit())
        self.assertEqual(len(content), store.size_of(ROOT, "data", id_of(content)))
        self.assertEqual(id_of(content), id_of(load(store, ROOT, "data", id_of(content))))

    # --- a name that is taken

    def test_same_bytes_again(self) -> None:
        """The same bytes under their name once more: they stay as they are, which is what a repeated request needs."""
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for kind in TYPES:
                save(store, ROOT, kind, b"once")
                before = self.contents()
                self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, kind, b"once"))
                self.assertEqual(before, self.contents())

    def test_damaged_object_is_healed(self) -> None:
        """Bytes that earn a name replace other bytes that stand under it, whatever their length."""
        content, name = b"what the name promises", id_of(b"what the name promises")
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for damaged in (b"", b"what the name promise?", b"what the name", content + b" and more"):
                for kind in TYPES:
                    self.plant(key_of(ROOT, kind, name), damaged)
                    self.assertEqual(Outcome.HEALED, save(store, ROOT, kind, content))
                    self.assertEqual(content, load(store, ROOT, kind, name))
                    self.assertEqual(Outcome.UNCHANGED, save(store, ROOT, kind, content))
        self.assertEqual({key_of(ROOT, kind, name): content for kind in TYPES}, self.contents())

    def test_healing_leaves_readers_alone(self) -> None:
        """Whoever has the damaged object open reads on in it; whoever opens it later gets the healed one."""
        store = self.store_with()
        content, name = b"what the name promises", id_of(b"what the name promises")
        self.plant(key_of(ROOT, "data", name), b"damaged")
        reader = store.stored(ROOT, "data", name)
        reader.open()
        self.assertEqual(Outcome.HEALED, save(store, ROOT, "data", content))
        self.assertEqual(b"damaged", reader.read(0, 100))
        reader.close()
        self.assertEqual(content, load(store, ROOT, "data", name))

    def test_wrong_bytes_for_a_taken_name(self) -> None:
        """
        Bytes that a taken name does not promise are refused, and nothing changes: not a good and not a damaged
        object.
        """
        name = id_of(b"a pack")
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for there in (b"a pack", b"damaged"):
                for kind in TYPES:
                    self.plant(key_of(ROOT, kind, name), there)
                    for sent in (b"other bytes", b"", b"a pack."):
                        before = self.contents()
                        with self.assertRaises(Forbidden):
                            save(store, ROOT, kind, sent, name)
                        self.assertEqual(before, self.contents())

    def test_config(self) -> None:
        """A config is stored under no hash; then equal bytes change nothing and others are refused."""
        for verify in (True, False):
            store = self.make_store(verify)
            repository = ("verified" if verify else "believed",)
            store.create_repository(repository)
            self.assertEqual(Outcome.STORED, save(store, repository, "config", b"a config", "config"))
            self.assertEqual(8, store.size_of(repository, "config", "config"))
            self.assertEqual(Outcome.UNCHANGED, save(store, repository, "config", b"a config", "config"))
            for other in (b"", b"a confi", b"a config.", b"A config"):
                with self.assertRaises(Forbidden):
                    save(store, repository, "config", other, "config")
            self.assertEqual(b"a config", load(store, repository, "config", "config"))
            self.assertEqual(-1, store.remove_object(repository, "config", "config").objects)
            self.assertEqual(Outcome.STORED, save(store, repository, "config", b"a new one", "config"))

    # --- loading

    def test_read_anywhere(self) -> None:
        """Any part of an object can be read; at the end and past it there is nothing."""
        store = self.store_with()
        save(store, ROOT, "data", b"0123456789")
        stored = store.stored(ROOT, "data", id_of(b"0123456789"))
        stored.open()
        self.assertEqual(10, stored.size_bytes)
        self.assertEqual(b"0123456789", stored.read(0, 100))
        self.assertEqual(b"345", stored.read(3, 3))
        self.assertEqual(b"9", stored.read(9, 5))
        self.assertEqual(b"", stored.read(10, 5))
        self.assertEqual(b"", stored.read(99, 5))
        stored.close()
        stored.close()

    def test_open_object_survives_its_removal(self) -> None:
        """An open object stays whole for its reader after it was removed."""
        store = self.store_with()
        save(store, ROOT, "data", b"a pack")
        stored = store.stored(ROOT, "data", id_of(b"a pack"))
        stored.open()
        self.assertEqual(-1, store.remove_object(ROOT, "data", id_of(b"a pack")).objects)
        self.assertEqual(b"a pack", stored.read(0, 100))
        stored.close()

    def test_missing_objects(self) -> None:
        """What is not there is NotFound, and a failed open can be closed."""
        store = self.store_with()
        for kind, name in [(kind, id_of(b"none")) for kind in TYPES] + [("config", "config")]:
            with self.assertRaises(NotFound):
                store.size_of(ROOT, kind, name)
            stored = store.stored(ROOT, kind, name)
            with self.assertRaises(NotFound):
                stored.open()
            stored.close()

    # --- removing

    def test_remove(self) -> None:
        """Removing says whether there was one, and takes it from every view."""
        store = self.store_with()
        for kind in TYPES:
            save(store, ROOT, kind, b"to be removed")
            save(store, ROOT, kind, b"to stay")
            self.assertEqual(-1, store.remove_object(ROOT, kind, id_of(b"to be removed")).objects)
            self.assertEqual(Amount(), store.remove_object(ROOT, kind, id_of(b"to be removed")))
            with self.assertRaises(NotFound):
                store.size_of(ROOT, kind, id_of(b"to be removed"))
            self.assertEqual([Entry(id_of(b"to stay"), 7)], entries(store, ROOT, kind))
            self.assertEqual(Outcome.STORED, save(store, ROOT, kind, b"to be removed"))
        self.assertEqual(Amount(), store.remove_object(ROOT, "config", "config"))

    # --- lists

    def test_list_of_many(self) -> None:
        """A list names each object once, with its size or without."""
        store = self.store_with()
        contents = [b"%d" % number * number for number in range(40)]
        for content in contents:
            save(store, ROOT, "data", content)
        self.assertEqual(sorted(Entry(id_of(c), len(c)) for c in contents), entries(store, ROOT, "data"))
        self.assertEqual(sorted(Entry(id_of(c), 0) for c in contents), entries(store, ROOT, "data", with_sizes=False))

    def test_foreign_names_are_never_listed(self) -> None:
        """Only objects under their ids are listed: no temporary file, no other program's file, no object misplaced."""
        store = self.store_with()
        name = id_of(b"a lock")
        save(store, ROOT, "locks", b"a lock")
        save(store, ROOT, "data", b"a lock")
        strange = (
            "lost+found",
            ".DS_Store",
            f"{name}.tmp",
            f".{name}",
            f"{name}-rest-temp",
            f"{name}-tmp-1234567",
            name.upper(),
            name[:-1],
            name + "0",
            name[:-1] + "g",
            "é" * 32,
            "config",
        )
        for odd in strange:
            self.plant(f"locks/{odd}", b"foreign")
            self.plant(f"data/{odd}", b"foreign")
            self.plant(f"data/{name[:2]}/{odd}", b"foreign")
        self.plant(f"data/{name}", b"in the wrong place")
        self.plant("data/00/" + "ff" * 32, b"in the wrong place")
        self.plant("data/lost/" + "ff" * 32, b"in the wrong place")
        self.plant("data/ff/deeper/" + "ff" * 32, b"in the wrong place")
        for with_sizes in (True, False):
            size_bytes = 6 if with_sizes else 0
            self.assertEqual([Entry(name, size_bytes)], entries(store, ROOT, "locks", with_sizes))
            self.assertEqual([Entry(name, size_bytes)], entries(store, ROOT, "data", with_sizes))

    def test_uploads_in_progress_are_never_listed(self) -> None:
        """An upload on its way appears in no list of any type."""
        store = self.store_with()
        uploads = [store.upload(ROOT, kind, id_of(b"a pack")) for kind in TYPES]
        for upload in uploads:
            upload.open()
            upload.write([b"a pack"])
        for kind in TYPES:
            self.assertEqual([], entries(store, ROOT, kind))
            self.assertEqual([], entries(store, ROOT, kind, with_sizes=False))
        for upload in uploads:
            upload.abort()

    def test_vanished_entries_are_skipped(self) -> None:
        """
        Objects that are removed while a list is read never make it fail; those that stay are all in it.

        (restic takes a failed list for an empty one, misses a lock and prunes what it protects.)
        """
        for kind in ("locks", "data"):
            for with_sizes in (True, False):
                store = self.store_with()
                names = {id_of(b"%d" % number) for number in range(60)}
                for number in range(60):
                    save(store, ROOT, kind, b"%d" % number)
                listing = store.list_objects(ROOT, kind, with_sizes)
                listing.open()
                reading = lines_of(listing)
                first = next(reading).name
                gone = set(sorted(names - {first})[::2])
                for name in gone:
                    self.assertEqual(-1, store.remove_object(ROOT, kind, name).objects)
                listed = [first, *(entry.name for entry in reading)]
                listing.close()
                self.assertEqual(len(listed), len(set(listed)))
                self.assertLessEqual(names - gone, set(listed))
                self.assertLessEqual(set(listed), names)

    def test_list_closed_half_way(self) -> None:
        """A list may be closed at any time, and again."""
        store = self.store_with()
        for number in range(10):
            save(store, ROOT, "data", b"%d" % number)
        listing = store.list_objects(ROOT, "data", True)
        listing.close()
        listing.open()
        next(lines_of(listing))
        listing.close()
        listing.close()

    def test_list_names_are_json_safe(self) -> None:
        """Names are plain ASCII, so that a list can be written without escaping."""
        store = self.store_with()
        save(store, ROOT, "keys", b"a key")
        for entry in entries(store, ROOT, "keys"):
            self.assertEqual(f'"{entry.name}"', json.dumps(entry.name))

    # --- several at once

    def test_many_upload_the_same(self) -> None:
        """Any number of clients may upload the same object at the same time: all succeed, one stores it."""
        store = self.store_with()
        for number in range(20):
            content = b"pack %d" % number
            outcomes = at_once([partial(save, store, ROOT, "data", content)] * 8)
            self.assertEqual([Outcome.STORED] + [Outcome.UNCHANGED] * 7, sorted(outcomes, key=_stored_first))
            self.assertEqual(content, load(store, ROOT, "data", id_of(content)))
        self.assertEqual(20, len(self.contents()))

    def test_many_upload_the_same_and_one_is_wrong(self) -> None:
        """Among clients that upload the same object one with other bytes is refused, and does no harm."""
        for verify in (True, False):
            store = self.store_with(verify=verify)
            for number in range(20):
                content = b"%r pack %d" % (verify, number)
                name = id_of(content)
                jobs = [partial(save, store, ROOT, "data", content, name)] * 7
                wrong = partial(save, store, ROOT, "data", b"other bytes", name)
                *good, bad = at_once([*jobs, wrong])
                self.assertLessEqual(set(good), {Outcome.STORED, Outcome.UNCHANGED, Outcome.HEALED}, good)
                if verify:
                    self.assertIsInstance(bad, (HashMismatch, Forbidden))
                else:
                    # Nobody verified the first of them; those that came later healed it.
                    self.assertTrue(bad is Outcome.STORED or isinstance(bad, Forbidden), bad)
                self.assertEqual(content, load(store, ROOT, "data", name))
        self.assertEqual(40, len(self.contents()))

    def test_many_heal_the_same(self) -> None:
        """Any number of clients may heal the same object at the same time."""
        store = self.store_with()
        for number in range(20):
            content = b"pack %d" % number
            self.plant(key_of(ROOT, "data", id_of(content)), b"damaged")
            outcomes = at_once([partial(save, store, ROOT, "data", content)] * 8)
            self.assertIn(Outcome.HEALED, outcomes)
            self.assertLessEqual(set(outcomes), {Outcome.HEALED, Outcome.UNCHANGED}, outcomes)
            self.assertEqual(content, load(store, ROOT, "data", id_of(content)))
        self.assertEqual(20, len(self.contents()))

    def test_one_config_wins(self) -> None:
        """Of several clients that make a repository at the same time one gets its config in, the others are refused."""
        for number in range(20):
            repository = (f"r{number}",)
            store = self.store_with(repository)
            jobs = [partial(save, store, repository, "config", b"%d" % n, "config") for n in range(6)]
            outcomes = at_once(jobs)
            self.assertEqual(1, outcomes.count(Outcome.STORED), outcomes)
            self.assertEqual(5, sum(isinstance(outcome, Forbidden) for outcome in outcomes), outcomes)
            winner = outcomes.index(Outcome.STORED)
            self.assertEqual(b"%d" % winner, load(store, repository, "config", "config"))
        self.assertEqual(20, len(self.contents()))

    def test_upload_beside_removal(self) -> None:
        """An object that is uploaded while it is removed is there whole or not at all, and neither side fails."""
        store = self.store_with()
        name = id_of(b"a lock")
        for _ in range(50):
            jobs: list[Callable[[], object]] = [
                lambda: save(store, ROOT, "locks", b"a lock"),
                lambda: store.remove_object(ROOT, "locks", name),
                lambda: save(store, ROOT, "locks", b"a lock"),
            ]
            results = at_once(jobs)
            removals = {Amount(), Amount(-len(b"a lock"), -1)}
            self.assertLessEqual(set(results), {Outcome.STORED, Outcome.UNCHANGED, *removals}, results)
            self.assertIn(self.contents(), ({}, {f"locks/{name}": b"a lock"}))


def _stored_first(outcome: object) -> bool:
    return outcome != Outcome.STORED
