"""
C{rest-server user add --from FILE}: adds all users of a CSV file at once, or none of them.

A message never shows a field of the file: if its columns are swapped, or separated by something else than commas, what
looks like a name is a password.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import string
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..config.console import write_line
from ..files import reason_of
from ..names import is_user_name
from ..process.cores import usable_cores
from .user_file import Refused, added, change_users, changed, read_lines, users_of
from .user_hash import BCRYPT_BYTES, hash_password, problem_of_password

#: What may stand in the first line instead of a user.
_HEADINGS = (["user", "password"], ["user"])

#: Bad lines that are named; of further ones only the number.
_MOST_NAMED = 5

#: Letters of generated passwords: they need no escape in a URL, and none looks like another.
_LETTERS = "".join(sorted(set(string.ascii_letters + string.digits) - set("0O1Il")))
#: 140 bits.
_PASSWORD_LETTERS = 24


@dataclass(frozen=True)
class Row:
    """
    A user to add.

    @ivar line: its line in the file, from 1.
    @ivar password: C{None}: one is to be generated.
    """

    line: int
    user: str
    password: str | None


@dataclass(frozen=True)
class Import:
    """
    What is to be added, and how.

    @ivar source: the CSV file; C{-} is standard input.
    @ivar passwords: where generated passwords are written, C{-} is standard output; C{None}: none are generated.
    @ivar replace: change the passwords of users that exist.
    @ivar cost: the bcrypt cost.
    """

    source: str
    passwords: str | None
    replace: bool
    cost: int


def add_users(path: str, wanted: Import) -> list[str]:
    """
    Add all users of a CSV file to an htpasswd file, in one step.

    @return: notes for the operator.
    @raise Refused: the CSV file, or the change, is not possible; nothing is changed.
    @raise OSError: the htpasswd file cannot be read or written; nothing is changed.
    """
    name = "standard input" if wanted.source == "-" else wanted.source
    rows = parse_users(_content(wanted.source), name, wanted.passwords is not None)
    line_of = {row.user: row.line for row in rows}
    if wanted.passwords is not None:
        _check_absent(wanted.passwords)
    written: list[str] = []
    hashes_made: list[bytes] = []

    def change(lines: list[bytes], hashes: Mapping[str, bytes]) -> list[bytes]:
        there = users_of(lines)
        old = {user: hashed for user, hashed in hashes.items() if user in there}
        if old and not wanted.replace:
            first = next(iter(old))
            more = f" (and {len(old) - 1} more user{'s' if len(old) > 2 else ''})" if len(old) > 1 else ""
            raise Refused(
                f"{name}, line {line_of[first]}: user {first}{more} already exists; nothing was changed "
                "(--replace changes their passwords)"
            )
        new = {user: hashed for user, hashed in hashes.items() if user not in there}
        return added(changed(lines, old), new) if new else changed(lines, old)

    def make_hashes() -> dict[str, bytes]:
        with_passwords = [row if row.password is not None else replace(row, password=_generated()) for row in rows]
        hashes = hash_all(with_passwords, wanted.cost)
        hashes_made.extend(hashes.values())
        if wanted.passwords is not None:
            generated = [new for new, row in zip(with_passwords, rows, strict=True) if row.password is None]
            _write_passwords(wanted.passwords, generated, written)
        return hashes

    try:
        note = change_users(path, line_of, change, make_hashes, missing_is_empty=True)
    except BaseException:
        # The last flush can fail when the users are there already: then their passwords must stay.
        if written and not _has_any(path, hashes_made):
            os.unlink(written[0])
        raise
    long = [row.line for row in rows if row.password is not None and len(row.password.encode()) > BCRYPT_BYTES]
    warning = f"warning: only the first {BCRYPT_BYTES} bytes of these passwords are used: {name}, {_lines(long)}"
    return ([warning] if long else []) + ([note] if note else [])


def _has_any(path: str, hashes: list[bytes]) -> bool:
    """Whether one of these hashes is in an htpasswd file; true if that cannot be found out."""
    try:
        content = b"".join(read_lines(path, missing_is_empty=True)[0])
    except OSError:
        return True
    return any(hashed in content for hashed in hashes)


# --- the CSV file


def _content(source: str) -> bytes:
    try:
        if source == "-":
            if sys.stdin is None:  # closed before the start
                raise Refused("no users were given: standard input is closed")
            return sys.stdin.buffer.read()
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(f"cannot read {source}: {reason_of(error)}") from error


def parse_users(data: bytes, name: str, generate: bool) -> list[Row]:
    """
    Read a CSV file of users.

    @param name: what to call the file in messages.
    @param generate: passwords may be missing.
    @return: one row for each user, in order.
    @raise Refused: there is no user, or a line is bad; the message has the numbers of bad lines.
    """
    rows: dict[str, Row] = {}
    problems: list[tuple[int, str]] = []
    for line, fields in _records(data, problems):
        problem = _problem_of(fields, generate)
        if problem is None and fields[0] in rows:
            problem = f"the same user as in line {rows[fields[0]].line}"
        if problem is not None:
            problems.append((line, problem))
            continue
        rows[fields[0]] = Row(line, fields[0], fields[1] if len(fields) > 1 and fields[1] else None)
    if problems:
        problems.sort()
        named = "; ".join(f"line {line}: {problem}" for line, problem in problems[:_MOST_NAMED])
        more = f"; and {len(problems) - _MOST_NAMED} more lines" if len(problems) > _MOST_NAMED else ""
        raise Refused(f"{name}, {named}{more}; nothing was changed")
    if not rows:
        raise Refused(f"{name} has no users")
    return list(rows.values())


def _records(data: bytes, problems: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line of each record, and its fields. Empty lines and a heading are left out."""
    try:
        text = data.decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except UnicodeDecodeError as error:
        problems.append((data.count(b"\n", 0, error.start) + 1, "not valid UTF-8"))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = True
    before = 0
    try:
        for fields in reader:
            line, before = before + 1, reader.line_num
            if not any(fields):
                continue
            if not (first and [field.strip().lower() for field in fields] in _HEADINGS):
                yield line, fields
            first = False
    except csv.Error as error:
        problems.append((before + 1, f"not CSV: {error}"))


def _problem_of(fields: list[str], generate: bool) -> str | None:
    if len(fields) > 2:
        return f"{len(fields)} columns instead of user,password"
    if not is_user_name(fields[0]):
        return "the first column is not a user name"
    if len(fields) < 2 or not fields[1]:
        return None if generate else "no password (--generate makes one)"
    if any(letter in fields[1] for letter in "\r\n"):
        return "the password contains a line break"
    return problem_of_password(fields[1].encode())


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_NAMED]))
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"line {shown}{more}" if len(numbers) == 1 else f"lines {shown}{more}"


# --- hashes


def hash_all(rows: list[Row], cost: int) -> dict[str, bytes]:
    """
    Hash the passwords, in a thread for each core (bcrypt releases the interpreter's lock). On a terminal the progress
    is shown.
    """
    pool = ThreadPoolExecutor(usable_cores())
    shown = sys.stderr.isatty()
    hashes = {}
    try:
        made = pool.map(lambda row: hash_password((row.password or "").encode(), cost), rows)
        for number, (row, hashed) in enumerate(zip(rows, made, strict=True), 1):
            hashes[row.user] = hashed
            if shown:
                print(f"\r\033[K{number} of {len(rows)} passwords hashed", end="", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return hashes


# --- generated passwords


def _generated() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(_PASSWORD_LETTERS))


def _check_absent(target: str) -> None:
    """Refuse before the hashing, which takes a while, what L{_write_passwords} would refuse after it."""
    if target == "-":
        return
    if os.path.lexists(target):
        raise Refused(f"{target} exists already: --generate never overwrites passwords")
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"cannot create {target}: its directory does not exist or is not writable")


def _write_passwords(target: str, rows: list[Row], written: list[str]) -> None:
    """
    Write users and passwords as CSV, before the users can log in: a generated password is stored nowhere else.

    @param target: a new file of mode 0600, or C{-} for standard output.
    @param written: gets the file's path, to be removed if the users cannot be added.
    @raise Refused: it cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("user", "password"), *((row.user, row.password) for row in rows)])
    if target == "-":
        if not write_line(text.getvalue().rstrip("\n")):
            raise SystemExit(1)
        return
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        written.append(target)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(fd)
    except OSError as error:
        raise Refused(f"cannot write {target}: {reason_of(error)}; nothing was changed") from error
