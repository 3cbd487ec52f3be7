"""
How exactly limits of bandwidth are kept, whether they are fair, and what slow sockets cost a backup.

Clients move objects for some seconds, and their bytes divided by the time are compared with the limit. See README.md here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import os
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from figures import line, text_table, title_line
from harness import (
    MIB,
    BenchmarkError,
    Server,
    certificate,
    machine,
    positive,
    program,
    run_main,
    scratch,
    this_server,
    version,
)

KIB = 1 << 10
#: How much one read takes from the connection.
_READ_BYTES = 64 << 10
#: Before the measurement: the buckets' first bytes and the kernel's buffers are full then, and workers have their parts.
WARM_S = 2.5
SLOW_SOCKETS = 300


class Client:
    """
    One connection.

    @ivar moved_bytes: how much of objects it has moved.
    """

    def __init__(self, url: str, user: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        if parts.scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=60, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        login = base64.b64encode(f"{user}:{user}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}"} if user else {}
        self.moved_bytes = 0

    def ask(self, method: str, path: str, body: bytes | None = None) -> None:
        """
        One request.

        @raise BenchmarkError: its status is not 200.
        """
        self._connection.request(method, path, body, self._headers)
        reply = self._connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise BenchmarkError(f"{method} {path}: {reply.status} {reply.reason}")

    def download(self, path: str) -> None:
        """Load an object; its bytes count as they come."""
        self._connection.request("GET", path, headers=self._headers)
        reply = self._connection.getresponse()
        while piece := reply.read1(_READ_BYTES):
            self.moved_bytes += len(piece)
        reply.close()

    def upload(self, repository: str, body: bytes) -> None:
        """Store an object; its bytes count when they are sent."""
        path = f"{repository}data/{hashlib.sha256(body).hexdigest()}"
        connection = self._connection
        connection.putrequest("POST", path)
        for name, value in {**self._headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for begin in range(0, len(body), _READ_BYTES):
            piece = body[begin : begin + _READ_BYTES]
            connection.send(piece)
            self.moved_bytes += len(piece)
        reply = connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise BenchmarkError(f"POST {path}: {reply.status} {reply.reason}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def measured(clients: list[Client], work: Callable[[Client, int], None], seconds: float) -> list[float]:
    """
    Let clients work.

    @param work: called again and again with a client and a number that is never the same.
    @return: the bytes a second of each.
    """
    ended = threading.Event()
    failed: list[Exception] = []

    def run(client: Client, first: int) -> None:
        number = first
        try:
            while not ended.is_set():
                work(client, number)
                number += len(clients)
        except Exception as error:
            if not ended.is_set():
                failed.append(error)

    threads = [threading.Thread(target=run, args=(client, number)) for number, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_S)
    begun_s, before = time.monotonic(), [client.moved_bytes for client in clients]
    time.sleep(seconds)
    took_s, after = time.monotonic() - begun_s, [client.moved_bytes for client in clients]
    ended.set()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    if failed:
        raise BenchmarkError(f"FAILED REQUESTS: {failed[0]}")
    return [(end - begin) / took_s for begin, end in zip(before, after, strict=True)]


def downloading(path: str) -> Callable[[Client, int], None]:
    """Clients that load an object."""
    return lambda client, number: client.download(path)


def uploading(size_bytes: int, repository: str = "/") -> Callable[[Client, int], None]:
    """Clients that store objects."""
    rest = os.urandom(size_bytes - 8)
    return lambda client, number: client.upload(repository, number.to_bytes(8, "big") + rest)


def store(client: Client, size_bytes: int, repository: str = "/") -> str:
    """Create a repository and store an object; its path."""
    client.ask("POST", f"{repository}?create=true", b"")
    body = os.urandom(size_bytes)
    path = f"{repository}data/{hashlib.sha256(body).hexdigest()}"
    client.ask("POST", path, body)
    return path


def off(rates: list[float], limit: float) -> str:
    """By how much their sum differs from a limit."""
    return f"{(sum(rates) / limit - 1) * 100:+.1f} %"


def spread(rates: list[float]) -> str:
    """How much the fastest has more than the slowest."""
    return f"{max(rates) / max(1.0, min(rates)):.2f}"


def accuracy(directory: Path, tls: tuple[Path, Path] | None, asked: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each direction and number of clients."""
    limit, size_bytes = asked.limit * MIB, asked.object * KIB
    for up in (True, False):
        for number in asked.clients:
            at = directory / f"{'tls' if tls else 'plain'}-{up}-{number}"
            flag = "--bandwidth-up" if up else "--bandwidth-down"
            flags = [flag, str(limit), *asked.flags]
            with this_server(at, tls, flags) as server:
                path = store(Client(server.url), size_bytes)
                clients = [Client(server.url) for _ in range(number)]
                begun_cpu_s = server.cpu_s()
                rates = measured(clients, uploading(size_bytes) if up else downloading(path), asked.seconds)
                cpu = (server.cpu_s() - begun_cpu_s) / (asked.seconds + WARM_S)
            yield [
                "TLS" if tls else "plain",
                "up" if up else "down",
                str(number),
                f"{sum(rates) / MIB:.2f}",
                off(rates, limit),
                spread(rates),
                f"{cpu * 100:.0f}",
            ]


def users(directory: Path, asked: argparse.Namespace) -> Iterator[list[str]]:
    """Two users: with a rule each; and one with ten connections beside one with one, who share the server's limit."""
    size_bytes = asked.object * KIB
    htpasswd, policy = directory / "htpasswd", directory / "policy.toml"
    lines = [
        f"{user}:{{SHA}}{base64.b64encode(hashlib.sha1(user.encode()).digest()).decode()}\n"
        for user in ("alice", "bob")
    ]
    htpasswd.write_text("".join(lines))
    rule = '[[rule]]\nusers = ["{user}"]\nrepositories = ["**"]\nrights = "full"\ncreate = true\n{more}\n'
    quarter = asked.limit * MIB // 4
    for name, more, flags, connections, limits in (
        (
            "a rule each",
            {"alice": f"bandwidth = {quarter}", "bob": f"bandwidth = {2 * quarter}"},
            [],
            {"alice": 5, "bob": 5},
            {"alice": quarter, "bob": 2 * quarter},
        ),
        (
            "1 and 10 connections",
            {"alice": "", "bob": ""},
            ["--bandwidth", str(4 * quarter)],
            {"alice": 1, "bob": 10},
            {"alice": 2 * quarter, "bob": 2 * quarter},
        ),
    ):
        policy.write_text("".join(rule.format(user=user, more=text) for user, text in more.items()))
        said = ["--htpasswd-file", str(htpasswd), "--policy", str(policy), *flags, *asked.flags]
        for up in (True, False):
            with this_server(directory / f"users-{len(name)}-{up}", None, said) as server:
                path = store(Client(server.url, "bob"), size_bytes)
                owners = [user for user, number in connections.items() for _ in range(number)]
                work = uploading(size_bytes) if up else downloading(path)
                rates = measured([Client(server.url, user) for user in owners], work, asked.seconds)
            for user, limit in limits.items():
                own = [rate for rate, owner in zip(rates, owners, strict=True) if owner == user]
                direction = "up" if up else "down"
                yield [name, user, direction, str(len(own)), f"{sum(own) / MIB:.2f}", off(own, limit), spread(own)]


@contextmanager
def slow_sockets(server: Server, number: int) -> Iterator[None]:
    """Sockets that send a byte every few seconds: half of them in a head, half in a body."""
    parts = urlsplit(server.url)
    ended = threading.Event()
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection((parts.hostname, parts.port))) for _ in range(number)]
        for each, connection in enumerate(opened):
            body = f"POST /data/{'ab' * 32} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
            connection.sendall(body.encode() if each % 2 else b"GET /x")

        def drip() -> None:
            while not ended.wait(0.01):
                connection = opened[int(time.monotonic() * 100) % len(opened)] if opened else None
                if connection is not None:
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        pass  # its head took too long

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def backups(directory: Path, asked: argparse.Namespace) -> Iterator[list[str]]:
    """What a backup takes beside slow sockets, and without."""
    restic = program("restic", "apt-get install restic")
    source = directory / "source"
    source.mkdir()
    for number in range(500):
        (source / f"small{number}").write_bytes(os.urandom(4 * KIB))
    for number in range(16):
        (source / f"large{number}").write_bytes(os.urandom(4 * MIB))
    times: dict[int, list[float]] = {0: [], SLOW_SOCKETS: []}
    for round_ in range(asked.rounds):
        for number in sorted(times, reverse=bool(round_ % 2)):
            with this_server(directory / f"backup-{round_}-{number}", None, asked.flags) as server:
                environment = {
                    **os.environ,
                    "RESTIC_PASSWORD": "secret",
                    "RESTIC_REPOSITORY": f"rest:{server.url}",
                    "RESTIC_CACHE_DIR": str(directory / f"cache-{round_}-{number}"),
                }
                subprocess.run([restic, "init"], env=environment, check=True, capture_output=True)
                with slow_sockets(server, number):
                    begun_s = time.monotonic()
                    subprocess.run(
                        [restic, "backup", "--quiet", str(source)], env=environment, check=True, capture_output=True
                    )
                    times[number].append(time.monotonic() - begun_s)
    without = statistics.median(times[0])
    for number, taken in times.items():
        median = statistics.median(taken)
        yield [
            str(number),
            f"{median:.2f}",
            f"{min(taken):.2f}",
            f"{max(taken):.2f}",
            f"{(median / without - 1) * 100:+.1f} %",
        ]


def main() -> int:
    """
    Run and print.

    @return: 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 5, 20], help="at once (1 5 20)")
    parser.add_argument("--limit", type=positive, default=20, metavar="MIB", help="bandwidth in MiB a second (20)")
    parser.add_argument("--object", type=positive, default=1024, metavar="KIB", help="size of objects in KiB (1024)")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row (8)")
    parser.add_argument("--rounds", type=positive, default=4, help="backups of each kind (4)")
    parser.add_argument("--only", choices=("accuracy", "users", "backups"), help="only this table")
    parser.add_argument("--markdown", action="store_true", help="the tables in Markdown")
    parser.add_argument("flags", nargs="*", help="more flags for the server, after --")
    asked = parser.parse_args()
    with scratch(int(asked.limit * MIB * (asked.seconds + WARM_S + 2)) * 20 + 600 * MIB) as directory:
        if asked.only in (None, "accuracy"):
            rows = [row for tls in (None, certificate(directory)) for row in accuracy(directory, tls, asked)]
            print(title_line(f"A limit of {asked.limit} MiB/s", asked.markdown))
            titles = ["", "direction", "clients", "MiB/s", "off", "fastest / slowest", "CPU %"]
            print(text_table([titles, *rows], asked.markdown) + "\n")
        if asked.only in (None, "users"):
            print(title_line("Two users", asked.markdown))
            titles = ["limits", "user", "direction", "connections", "MiB/s", "off", "fastest / slowest"]
            print(text_table([titles, *users(directory, asked)], asked.markdown) + "\n")
        if asked.only in (None, "backups"):
            print(title_line("A backup beside slow sockets: seconds", asked.markdown))
            titles = ["slow sockets", "median", "least", "most", "difference"]
            print(text_table([titles, *backups(directory, asked)], asked.markdown) + "\n")
    said = version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"])
    print(line(f"{said}; {machine()}", asked.markdown))
    return 0


if __name__ == "__main__":
    run_main(main)
