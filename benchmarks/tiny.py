"""
A well-behaved client beside clients that send as many tiny pieces as they can: what its requests take.

Each kind of hostile client runs beside one that loads an object of 2 kB, asks C{/-/ready} and loads the status page, in turn.
See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import multiprocessing
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from figures import line, text_table, title_line
from harness import MIB, BenchmarkError, Server, certificate, machine, program, run_main, scratch, this_server, version

#: How many bytes a hostile client sends at a time, where it is not the point that they are few.
BLOCK_BYTES = 64 << 10
OBJECT = bytes(2000)
NAME = hashlib.sha256(OBJECT).hexdigest()
_LOAD, _READY, _STATUS = f"/data/{NAME}", "/-/ready", "/-/status"
_CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"

Send = Callable[[bytes], object]


def object_path(number: int) -> bytes:
    """The path of an object that is not there."""
    return b"/data/%064x" % number


def many(piece: bytes) -> bytes:
    """A block of them."""
    return piece * max(1, BLOCK_BYTES // len(piece))


def upload_of(piece: bytes) -> Callable[[int, Send], None]:
    """Who stores an object in chunks that are all the same."""

    def hostile(number: int, send: Send) -> None:
        send(b"POST " + object_path(number) + b" HTTP/1.1\r\n" + _CHUNKED)
        block = many(piece)
        while True:
            send(block)

    return hostile


def refused_chunks(number: int, send: Send) -> None:
    """Who goes on to send one-byte chunks after an early answer."""
    send(b"POST /nobody/knows/it/data HTTP/1.1\r\n" + _CHUNKED)
    block = many(b"1\r\nx\r\n")
    while True:
        send(block)


def trailers(number: int, send: Send) -> None:
    """Who ends a body with as many trailer fields as fit, again and again."""
    block = b"POST /config HTTP/1.1\r\n" + _CHUNKED + b"0\r\n" + b"a:\r\n" * 16_000 + b"\r\n"
    while True:
        send(block)


def pipelined(number: int, send: Send) -> None:
    """Who sends requests without waiting for answers."""
    block = many(b"HEAD /x HTTP/1.1\r\nHost:\r\n\r\n")
    while True:
        send(block)


def fields(number: int, send: Send) -> None:
    """Who sends heads of many fields, one after the other."""
    heads = (b"HEAD /x HTTP/1.1\r\nHost:\r\n" + b"a:%d\r\n" * 490 % ((n,) * 490) + b"\r\n" for n in itertools.count())
    while True:
        send(b"".join(itertools.islice(heads, 16)))


def small_body(number: int, send: Send) -> None:
    """Who sends a body with a length byte by byte."""
    for again in itertools.count():
        send(b"POST " + object_path(number << 32 | again) + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
        for _ in range(200_000):
            send(b"x")


def slow_head(number: int, send: Send) -> None:
    """Who sends a head byte by byte."""
    while True:
        send(b"GET /")
        for _ in range(30_000):
            send(b"x")
        send(b" HTTP/1.1\r\nHost: x\r\n\r\n")


def record_upload(number: int, send: Send) -> None:
    """Who sends a large body in TLS records of one byte."""
    send(b"POST " + object_path(number) + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
    while True:
        send(b"x" * BLOCK_BYTES)


#: What is sent, by its name; whether over TLS, and then in records of one byte each.
KINDS: dict[str, tuple[Callable[[int, Send], None], bool]] = {
    "chunks of 1 byte": (upload_of(b"1\r\nx\r\n"), False),
    "chunks with an extension": (upload_of(b"1;" + b"x" * 4000 + b"\r\nx\r\n"), False),
    "refused, then chunks of 1 byte": (refused_chunks, False),
    "trailers": (trailers, False),
    "pipelined HEAD": (pipelined, False),
    "heads of 490 fields": (fields, False),
    "body byte by byte": (small_body, False),
    "head byte by byte": (slow_head, False),
    "TLS records: chunks of 1 byte": (upload_of(b"1\r\nx\r\n"), True),
    "TLS records: a large body": (record_upload, True),
    "TLS records: a head": (slow_head, True),
}


class Records:
    """Sends each byte in a TLS record of its own, a block of records at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(self._outgoing.read())
                self._incoming.write(connection.recv(65536))

    def send(self, data: bytes) -> None:
        """Encrypt and send."""
        for byte in range(len(data)):
            self._tls.write(data[byte : byte + 1])
            if self._outgoing.pending > BLOCK_BYTES:
                self._connection.sendall(self._outgoing.read())
        self._connection.sendall(self._outgoing.read())


def attack(port: int, kind: str, number: int) -> None:
    """One hostile client: whenever its connection is ended, it makes another."""
    hostile, in_records = KINDS[kind]

    def drain(connection: socket.socket) -> None:
        """Take answers, or the server would wait for that."""
        with suppress(OSError):
            while connection.recv(1 << 20):
                pass

    while True:
        with suppress(OSError, ssl.SSLError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send: Send = Records(connection).send if in_records else connection.sendall
            threading.Thread(target=drain, args=(connection,), daemon=True).start()
            hostile(number, send)
        time.sleep(0.01)


def attackers(port: int, kind: str, number: int) -> None:
    """A process of hostile clients."""
    threads = [threading.Thread(target=attack, args=(port, kind, each), daemon=True) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def beside(port: int, kind: str, number: int) -> Iterator[None]:
    """So many hostile clients, until this is left."""
    process = multiprocessing.get_context("fork").Process(target=attackers, args=(port, kind, number), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


class Polite:
    """A client that waits for each answer, and then a little more."""

    def __init__(self, server: Server, tls: bool) -> None:
        address = server.url.split("/")[2]
        self.port = int(address.rpartition(":")[2])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(address, timeout=60, context=context)
            if tls
            else http.client.HTTPConnection(address, timeout=60)
        )

    def ask(self, method: str, path: str, body: bytes | None = None) -> float:
        """
        One request; how long it took, in seconds.

        @raise BenchmarkError: it was not answered with 200.
        """
        began = time.perf_counter()
        self._connection.request(method, path, body)
        reply = self._connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise BenchmarkError(f"{method} {path} was answered with {reply.status} {reply.reason}")
        return time.perf_counter() - began

    def measure(self, seconds: float) -> dict[str, list[float]]:
        """What requests take, by path, in milliseconds; at least one of each."""
        found: dict[str, list[float]] = {_LOAD: [], _READY: [], _STATUS: []}
        until = time.monotonic() + seconds
        for path in itertools.cycle((_LOAD, _LOAD, _LOAD, _READY, _LOAD, _LOAD, _LOAD, _STATUS)):
            found[path].append(self.ask("GET", path) * 1000)
            if time.monotonic() > until and all(found.values()):
                break
            time.sleep(0.005)
        return found


def measure(directory: Path, pair: tuple[Path, Path] | None, arguments: argparse.Namespace) -> list[list[str]]:
    """The rows of the table, plain or over TLS."""
    rows = []
    kinds = [kind for kind, (_, tls) in KINDS.items() if tls == (pair is not None) and arguments.only in kind]
    for kind, number in itertools.product(kinds, arguments.clients):
        if number == 0 and kind != kinds[0]:
            continue
        # A server for each: what the one before was sent may still be on its way.
        with this_server(
            directory / f"{len(rows)}-{pair is not None}", pair, ["--prometheus", *arguments.flags]
        ) as server:
            polite = Polite(server, pair is not None)
            polite.ask("POST", "/?create=true", b"")
            polite.ask("POST", _LOAD, OBJECT)
            with beside(polite.port, kind, number):
                time.sleep(1.0)
                found = polite.measure(arguments.seconds)
            name = kind if number else "nobody, over TLS" if pair else "nobody"
            row = [name, str(number)]
            for times in found.values():
                row += [f"{statistics.median(times):.1f}", f"{max(times):.1f}"]
            rows.append([*row, f"{server.peak_mb():.0f}"])
            print("  ".join(rows[-1]), flush=True)
    return rows


def main() -> int:
    """
    Run and print.

    @return: 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[0, 5, 20], help="hostile ones at once (0 5 20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row (2)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only kinds with these words in their name")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("flags", nargs="*", help="more flags for the server, after --")
    arguments = parser.parse_args()
    columns = [
        "beside",
        "clients",
        "GET median",
        "worst",
        "/-/ready median",
        "worst",
        "/-/status median",
        "worst",
        "peak MB",
    ]
    with scratch(64 * MIB) as directory:
        rows = measure(directory, None, arguments)
        rows += measure(directory, certificate(directory), arguments)
    print(title_line("Beside clients that send tiny pieces: milliseconds", arguments.markdown))
    print(text_table([columns, *rows], arguments.markdown))
    said = version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"])
    print(line(f"{said}; {machine()}", arguments.markdown))
    return 0


if __name__ == "__main__":
    run_main(main)
