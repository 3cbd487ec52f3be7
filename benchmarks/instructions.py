"""
How many instructions this server executes for a request, beside another version of it, under valgrind's callgrind.

Times on a shared machine differ by a tenth from round to round. Counted instructions hardly differ at all, whatever else the
machine does, so this shows a change of one per cent. They leave out the kernel and waiting: compare.py measures those.
Needs Debian's C{valgrind}. See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from figures import text_table, title_line
from harness import MIB, BenchmarkError, Server, certificate, positive, run_main, scratch, server_program

MODES = ("plain", "tls")
#: Of this version at most, for each of the other's.
MOST = 1.03
SMALL = b"x" * 4096
LARGE = b"y" * MIB

#: The garbage collector goes over all objects now and then. Over so many requests that is the same for both versions.
REQUESTS = 2000
#: Those that take a thousand times longer: a hash over their bytes.
SLOW, SLOW_REQUESTS = ("put 1 MiB", "list"), 40

#: A method, a path, fields, and a body.
Call = tuple[str, str, dict[str, str], bytes | None]


def name_of(number: int) -> str:
    """The object's name whose bytes L{small} gives."""
    return hashlib.sha256(small(number)).hexdigest()


def small(number: int) -> bytes:
    """An object of 4 KiB."""
    return b"%08d" % number + SMALL[8:]


#: By name, what the request with a number is. The small objects are stored by the first and removed by the last.
CALLS: dict[str, Callable[[int], Call]] = {
    "put 4 KiB": lambda number: ("POST", f"/r/index/{name_of(number)}", {}, small(number)),
    "head": lambda number: ("HEAD", f"/r/index/{name_of(number)}", {}, None),
    "get 4 KiB": lambda number: ("GET", f"/r/index/{name_of(number)}", {}, None),
    "range 4 KiB": lambda number: ("GET", f"/r/data/{LARGE_NAME}", {"Range": "bytes=4096-8191"}, None),
    "get 1 MiB": lambda number: ("GET", f"/r/data/{LARGE_NAME}", {}, None),
    "put 1 MiB": lambda number: ("POST", f"/r/data/{LARGE_NAME}", {}, LARGE),
    "list": lambda number: ("GET", "/r/index/", {"Accept": "application/vnd.x.restic.rest.v2"}, None),
    "delete": lambda number: ("DELETE", f"/r/index/{name_of(number)}", {}, None),
}
LARGE_NAME = hashlib.sha256(LARGE).hexdigest()


class Counted:
    """
    A server under callgrind and one connection to it.

    @param directory: for its repository and for callgrind's files.
    """

    def __init__(self, server: Server, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._dumps = 0
        url = urlsplit(server.url)
        assert url.hostname is not None
        if url.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self._client = http.client.HTTPSConnection(url.hostname, url.port, timeout=120, context=context)
        else:
            self._client = http.client.HTTPConnection(url.hostname, url.port, timeout=120)

    def ask(self, call: Call) -> None:
        """
        Send a request and read its answer.

        @raise BenchmarkError: it was refused.
        """
        method, path, fields, body = call
        self._client.request(method, path, body, fields)
        with self._client.getresponse() as answer:
            answer.read()
        if answer.status >= 300:
            raise BenchmarkError(f"{method} {path}: {answer.status} {answer.reason}")

    def count(self) -> int:
        """How many instructions there were since this was last asked."""
        self._dumps += 1
        done = subprocess.run(
            ["callgrind_control", f"--dump={self._dumps}", str(self._server.pid)], capture_output=True, text=True
        )
        written = self._directory / f"counted.{self._dumps}"
        if done.returncode or not written.exists():
            raise BenchmarkError(f"callgrind_control: {done.stderr.strip() or done.stdout.strip()}")
        found = re.search(r"^totals: (\d+)", written.read_text(), re.MULTILINE)
        if found is None:
            raise BenchmarkError(f"{written} has no totals")
        written.unlink()
        return int(found[1])


@contextmanager
def counted(mode: str, directory: Path, checkout: Path | None) -> Iterator[Counted]:
    """A server with an empty repository on a directory that is removed at the end."""
    directory.mkdir()
    try:
        script = server_program(checkout)
        python = str(Path(script).parent / "python")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory / 'counted'}", python, script]
        command += ["--path", str(directory / "data"), "--no-auth", "--listen", "127.0.0.1:0"]
        if mode == "tls":
            cert, key = certificate(directory)
            command += ["--tls", "--tls-cert", str(cert), "--tls-key", str(key)]
        with Server("this server", command, r"start server on (127\.0\.0\.1:\d+)", mode == "tls") as server:
            one = Counted(server, directory)
            one.ask(("POST", "/r/?create=true", {}, None))
            one.ask(("POST", "/r/config", {}, b"x"))
            one.ask(("POST", f"/r/data/{LARGE_NAME}", {}, LARGE))
            yield one
    finally:
        shutil.rmtree(directory)


def measured(mode: str, directory: Path, checkout: Path | None, requests: int) -> dict[str, float]:
    """By name of a call, how many instructions one takes on average."""
    with counted(mode, directory, checkout) as one:
        # What is made on first use, and the caches.
        for call in CALLS.values():
            for number in range(20):
                one.ask(call(number))
        one.count()
        found = {}
        for name, call in CALLS.items():
            times = min(requests, SLOW_REQUESTS) if name in SLOW else requests
            for number in range(times):
                one.ask(call(number))
            found[name] = one.count() / times
        return found


def main() -> int:
    """
    Run and print.

    @return: 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, metavar="CHECKOUT", help="another checkout, whose .venv is made")
    parser.add_argument("--only", choices=MODES, help="plain or tls")
    parser.add_argument("--requests", type=positive, default=REQUESTS, help=f"of each kind ({REQUESTS})")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise BenchmarkError("valgrind is missing: apt-get install valgrind")
    columns = ["request", "this version", *(["the other", "ratio", f"at most {MOST}"] if arguments.version else [])]
    with scratch(64 * MIB) as directory:
        for mode in MODES if arguments.only is None else (arguments.only,):
            print(f"{mode}: instructions a request, average of up to {arguments.requests:,}", file=sys.stderr)
            ours = measured(mode, directory / mode, None, arguments.requests)
            others = (
                measured(mode, directory / mode, arguments.version, arguments.requests) if arguments.version else {}
            )
            rows = []
            for name, number in ours.items():
                row = [name, f"{number:,.0f}"]
                if others:
                    ratio = number / others[name]
                    row += [f"{others[name]:,.0f}", f"{ratio:.3f}", "reached" if ratio <= MOST else "missed"]
                rows.append(row)
            print(title_line(f"Instructions a request, {mode}", False))
            print(text_table([columns, *rows], False), flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
