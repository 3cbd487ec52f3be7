"""
Users and password hashes from an htpasswd file.

Reading and checking block (bcrypt takes some 75 ms at cost 10) and belong in a pool. bcrypt (C{$2y$ $2a$ $2b$}), the
crypts C{$6$ $5$ $apr1$} and C{{SHA}} are supported. An entry of another kind is logged, and its user cannot log in; the
other entries are not affected.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import re
import secrets
import string
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import bcrypt
from twisted.logger import Logger

from ..errors import StartError
from ..files import MadeOfFiles, WatchedFile, reason_of
from ..names import is_user_name

#: bcrypt uses no more bytes of a password than this; bcrypt 5 raises on longer ones.
_BCRYPT_BYTES = 72

_BCRYPT_PREFIXES = ("$2y$", "$2a$", "$2b$")
_SHA_PREFIX = "{SHA}"

#: The hashes that passlib checks, and its names for them.
_CRYPTS = {"$6$": "sha512_crypt", "$5$": "sha256_crypt", "$apr1$": "apr_md5_crypt"}

#: Cost, 22 letters of salt (only two bits of the last one count; bcrypt raises if others are set), 31 of hash.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")

#: A login at this cost takes about ten seconds and cannot be interrupted; the next cost takes twice as long.
_MOST_COST = 17

#: The most rounds of $5$ and $6$ that are supported. passlib needs about a second for them, and cannot be interrupted.
_MOST_ROUNDS = 1_000_000

#: passlib refuses longer passwords, because the time of these hashes grows with the length.
_LONGEST_BYTES = 4096

#: How much of an invalid name is shown.
_LONGEST_SHOWN = 60

#: bcrypt's digest follows its salt without a separator.
_BCRYPT_DIGEST_LETTERS = 31

#: For how long, and for how many pairs, it is remembered that they were verified.
_REMEMBER_S = 36 * 3600.0
_MOST_REMEMBERED = 10_000

_log = Logger()


def parse_htpasswd(data: bytes | str, path: str = "htpasswd") -> tuple[dict[str, str], list[str]]:
    """
    The entries of an htpasswd file.

    @param path: what to call the file in warnings.
    @return: hashes by user (the last entry of a user counts, as in rest-server; in Apache the first does), and one warning
        for each line that was left out; a bad line does not affect the others.
    """
    users: dict[str, str] = {}
    warnings = []
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    # Only at newlines: splitlines() has other ends of lines, and an editor could show one entry where there are two.
    for number, line in enumerate(text.split("\n"), 1):
        if (entry := entry_of(line)) is None:
            continue
        user, hashed = entry
        if problem := _problem_of_name(user, line):
            warnings.append(f"Invalid htpasswd entry in {path}, line {number}, ignored: {problem}")
        elif problem := _problem_of(hashed):
            warnings.append(f"Invalid htpasswd entry for {user}. ({path}, line {number}: {problem})")
        else:
            users[user] = hashed
    return users, warnings


def entry_of(line: str) -> tuple[str, str] | None:
    """
    User and hash of one line, whether they are valid or not; C{None} for a comment or an empty line.

    Spaces around the line and before the hash are ignored, as in rest-server. Text after a second colon is ignored, as in
    Apache and rest-server. Editors on Windows begin a file with a byte order mark.
    """
    line = line.removeprefix("\ufeff").strip()
    if not line or line.startswith("#"):
        return None
    user, _, rest = line.partition(":")
    return user, rest.partition(":")[0].strip()


def _problem_of_name(user: str, line: str) -> str | None:
    """What is wrong with the name in a line, or with the line as a whole; C{None} if it is valid."""
    if any("\udc80" <= letter <= "\udcff" for letter in line):
        return "not valid UTF-8"
    if ":" not in line:
        return "the line has no colon"  # the line may be a password, so it is not shown
    if is_user_name(user):
        return None
    shown = user if len(user) <= _LONGEST_SHOWN else user[:_LONGEST_SHOWN] + "..."
    wrong = next((letter for letter in user if not (letter.isalnum() or letter in "@._-")), None)
    if not user:
        return "no user name before the colon"
    if wrong is not None:
        return f"'{shown}' is not a user name: '{wrong}' is not a letter, a digit or one of @ . _ -"
    return f"'{shown}' is not a user name: it is reserved or too long"


def _problem_of(hashed: str) -> str | None:
    """What is wrong with an entry, without showing it; C{None} if it is valid: then L{check_password} does not raise."""
    if hashed.startswith(_SHA_PREFIX):
        return None if _is_sha(hashed) else "malformed {SHA} hash"
    if hashed.startswith(_BCRYPT_PREFIXES):
        if not _BCRYPT.fullmatch(hashed):
            return "malformed bcrypt hash"
        return f"a bcrypt cost above {_MOST_COST}" if int(hashed[4:6]) > _MOST_COST else None
    crypt = _crypt_of(hashed)
    if crypt is None:
        return "unknown hash type; supported are bcrypt ($2y$ $2a$ $2b$), $6$, $5$, $apr1$ and {SHA}"
    try:
        parsed = crypt.from_string(hashed)
    except ValueError:
        return f"malformed {crypt.ident} hash"
    # int() accepts 5_000 as well, which would be another spelling of the same rounds.
    if parsed.checksum is None or parsed.to_string() != hashed:
        return f"malformed {crypt.ident} hash"
    if getattr(parsed, "rounds", 0) > _MOST_ROUNDS:
        return f"more than {_MOST_ROUNDS} rounds"
    return None


def _is_sha(hashed: str) -> bool:
    try:
        return len(base64.b64decode(hashed[len(_SHA_PREFIX) :], validate=True)) == hashlib.sha1().digest_size
    except ValueError:
        return False


def _crypt_of(hashed: str) -> Any:
    """passlib's class for an entry; C{None} for entries that passlib does not check."""
    for prefix, name in _CRYPTS.items():
        if hashed.startswith(prefix):
            # Imported late: that takes as long as a login, and most files have no such entry.
            import passlib.hash  # type: ignore[import-untyped]

            return getattr(passlib.hash, name)
    return None


def check_password(hashed: str, password: bytes) -> bool:
    """
    Whether a password has this hash. Slow; bcrypt releases the GIL.

    A password that cannot be right (with a NUL; too long for passlib) takes as long as any wrong one.

    @param hashed: an entry that L{parse_htpasswd} returned.
    """
    if hashed.startswith(_SHA_PREFIX):
        digest = hashlib.sha1(password).digest()
        return hmac.compare_digest(base64.b64decode(hashed[len(_SHA_PREFIX) :]), digest)
    crypt = _crypt_of(hashed)
    possible = b"\0" not in password and (crypt is None or len(password) <= _LONGEST_BYTES)
    if not possible:
        password = b"impossible"
    try:
        if crypt is None:
            right = bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed.encode("ascii"))
        else:
            right = bool(crypt.verify(password, hashed))
    except ValueError:
        return False
    return right and possible


#: The number of a snapshot before the file was ever read; it has no users.
_NO_READING = -1


@dataclass(frozen=True)
class _Snapshot:
    """
    One reading of the file.

    @ivar number: how many came before it.
    """

    users: Mapping[str, str]
    number: int
    #: The password of an unknown user is checked against this, so that both refusals take as long.
    decoy: str


@dataclass
class Htpasswd(MadeOfFiles):
    """
    The users of one htpasswd file, read again when it changes.

    Verified passwords are remembered by a salted digest of the password, the entry (so that a changed entry forgets them) and
    the place that they came from. For C{cache_s} seconds, or until the file is read again, they are not checked again. For a
    day and a half (a daily backup may be late) it is known that they were right.

    @ivar clock: monotonic seconds.
    """

    path: str
    clock: Callable[[], float]
    cache_s: float = 60.0
    _watched: WatchedFile = field(init=False, repr=False)
    _snapshot: _Snapshot = field(init=False, repr=False)
    _readings: int = field(init=False, repr=False, default=0)
    #: When each pair was verified last, and by which reading; the oldest first.
    _verified: dict[bytes, tuple[float, int]] = field(init=False, repr=False, default_factory=dict)
    _salt: bytes = field(init=False, repr=False, default_factory=lambda: secrets.token_bytes(32))
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._watched = WatchedFile(self.path)

    def load(self, may_be_missing: Callable[[], bool] = lambda: False) -> None:
        """
        Read the file for the first time.

        @param may_be_missing: called if it cannot be read; returns whether it will be there later. Until then L{is_missing} is
            true.
        @raise StartError: it cannot be read.
        """
        try:
            self._snapshot = self._read()
        except OSError as error:
            if may_be_missing():
                self._snapshot = _Snapshot({}, _NO_READING, _decoy_like({}))
                return
            reason = reason_of(error)
            if isinstance(error, FileNotFoundError):
                advice = "use --no-auth to disable authentication, or 'rest-server user add' to create a user"
                raise StartError(f"--htpasswd-file: cannot load {self.path} ({advice}): {reason}") from error
            # The file exists, so --no-auth is not what the operator needs.
            raise StartError(f"--htpasswd-file: cannot load {self.path}: {reason}") from error

    def _read_again(self) -> None:
        self._snapshot = self._read()

    def _log_failure(self, error: Exception) -> None:
        words = "could not reload htpasswd file {path}: {error}; the previous users stay in effect"
        _log.error(words, path=self.path, error=reason_of(error) if isinstance(error, OSError) else error)

    def say_reloaded(self) -> None:
        """Log that the file as it is now is in use, in all processes."""
        _log.info("Reloaded htpasswd file")

    def _read(self) -> _Snapshot:
        data = self._watched.read()
        if b"\0" in data:
            # UTF-16, or what a crash of the machine has left.
            raise OSError(errno.EINVAL, "not UTF-8 text: it contains NUL bytes", self.path)
        users, warnings = parse_htpasswd(data, self.path)
        for warning in warnings:
            _log.warn("{problem}", problem=ascii(warning)[1:-1])
        if not users:
            _log.warn("no users in {path}: all logins will fail", path=self.path)
        self._readings += 1
        return _Snapshot(users, self._readings, _decoy_like(users))

    def is_cached(self, user: str, password: bytes, place: str) -> bool:
        """
        Whether this pair was verified within the last minute. Quick, for the reactor's thread.

        @param place: where the login comes from; only logins from there count.
        """
        return self.cached(user, password, place)[0] > 0

    def cached(self, user: str, password: bytes, place: str) -> tuple[float, int]:
        """For how many more seconds L{is_cached} is true (0 if it is not), and by which reading of the file."""
        at_s, reading = self._verified_at(user, password, place)
        if reading != self._snapshot.number:
            return 0.0, reading
        return max(0.0, at_s + self.cache_s - self.clock()), reading

    @property
    def is_missing(self) -> bool:
        """Whether the file was not there at the start and has not been read since."""
        return self._snapshot.number == _NO_READING

    @property
    def reading(self) -> int:
        """The number of the reading of the file that is in use; each is higher than the one before."""
        return self._snapshot.number

    def was_verified(self, user: str, password: bytes, place: str) -> bool:
        """
        Whether this pair was verified within the last day and a half, against the entry that the user has now. Quick.

        That is no login: it distinguishes users who know a password from guesses.
        """
        at_s, reading = self._verified_at(user, password, place)
        return reading > 0 and self.clock() < at_s + _REMEMBER_S

    def _verified_at(self, user: str, password: bytes, place: str) -> tuple[float, int]:
        """When it was verified, and by which reading: 0 for never."""
        never = (0.0, 0)
        hashed = self._snapshot.users.get(user)
        return never if hashed is None else self._verified.get(self._key(user, hashed, password, place), never)

    def check(self, user: str, password: bytes, place: str) -> bool:
        """Whether user and password are right. Blocks, as long for an unknown user as for a wrong password."""
        snapshot = self._snapshot
        hashed = snapshot.users.get(user)
        if hashed is None:
            check_password(snapshot.decoy, password)
            return False
        if not check_password(hashed, password):
            return False
        key = self._key(user, hashed, password, place)
        with self._lock:
            now = self.clock()
            self._verified.pop(key, None)  # so that it becomes the newest
            self._verified[key] = (now, snapshot.number)
            while len(self._verified) > _MOST_REMEMBERED or next(iter(self._verified.values()))[0] + _REMEMBER_S <= now:
                del self._verified[next(iter(self._verified))]
        return True

    def _key(self, user: str, hashed: str, password: bytes, place: str) -> bytes:
        return hmac.digest(self._salt, joined(user.encode(), hashed.encode(), password, place.encode()), "sha256")


def joined(*parts: bytes) -> bytes:
    """Parts as one, with their lengths, so that no other parts give the same bytes."""
    return b"".join(b"%d:%s" % (len(part), part) for part in parts)


def _cost_of(hashed: str) -> tuple[object, ...]:
    """A key of entries whose checks take the same time."""
    if hashed.startswith(_SHA_PREFIX):
        return (_SHA_PREFIX,)
    if hashed.startswith(_BCRYPT_PREFIXES):
        return ("bcrypt", hashed[4:6])
    parsed = _crypt_of(hashed).from_string(hashed)
    return (parsed.ident, getattr(parsed, "rounds", None), len(parsed.salt))


def _decoy_like(users: Mapping[str, str]) -> str:
    """
    A hash of no password, of the kind and cost that most users have. Without users it is the cheapest, since no user can be
    found out then.
    """
    costs = Counter(map(_cost_of, users.values()))
    usual = max(costs, key=lambda cost: costs[cost], default=(_SHA_PREFIX,))
    if usual == (_SHA_PREFIX,):
        return _SHA_PREFIX + base64.b64encode(secrets.token_bytes(20)).decode("ascii")
    like = next(hashed for hashed in users.values() if _cost_of(hashed) == usual)
    letters = _BCRYPT_DIGEST_LETTERS if like.startswith(_BCRYPT_PREFIXES) else len(like) - like.rindex("$") - 1
    # A real hash would take as long as a login; random letters of the digest's alphabet do as well.
    return like[:-letters] + "".join(secrets.choice(string.ascii_letters) for _ in range(letters))
