"""
What guessing passwords tells, and what it costs those who are known.

timing: a refusal for a wrong password beside one for an unknown user. flood: uploads of a known user, alone and beside
100 wrong passwords a second from many addresses. See README.md here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
from harness import MIB, BenchmarkError, Server, built_client, drive, run_main, scratch, this_server

USER, PASSWORD = "alice", "correct horse"
PER_S, ADDRESSES, WINDOW_S = 100, 5_000, 10.0
#: Packs of 16 MiB at a time; they are deleted before the next.
PACKS = 24


def basic(user: str, password: str) -> str:
    """An C{Authorization} header's value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def users_file(directory: Path) -> Path:
    """An htpasswd file with some users, at bcrypt's cost 10."""
    path = directory / "users"
    names = [USER, *(f"user{number}" for number in range(5))]
    hashes = {name: bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode("ascii") for name in names}
    path.write_text("".join(f"{name}:{hashed}\n" for name, hashed in hashes.items()))
    return path


def refusal_s(connection: http.client.HTTPConnection, user: str, password: str) -> float:
    """How long one refusal takes."""
    started = time.perf_counter()
    connection.request("GET", "/config", headers={"Authorization": basic(user, password)})
    response = connection.getresponse()
    response.read()
    took = time.perf_counter() - started
    if response.status != 401:
        raise BenchmarkError(f"{user} got {response.status} instead of 401")
    return took


def timing(directory: Path, tries: int) -> None:
    """Print the medians of both refusals and their ratio."""
    flags = ["--htpasswd-file", str(users_file(directory)), "--auth-failures", "0"]
    with this_server(directory / "timing", None, flags) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        refusal_s(connection, USER, "warm up")
        wrong, unknown = [], []
        for number in range(tries):
            pair = [(wrong, USER), (unknown, f"nobody{number}")]
            for took, user in pair if number % 2 else reversed(pair):
                took.append(refusal_s(connection, user, f"guess {number}"))
        connection.close()
    medians = statistics.median(wrong), statistics.median(unknown)
    print(
        f"timing, {tries} tries of each in turns: wrong password {medians[0] * 1000:.2f} ms, "
        f"unknown user {medians[1] * 1000:.2f} ms, ratio {medians[1] / medians[0]:.3f} (asked for: 0.9 to 1.1)"
    )


async def guess(host: str, port: int, number: int) -> str:
    """One wrong password on a connection of its own; the status."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        user = USER if number % 2 else f"user{number % 7}"
        address = f"198.{18 + number % ADDRESSES // 2500}.{number % 2500 // 250}.{number % 250}"
        writer.write(
            f"GET /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: {address}\r\n"
            f"Authorization: {basic(user, f'guess {number}')}\r\n\r\n".encode()
        )
        line = await reader.readline()
        await reader.read()
        return line.split(b" ")[1].decode("ascii")
    finally:
        writer.close()


async def guess_on(url: str) -> None:
    """Guess at a constant rate until standard input ends; print the statuses."""
    host, _, port = urlsplit(url).netloc.partition(":")
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    tasks = []
    print("begun", flush=True)
    started = time.monotonic()
    for number in itertools.count():
        tasks.append(asyncio.create_task(guess(host, int(port), number)))
        await asyncio.sleep(max(0.0, started + (number + 1) / PER_S - time.monotonic()))
        if ended.done():
            break
    took = time.monotonic() - started
    cpu_s = time.process_time()
    done, late = await asyncio.wait(tasks, timeout=30)
    statuses = Counter(task.result() if task.exception() is None else "lost" for task in done) + Counter(late=len(late))
    print(
        f"{len(tasks) / took:.0f} guesses a second, {cpu_s / took:.0%} of a core, answers {dict(statuses)}", flush=True
    )


class Guesser:
    """The guesser as a process of its own, from entering to leaving."""

    def __init__(self, server: Server) -> None:
        self._url = server.url
        self.said = ""

    def __enter__(self) -> Guesser:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--guess", self._url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it begins
        return self

    def __exit__(self, *_: object) -> None:
        self.said = self._process.communicate(timeout=90)[0].strip()


def upload_speed(client: str, server: Server, seeds: itertools.count[int]) -> float:
    """MB/s of uploads that go on for ten seconds, deletions not counted."""
    options = ["-n", str(PACKS), "-c", "5", "-size", str(16 * MIB), "-user", f"{USER}:{PASSWORD}"]
    spent_s, stored, started = 0.0, 0, time.monotonic()
    while time.monotonic() < started + WINDOW_S:
        seed = ["-seed", str(next(seeds))]
        put = drive(client, server, "put", options + seed)
        deleted = drive(client, server, "delete", options + seed)
        for what in (put, deleted):
            if what.failed:
                raise BenchmarkError(f"{what.failed} of {what.requests} requests failed, first: {what.reason}")
        spent_s += put.bytes / 1e6 / put.mb_per_s
        stored += put.bytes
    return stored / 1e6 / spent_s


def flood(client: str, directory: Path, rounds: int) -> None:
    """Print the speeds of uploads alone and beside guesses, and their ratio."""
    flags = ["--htpasswd-file", str(users_file(directory))]
    alone, beside = [], []
    seeds = itertools.count(1)
    with this_server(directory / "flood", None, flags) as server:
        upload_speed(client, server, seeds)
        for number in range(1, rounds + 1):

            def quiet() -> None:
                alone.append(upload_speed(client, server, seeds))

            def loud() -> str:
                with Guesser(server) as guesser:
                    beside.append(upload_speed(client, server, seeds))
                return guesser.said

            if number % 2:
                quiet()
                said = loud()
            else:
                said = loud()
                quiet()
            print(f"round {number}: {alone[-1]:.0f} alone, {beside[-1]:.0f} MB/s beside {said}", file=sys.stderr)
    ratios = [loud / quiet for loud, quiet in zip(beside, alone, strict=True)]
    print(
        f"flood, {rounds} rounds of {WINDOW_S:.0f} s: uploads {statistics.median(alone):,.0f} MB/s alone, "
        f"{statistics.median(beside):,.0f} MB/s beside {PER_S} wrong passwords a second, ratio of medians "
        f"{statistics.median(beside) / statistics.median(alone):.2f}, median of ratios {statistics.median(ratios):.2f} "
        "(asked for: 0.8 or more)"
    )


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("timing", "flood"), help="only one of the two")
    parser.add_argument("--tries", type=int, default=50, help="refusals of each kind (50)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the flood (4)")
    parser.add_argument("--guess", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guess:
        asyncio.run(guess_on(arguments.guess))
        sys.stdout.flush()
        os._exit(0)  # the thread at standard input would wait
    with scratch(3 * PACKS * 16 * MIB) as directory:
        if arguments.only != "flood":
            timing(directory, arguments.tries)
            sys.stdout.flush()
        if arguments.only != "timing":
            flood(built_client(), directory, arguments.rounds)
    return 0


if __name__ == "__main__":
    run_main(main)
