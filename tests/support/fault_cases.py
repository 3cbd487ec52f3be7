"""
The operations of the fault table: a small repository, something that is done in it, and where each object may be afterwards.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from resticserver.errors import Forbidden
from resticserver.names import CONFIG, TYPES
from resticserver.sizes import Amount
from resticserver.storage import publish
from resticserver.storage.deletions import Deletions
from resticserver.storage.interface import NotDurable, Outcome
from resticserver.storage.layout import CELLS, TRASH_CELL, cell_of
from resticserver.storage.local import LocalStore
from resticserver.storage.object_check import DAMAGED, UNREADABLE
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.scrub import ScrubRun
from resticserver.storage.scrub_state import ScrubState
from resticserver.storage.scrub_survey import Plan, Survey
from resticserver.storage.scrubbed_files import ScrubbedFiles
from resticserver.storage.state import MarkerFile
from resticserver.storage.trash import Trashed, day_name, is_kept, keep_name, trash_days, trashed_objects

from .client import object_id, random_bytes
from .scrub import HastyLimit, Recording

LAPTOP = ("alice", "laptop")
DAY_S = 86_400
MARKER = b"0123456789abcdef" * 2

#: An object: its type and its name.
Key = tuple[str, str]
#: Where copies of an object are: C{live} and C{trash}; with a C{!} where its bytes are not what its name says.
Places = tuple[str, ...]

_LIVE = re.compile(r"(?:(config)|(keys|locks|snapshots|index)/([0-9a-f]{64})|data/([0-9a-f]{2})/(\4[0-9a-f]{62}))\Z")
_TRASHED = re.compile(
    r"\.trash/[0-9]{4}-[0-9]{2}-[0-9]{2}/(data|index|keys|snapshots|config)(?:\.[0-9]+)?/([0-9a-f]{64})\Z"
)
_KEPT = re.compile(r"\.trash/[0-9]{4}-[0-9]{2}-[0-9]{2}/keep-[0-9]+s\Z")


class Wrong(AssertionError):
    """An operation has given out wrong bytes or an incomplete list, and said that all is well."""


@dataclass
class Found:
    """
    What is on the disk.

    @ivar places: of each object.
    @ivar live_bytes: the size of each object that is where it lies.
    @ivar amounts: by cell.
    @ivar others: files that are no objects.
    """

    places: dict[Key, Places]
    live_bytes: dict[Key, int]
    amounts: dict[int, Amount]
    others: list[str]


@dataclass
class Expected:
    """Where an object may be: after the operation was done, and after it failed."""

    done: set[Places]
    failed: set[Places]


class World:
    """
    A data directory with one repository, with only those directories that its objects need: making all 256 takes longer than
    an operation.

    @ivar bodies: the right bytes of each object.
    @ivar expected: where objects may be that the operation concerns. All others stay where they are.
    @ivar booked: by how much the operation said that it changed each cell.
    @ivar recount: whether the server counts after this operation, and does not book.
    @ivar counts_soon: whether it books, and counts soon after that: until then there may be less than was booked, never more.
    @ivar before: what was on the disk before it.
    """

    before: Found

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.repository = self.data / "alice/laptop"
        self.bodies: dict[Key, bytes] = {}
        self.expected: dict[Key, Expected] = {}
        self.booked: Counter[int] = Counter()
        self.booked_objects: Counter[int] = Counter()
        self.recount = False
        self.counts_soon = False
        for kind in TYPES:
            os.makedirs(self.repository / kind)
        os.mkdir(self.data / ".rest-server")
        (self.data / ".rest-server/id").write_bytes(MARKER + b"\n")
        for kind, body in (("data", b"a pack"), ("data", b"another"), ("index", b"an index"), ("keys", b"a key")):
            self.plant(kind, body)
        self.plant("snapshots", b"a snapshot")
        self.plant("locks", b"a lock")
        self.plant(CONFIG, b"the config")

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path)

    # --- objects

    def key(self, kind: str, body: bytes) -> Key:
        """The key of an object, whose right bytes are known from now on."""
        key = (kind, CONFIG if kind == CONFIG else object_id(body))
        self.bodies[key] = body
        return key

    def file(self, key: Key) -> Path:
        """Where an object lies."""
        kind, name = key
        if kind == CONFIG:
            return self.repository / CONFIG
        return self.repository / kind / name[:2] / name if kind == "data" else self.repository / kind / name

    def plant(self, kind: str, body: bytes, damaged: bytes | None = None) -> Key:
        """Put an object where it lies, maybe with other bytes."""
        key = self.key(kind, body)
        path = self.file(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body if damaged is None else damaged)
        return key

    def plant_in_trash(self, kind: str, body: bytes, damaged: bytes | None = None, keep_s: int = DAY_S) -> Key:
        """Put an object into the trash of today."""
        key = self.key(kind, body)
        day = self.repository / ".trash" / day_name(time.time())
        (day / kind).mkdir(parents=True, exist_ok=True)
        (day / keep_name(keep_s)).touch()
        (day / kind / object_id(body)).write_bytes(body if damaged is None else damaged)
        return key

    def may_be(self, key: Key, done: set[Places], failed: set[Places]) -> None:
        """Where an object may be after the operation."""
        self.expected[key] = Expected(done, failed | done)

    # --- looking

    def look(self) -> Found:
        """What is on the disk."""
        found = look_at(self.repository, lambda key, content: content == self.bodies.get(key))
        found.places = dict.fromkeys(self.bodies, ()) | found.places
        return found

    def book(self, cell: int, change: Amount) -> None:
        """Note what the quota ledger hears."""
        self.booked[cell] += change.size_bytes
        self.booked_objects[cell] += change.objects

    def trashed(self) -> Iterator[Trashed]:
        """What is in the trash, as the server finds it."""
        for day in trash_days(str(self.data), LAPTOP):
            yield from trashed_objects(day)


def look_at(repository: Path, is_right: Callable[[Key, bytes], bool]) -> Found:
    """
    What is on the disk, by a look that owes nothing to the server's code.

    @param is_right: whether an object has the right bytes.
    """
    places: dict[Key, list[str]] = {}
    live_bytes = {}
    amounts: dict[int, Amount] = {}
    others = []
    top = len(str(repository)) + 1
    for folder, _, names in os.walk(repository):
        for name in names:
            relative = f"{folder}/{name}"[top:]
            with open(f"{folder}/{name}", "rb") as file:
                content = file.read()
            if match := _LIVE.match(relative):
                kind = match[1] or match[2] or "data"
                key = (kind, name)
                right = is_right(key, content)
                where, cell = "live", cell_of(kind, name)
                live_bytes[key] = len(content)
            elif match := _TRASHED.match(relative):
                kind = match[1]
                key = (kind, CONFIG if kind == CONFIG else name)
                right = is_right(key, content) and object_id(content) == name
                where, cell = "trash", TRASH_CELL
            else:
                if not _KEPT.match(relative):
                    others.append(relative)
                continue
            places.setdefault(key, []).append(where if right else f"{where}!")
            before = amounts.get(cell, Amount())
            amounts[cell] = Amount(before.size_bytes + len(content), before.objects + 1)
    return Found({key: tuple(sorted(where)) for key, where in places.items()}, live_bytes, amounts, others)


@dataclass(frozen=True)
class Operation:
    """
    One line of the table.

    @ivar prepare: makes what it needs, and says where objects may be afterwards.
    @ivar run: does it; the second time, too, when all is done already.
    @ivar group: in the summary.
    @ivar around: a context for it.
    @ivar check: says what is wrong afterwards; nothing if nothing is.
    @ivar step: try each call whose number is a multiple of this.
    """

    title: str
    group: str
    prepare: Callable[[World], None]
    run: Callable[[World, LocalStore], None]
    mechanisms: Mechanisms = field(default_factory=Mechanisms)
    verify: bool = True
    around: Callable[[], ExitStack] = ExitStack
    check: Callable[[World], str] = lambda world: ""
    step: int = 1

    def store(self, world: World) -> LocalStore:
        """A store of the world's files, as a process has it that has just begun."""
        return LocalStore(str(world.data), verify=self.verify, publisher=Publisher(mechanisms=self.mechanisms))


# --- what is done, as the web's code does it


def upload(world: World, store: LocalStore, key: Key, chunks: int = 1) -> Outcome:
    """Upload the right bytes of an object."""
    kind, name = key
    body = world.bodies[key]
    length = -(-len(body) // chunks)
    one = store.upload(LAPTOP, kind, name, len(body))
    outcome = None
    try:
        one.open()
        for first in range(0, len(body), length):
            one.write([body[first : first + length]])
        outcome = one.commit()
    finally:
        one.abort()
        change = one.change
        if outcome is Outcome.HEALED or (change != Amount() and not change.objects):
            world.recount = True
        world.book(cell_of(kind, name), change)
    return outcome


def remove(world: World, store: LocalStore, key: Key, keep_s: float) -> None:
    """Remove an object."""
    kind, name = key
    change = Amount()
    try:
        change = store.remove_object(LAPTOP, kind, name, keep_s)
    except NotDurable as error:
        change = error.change
        raise
    except OSError:
        world.recount = bool(keep_s)
        raise
    finally:
        world.book(cell_of(kind, name), change)
        if keep_s and is_kept(kind):
            # The server counts again some seconds after a removal: it may have booked too much for the trash.
            world.counts_soon = change.objects < 0
            world.book(TRASH_CELL, Amount(-change.size_bytes, -change.objects))


def listed(store: LocalStore, kind: str, with_sizes: bool) -> list[tuple[str, int]]:
    """A list."""
    listing = store.list_objects(LAPTOP, kind, with_sizes)
    try:
        listing.open()
        return sorted((entry.name, entry.size_bytes) for part in listing for entry in part)
    finally:
        listing.close()


def check_list(found: Found, store: LocalStore, kind: str, with_sizes: bool) -> None:
    """
    List a type.

    @raise Wrong: it is not what is there.
    """
    there = sorted((name, size_bytes) for (of, name), size_bytes in found.live_bytes.items() if of == kind)
    got = listed(store, kind, with_sizes)
    if [name for name, _ in got] != [name for name, _ in there] or (with_sizes and got != there):
        raise Wrong(f"the list of {kind} is {got}, there is {there}")


def download(store: LocalStore, key: Key, offset: int = 0, length: int | None = None, nowait: bool = False) -> bytes:
    """An object, or a part of it."""
    stored = store.stored(LAPTOP, *key)
    try:
        if not (nowait and stored.open_nowait()):
            stored.open()
        end = stored.size_bytes if length is None else min(offset + length, stored.size_bytes)
        if nowait:
            at_once = stored.read_nowait(offset, end - offset)
            if at_once is not None:
                return at_once
        content = b""
        while offset < end:
            chunk = stored.read(offset, min(64 << 10, end - offset))
            if not chunk:
                raise OSError("it has become shorter")
            content += chunk
            offset += len(chunk)
        return content
    finally:
        stored.close()


# --- the operations


def _uploads() -> Iterator[Operation]:
    def stores(kind: str, body: bytes, chunks: int = 1) -> tuple[Callable[[World], None], Callable[..., None]]:
        def prepare(world: World) -> None:
            key = world.key(kind, body)
            if kind == CONFIG:
                world.file(key).unlink()
            world.may_be(key, {("live",)}, {()})

        def run(world: World, store: LocalStore) -> None:
            upload(world, store, (kind, CONFIG if kind == CONFIG else object_id(body)), chunks)

        return prepare, run

    large = random_bytes(1, 300_000)
    without_unnamed = Mechanisms(unnamed=False)
    without_links = Mechanisms(unnamed=False, hard_links=False)
    nothing = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)
    small = stores("data", b"a new pack")
    yield Operation("upload, small", "upload", *small)
    yield Operation("upload, large", "upload", *stores("data", large, 4))
    yield Operation("upload, config", "upload", *stores(CONFIG, b"a new config"))
    yield Operation("upload, lock", "upload", *stores("locks", b"a new lock"))
    yield Operation("upload, index", "upload", *stores("index", b"a new index"))
    yield Operation("upload, not verified", "upload", *small, verify=False)
    yield Operation("upload, named file", "upload", *small, without_unnamed)
    yield Operation("upload, renamed", "upload", *small, without_links)
    yield Operation("upload, renamed under a lock", "upload", *small, nothing)

    def same(world: World) -> None:
        world.plant("data", b"a new pack")

    def damaged(world: World) -> None:
        key = world.plant("data", b"a new pack", b"damaged")
        world.may_be(key, {("live",)}, {("live!",)})

    def same_config(world: World, store: LocalStore) -> None:
        upload(world, store, (CONFIG, CONFIG))

    def other_config(world: World, store: LocalStore) -> None:
        one = store.upload(LAPTOP, CONFIG, CONFIG, 5)
        try:
            one.open()
            one.write([b"other"])
            outcome = one.commit()
        except Forbidden:
            return
        finally:
            one.abort()
        raise Wrong(f"another config was taken: {outcome}")

    def as_it_was(world: World) -> None:
        """Nothing is to change."""

    for title, mechanisms in (("", Mechanisms()), (", renamed under a lock", nothing)):
        yield Operation(f"upload, same again{title}", "upload", same, small[1], mechanisms)
        yield Operation(f"upload, healing{title}", "upload", damaged, small[1], mechanisms)
        yield Operation(f"upload, another config{title}", "upload", as_it_was, other_config, mechanisms)
    yield Operation("upload, healing, named file", "upload", damaged, small[1], without_unnamed)
    yield Operation("upload, same config again", "upload", as_it_was, same_config)

    def make(world: World, store: LocalStore) -> None:
        store.create_repository(("bob",))

    yield Operation("new repository", "upload", as_it_was, make, step=41)


def _reads() -> Iterator[Operation]:
    large = random_bytes(2, 200_000)

    def plant_large(world: World) -> None:
        world.plant("data", large)

    def reads(**part: int) -> Callable[[World, LocalStore], None]:
        def run(world: World, store: LocalStore) -> None:
            offset = part.get("offset", 0)
            right = large[offset:][: part.get("length")]
            for nowait in (False, True):
                if download(store, ("data", object_id(large)), **part, nowait=nowait) != right:
                    raise Wrong("other bytes were given out")

        return run

    def lists(kind: str, with_sizes: bool) -> Callable[[World, LocalStore], None]:
        def run(world: World, store: LocalStore) -> None:
            check_list(world.before, store, kind, with_sizes)

        return run

    def again(world: World, store: LocalStore) -> None:
        check_list(world.before, store, "data", True)
        check_list(world.before, store, "data", True)

    def size(world: World, store: LocalStore) -> None:
        for kind, name in world.bodies:
            if store.size_of(LAPTOP, kind, name) != len(world.bodies[kind, name]):
                raise Wrong("another size was given out")

    def count(world: World, store: LocalStore) -> None:
        found = world.before
        for cell, amount in store.counting.count(LAPTOP, range(CELLS)).items():
            if amount != found.amounts.get(cell, Amount()):
                raise Wrong(f"cell {cell} is {found.amounts.get(cell)} and was counted as {amount}")

    def count_few(world: World, store: LocalStore) -> None:
        found = world.before
        cells = [*found.amounts, cell_of("data", "00"), TRASH_CELL]
        for cell, amount in store.counting.count(LAPTOP, cells).items():
            if amount != found.amounts.get(cell, Amount()):
                raise Wrong(f"cell {cell} is {found.amounts.get(cell)} and was counted as {amount}")

    def repositories(world: World, store: LocalStore) -> None:
        found = store.counting.repositories()
        if found != [LAPTOP] and not store.counting.skipped.reasons:
            raise Wrong(f"repositories: {found}")

    def with_trash(world: World) -> None:
        plant_large(world)
        world.plant_in_trash("data", b"deleted")

    yield Operation("download", "download", plant_large, reads())
    yield Operation("download, part", "download", plant_large, reads(offset=1000, length=100_000))
    yield Operation("size", "download", plant_large, size)
    for kind in ("data", "keys", "locks"):
        for version in (1, 2):
            yield Operation(f"list of {kind}, version {version}", "list", plant_large, lists(kind, version == 2))
    yield Operation("list, twice", "list", plant_large, again)
    yield Operation("count", "count", with_trash, count_few)
    yield Operation("count, all cells", "count", with_trash, count, step=23)
    yield Operation("count, repositories", "count", with_trash, repositories)


def _deletions() -> Iterator[Operation]:
    body = b"to be deleted"
    key = ("data", object_id(body))
    nothing = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)

    def plain(kind: str) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            world.may_be(world.plant(kind, body), {()}, {("live",)})

        return prepare

    def to_trash(kind: str) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            world.may_be(world.plant(kind, body), {("trash",)}, {("live",)})

        return prepare

    def removes(kind: str, keep_s: float) -> Callable[[World, LocalStore], None]:
        def run(world: World, store: LocalStore) -> None:
            remove(world, store, (kind, CONFIG if kind == CONFIG else object_id(body)), keep_s)

        return run

    def twin(world: World) -> None:
        world.plant("data", body)
        world.plant_in_trash("data", body, b"damaged")
        world.may_be(key, {("trash", "trash!")}, {("live", "trash!")})

    def same(world: World) -> None:
        world.plant("data", body)
        world.plant_in_trash("data", body)
        # Where the copies cannot be compared, both are kept.
        world.may_be(key, {("trash",), ("trash", "trash")}, {("live", "trash")})

    def gone(world: World) -> None:
        world.plant_in_trash("data", body)
        world.may_be(key, {("trash",)}, {("trash",)})

    def copied(world: World) -> None:
        world.plant("data", body)
        # A copy, then the end of what was copied: both are there if that fails.
        world.may_be(key, {("trash",)}, {("live",), ("live", "trash")})

    keep = removes("data", DAY_S)
    yield Operation("delete", "delete", plain("data"), removes("data", 0))
    yield Operation("delete, lock", "delete", plain("locks"), removes("locks", DAY_S))
    yield Operation("delete, to trash", "trash", to_trash("data"), keep)
    yield Operation("delete, key to trash", "trash", to_trash("keys"), removes("keys", DAY_S))
    yield Operation("delete, config to trash", "trash", to_trash(CONFIG), removes(CONFIG, DAY_S))
    yield Operation("delete, to trash again", "trash", gone, keep)
    for title, mechanisms in (("", Mechanisms()), (", without renameat2", nothing)):
        if title:
            yield Operation(f"delete, to trash{title}", "trash", to_trash("data"), keep, mechanisms)
        yield Operation(f"delete, to trash, other bytes there{title}", "trash", twin, keep, mechanisms)
        yield Operation(f"delete, to trash, same there{title}", "trash", same, keep, mechanisms)
    yield Operation("delete, to trash, copied", "trash", copied, keep, around=other_file_system)

    def removes_repository(keep_s: float) -> Callable[[World, LocalStore], None]:
        def run(world: World, store: LocalStore) -> None:
            world.recount = True
            if world.repository.exists() and any((world.repository / name).exists() for name in (CONFIG, *TYPES)):
                store.delete_repository(LAPTOP, keep_s)

        return run

    def all_of_it(keeps: bool) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            for kind, name in world.bodies:
                kept = keeps and is_kept(kind)
                world.may_be((kind, name), {("trash",) if kept else ()}, {("live",)})

        return prepare

    yield Operation("delete repository", "delete", all_of_it(False), removes_repository(0))
    yield Operation("delete repository, to trash", "trash", all_of_it(True), removes_repository(DAY_S))


def _ends() -> Iterator[Operation]:
    body = b"deleted"
    nothing = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)

    def in_trash(kind: str) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            if kind == CONFIG:
                (world.repository / CONFIG).unlink()
            world.may_be(world.plant_in_trash(kind, body), {("live",)}, {("trash",)})

        return prepare

    def restore(world: World, store: LocalStore) -> None:
        world.recount = True
        for one in world.trashed():
            store.trash.restore(one)
        for day in trash_days(store.path, LAPTOP):
            store.trash.remove_if_empty(day)

    def there(world: World) -> None:
        key = world.plant_in_trash("data", body)
        world.plant("data", body)
        world.may_be(key, {("live", "trash")}, set())

    def linked(world: World) -> None:
        """As a restore leaves it that is killed between its link and its unlink."""
        key = world.plant_in_trash("data", body)
        path = world.file(key)
        path.parent.mkdir(exist_ok=True)
        os.link(next(world.repository.glob(f".trash/*/data/{key[1]}")), path)
        world.may_be(key, {("live",)}, {("live", "trash")})

    def ended(world: World) -> None:
        for number in range(3):
            world.may_be(world.plant_in_trash("data", b"%d" % number, keep_s=1), {()}, {("trash",)})

    def expire(world: World, store: LocalStore) -> None:
        world.recount = True
        store.trash.expire(LAPTOP, time.time() + 10, 0, 100)

    def not_ended(world: World) -> None:
        for number in range(3):
            world.plant_in_trash("data", b"%d" % number)

    for kind in ("data", "keys", CONFIG):
        yield Operation(f"restore, {kind}", "restore", in_trash(kind), restore)
    for title, mechanisms in ((", by link", Mechanisms(rename_noreplace=False)), (", renamed under a lock", nothing)):
        links: set[Places] = {("live", "trash")} if mechanisms.hard_links else set()

        def prepare(world: World, links: set[Places] = links) -> None:
            world.may_be(world.plant_in_trash("data", body), {("live",)}, {("trash",)} | links)

        around = without_links if not mechanisms.hard_links else ExitStack
        yield Operation(f"restore{title}", "restore", prepare, restore, mechanisms, around=around)
    yield Operation("restore, same there", "restore", there, restore)
    yield Operation("restore, begun before", "restore", linked, restore)
    yield Operation("expiry", "expiry", ended, expire)
    yield Operation("expiry, nothing ends", "expiry", not_ended, expire)

    def leftovers(world: World) -> None:
        (world.repository / ".tmp").mkdir()
        for number in range(2):
            (world.repository / ".tmp" / f"{number:032x}.upload").write_bytes(b"half")

    def start(world: World, store: LocalStore) -> None:
        store.prepare()

    yield Operation("start", "start", leftovers, start)


def _states() -> Iterator[Operation]:
    def nothing(world: World) -> None:
        (world.path / "state").mkdir()

    def remember(world: World, store: LocalStore) -> None:
        MarkerFile(str(world.path / "state/volume-id"), 0o600).write(MARKER)

    def marker(world: World) -> str:
        found = MarkerFile(str(world.path / "state/volume-id"), 0o600).read()
        return "" if found in (None, MARKER) else f"the marker is {found!r}"

    yield Operation("state, marker", "state", nothing, remember, check=marker)

    def no_marker(world: World) -> None:
        shutil.rmtree(world.data / ".rest-server")

    def mark(world: World, store: LocalStore) -> None:
        store.volume.mark()

    def whole(world: World) -> str:
        path = world.data / ".rest-server/id"
        return "" if not path.exists() or len(path.read_bytes()) == 33 else f"the marker is {path.read_bytes()!r}"

    yield Operation("state, volume's marker", "state", no_marker, mark, check=whole)

    def rotten(world: World) -> None:
        scrub(world, LocalStore(str(world.data)))
        world.plant("data", b"rotten", b"ROTTEN")
        os.utime(world.file(("data", object_id(b"rotten"))), (1, 1))
        world.plant("data", random_bytes(5, 300_000))

    def scrub(world: World, store: LocalStore) -> None:
        state = ScrubState(str(world.data))
        survey = Survey(ScrubbedFiles(store, store.counting), state, Deletions(str(world.data)), Recording())
        try:
            run = ScrubRun(survey, Plan(began_s=time.time()), HastyLimit())
            run.survey()
            run.work()
            run.finish()
        finally:
            state.close()

    def findings(world: World) -> str:
        state = ScrubState(str(world.data))
        problems = [one for one in state.problems() if one.kind != UNREADABLE]
        state.close()
        wrong = [one for one in problems if (one.kind, one.name) != (DAMAGED, object_id(b"rotten"))]
        return f"the scrub has found {wrong}" if wrong else ""

    yield Operation("scrub", "scrub", rotten, scrub, check=findings, step=7)


def operations() -> list[Operation]:
    """All of them. What SQLite does is tested in L{tests.integration.test_fault_injection}."""
    return [*_uploads(), *_reads(), *_deletions(), *_ends(), *_states()]


def other_file_system() -> ExitStack:
    """The trash seems to lie on another file system."""

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)

    patches = ExitStack()
    patches.enter_context(mock.patch.object(publish, "rename_noreplace", refuse))
    return patches


def without_links() -> ExitStack:
    """A file system that has no hard links."""

    def refuse(source: object, target: object, **more: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    patches = ExitStack()
    patches.enter_context(mock.patch.object(os, "link", refuse))
    return patches


@contextmanager
def world_in(scratch: Path, number: int) -> Iterator[World]:
    """A new world, removed afterwards."""
    world = World(scratch / f"{number}")
    try:
        yield world
    finally:
        world.remove()
