"""
Users and password hashes from an htpasswd file.

Reading and checking block (bcrypt takes some 75 ms at cost 10) and belong in a pool. bcrypt (C{$2y$ $2a$ $2b$}), the
crypts C{$6$ $5$ $apr1$} and C{{SHA}} are taken; an entry of another kind is named in the log and refuses everyone,
without harm to the others.
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

#: bcrypt looks at no more of a password than this; bcrypt 5 raises on longer ones.
_BCRYPT_BYTES = 72

_BCRYPT_PREFIXES = ("$2y$", "$2a$", "$2b$")
_SHA_PREFIX = "{SHA}"

#: What passlib checks, and its names for it.
_CRYPTS = {"$6$": "sha512_crypt", "$5$": "sha256_crypt", "$apr1$": "apr_md5_crypt"}

#: Cost, 22 letters of salt (of the last only two bits count; bcrypt raises where others are set), 31 of hash.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")

#: A login at this cost takes some ten seconds, and nothing can stop it; one more takes twice as long.
_MOST_COST = 17

#: Rounds of $5$ and $6$ that are taken. passlib needs about a second for so many, and there is no way to stop it.
_MOST_ROUNDS = 1_000_000

#: passlib refuses longer passwords, for the crypts take the longer the longer a password is.
_LONGEST_BYTES = 4096

#: How much of a name that is none is shown.
_LONGEST_SHOWN = 60

#: bcrypt's digest stands behind its salt without a sign between them.
_BCRYPT_DIGEST_LETTERS = 31

#: For how long and of how many pairs it is known that they were verified.
_REMEMBER_S = 36 * 3600.0
_MOST_REMEMBERED = 10_000

_log = Logger()


def parse_htpasswd(data: bytes | str, path: str = "htpasswd") -> tuple[dict[str, str], list[str]]:
    """
    The entries of an htpasswd file.

    @param path: what to call the file in warnings.
    @return: hashes by user (the last entry of a user holds, as in rest-server; Apache takes the first), and one warning
        for each line that was left out; a bad line never breaks the others.
    """
    users: dict[str, str] = {}
    warnings = []
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    # Only at newlines: what splitlines() takes for an end of line besides could hide an entry from those who edit the file.
    for number, line in enumerate(text.split("\n"), 1):
        if (entry := entry_of(line)) is None:
            continue
        user, hashed = entry
        if problem := _problem_of_name(user, line):
            warnings.append(f"Invalid htpasswd entry in {path}, line {number}, left out: {problem}")
        elif problem := _problem_of(hashed):
            warnings.append(f"Invalid htpasswd entry for {user}. ({path}, line {number}: {problem})")
        else:
            users[user] = hashed
    return users, warnings


def entry_of(line: str) -> tuple[str, str] | None:
    """
    User and hash of one line, whether they are valid or not; C{None} for a comment or an empty line.

    Spaces around the line and before the hash are not a part of it, as in rest-server. What stands behind a second colon is
    not looked at, as in Apache and rest-server. Windows' editors begin a file with a byte order mark.
    """
    line = line.removeprefix("\ufeff").strip()
    if not line or line.startswith("#"):
        return None
    user, _, rest = line.partition(":")
    return user, rest.partition(":")[0].strip()


def _problem_of_name(user: str, line: str) -> str | None:
    """What is wrong with the name in a line, or with the line as a whole; C{None} if nothing is."""
    if any("\udc80" <= letter <= "\udcff" for letter in line):
        return "it has bytes that are not UTF-8"
    if ":" not in line:
        return "there is no colon in it"  # and maybe a password, so nothing of it is shown
    if is_user_name(user):
        return None
    shown = user if len(user) <= _LONGEST_SHOWN else user[:_LONGEST_SHOWN] + "..."
    wrong = next((letter for letter in user if not (letter.isalnum() or letter in "@._-")), None)
    if not user:
        return "there is no user name before the colon"
    if wrong is not None:
        return f"'{shown}' is no user name: '{wrong}' is neither a letter, nor a digit, nor one of @ . _ -"
    return f"'{shown}' is no user name: it is reserved, or too long"


def _problem_of(hashed: str) -> str | None:
    """What is wrong with an entry, without a letter of it; C{None} if nothing is, and a check of it will not raise."""
    if hashed.startswith(_SHA_PREFIX):
        return None if _is_sha(hashed) else "malformed {SHA} hash"
    if hashed.startswith(_BCRYPT_PREFIXES):
        if not _BCRYPT.fullmatch(hashed):
            return "malformed bcrypt hash"
        return f"a cost of more than {_MOST_COST}" if int(hashed[4:6]) > _MOST_COST else None
    crypt = _crypt_of(hashed)
    if crypt is None:
        return "unknown kind of hash; bcrypt ($2y$ $2a$ $2b$), $6$, $5$, $apr1$ and {SHA} are taken"
    try:
        parsed = crypt.from_string(hashed)
    except ValueError:
        return f"malformed {crypt.ident} hash"
    # int() is generous: rounds of 5_000 would be another spelling of the same.
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
    """passlib's class for an entry; C{None} for entries that are not passlib's."""
    for prefix, name in _CRYPTS.items():
        if hashed.startswith(prefix):
            # Not at the top: it takes as long as a login, and most files have no such entry.
            import passlib.hash  # type: ignore[import-untyped]

            return getattr(passlib.hash, name)
    return None


def check_password(hashed: str, password: bytes) -> bool:
    """
    Whether a password has this hash; takes its time, for bcrypt with the GIL released.

    A password that cannot be right (with a NUL; too long for the crypts) takes the time of another that is wrong.

    @param hashed: an entry that L{parse_htpasswd} let through.
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


#: The number of a reading that did not take place: no user was verified by it.
_NO_READING = -1


@dataclass(frozen=True)
class _Snapshot:
    """
    One reading of the file.

    @ivar number: how many came before it.
    """

    users: Mapping[str, str]
    number: int
    #: What an unknown user's password is checked against, so that both refusals cost the same.
    decoy: str


@dataclass
class Htpasswd(MadeOfFiles):
    """
    The users of one htpasswd file, read again when it changes.

    Verified passwords are remembered by a salted digest, together with the entry that they were verified against (so that
    a changed entry forgets them) and the place that they came from: C{cache_s} seconds as right, or until the file is read
    again, and a day and a half (a daily backup may be late) as such that were right.

    @ivar clock: seconds that never go backwards.
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

        @param may_be_missing: asked where it cannot be read: whether it will be there later. Until then L{is_missing} is true.
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
                advice = "use --no-auth to disable authentication, or 'rest-server user add' to make a user"
                raise StartError(f"--htpasswd-file: cannot load {self.path} ({advice}): {reason}") from error
            # The file exists, so --no-auth is not what the operator wants.
            raise StartError(f"--htpasswd-file: cannot load {self.path}: {reason}") from error

    def _read_again(self) -> None:
        self._snapshot = self._read()

    def _log_failure(self, error: Exception) -> None:
        words = "could not reload htpasswd file {path}: {error}; the users known before stay"
        _log.error(words, path=self.path, error=reason_of(error) if isinstance(error, OSError) else error)

    def say_reloaded(self) -> None:
        """Log that what was read again holds, everywhere."""
        _log.info("Reloaded htpasswd file")

    def _read(self) -> _Snapshot:
        data = self._watched.read()
        if b"\0" in data:
            # UTF-16, or what a crash of the machine has left: not even its lines are lines.
            raise OSError(errno.EINVAL, "it is not UTF-8 text, there are NUL bytes in it", self.path)
        users, warnings = parse_htpasswd(data, self.path)
        for warning in warnings:
            _log.warn("{problem}", problem=ascii(warning)[1:-1])
        if not users:
            _log.warn("no users in {path}: nobody can log in", path=self.path)
        self._readings += 1
        return _Snapshot(users, self._readings, _decoy_like(users))

    def is_cached(self, user: str, password: bytes, place: str) -> bool:
        """
        Whether this pair was verified within the last minute; quick, for the reactor's thread.

        @param place: where it comes from; what was right elsewhere is not known here.
        """
        return self.cached(user, password, place)[0] > 0

    def cached(self, user: str, password: bytes, place: str) -> tuple[float, int]:
        """For how many seconds that will be so, 0 for not at all, and by which reading of the file."""
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
        """Which reading of the file holds; each has a higher number than the one before."""
        return self._snapshot.number

    def was_verified(self, user: str, password: bytes, place: str) -> bool:
        """
        Whether this pair was verified within the last day and a half, against the entry that the user has now; quick.

        That lets nobody in: it tells those who know a password from those who guess.
        """
        at_s, reading = self._verified_at(user, password, place)
        return reading > 0 and self.clock() < at_s + _REMEMBER_S

    def _verified_at(self, user: str, password: bytes, place: str) -> tuple[float, int]:
        """When it was, and by which reading: by none, the 0th, if never."""
        never = (0.0, 0)
        hashed = self._snapshot.users.get(user)
        return never if hashed is None else self._verified.get(self._key(user, hashed, password, place), never)

    def check(self, user: str, password: bytes, place: str) -> bool:
        """Whether user and password are right; blocks, and as long for an unknown user as for a wrong password."""
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
            self._verified.pop(key, None)  # it becomes the youngest
            self._verified[key] = (now, snapshot.number)
            while len(self._verified) > _MOST_REMEMBERED or next(iter(self._verified.values()))[0] + _REMEMBER_S <= now:
                del self._verified[next(iter(self._verified))]
        return True

    def _key(self, user: str, hashed: str, password: bytes, place: str) -> bytes:
        return hmac.digest(self._salt, joined(user.encode(), hashed.encode(), password, place.encode()), "sha256")


def joined(*parts: bytes) -> bytes:
    """Parts as one, so that no others give the same."""
    return b"".join(b"%d:%s" % (len(part), part) for part in parts)


def _cost_of(hashed: str) -> tuple[object, ...]:
    """What the time of a check depends on; equal for entries that take the same time."""
    if hashed.startswith(_SHA_PREFIX):
        return (_SHA_PREFIX,)
    if hashed.startswith(_BCRYPT_PREFIXES):
        return ("bcrypt", hashed[4:6])
    parsed = _crypt_of(hashed).from_string(hashed)
    return (parsed.ident, getattr(parsed, "rounds", None), len(parsed.salt))


def _decoy_like(users: Mapping[str, str]) -> str:
    """
    A hash that nobody has, of the kind and cost that most users have; the cheapest where there are no users, since then
    there is nobody to tell from the unknown.
    """
    costs = Counter(map(_cost_of, users.values()))
    usual = max(costs, key=lambda cost: costs[cost], default=(_SHA_PREFIX,))
    if usual == (_SHA_PREFIX,):
        return _SHA_PREFIX + base64.b64encode(secrets.token_bytes(20)).decode("ascii")
    like = next(hashed for hashed in users.values() if _cost_of(hashed) == usual)
    letters = _BCRYPT_DIGEST_LETTERS if like.startswith(_BCRYPT_PREFIXES) else len(like) - like.rindex("$") - 1
    # Making a real hash would cost as much as a login; any letters of the digest's alphabet are as good.
    return like[:-letters] + "".join(secrets.choice(string.ascii_letters) for _ in range(letters))
