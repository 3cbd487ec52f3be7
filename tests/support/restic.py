"""
The real restic, and something for it to back up.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import threading
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from .client import Client, object_id
from .scratch import Cleans

#: Where the tests look for restic; C{None} where it is not installed.
RESTIC = shutil.which("restic")
#: What a test case's C{skip} is set to.
SKIP_WITHOUT_RESTIC = None if RESTIC else "restic is not installed (Debian and Ubuntu: apt-get install restic)"

#: restic 0.14 repeats a refused request for about 45 s before it gives up.
_LONGEST_S = 240.0

_PASSWORD = "the password of the tests"


@dataclass(frozen=True)
class Finished:
    """How a run of restic ended."""

    status: int
    out: str
    err: str


class Restic:
    """
    Runs restic against one repository, with a cache and a home of its own.

    @param url: the repository's address without C{rest:}.
    @param directory: for the cache and the home.
    @param flags: for every run.
    """

    def __init__(self, test: Cleans, url: str, directory: Path, *flags: str) -> None:
        self._test = test
        self._url = url
        self._directory = directory
        self._flags = flags

    def start(self, *arguments: str, errors: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """
        Start a command.

        @param errors: where its stderr goes.
        """
        assert RESTIC is not None
        home = self._directory / "home"
        home.mkdir(exist_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")},
            "HOME": str(home),
            "TMPDIR": str(home),
            "RESTIC_PASSWORD": _PASSWORD,
            "RESTIC_CACHE_DIR": str(self._directory / "cache"),
        }
        return subprocess.Popen(
            [RESTIC, "--repo", f"rest:{self._url}", *self._flags, *arguments],
            cwd=self._directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def run(self, *arguments: str) -> Finished:
        """Run a command to its end."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=_LONGEST_S)
            except BaseException:
                process.kill()
                raise
        return Finished(process.returncode, out, err)

    def succeed(self, *arguments: str) -> str:
        """
        Run a command that must succeed; its output.

        @raise AssertionError: it failed.
        """
        finished = self.run(*arguments)
        assert finished.status == 0, f"restic {' '.join(arguments)}: {finished}"
        return finished.out

    def create(self) -> None:
        """
        Make the repository by the requests of C{restic init}, for tests that are about something else: that one
        computes for a second to find out how long a key shall take, and each later command takes 0.3 s for this key.
        """
        parts = urllib.parse.urlsplit(self._url)
        assert parts.hostname is not None and parts.port is not None
        tls = self._tls() if parts.scheme == "https" else None
        key, config = new_repository()
        path = parts.path.rstrip("/") + "/"
        user = None if parts.username is None else urllib.parse.unquote(parts.username)
        with Client((parts.hostname, parts.port), user, urllib.parse.unquote(parts.password or ""), tls) as client:
            client.create_repository(path)
            client.save("keys", key, path)
            reply = client.post(f"{path}config", config)
            assert reply.status == 200, reply

    def _tls(self) -> ssl.SSLContext:
        """As the flags say it to restic."""
        given = dict(zip(self._flags[::2], self._flags[1::2], strict=False))
        context = ssl.create_default_context(cafile=given["--cacert"])
        if "--tls-client-cert" in given:
            context.load_cert_chain(given["--tls-client-cert"])
        return context

    def snapshots(self) -> list[dict[str, Any]]:
        """The repository's snapshots, oldest first."""
        listed: list[dict[str, Any]] = json.loads(self.succeed("snapshots", "--json"))
        return sorted(listed, key=lambda snapshot: str(snapshot["time"]))


class ImpatientRestic(Restic):
    """A restic that is interrupted as soon as it says something."""

    def run_until(self, pattern: str, *arguments: str) -> Finished:
        """
        Run a command until its output has a line that matches, then interrupt it as one does at a terminal.

        @return: how it ended, of itself or by that.
        """
        said: list[str] = []
        with self.start(*arguments, errors=subprocess.STDOUT) as process:
            late = threading.Timer(_LONGEST_S, process.kill)
            late.start()
            assert process.stdout is not None
            for line in process.stdout:
                if re.search(pattern, line) and not any(re.search(pattern, earlier) for earlier in said):
                    process.send_signal(signal.SIGINT)
                said.append(line)
            process.wait()
            late.cancel()
        return Finished(process.returncode, "".join(said), "")


@dataclass(frozen=True)
class _Key:
    """
    What restic encrypts with; see F{doc/design.rst} of restic, "Keys, Encryption and MAC".

    @ivar encrypt: for AES-256 in counter mode.
    @ivar k: with C{r} for Poly1305-AES.
    """

    encrypt: bytes
    k: bytes
    r: bytes

    def seal(self, plain: bytes) -> bytes:
        """Encrypt, and sign."""
        nonce = os.urandom(16)
        cipher = Cipher(algorithms.AES(self.encrypt), modes.CTR(nonce)).encryptor()
        sealed = cipher.update(plain) + cipher.finalize()
        block = Cipher(algorithms.AES(self.k), modes.ECB()).encryptor()
        once = self.r + block.update(nonce) + block.finalize()
        return nonce + sealed + Poly1305.generate_tag(once, sealed)


def new_repository() -> tuple[bytes, bytes]:
    """
    A key's file and C{config} of a new repository of version 2, for the tests' password. They are as those of
    C{restic init} but for the cost of scrypt, which is the lowest.
    """

    def text(value: bytes) -> str:
        return base64.b64encode(value).decode("ascii")

    master = _Key(os.urandom(32), os.urandom(16), os.urandom(16))
    content = {"mac": {"k": text(master.k), "r": text(master.r)}, "encrypt": text(master.encrypt)}
    salt = os.urandom(64)
    made = hashlib.scrypt(_PASSWORD.encode(), salt=salt, n=2, r=8, p=1, dklen=64)
    key = {
        "created": "2024-02-29T12:00:00.000000000Z",
        "username": "tests",
        "hostname": "tests",
        "kdf": "scrypt",
        "N": 2,
        "r": 8,
        "p": 1,
        "salt": text(salt),
        "data": text(_Key(made[:32], made[32:48], made[48:]).seal(json.dumps(content).encode())),
    }
    # Any irreducible polynomial of degree 53 will do.
    config = {"version": 2, "id": object_id(os.urandom(32)), "chunker_polynomial": "3da3358b4dc173"}
    return json.dumps(key).encode(), master.seal(json.dumps(config).encode())


def make_tree(directory: Path, seed: int, size_bytes: int) -> None:
    """
    Mixed files of about C{size_bytes} together, the same for the same seed: half of it in big files of random bytes, a
    quarter compressible, a quarter in many small files of all sizes, and some odd names and an empty file.
    """
    source = random.Random(seed)
    for number in range(4):
        _write(directory / "big" / f"{number}.bin", source.randbytes(size_bytes // 8))
    words = [b"%x" % source.getrandbits(source.randrange(4, 32)) for _ in range(2000)]
    text = b" ".join(source.choices(words, k=size_bytes // 40))
    for number in range(4):
        _write(directory / "text" / f"{number}.log", (text[number * 1000 :] + text)[: size_bytes // 16])
    left = size_bytes // 4
    number = 0
    while left > 0:
        # Many of a few bytes and few of many: 1 byte to 256 KiB, evenly by magnitude.
        body = source.randbytes(min(left, int(2 ** source.uniform(0, 18))))
        _write(directory / "small" / f"{number % 50:02d}" / f"{number}.dat", body)
        left -= len(body)
        number += 1
    _write(directory / "odd" / "empty", b"")
    _write(directory / "odd" / "grün und \N{SNOWMAN}.txt", b"odd name\n")
    (directory / "odd" / "link").symlink_to("empty")


def change_tree(directory: Path, seed: int) -> None:
    """Some days later: files are new, gone, changed, grown and renamed."""
    source = random.Random(seed)
    with (directory / "big" / "0.bin").open("r+b") as file:
        file.seek(source.randrange(file.seek(0, os.SEEK_END)))
        file.write(source.randbytes(100_000))
    with (directory / "text" / "1.log").open("ab") as file:
        file.write(b"one more line\n" * 10_000)
    os.rename(directory / "big" / "2.bin", directory / "big" / "renamed.bin")
    for path in sorted((directory / "small").rglob("*.dat"))[::7]:
        path.unlink()
    for number in range(200):
        _write(directory / "new" / f"{number}.dat", source.randbytes(source.randrange(20_000)))


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
