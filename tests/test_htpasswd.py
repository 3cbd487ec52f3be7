"""
The htpasswd file: which lines are taken, which passwords are right, and what a change of the file does.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import bcrypt
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access import htpasswd
from resticserver.access.htpasswd import Htpasswd, check_password, parse_htpasswd
from resticserver.errors import StartError


def bcrypt_hash(password: bytes, prefix: str = "$2b$", cost: int = 4) -> str:
    """A bcrypt entry, as cheap as they come."""
    hashed = bcrypt.hashpw(password[:72], bcrypt.gensalt(cost)).decode("ascii")
    return prefix + hashed[4:]


def sha_hash(password: bytes) -> str:
    """A {SHA} entry."""
    return "{SHA}" + base64.b64encode(hashlib.sha1(password).digest()).decode("ascii")


BCRYPT = bcrypt_hash(b"secret")
SHA = sha_hash(b"secret")

#: text -> users, and how many lines are warned of
FILES: tuple[tuple[str, dict[str, str], int], ...] = (
    ("", {}, 0),
    ("\n\n", {}, 0),
    (f"alice:{BCRYPT}\n", {"alice": BCRYPT}, 0),
    (f"alice:{BCRYPT}", {"alice": BCRYPT}, 0),
    (f"alice:{BCRYPT}\r\nbob:{SHA}\r\n", {"alice": BCRYPT, "bob": SHA}, 0),
    (f"# users\n\n  alice:{BCRYPT}  \n#bob:{SHA}\n", {"alice": BCRYPT}, 0),
    (f"müller:{SHA}\n", {"müller": SHA}, 0),
    (f"alice:{SHA}\nalice:{BCRYPT}\n", {"alice": BCRYPT}, 0),
    # lines that are left out, and do not harm the others
    (f"alice\nbob:{SHA}\n", {"bob": SHA}, 1),
    (f":{SHA}\nbob:{SHA}\n", {"bob": SHA}, 1),
    ("alice:\n", {}, 1),
    ("alice:secret\n", {}, 1),
    ("alice:$apr1$xxxxxxxx$yyyyyyyyyyyyyyyyyyyyyy\n", {}, 1),
    ("alice:$6$salt$hash\n", {}, 1),
    ("alice:rqXexS6ZhobKA\n", {}, 1),
    ("alice:{SHA}\n", {}, 1),
    ("alice:{SHA}not base64!\n", {}, 1),
    ("alice:{SHA}" + base64.b64encode(b"too short").decode() + "\n", {}, 1),
    (f"alice:{SHA.lower()}\n", {}, 1),
    (f"alice:{BCRYPT[:-1]}\n", {}, 1),
    (f"alice:{BCRYPT}x\n", {}, 1),
    (f"alice:{BCRYPT}:comment\n", {}, 1),
    (f"alice:$2x${BCRYPT[4:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}03{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}32{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}xx{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:6]}.{BCRYPT[7:]}\n", {}, 1),
    (f"alice:{BCRYPT[:-1]}é\n", {}, 1),
    # names that nobody may have
    (f"config:{SHA}\ndata:{SHA}\n.trash:{SHA}\n-:{SHA}\n..:{SHA}\na/b:{SHA}\na b:{SHA}\nbob:{SHA}\n", {"bob": SHA}, 7),
)

LONG = b"0123456789" * 8

#: entry, password -> whether it is right
PASSWORDS: tuple[tuple[str, bytes, bool], ...] = (
    (BCRYPT, b"secret", True),
    (BCRYPT, b"Secret", False),
    (BCRYPT, b"secret ", False),
    (BCRYPT, b"", False),
    (bcrypt_hash(b"secret", "$2y$"), b"secret", True),
    (bcrypt_hash(b"secret", "$2a$"), b"secret", True),
    (bcrypt_hash(b"secret", "$2y$"), b"other", False),
    (bcrypt_hash("pässword".encode()), "pässword".encode(), True),
    (bcrypt_hash("pässword".encode()), "pässword".encode("latin-1"), False),
    (bcrypt_hash(b""), b"", True),
    # bcrypt looks at 72 bytes
    (bcrypt_hash(LONG), LONG, True),
    (bcrypt_hash(LONG), LONG[:72], True),
    (bcrypt_hash(LONG), LONG + b"and more", True),
    (bcrypt_hash(LONG), LONG[:71], False),
    (bcrypt_hash(b"secret"), b"secret\x00", False),
    (SHA, b"secret", True),
    (SHA, b"Secret", False),
    (SHA, b"", False),
    (sha_hash(b""), b"", True),
    (sha_hash(LONG), LONG, True),
    (sha_hash(LONG), LONG[:72], False),
    # of a form that parse_htpasswd lets through, and no hash of anything
    (BCRYPT[:7] + "!" * 53, b"secret", False),
)


class ParseTests(SynchronousTestCase):
    """L{parse_htpasswd}."""

    def test_table(self) -> None:
        """Each file of the table has these users and so many bad lines."""
        for text, users, bad in FILES:
            found, warnings = parse_htpasswd(text)
            self.assertEqual((users, bad), (found, len(warnings)), text)

    def test_warnings(self) -> None:
        """A warning names the user, or the line where there is none that could be named, and never the hash."""
        _, warnings = parse_htpasswd("alice:$apr1$hidden\n\nb b:hidden\n")
        self.assertTrue(warnings[0].startswith("Invalid htpasswd entry for alice."))
        self.assertIn("line 3", warnings[1])
        self.assertNotIn("hidden", "".join(warnings))


class PasswordTests(SynchronousTestCase):
    """L{check_password}."""

    def test_table(self) -> None:
        """Each password is right for the entry or not."""
        for number, (hashed, password, right) in enumerate(PASSWORDS):
            self.assertEqual(right, check_password(hashed, password), f"row {number}: {hashed} {password!r}")


class HtpasswdTests(SynchronousTestCase):
    """L{Htpasswd}: a file that may change."""

    def setUp(self) -> None:
        """A file with two users, and a clock that goes by hand."""
        self.path = Path(self.mktemp())
        self.write({"alice": BCRYPT, "bob": SHA})
        self.now = 1000.0
        self.users = Htpasswd(str(self.path), lambda: self.now)
        self.users.load()

    def write(self, users: dict[str, str]) -> None:
        """Put a new file in place, as htpasswd(1) and editors do."""
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{user}:{hashed}\n" for user, hashed in users.items()))
        new.rename(self.path)

    def test_check(self) -> None:
        """A known user with the right password, and nobody else."""
        for user, password, right in (
            ("alice", b"secret", True),
            ("bob", b"secret", True),
            ("alice", b"wrong", False),
            ("carol", b"secret", False),
            ("", b"", False),
            ("Alice", b"secret", False),
        ):
            self.assertEqual(right, self.users.check(user, password), user)

    # --- the memory of verified passwords

    def test_cached(self) -> None:
        """A verified password is remembered, that pair alone and for a minute."""
        self.assertFalse(self.users.is_cached("alice", b"secret"))
        self.users.check("alice", b"secret")
        self.assertTrue(self.users.is_cached("alice", b"secret"))
        self.assertFalse(self.users.is_cached("alice", b"wrong"))
        self.assertFalse(self.users.is_cached("alic", b"esecret"))
        self.assertFalse(self.users.is_cached("bob", b"secret"))
        self.assertFalse(self.users.is_cached("carol", b"secret"))
        self.now += 59.9
        self.assertTrue(self.users.is_cached("alice", b"secret"))
        self.now += 0.1
        self.assertFalse(self.users.is_cached("alice", b"secret"))

    def test_wrong_is_not_cached(self) -> None:
        """A refusal is not remembered as anything."""
        self.users.check("alice", b"wrong")
        self.users.check("carol", b"secret")
        self.assertFalse(self.users.is_cached("alice", b"wrong"))
        self.assertFalse(self.users.is_cached("carol", b"secret"))

    def test_cache_forgets_the_expired(self) -> None:
        """Expired pairs leave the memory at the next check, so that it stays as small as the users are few."""
        self.users.check("alice", b"secret")
        self.now += 61
        self.users.check("bob", b"secret")
        self.assertEqual(1, len(self.users._verified))

    def test_cache_holds_no_password(self) -> None:
        """What is remembered is a salted digest, another one in each server."""
        self.users.check("alice", b"secret")
        other = Htpasswd(str(self.path), lambda: self.now)
        other.load()
        other.check("alice", b"secret")
        self.assertFalse(set(self.users._verified) & set(other._verified))
        self.assertNotIn(b"secret", b"".join(self.users._verified))
        self.assertNotIn("secret", repr(self.users))

    def test_cache_is_emptied_by_a_reload(self) -> None:
        """A changed file forgets everything that was verified, also for users who did not change."""
        self.users.check("alice", b"secret")
        self.write({"alice": BCRYPT, "bob": SHA, "carol": SHA})
        self.assertTrue(self.users.reload_if_changed())
        self.assertFalse(self.users.is_cached("alice", b"secret"))
        self.assertTrue(self.users.check("alice", b"secret"))

    def test_changed_entry(self) -> None:
        """A changed password holds from the reload on, and the old one is wrong; a removed user is unknown."""
        self.users.check("alice", b"secret")
        self.users.check("bob", b"secret")
        self.write({"alice": bcrypt_hash(b"new secret")})
        self.users.reload_if_changed()
        for user in ("alice", "bob"):
            self.assertFalse(self.users.is_cached(user, b"secret"))
            self.assertFalse(self.users.check(user, b"secret"))
        self.assertTrue(self.users.check("alice", b"new secret"))

    def test_changed_while_checked(self) -> None:
        """A check that began before a reload lets nobody in by the entry that was replaced meanwhile."""
        real = htpasswd.check_password

        def slow(hashed: str, password: bytes) -> bool:
            right = real(hashed, password)
            self.write({"alice": bcrypt_hash(b"new secret")})
            self.users.reload_if_changed(force=True)
            return right

        self.patch(htpasswd, "check_password", slow)
        for user in ("alice", "bob"):
            self.users.check(user, b"secret")
            self.assertFalse(self.users.is_cached(user, b"secret"))

    # --- the decoy

    def checked_against(self, user: str) -> list[str]:
        """The entries that a check of a user looks at."""
        seen: list[str] = []
        real = htpasswd.check_password

        def noting(hashed: str, password: bytes) -> bool:
            seen.append(hashed)
            return real(hashed, password)

        patch = self.patch(htpasswd, "check_password", noting)
        self.assertFalse(self.users.check(user, b"wrong"))
        patch.restore()
        return seen

    def test_unknown_users_cost_the_same(self) -> None:
        """An unknown user's password is checked too, against an entry of the kind and cost that most users have."""
        six = bcrypt_hash(b"secret", cost=6)
        for users, kind in (
            ({"a": BCRYPT, "b": BCRYPT, "c": SHA}, "$2b$04$"),
            ({"a": six, "b": six, "c": BCRYPT}, "$2b$06$"),
            ({"a": SHA, "b": SHA, "c": BCRYPT}, "{SHA}"),
            ({}, "{SHA}"),
        ):
            self.write(users)
            self.users.reload_if_changed(force=True)
            (decoy,) = self.checked_against("nobody")
            self.assertTrue(decoy.startswith(kind), decoy)
            self.assertNotIn(decoy, users.values())

    def test_decoy_costs_a_bcrypt(self) -> None:
        """The decoy is an entry that bcrypt really computes, not one that it refuses at once."""
        for _ in range(20):
            self.users.reload_if_changed(force=True)
            self.write({"a": BCRYPT})
            self.users.reload_if_changed(force=True)
            (decoy,) = self.checked_against("nobody")
            self.assertFalse(bcrypt.checkpw(b"wrong", decoy.encode("ascii")))  # raises ValueError for no entry

    # --- reading the file

    def test_load_fails(self) -> None:
        """A file that cannot be read at the start is one line that names it and says why."""
        folder = self.mktemp()
        os.mkdir(folder)
        latin = self.mktemp()
        Path(latin).write_bytes(b"m\xfcller:hash\n")
        for path, reason in (
            (self.mktemp(), "No such file or directory"),
            (folder, "Is a directory"),
            (latin, "it is not UTF-8"),
        ):
            error = self.assertRaises(StartError, Htpasswd(path, lambda: 0.0).load)
            self.assertEqual(f"cannot load {path} (use --no-auth to disable authentication): {reason}", str(error))

    def test_bad_lines_are_logged(self) -> None:
        """Each line that is left out is said, in rest-server's words, escaped."""
        self.path.write_bytes(f"alice:{SHA}\nmüller:$apr1$hidden\nx\x1b[2J:hidden\n".encode())
        with capturedLogs() as events:
            self.users.reload_if_changed()
        said = [event["log_format"].format(**event) for event in events]
        self.assertEqual(1, sum("Invalid htpasswd entry for m\\xfcller." in line for line in said), said)
        self.assertEqual(1, sum("Reloaded htpasswd file" in line for line in said), said)
        self.assertTrue(all(line.isascii() and line.isprintable() for line in said), said)
        self.assertNotIn("hidden", "".join(said))
        self.assertTrue(self.users.check("alice", b"secret"))

    def test_unchanged(self) -> None:
        """A file that did not change is not read again, unless it is asked for."""
        self.users.check("alice", b"secret")
        self.assertFalse(self.users.reload_if_changed())
        self.assertTrue(self.users.is_cached("alice", b"secret"))
        self.assertTrue(self.users.reload_if_changed(force=True))
        self.assertFalse(self.users.is_cached("alice", b"secret"))

    def test_changed_in_place(self) -> None:
        """A change of the same size within the file, whose modification time was put back, is seen all the same."""
        before = self.path.stat()
        text = self.path.read_text()
        self.path.write_text(text.replace("alice", "carol"))
        os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        # The change time may be as coarse as a clock tick; only where it moved can the change be seen.
        while self.path.stat().st_ctime_ns == before.st_ctime_ns:
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertTrue(self.users.reload_if_changed())
        self.assertTrue(self.users.check("carol", b"secret"))

    def test_reload_fails(self) -> None:
        """A file that vanished, is a directory or no text leaves the users as they were, and is said."""

        def vanish() -> None:
            self.path.unlink()

        def directory() -> None:
            self.path.mkdir()

        def no_text() -> None:
            self.path.rmdir()
            self.path.write_bytes(b"\xff\xfe")

        self.users.check("alice", b"secret")
        for breaking in (vanish, directory, no_text):
            breaking()
            for force in (False, True):
                with capturedLogs() as events:
                    self.assertFalse(self.users.reload_if_changed(force))
                self.assertEqual(1, len(events))
            self.assertTrue(self.users.is_cached("alice", b"secret"))
            self.assertTrue(self.users.check("alice", b"secret"))
        self.write({"carol": SHA})
        self.assertTrue(self.users.reload_if_changed())
        self.assertTrue(self.users.check("carol", b"secret"))
        self.assertFalse(self.users.check("alice", b"secret"))
