"""
What it costs to be asked for the metrics with many repositories, and whether that holds up the reactor.

In each round a fresh server has a thousand repositories made, with objects of five types each that are stored, read,
removed and stored again, so that every family of metrics has a series for each. Then it is asked for its metrics: at once,
again after seconds in which a little was stored, and again after all of it was read once more. A watchdog tells the
longest turn of the reactor from the first question on. See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from figures import line, text_table, title_line
from harness import MIB, BenchmarkError, Server, machine, positive, program, run_main, scratch, version
from stalls import Watched

TYPES = ("data", "index", "keys", "locks", "snapshots")
#: What is asked for, in milliseconds: the first page, one asked for within five seconds of another, a turn of the reactor.
COLD_MS, AGAIN_MS, STALL_MS = 1500, 100, 50
#: How often the page is asked for again, and the pause before each.
AGAIN, PAUSE_S = 10, 0.4
BODY = b"x" * 200
NAME = hashlib.sha256(BODY).hexdigest()
COLD, SOON, ALL = "asked for the first time", "again, after one upload", "again, after all was read"


class Asking:
    """One connection to a server."""

    def __init__(self, server: Server, connection: http.client.HTTPConnection) -> None:
        self._server = server
        self._connection = connection

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """
        One request; the answer's body.

        @raise BenchmarkError: it was refused.
        """
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise BenchmarkError(f"{method} {path}: {response.status}; {self._server.last_words()}")
        return content

    def metrics(self) -> tuple[float, bytes]:
        """How long the page takes, in milliseconds, and the page."""
        began = time.perf_counter()
        page = self.ask("GET", "/metrics")
        return (time.perf_counter() - began) * 1000, page


def objects(repositories: int) -> Iterator[str]:
    """The paths of all objects."""
    for number in range(repositories):
        for kind in TYPES:
            yield f"/host{number:04d}/{kind}/{NAME}"


def one_round(watched: Watched, path: Path, repositories: int, found: dict[str, list[float]]) -> int:
    """
    One server from its start to its end.

    @param found: gets milliseconds, by what was asked.
    @return: how many lines the page has.
    """
    with watched.server(path, None, ["--prometheus"]) as server, closing(connection(server)) as made:
        asking = Asking(server, made)
        with watched.part("requests"):
            for number in range(repositories):
                asking.ask("POST", f"/host{number:04d}/?create=true")
            for object_ in objects(repositories):
                for method, body in (("POST", BODY), ("GET", None), ("DELETE", None), ("POST", BODY)):
                    asking.ask(method, object_, body)
        with watched.part("metrics"):
            took_ms, page = asking.metrics()
            found[COLD].append(took_ms)
            for number in range(AGAIN):
                time.sleep(PAUSE_S)
                body = b"%d" % number
                asking.ask("POST", f"/host0000/data/{hashlib.sha256(body).hexdigest()}", body)
                found[SOON].append(asking.metrics()[0])
        with watched.part("requests"):
            for object_ in objects(repositories):
                asking.ask("GET", object_)
        with watched.part("metrics"):
            took_ms, page = asking.metrics()
            found[ALL].append(took_ms)
        wanted = 6 * len(TYPES) * repositories
        series = page.count(b"\nrest_server_blob_")
        if series < wanted:
            raise BenchmarkError(f"the page has {series} series of objects, not {wanted}")
        return page.count(b"\n")


def connection(server: Server) -> http.client.HTTPConnection:
    """A connection to a server, not opened yet."""
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)


def main() -> int:
    """
    Run and print.

    @return: 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="servers, one after the other (5)")
    parser.add_argument("--repositories", type=positive, default=1000, help="that each has (1000)")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("flags", nargs="*", help="more flags for the server, after --")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {COLD: [], SOON: [], ALL: []}
    lines = 0
    with scratch(arguments.repositories * MIB) as directory:
        watched = Watched(directory, arguments.flags)
        for number in range(arguments.rounds):
            lines = one_round(watched, directory / str(number), arguments.repositories, found)
            print(", ".join(f"{what}: {max(times):.0f} ms" for what, times in found.items()), file=sys.stderr)
    print(title_line(f"Metrics of {arguments.repositories:,} repositories, {lines:,} lines", arguments.markdown))
    table = [["page", "times", "median ms", "longest ms", "needed"]]
    for what, times in found.items():
        need = AGAIN_MS if what == SOON else COLD_MS
        median, most = statistics.median(times), max(times)
        word = "reached" if median < need else "missed"
        table.append([what, str(len(times)), f"{median:.0f}", f"{most:.0f}", f"< {need}: {word}"])
    print(text_table(table, arguments.markdown))
    print()
    for name in ("metrics", "requests"):
        stalls = [stall["own_ms"] for part in watched.parts if part.name == name for stall in part.stalls]
        beyond = sum(stall > STALL_MS for stall in stalls)
        longest = f", the longest {max(stalls):.0f} ms" if stalls else ""
        print(
            line(
                f"turns of the reactor above 20 ms during {name}: {len(stalls)}, above {STALL_MS} ms: {beyond}{longest}",
                arguments.markdown,
            )
        )
    said = version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"])
    flags = f", flags {' '.join(arguments.flags)}" if arguments.flags else ""
    print(line(f"{said}{flags}; {machine()}", arguments.markdown))
    return 0


if __name__ == "__main__":
    run_main(main)
