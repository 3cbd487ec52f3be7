"""
The store of repositories in a bucket, in the layout of restic's own S3 and Azure backends, so that both may use it at once.

A repository is there if its config is, or an empty object that the server writes when it makes one. That it is there is
remembered for a minute: uploads need no request of their own for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from twisted.logger import Logger

from ..errors import Forbidden, NoSuchRepository, NotFound, ServerError, StartError
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount
from ..storage.interface import Listing, SizeChange, Stored, Upload
from ..storage.layout import Repository
from ..storage.trash import is_kept
from .counting import BucketCounting
from .engine import Absent, AccessRefused, BucketMissing, Engine, EngineError, EngineFull, Exists
from .layout import Keys, name_in
from .listing import ObjectListing
from .logged_engine import LoggedEngine
from .probe import Finding, Probe, ProvenFile
from .reading import ObjectStored
from .spool import Spool
from .upload import PAUSES_S, ObjectUpload
from .versions import S3Versions, VersionsKept
from .volume import BucketVolume

#: For how long a repository that was there is taken to be there.
KNOWN_S = 60.0
#: More repositories are not remembered.
_MOST_KNOWN = 100_000

_log = Logger()


class ObjectStore:
    """
    See L{resticserver.storage.interface.ServedStore}.

    @param prefix: of all keys; empty, or with a slash at its end.
    @param verify: whether the hash of an upload must be its name.
    @param max_depth: how many folders deep repositories may lie.
    @param read_only: whether nothing is written at the start.
    @param proven: remembers that the race was run; C{None} if the engine's conditions are not relied on.
    @param versions: the old versions of the bucket; C{None} if it cannot have any.
    @ivar place: where repositories lie, for messages.
    """

    read_only = False

    def __init__(
        self,
        engine: Engine,
        prefix: str,
        spool: Spool,
        *,
        verify: bool = True,
        max_depth: int = 2,
        read_only: bool = False,
        proven: ProvenFile | None = None,
        versions: S3Versions | None = None,
    ) -> None:
        self.engine = logged = LoggedEngine(engine)
        self.spool = spool
        self.verify = verify
        self.read_only = read_only
        self.place = engine.name
        self._keys = Keys(prefix)
        self._proven = proven
        self.key = self._keys.object
        self.objects = self._keys.objects
        self.volume = BucketVolume(logged, self._keys.volume_marker)
        self.counting = BucketCounting(logged, self._keys, self.volume, max_depth)
        self._versions = versions
        self._kept = None if versions is None else VersionsKept(versions, prefix)
        self._keep_s = 0.0
        #: Until when on the monotonic clock a repository is taken to be there.
        self._known_until_s: dict[Repository, float] = {}

    # --- the start

    def expect_kept(self, keep_s: float) -> None:
        """
        Deleted objects are kept for so many seconds: the start fails if the bucket does not do that, and what is kept is
        counted.
        """
        self._keep_s = keep_s
        if keep_s:
            self.counting.versions = self._versions

    def prepare(self) -> None:
        """
        Check that the bucket can be used, that it is the one of an earlier run, and what the engine promises.

        @raise StartError: it cannot be used.
        """
        self.spool.prepare()
        self.look()
        if not self.read_only:
            with self._start_errors():
                self._try_promises()

    def look(self) -> None:
        """
        Check that the bucket is there, without writing anything.

        @raise StartError: it cannot be read.
        """
        with self._start_errors():
            self.engine.check_bucket()
            self.volume.is_missing()
            if self.volume.known is None:
                self.volume.check()
            if self._keep_s and (problem := self._why_not_kept(self._keep_s)):
                raise StartError(f"--delete-delay: {problem}")

    def _why_not_kept(self, keep_s: float) -> str:
        """
        Why what is deleted does not stay for so many seconds; empty if it does.

        @raise EngineError: the engine does not say.
        """
        if self._kept is None:
            return f"{self.place} has no old versions of deleted objects, which only works with s3://"
        return self._kept.problem(keep_s)

    @contextmanager
    def _start_errors(self) -> Iterator[None]:
        """What is wrong with the engine is said in one line."""
        try:
            with self.engine.log.silent():
                yield
        except EngineError as error:
            raise StartError(f"--path: cannot use {self.place}: {error.message}{_in_brackets(error.detail)}") from error

    def _try_promises(self) -> None:
        """
        Try what the engine promises.

        @raise StartError: it does not keep a promise.
        """
        probe = Probe(self.engine, self._keys.prefix)
        self._must_be_kept(probe.quick())
        if self._proven is None:
            return
        if not self._proven.is_proven():
            _log.info("Trying what {place} guarantees: this takes some seconds, once", place=self.place)
            self._must_be_kept(probe.race())
        self._proven.remember()

    def _must_be_kept(self, findings: list[Finding]) -> None:
        broken = [one for one in findings if one.problem]
        if not broken:
            return
        if self._proven is not None:
            self._proven.forget()
        problems = "; ".join(f"{one.name}: {one.problem}" for one in broken)
        hint = ". A single server may use it with --objects-unconditional" if all(one.shared for one in broken) else ""
        raise StartError(f"--path: {self.place} cannot be used: {problems}{hint}")

    def try_out(self) -> str:
        """See L{resticserver.storage.interface.ServedStore.try_out}."""
        try:
            self.engine.check_bucket()
            self.volume.check()
        except ServerError as error:
            return error.message
        return ""

    def observe_fsyncs(self, observer: object) -> None:
        """See L{resticserver.storage.interface.ServedStore.observe_fsyncs}: the engine's are not known."""

    def observe_size_changes(self, observer: object) -> None:
        """See L{resticserver.storage.interface.ServedStore.observe_size_changes}: no list is kept to compare with."""

    def is_damaged(self, change: SizeChange) -> bool:
        """See L{resticserver.storage.interface.ServedStore.is_damaged}."""
        return False

    def forget_directory(self, repository: Repository, object_type: str, name: str) -> None:
        """See L{resticserver.storage.interface.ServedStore.forget_directory}: no list is kept."""

    # --- repositories

    def find_repository(self, repository: Repository) -> None:
        """
        Check that a repository is there.

        @raise NoSuchRepository: it is not.
        """
        # Some engines make a bucket that is missing when something is stored in it.
        self.volume.check_now_and_then()
        now_s = time.monotonic()
        if self._known_until_s.get(repository, 0.0) > now_s:
            return
        if not (self.is_there(self.key(repository, CONFIG, CONFIG)) or self.is_there(self._keys.marker(repository))):
            self._known_until_s.pop(repository, None)
            self.volume.check()
            raise NoSuchRepository()
        if len(self._known_until_s) >= _MOST_KNOWN:
            self._known_until_s.clear()
        self._known_until_s[repository] = now_s + KNOWN_S

    def is_there(self, key: str) -> bool:
        """Whether there is an object of that key."""
        try:
            self.engine.size_of(key)
        except Absent:
            return False
        return True

    def missing(self) -> NotFound:
        """
        What to raise for an object that is not there.

        @raise Unavailable: the bucket is not there either.
        """
        # Always: restic takes a 404 for an empty repository, and rarely asks for what is not there.
        self.volume.check()
        return NotFound()

    def create_repository(self, repository: Repository) -> None:
        """
        Write the object that says that there is a repository.

        @raise NotFound: its name is too long.
        """
        # The longest key that it may have.
        self.key(repository, "data", "0" * 64)
        self.volume.check()
        _log.info("Creating repository {repository} in {place}", repository=_shown(repository), place=self.place)
        self._write_marker(self._keys.marker(repository))
        self.volume.mark()

    def _write_marker(self, key: str) -> None:
        """
        Write the empty object that says that there is a repository, unless it is there. As with an upload, neither an error nor
        a conflict says whether it is.

        @raise EngineError: it is not known to be there.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                self.engine.put_new(key, b"")
                return
            except (AccessRefused, BucketMissing):
                raise
            except Exists:
                failed = EngineError("", f"{key}: neither stored nor there")
            except EngineError as error:
                failed = error
            if self.is_there(key):
                return
            if pause_s is None:
                raise failed
            time.sleep(pause_s)

    def delete_repository(self, repository: Repository, keep_s: float = 0) -> None:
        """
        Remove what restic stores in a repository, the config first; never repositories below it or objects that are not
        restic's.

        @raise NoSuchRepository: there is none.
        @raise Forbidden: its objects are to be kept, which is not possible.
        """
        self._check_kept(keep_s)
        self.volume.check()
        self._known_until_s.pop(repository, None)
        self.find_repository(repository)
        _log.info("Deleting repository {repository} in {place}", repository=_shown(repository), place=self.place)
        # A repository that restic has made has none, and could not be deleted again without its config.
        with suppress(EngineFull):
            self._write_marker(self._keys.marker(repository))
        self.engine.remove(self.key(repository, CONFIG, CONFIG))
        for object_type in TYPES:
            for key in self._all_keys(repository, object_type):
                self.engine.remove(key)
        # The last: until then the repository can be deleted again.
        self.engine.remove(self._keys.marker(repository))
        self._known_until_s.pop(repository, None)

    def _all_keys(self, repository: Repository, object_type: str) -> Iterator[str]:
        prefix = self.objects(repository, object_type)
        for page in self.engine.list_pages(prefix):
            for found in page:
                if is_object_id(name_in(found.key, object_type)):
                    yield prefix + found.key

    # --- objects

    def upload(self, repository: Repository, object_type: str, name: str, length: int | None = None) -> Upload:
        """A new upload; does no I/O yet."""
        return ObjectUpload(self, repository, object_type, name, length)

    def stored(self, repository: Repository, object_type: str, name: str) -> Stored:
        """An object to be opened; does no I/O yet."""
        return ObjectStored(self, repository, object_type, name)

    def size_nowait(self, repository: Repository, object_type: str, name: str) -> int | None:
        """See L{resticserver.storage.interface.Loads.size_nowait}: an engine never answers at once."""
        return None

    def size_of(self, repository: Repository, object_type: str, name: str) -> int:
        """
        An object's size in bytes.

        @raise NotFound: there is none of that name.
        """
        try:
            return self.engine.size_of(self.key(repository, object_type, name))
        except Absent:
            # Unlike that to a GET, this answer never says that the bucket is missing.
            self.volume.check()
            raise NotFound() from None

    def list_objects(self, repository: Repository, object_type: str, with_sizes: bool) -> Listing:
        """The objects of a type; does no I/O yet."""
        return ObjectListing(self, repository, object_type)

    def remove_object(self, repository: Repository, object_type: str, name: str, keep_s: float = 0) -> Amount:
        """
        Remove an object.

        @return: by how much that changes what is stored.
        @raise Forbidden: it is to be kept, which is not possible.
        """
        if is_kept(object_type):
            self._check_kept(keep_s)
        key = self.key(repository, object_type, name)
        try:
            size_bytes = self.engine.size_of(key)
        except Absent:
            # It is called removed because of a removal and not of a look, which may have been answered wrongly.
            self.engine.remove(key)
            self.volume.check()
            return Amount()
        if object_type == CONFIG:
            self._known_until_s.pop(repository, None)
        self.engine.remove(key)
        return Amount(-size_bytes, -1)

    def _check_kept(self, keep_s: float) -> None:
        """
        Before a deletion: the versioning may have been switched off, or a rule may have come that keeps for longer.

        @raise Forbidden: what is deleted would not be kept for so many seconds.
        """
        if keep_s and (problem := self._why_not_kept(keep_s)):
            _log.error("nothing is deleted that is to be kept (delete-delay): {problem}", problem=problem)
            raise Forbidden("a rule keeps deleted objects (delete-delay), which the bucket does not do")


def _shown(repository: Repository) -> str:
    return ascii("/".join(repository) or "/")[1:-1]


def _in_brackets(detail: str) -> str:
    return f" ({detail})" if detail else ""
