"""
An engine through obstore, the Python side of Rust's object_store: bodies, sizes and removals. Lists are requested in
L{resticserver.objects.s3} and L{resticserver.objects.azure}, because obstore ends a list silently when a page of it is damaged.

obstore says what went wrong by the class of the exception and in words, so the status and the engine's code are read from
those words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from ..errors import StartError
from ..storage.interface import WantedPart
from .answers import meaning
from .engine import WHOLE, Absent, AccessRefused, BeyondTheEnd, Body, Content, EngineError, EngineFull, Exists, Found
from .timeouts import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, STORE_TIMEOUT_S

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

#: How much of a body is handed on at a time, in bytes.
PIECE_BYTES = 256 << 10


#: The caller tries again, since only it knows whether that is safe.
NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(0)}

_STATUS = re.compile(r"status code: (\d{3})")
#: In an answer, or, in obstore's own words, of an object that was not removed by a request for several.
_CODE = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
#: The statuses that obstore tells by the class of its exception. (C{FileNotFoundError} and C{PermissionError} are its own too.)
_STATUS_OF: tuple[tuple[type[Exception], int], ...] = (
    (AlreadyExistsError, 409),
    (PreconditionError, 412),
    (FileNotFoundError, 404),
    (NotFoundError, 404),
    (PermissionError, 403),
    (PermissionDeniedError, 403),
    (UnauthenticatedError, 401),
)
#: How often an object is removed that a removal has not found, and that is there: it may have been uploaded meanwhile.
_REMOVALS = 3

#: obstore's own words where an engine answers a part that begins at the end with an empty one, as Azurite does.
_BEGINS_TOO_LATE = "Wanted range starting at"


def client_options(
    endpoint: str, writes: bool, ca_file: str | None = None, ca_variable: str = "AWS_CA_BUNDLE"
) -> ClientConfig:
    """
    The options of a client.

    @param endpoint: its URL; with C{http:} the connections are not encrypted.
    @param writes: whether it stores. A limit of the pause between two reads would run while a body is sent, and one of the whole
        request would end the download of a slow client.
    @param ca_file: certificates to trust besides the system's, PEM; C{ca_variable}: what has named it, for messages.
    @raise StartError: that file cannot be read.
    """
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "timeout": timedelta(seconds=STORE_TIMEOUT_S) if writes else timedelta(days=7),
        "allow_http": endpoint.startswith("http:"),
    }
    if not writes:
        options["read_timeout"] = timedelta(seconds=READ_TIMEOUT_S)
    if ca_file is not None:
        try:
            with open(ca_file, "rb") as file:
                options["root_certificate"] = file.read()
        except OSError as error:
            raise StartError(f"--path: cannot read {ca_file} ({ca_variable}): {error.strerror}") from None
    return options


class Lists(Protocol):
    """Lists a bucket; see L{resticserver.objects.engine.Engine}."""

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{resticserver.objects.engine.Engine.list_pages}."""

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{resticserver.objects.engine.Engine.list_folder}."""

    def check_bucket(self) -> None:
        """See L{resticserver.objects.engine.Engine.check_bucket}."""


class ObstoreEngine:
    """
    See L{resticserver.objects.engine.Engine}.

    @param name: the bucket, for messages; C{endpoint}: the URL of the engine.
    @param writer: the client for requests that store; C{reader} for all others.
    @param lists: lists the bucket.
    @param refused: called when the credentials were refused, so that they are read again.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        writer: ObjectStore,
        reader: ObjectStore,
        lists: Lists,
        refused: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self._writer = writer
        self._reader = reader
        self._refused = refused
        self.list_pages = lists.list_pages
        self.list_folder = lists.list_folder
        self.check_bucket = lists.check_bucket

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put_new}."""
        self._put(key, content, sha256, True)

    def put(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{resticserver.objects.engine.Engine.put}."""
        self._put(key, content, sha256, False)

    def _put(self, key: str, content: Content, sha256: bytes | None, is_new: bool) -> None:
        """
        Store an object.

        @param is_new: whether there must be none of that key.
        """
        try:
            obstore.put(self._writer, key, content, mode="create" if is_new else "overwrite", use_multipart=False)
        except (OSError, BaseError) as error:
            raise self._meant(error, EngineFull, *((Exists,) if is_new else ())) from None

    def size_of(self, key: str) -> int:
        """See L{resticserver.objects.engine.Engine.size_of}."""
        try:
            return obstore.head(self._reader, key)["size"]
        except (OSError, BaseError) as error:
            raise self._meant(error, Absent) from None

    def get(self, key: str, wanted: WantedPart = WHOLE) -> Body:
        """See L{resticserver.objects.engine.Engine.get}."""
        asked: Any = None
        if wanted.suffix:
            asked = {"suffix": wanted.suffix}
        elif wanted.end is not None:
            asked = (wanted.start, wanted.end)
        elif wanted.start:
            asked = {"offset": wanted.start}
        try:
            result = obstore.get(self._reader, key, options={} if asked is None else {"range": asked})
        except (OSError, BaseError) as error:
            raise self._meant(error, Absent, *(() if asked is None else (BeyondTheEnd,))) from None
        return _ObstoreBody(result, self._meant)

    def remove(self, key: str) -> None:
        """See L{resticserver.objects.engine.Engine.remove}."""
        for _ in range(_REMOVALS):
            if self._was_removed(key):
                return
        raise EngineError("", f"{key}: not found by a removal, and there")

    def _was_removed(self, key: str) -> bool:
        """Whether a removal succeeded, or neither it nor a look has found the object."""
        try:
            obstore.delete(self._writer, key)
        except (OSError, BaseError) as error:
            meant = self._meant(error, Absent)
            if not isinstance(meant, Absent):
                raise meant from None
            # Some engines say so of a missing object, others only of a missing bucket.
            self.check_bucket()
            try:
                self.size_of(key)
            except Absent:
                return True
            return False
        except BaseException as error:
            # obstore 0.12 asks for the removal of several objects, and panics if the answer names another one.
            if type(error).__name__ != "PanicException":
                raise
            raise EngineError("", f"obstore: {error}") from None
        return True

    def _meant(self, error: Exception, *expected: type[Exception]) -> Exception:
        """
        What an exception of obstore stands for.

        @param expected: what the request may say besides L{EngineError}. Another answer is an error of the engine's: that an
            object of this name exists, to a GET.
        """
        words = str(error).partition("\n\nDebug source:")[0]
        found = _CODE.search(words)
        code = (found.group(1) or found.group(2)) if found is not None else ""
        detail = _detail(words, code)
        meant = meaning(_status(error, words), code, detail)
        if isinstance(meant, AccessRefused):
            self._refused()
        return meant if isinstance(meant, (EngineError, *expected)) else EngineError("", detail)


def _status(error: Exception, words: str) -> int:
    """The status of the answer; 0 if there was none."""
    for known, status in _STATUS_OF:
        if isinstance(error, known):
            return status
    if _BEGINS_TOO_LATE in words:
        return 416
    found = _STATUS.search(words)
    return int(found.group(1)) if found is not None else 0


def _detail(words: str, code: str) -> str:
    """
    What an error says, for the log: of the answer's body only the code and the message, since other elements may repeat the
    request with its signature.
    """
    before, xml, _ = words.partition("<?xml")
    if not xml:
        before, xml, _ = words.partition("<Error>")
    if xml:
        found = _MESSAGE.search(words)
        before += f"{code}: {found.group(1)}" if found is not None and found.group(1) else code
    return " ".join(before.split())


class _ObstoreBody:
    """See L{resticserver.objects.engine.Body}."""

    def __init__(self, result: Any, meant: Callable[[Exception], Exception]) -> None:
        self.size_bytes: int = result.meta["size"]
        self.start, self.end = result.range
        self._left_bytes = self.end - self.start
        self._stream: Any = iter(result.stream(min_chunk_size=PIECE_BYTES))
        self._meant = meant

    def read(self) -> bytes | memoryview:
        """See L{resticserver.objects.engine.Body.read}."""
        if self._stream is None or not self._left_bytes:
            return b""
        try:
            # Of obstore's own memory: a copy would be a tenth of the time that a large object takes.
            piece = memoryview(next(self._stream))
        except StopIteration:
            raise EngineError("", f"a body ended {self._left_bytes} bytes early") from None
        except (OSError, BaseError) as error:
            meant = self._meant(error)
            raise meant if isinstance(meant, EngineError) else EngineError("", str(error)) from None
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise EngineError("", f"a body had {-self._left_bytes} bytes too many")
        return piece

    def close(self) -> None:
        """See L{resticserver.objects.engine.Body.close}."""
        # The connection is closed when the last reference is gone.
        self._stream = None
