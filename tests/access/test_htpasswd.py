"""
The htpasswd file: which lines are taken, which passwords are right, and what a change of the file does.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bcrypt
import passlib.hash  # type: ignore[import-untyped]
from passlib.handlers import md5_crypt, sha2_crypt  # type: ignore[import-untyped]
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access import htpasswd
from resticserver.access.htpasswd import Htpasswd, check_password, parse_htpasswd
from resticserver.errors import StartError

from ..support.processes import process_test


def bcrypt_hash(password: bytes, prefix: str = "$2b$", cost: int = 4) -> str:
    """A bcrypt entry, as cheap as they come."""
    hashed = bcrypt.hashpw(password[:72], bcrypt.gensalt(cost)).decode("ascii")
    return prefix + hashed[4:]


def sha_hash(password: bytes) -> str:
    """A {SHA} entry."""
    return "{SHA}" + base64.b64encode(hashlib.sha1(password).digest()).decode("ascii")


#: Where requests come from.
HERE = "192.0.2.0"

BCRYPT = bcrypt_hash(b"secret")
SHA = sha_hash(b"secret")

# From OpenSSL 3.0: openssl passwd -apr1|-5|-6 -salt saltsalt secret; the rounds stand in the salt: -salt 'rounds=1000$...'
APR1 = "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0"
CRYPT5 = "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"
CRYPT5_ROUNDS = "$5$rounds=1000$saltsalt$eKLZU9t9OoPWrqOQsoTIKG0aYkZ5rGOoOQhiIvoSWX2"
CRYPT6 = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1"
CRYPT6_ROUNDS = (
    "$6$rounds=1000$saltsaltsaltsalt$"
    "cv7no.30n.S75jcCNBQv6o7WVXQ5AaB1EpIeSKwsNupcnQDQ0DsukcAPRNjPumwKIBg2JK5ii9uw5enNnnA4N/"
)
CRYPTS = (APR1, CRYPT5, CRYPT5_ROUNDS, CRYPT6, CRYPT6_ROUNDS)
#: The same for "pässword" in UTF-8, for b"m\xfcller", for the empty password, and for LONG.
APR1_UTF8 = "$apr1$saltsalt$553eXAj/BD3irf9w9nutz/"
CRYPT5_UTF8 = "$5$saltsalt$rQBvFGQx3u6doxkk7cvWbhhnhS2qa1.FI.tt6NGFH66"
CRYPT6_LATIN = "$6$abc$aORL.cgIlfJYEE5vNZ4gAUp/UkVvijyL/NZtQhZqbn.SpLKsfLQPEvex/DI5K69V1xnuUNFu.TxO1dkdhEO0d1"
APR1_EMPTY = "$apr1$s$e2aCb9PLCjZ2t55SoAxXn."
APR1_LONG = "$apr1$saltsalt$Wq0m2az3LhenHuN06F/LL0"
CRYPT5_LONG = "$5$saltsalt$Y.JAxbuDN/tj6Px7XKNPo1FOe28XYmuVLjoWjha0Dz."
CRYPT6_LONG = "$6$saltsalt$z4mO8GyZNS2W595m0uxskIKJnFmUq8Z/ueG2Y2j9qCr7xvCOh5IGHIsSaHNZ9Yx/Qsmw8yk3tR4u9vvudH.491"

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
    *((f"alice:{crypt}\nbob:{SHA}\n", {"alice": crypt, "bob": SHA}, 0) for crypt in CRYPTS),
    (CRYPT6.replace("$6$", "alice:$6$rounds=1000000$"), {"alice": CRYPT6.replace("$6$", "$6$rounds=1000000$")}, 0),
    (f"alice:$6$${CRYPT6[12:]}\n", {"alice": f"$6$${CRYPT6[12:]}"}, 0),
    # rest-server trims in front of the hash, and like Apache looks at nothing behind a second colon
    (f"alice: {BCRYPT}\nbob:\t{SHA} \n", {"alice": BCRYPT, "bob": SHA}, 0),
    (f"alice: {BCRYPT}\r\n\r\nbob:  {SHA}\r\n", {"alice": BCRYPT, "bob": SHA}, 0),
    (f"alice:{BCRYPT}:comment\nbob: {SHA} : Bob, B.:x\n", {"alice": BCRYPT, "bob": SHA}, 0),
    (f"alice:{BCRYPT}:\n", {"alice": BCRYPT}, 0),
    # Windows' editors begin with a byte order mark
    (f"\ufeffalice:{SHA}\r\nbob:{SHA}\r\n", {"alice": SHA, "bob": SHA}, 0),
    (f"\ufeff# users\nbob:{SHA}\n", {"bob": SHA}, 0),
    # lines that are left out, and do not harm the others
    (f"alice::{SHA}\nbob:{SHA}\n", {"bob": SHA}, 1),
    (f"alice : {SHA}\nbob:{SHA}\n", {"bob": SHA}, 1),
    (f"alice: $ {SHA}\nbob:{SHA}\n", {"bob": SHA}, 1),
    # bytes that are not UTF-8 (as the server reads them): a comment is a comment, and of the others each is one line less
    (f"# M\udcfcller\nalice:{SHA}\n", {"alice": SHA}, 0),
    (f"m\udcfcller:{SHA}\nalice:{SHA}\nbob:{SHA[:-1]}\udcfc\ncarol:{SHA}:M\udcfcller\n", {"alice": SHA}, 3),
    (f"\udcff\udcfea\x00\nalice:{SHA}\n", {"alice": SHA}, 1),
    (f"alice\nbob:{SHA}\n", {"bob": SHA}, 1),
    (f":{SHA}\nbob:{SHA}\n", {"bob": SHA}, 1),
    ("alice:\n", {}, 1),
    ("alice:secret\n", {}, 1),
    *((f"alice:{crypt[:-1]}\nbob:{SHA}\n", {"bob": SHA}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt}x\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt[:-1]}!\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt[:-1]}é\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt[:-1]}\ud800\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt[: crypt.rindex('$')]}\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt[: crypt.rindex('$') + 1]}\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt.replace('saltsalt', 'salt!')}\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt.replace('saltsalt', 'salt$')}\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt.replace('saltsalt', 'salt' * 5)}\n", {}, 1) for crypt in CRYPTS),
    *((f"alice:{crypt.replace('$', '$$', 1)}\n", {}, 1) for crypt in CRYPTS),
    *(
        (f"alice:{crypt.replace('1000', rounds)}\n", {}, 1)
        for crypt in (CRYPT5_ROUNDS, CRYPT6_ROUNDS)
        for rounds in ("999", "0", "-1000", "01000", "1_000", " 1000", "+1000", "１000", "", "x", "1000001", "9" * 5000)
    ),
    ("alice:$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/\n", {}, 1),
    ("alice:$y$j9T$salt$hash\n", {}, 1),
    ("alice:$6\n", {}, 1),
    ("alice:$6$\n", {}, 1),
    ("alice:rqXexS6ZhobKA\n", {}, 1),
    (f"alice:{BCRYPT[:4]}17{BCRYPT[6:]}\n", {"alice": f"{BCRYPT[:4]}17{BCRYPT[6:]}"}, 0),
    (f"alice:{BCRYPT[:4]}18{BCRYPT[6:]}\n", {}, 1),
    ("alice:{SHA}\n", {}, 1),
    ("alice:{SHA}not base64!\n", {}, 1),
    ("alice:{SHA}" + base64.b64encode(b"too short").decode() + "\n", {}, 1),
    (f"alice:{SHA.lower()}\n", {}, 1),
    (f"alice:{BCRYPT[:-1]}\n", {}, 1),
    (f"alice:{BCRYPT}x\n", {}, 1),
    (f"alice:$2x${BCRYPT[4:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}03{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}32{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:4]}xx{BCRYPT[6:]}\n", {}, 1),
    (f"alice:{BCRYPT[:6]}.{BCRYPT[7:]}\n", {}, 1),
    (f"alice:{BCRYPT[:-1]}é\n", {}, 1),
    (f"alice:{BCRYPT[:-1]}!\n", {}, 1),
    (f"alice:{BCRYPT[:28]}A{BCRYPT[29:]}\n", {}, 1),
    # an end of line is a newline and nothing else
    (f"#\x0calice:{SHA}\n#\u2028alice:{SHA}\n#\ralice:{SHA}\n", {}, 0),
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
    (bcrypt_hash(LONG), LONG + b"\x00", False),
    *((crypt, b"secret", True) for crypt in CRYPTS),
    *(
        (crypt, wrong, False)
        for crypt in CRYPTS
        for wrong in (b"Secret", b"secret ", b"", b"secret\x00", b"\x00", b"m\xfcller", b"\xff" * 100)
    ),
    (APR1_UTF8, "pässword".encode(), True),
    (APR1_UTF8, "pässword".encode("latin-1"), False),
    (CRYPT5_UTF8, "pässword".encode(), True),
    (CRYPT6_LATIN, b"m\xfcller", True),
    (CRYPT6_LATIN, "müller".encode(), False),
    (APR1_EMPTY, b"", True),
    *((crypt, LONG, True) for crypt in (APR1_LONG, CRYPT5_LONG, CRYPT6_LONG)),
    *((crypt, LONG[:72], False) for crypt in (APR1_LONG, CRYPT5_LONG, CRYPT6_LONG)),
)


class ParseTests(SynchronousTestCase):
    """L{parse_htpasswd}."""

    def test_table(self) -> None:
        """Each file of the table has these users and so many bad lines."""
        for text, users, bad in FILES:
            found, warnings = parse_htpasswd(text)
            self.assertEqual((users, bad), (found, len(warnings)), text)
            data = text.encode("utf-8", "surrogateescape" if "\ud800" not in text else "surrogatepass")
            self.assertEqual((users, bad), (lambda made: (made[0], len(made[1])))(parse_htpasswd(data)), data)

    def test_warnings(self) -> None:
        """A warning names the user, or the line where there is none that could be named, and never the hash."""
        for hashed, reason in (
            ("hidden", "unknown hash type; supported are bcrypt ($2y$ $2a$ $2b$), $6$, $5$, $apr1$ and {SHA}"),
            ("$2y$hidden", "malformed bcrypt hash"),
            ("{SHA}hidden", "malformed {SHA} hash"),
            ("$apr1$hidden", "malformed $apr1$ hash"),
            ("$5$hidden", "malformed $5$ hash"),
            ("$6$rounds=hidden$hidden$hidden", "malformed $6$ hash"),
            (CRYPT6_ROUNDS.replace("1000", "1000001"), "more than 1000000 rounds"),
        ):
            _, warnings = parse_htpasswd(f"alice:{hashed}\n\nb b:hidden\n")
            self.assertEqual(f"Invalid htpasswd entry for alice. (htpasswd, line 1: {reason})", warnings[0])
            self.assertIn("line 3", warnings[1])
            self.assertNotIn("hidden", "".join(warnings))

    def test_names(self) -> None:
        """A line without a valid name is told of with the file, the line and the reason, and without the hash."""
        for line, reason in (
            (b"b b:{SHA}hidden", "'b b' is not a user name: ' ' is not a letter, a digit or one of @ . _ -"),
            (b"b/b:{SHA}hidden", "'b/b' is not a user name: '/' is not a letter"),
            (b"alice :{SHA}hidden", "'alice ' is not a user name: ' ' is not a letter"),
            (b":{SHA}hidden", "no user name before the colon"),
            (b"hidden", "the line has no colon"),
            (b"data:{SHA}hidden", "'data' is not a user name: it is reserved"),
            (b"..:{SHA}hidden", "'..' is not a user name: it is reserved"),
            (b"x" * 300 + b":{SHA}hidden", "is not a user name: it is reserved or too long"),
            (b"M\xfcller:{SHA}hidden", "not valid UTF-8"),
        ):
            users, (warning,) = parse_htpasswd(b"# x\n" + line + b"\n", "/etc/htpasswd")
            self.assertEqual({}, users)
            self.assertTrue(warning.startswith("Invalid htpasswd entry in /etc/htpasswd, line 2, ignored: "), warning)
            self.assertIn(reason, warning)
            self.assertNotIn("hidden", warning)

    def test_bcrypt_takes_what_is_taken(self) -> None:
        """The letters that may end a salt are those with which bcrypt does not raise."""
        for letter in "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789":
            hashed = BCRYPT[:28] + letter + BCRYPT[29:]
            users, _ = parse_htpasswd(f"alice:{hashed}")
            try:
                bcrypt.checkpw(b"secret", hashed.encode())
            except ValueError:
                self.assertEqual({}, users, letter)
            else:
                self.assertEqual({"alice": hashed}, users, letter)

    @process_test
    def test_passlib_is_imported_late(self) -> None:
        """A file without such entries does not wait for passlib; one with them does when it is read, no login later."""
        program = (
            "import sys; from resticserver.access.htpasswd import parse_htpasswd, check_password\n"
            f"parse_htpasswd('a:{BCRYPT}\\nb:{SHA}\\nc:$1$x\\n'); check_password('{BCRYPT}', b'wrong')\n"
            "assert 'passlib' not in sys.modules\n"
            f"parse_htpasswd('a:{APR1}\\n')\n"
            "assert 'passlib.handlers.md5_crypt' in sys.modules\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, env=environment)
        self.assertEqual("", done.stderr.decode())


class PasswordTests(SynchronousTestCase):
    """L{check_password}."""

    def test_table(self) -> None:
        """Each password is right for the entry or not."""
        for number, (hashed, password, right) in enumerate(PASSWORDS):
            self.assertEqual(right, check_password(hashed, password), f"row {number}: {hashed} {password!r}")

    def computed(self, hashed: str, password: bytes) -> list[int]:
        """The lengths of the passwords that are really hashed in one check."""
        lengths: list[int] = []
        for module, name in ((sha2_crypt, "_raw_sha2_crypt"), (md5_crypt, "_raw_md5_crypt"), (bcrypt, "checkpw")):
            real = getattr(module, name)

            def noting(secret: bytes, *args: Any, real: Any = real, **named: Any) -> Any:
                lengths.append(len(secret))
                return real(secret, *args, **named)

            self.patch(module, name, noting)
        self.assertFalse(check_password(hashed, password))
        return lengths

    def test_what_cannot_be_right_takes_its_time(self) -> None:
        """A NUL, or more than 4 KiB for the crypts: refused, and not at once, nor after a time that grows with it."""
        for hashed in (BCRYPT, *CRYPTS):
            self.assertEqual([10], self.computed(hashed, b"secret\x00"), hashed)
            self.assertEqual([10], self.computed(hashed, b"\x00" * 100_000), hashed)
        for hashed in CRYPTS:
            self.assertEqual([10], self.computed(hashed, b"x" * 4097), hashed)
        self.assertEqual([4096], self.computed(APR1, b"x" * 4096))
        self.assertEqual([72], self.computed(BCRYPT, b"x" * 100_000))

    def test_what_stands_in_is_not_right(self) -> None:
        """The password that is checked in place of an impossible one opens nothing, should somebody have it."""
        apr1 = passlib.hash.apr_md5_crypt.hash(b"impossible")
        for hashed in (bcrypt_hash(b"impossible"), apr1):
            self.assertTrue(check_password(hashed, b"impossible"))
            self.assertFalse(check_password(hashed, b"impossible\x00"))
        self.assertFalse(check_password(apr1, b"x" * 4097))


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
            self.assertEqual(right, self.users.check(user, password, HERE), user)

    # --- the memory of verified passwords

    def test_cached(self) -> None:
        """A verified password is remembered, that pair alone and for a minute."""
        self.assertFalse(self.users.is_cached("alice", b"secret", HERE))
        self.users.check("alice", b"secret", HERE)
        self.assertTrue(self.users.is_cached("alice", b"secret", HERE))
        self.assertFalse(self.users.is_cached("alice", b"wrong", HERE))
        self.assertFalse(self.users.is_cached("alic", b"esecret", HERE))
        self.assertFalse(self.users.is_cached("bob", b"secret", HERE))
        self.assertFalse(self.users.is_cached("carol", b"secret", HERE))
        self.now += 59.9
        self.assertTrue(self.users.is_cached("alice", b"secret", HERE))
        self.now += 0.1
        self.assertFalse(self.users.is_cached("alice", b"secret", HERE))

    def test_wrong_is_not_cached(self) -> None:
        """A refusal is not remembered as anything."""
        self.users.check("alice", b"wrong", HERE)
        self.users.check("carol", b"secret", HERE)
        self.assertFalse(self.users.is_cached("alice", b"wrong", HERE))
        self.assertFalse(self.users.is_cached("carol", b"secret", HERE))

    def test_known_for_a_day(self) -> None:
        """That a pair was right is known for a day and a half after it was verified last."""
        self.assertFalse(self.users.was_verified("alice", b"secret", HERE))
        self.users.check("alice", b"secret", HERE)
        self.now += 36 * 3600 - 1
        self.assertTrue(self.users.was_verified("alice", b"secret", HERE))
        self.assertFalse(self.users.is_cached("alice", b"secret", HERE))
        for user, password in (("alice", b"wrong"), ("bob", b"secret"), ("alic", b"esecret"), ("carol", b"secret")):
            self.assertFalse(self.users.was_verified(user, password, HERE), user)
        self.users.check("alice", b"secret", HERE)
        self.now += 36 * 3600 - 1
        self.assertTrue(self.users.was_verified("alice", b"secret", HERE))
        self.now += 1
        self.assertFalse(self.users.was_verified("alice", b"secret", HERE))

    def test_known_is_only_who_was_right(self) -> None:
        """A wrong password, or an unknown user's, is not remembered."""
        self.users.check("alice", b"wrong", HERE)
        self.users.check("carol", b"secret", HERE)
        self.assertFalse(self.users.was_verified("alice", b"wrong", HERE))
        self.assertFalse(self.users.was_verified("carol", b"secret", HERE))

    def test_known_is_quick(self) -> None:
        """What was verified is asked in the reactor's thread: no password is hashed for it."""
        self.users.check("alice", b"secret", HERE)
        self.patch(htpasswd, "check_password", lambda hashed, password: self.fail("hashed"))
        self.assertTrue(self.users.was_verified("alice", b"secret", HERE))
        self.assertFalse(self.users.was_verified("alice", b"wrong", HERE))

    def test_cache_forgets_the_expired(self) -> None:
        """Pairs older than that leave the memory at the next check."""
        self.users.check("alice", b"secret", HERE)
        self.now += 36 * 3600
        self.users.check("bob", b"secret", HERE)
        self.assertEqual(1, len(self.users._verified))

    def test_cache_is_bounded(self) -> None:
        """The pair that was verified the longest ago makes room: bcrypt takes any end after 72 bytes, so pairs are many."""
        self.patch(htpasswd, "_MOST_REMEMBERED", 3)
        self.write({"alice": bcrypt_hash(LONG)})
        self.users.reload_if_changed()
        for end in (b"1", b"2", b"3", b"1", b"4"):
            self.assertTrue(self.users.check("alice", LONG + end, HERE))
        self.assertEqual(3, len(self.users._verified))
        known = [end for end in b"12345" if self.users.was_verified("alice", LONG + bytes([end]), HERE)]
        self.assertEqual(list(b"134"), known)

    def test_cache_holds_no_password(self) -> None:
        """What is remembered is a salted digest, another one in each server."""
        self.users.check("alice", b"secret", HERE)
        other = Htpasswd(str(self.path), lambda: self.now)
        other.load()
        other.check("alice", b"secret", HERE)
        self.assertFalse(set(self.users._verified) & set(other._verified))
        self.assertNotIn(b"secret", b"".join(self.users._verified))
        self.assertNotIn("secret", repr(self.users))

    def test_cache_is_emptied_by_a_reload(self) -> None:
        """
        What was right before a change is checked once more, also of users who did not change; but these are no guessers.
        """
        self.users.check("alice", b"secret", HERE)
        self.write({"alice": BCRYPT, "bob": SHA, "carol": SHA})
        self.assertTrue(self.users.reload_if_changed())
        self.assertFalse(self.users.is_cached("alice", b"secret", HERE))
        self.assertTrue(self.users.was_verified("alice", b"secret", HERE))
        self.assertTrue(self.users.check("alice", b"secret", HERE))
        self.assertTrue(self.users.is_cached("alice", b"secret", HERE))

    def test_known_where_it_was_right(self) -> None:
        """What was right in one place tells nobody in another."""
        self.users.check("alice", b"secret", HERE)
        self.assertFalse(self.users.is_cached("alice", b"secret", "elsewhere"))
        self.assertFalse(self.users.was_verified("alice", b"secret", "elsewhere"))

    def test_broken_is_said_once(self) -> None:
        """A file that cannot be used is named once for each change, and the old users stay."""
        for break_it in (lambda: self.path.write_bytes(b"\xff\xfea\0"), self.path.unlink, lambda: os.mkfifo(self.path)):
            break_it()
            with capturedLogs() as events:
                for _ in range(3):
                    self.assertFalse(self.users.reload_if_changed())
            self.assertEqual(1, len(events), events)
        self.assertTrue(self.users.check("alice", b"secret", HERE))

    def test_changed_entry(self) -> None:
        """A changed password holds from the reload on, and the old one is wrong; a removed user is unknown."""
        self.users.check("alice", b"secret", HERE)
        self.users.check("bob", b"secret", HERE)
        self.write({"alice": bcrypt_hash(b"new secret")})
        self.users.reload_if_changed()
        for user in ("alice", "bob"):
            self.assertFalse(self.users.is_cached(user, b"secret", HERE))
            self.assertFalse(self.users.was_verified(user, b"secret", HERE))
            self.assertFalse(self.users.check(user, b"secret", HERE))
        self.assertTrue(self.users.check("alice", b"new secret", HERE))

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
            self.users.check(user, b"secret", HERE)
            self.assertFalse(self.users.is_cached(user, b"secret", HERE))
            self.assertFalse(self.users.was_verified(user, b"secret", HERE))

    # --- the decoy

    def checked_against(self, user: str) -> list[str]:
        """The entries that a check of a user looks at."""
        seen: list[str] = []
        real = htpasswd.check_password

        def noting(hashed: str, password: bytes) -> bool:
            seen.append(hashed)
            return real(hashed, password)

        patch = self.patch(htpasswd, "check_password", noting)
        self.assertFalse(self.users.check(user, b"wrong", HERE))
        patch.restore()
        return seen

    def test_unknown_users_cost_the_same(self) -> None:
        """An unknown user's password is checked too, against an entry of the kind and cost that most users have."""
        six = bcrypt_hash(b"secret", cost=6)
        for users, kind in (
            ({"a": BCRYPT, "b": BCRYPT, "c": SHA}, "$2b$04$"),
            ({"a": six, "b": six, "c": BCRYPT}, "$2b$06$"),
            ({"a": SHA, "b": SHA, "c": BCRYPT}, "{SHA}"),
            ({"a": BCRYPT, "b": "$2y$" + BCRYPT[4:], "c": SHA}, "$2b$04$"),
            ({"a": SHA, "b": APR1, "c": APR1_UTF8}, "$apr1$"),
            ({"a": APR1_EMPTY, "b": APR1, "c": APR1_UTF8}, "$apr1$saltsalt$"),
            ({"a": CRYPT5, "b": CRYPT5_UTF8, "c": CRYPT5_ROUNDS}, "$5$saltsalt$"),
            ({"a": CRYPT5, "b": CRYPT5_ROUNDS, "c": CRYPT5_ROUNDS}, "$5$rounds=1000$saltsalt$"),
            ({"a": CRYPT6, "b": CRYPT6.replace("$6$", "$6$rounds=5000$"), "c": CRYPT6_LATIN}, "$6$saltsalt$"),
            ({"a": CRYPT6_ROUNDS}, "$6$rounds=1000$saltsaltsaltsalt$"),
            ({}, "{SHA}"),
        ):
            self.write(users)
            self.users.reload_if_changed(force=True)
            (decoy,) = self.checked_against("nobody")
            self.assertTrue(decoy.startswith(kind), decoy)
            self.assertNotIn(decoy, users.values())
            if kind != "{SHA}":
                self.assertIn(len(decoy), map(len, users.values()))
            self.assertEqual({"nobody": decoy}, parse_htpasswd(f"nobody:{decoy}")[0])

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
        """
        A file that cannot be read at the start is one line that names it and says why. Only where there is none it is said what
        one may do without.
        """
        folder = self.mktemp()
        os.mkdir(folder)
        wide = self.mktemp()
        Path(wide).write_bytes("alice:hash\n".encode("utf-16"))
        advice = " (use --no-auth to disable authentication, or 'rest-server user add' to create a user)"
        for path, said, reason in (
            (self.mktemp(), advice, "No such file or directory"),
            (folder, "", "Is a directory"),
            (wide, "", "not UTF-8 text: it contains NUL bytes"),
        ):
            error = self.assertRaises(StartError, Htpasswd(path, lambda: 0.0).load)
            self.assertEqual(f"--htpasswd-file: cannot load {path}{said}: {reason}", str(error))

    def test_bad_lines_are_logged(self) -> None:
        """Each line that is left out is said, in rest-server's words, escaped."""
        self.path.write_bytes(f"alice:{SHA}\nmüller:$apr1$hidden\nx\x1b[2J:hidden\n".encode())
        with capturedLogs() as events:
            self.users.reload_if_changed()
            self.users.say_reloaded()
        said = [event["log_format"].format(**event) for event in events]
        self.assertEqual(1, sum("Invalid htpasswd entry for m\\xfcller." in line for line in said), said)
        self.assertEqual(1, sum("Reloaded htpasswd file" in line for line in said), said)
        self.assertTrue(all(line.isascii() and line.isprintable() for line in said), said)
        self.assertNotIn("hidden", "".join(said))
        self.assertTrue(self.users.check("alice", b"secret", HERE))

    def test_unchanged(self) -> None:
        """A file that did not change is not read again, unless it is asked for."""
        self.users.check("alice", b"secret", HERE)
        self.assertFalse(self.users.reload_if_changed())
        self.assertTrue(self.users.is_cached("alice", b"secret", HERE))
        self.assertTrue(self.users.reload_if_changed(force=True))
        self.assertFalse(self.users.is_cached("alice", b"secret", HERE))

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
        self.assertTrue(self.users.check("carol", b"secret", HERE))

    def test_reload_fails(self) -> None:
        """A file that vanished, is a directory or no text leaves the users as they were, and is said."""

        def vanish() -> None:
            self.path.unlink()

        def directory() -> None:
            self.path.mkdir()

        def no_text() -> None:
            self.path.rmdir()
            self.path.write_bytes("alice:x".encode("utf-16"))

        self.users.check("alice", b"secret", HERE)
        for breaking in (vanish, directory, no_text):
            breaking()
            for force in (False, True):
                with capturedLogs() as events:
                    self.assertFalse(self.users.reload_if_changed(force))
                self.assertEqual(1, len(events))
            self.assertTrue(self.users.is_cached("alice", b"secret", HERE))
            self.assertTrue(self.users.check("alice", b"secret", HERE))
        self.write({"carol": SHA})
        self.assertTrue(self.users.reload_if_changed())
        self.assertTrue(self.users.check("carol", b"secret", HERE))
        self.assertFalse(self.users.check("alice", b"secret", HERE))
