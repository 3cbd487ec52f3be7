"""
What guessing passwords tells, and what it costs those who are known.

timing: a refusal for a wrong password beside one for an unknown user. flood: uploads of a known user, alone and beside
100 wrong passwords a second from many addresses. logins: right logins beside 2, 4 and 60 addresses that guess. See
README.md here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import itertools
import os
import resource
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
#: Of the floods of logins: addresses, connections of each, and users that log in once each beside it.
CROWDS, CONNECTIONS, NEW_USERS = (0, 2, 4, 60), 17, 25
#: Packs of 16 MiB at a time; they are deleted before the next.
PACKS = 24


def basic(user: str, password: str) -> str:
    """An C{Authorization} header's value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def users_file(directory: Path, users: int = 5) -> Path:
    """An htpasswd file with some users, at bcrypt's cost 10."""
    path = directory / "users"
    names = [USER, *(f"user{number}" for number in range(users))]
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


async def crowd_on(url: str, addresses: int) -> None:
    """Guess on many connections of each address, in ever new names, until standard input ends; print the statuses."""
    host, _, port = urlsplit(url).netloc.partition(":")
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    statuses: Counter[str] = Counter()
    numbers = itertools.count()

    async def guess_again(source: str) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
                number = next(numbers)
                writer.write(
                    f"GET /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    f"Authorization: {basic(f'guess{number}', f'guess {number}')}\r\n\r\n".encode()
                )
                line = await reader.readline()
                statuses[line[9:12].decode("ascii")] += 1
                writer.close()
            except OSError:
                statuses["lost"] += 1
            # A round trip over a network; without it the machine is busy with connections, and nothing else is measured.
            await asyncio.sleep(0.05)

    sources = [f"127.0.1.{number + 1}" for number in range(addresses) for _ in range(CONNECTIONS)]
    tasks = [asyncio.create_task(guess_again(source)) for source in sources]
    await asyncio.sleep(1)
    print("begun", flush=True)
    await ended
    for task in tasks:
        task.cancel()
    print(f"{next(numbers)} guesses, answers {dict(statuses)}", flush=True)


class Guesser:
    """
    The guesser as a process of its own, from entering to leaving.

    @param how: more of its command line.
    """

    def __init__(self, server: Server, *how: str) -> None:
        self._url = server.url
        self._how = how
        self.said = ""

    def __enter__(self) -> Guesser:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--guess", self._url, *self._how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
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


def log_in_s(server: Server, number: int) -> tuple[float, int]:
    """How long one right login takes on a connection of its own, and its status."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    started = time.perf_counter()
    connection.request("GET", "/config", headers={"Authorization": basic(f"user{number}", PASSWORD)})
    status = connection.getresponse().status
    connection.close()
    return time.perf_counter() - started, status


def logins(directory: Path) -> None:
    """
    Print how long right logins take beside floods. The throttle is off: it would end them after some seconds.
    """
    users = users_file(directory, NEW_USERS)
    flags = ["--htpasswd-file", str(users), "--auth-failures", "0", "--trusted-proxy", "192.0.2.1"]
    for addresses in CROWDS:
        with this_server(directory / "logins", None, flags) as server:

            def measure() -> list[tuple[float, int]]:
                return [log_in_s(server, number) for number in range(NEW_USERS)]

            said = "nothing"
            if addresses:
                with Guesser(server, "--addresses", str(addresses)) as guesser:
                    found = measure()
                said = guesser.said
            else:
                found = measure()
        times = [took for took, status in found if status == 404]
        middle = f"median {statistics.median(times):.3f} s, worst {max(times):.3f} s" if times else "no time"
        others = Counter(status for _, status in found if status != 404)
        print(
            f"logins beside {addresses} addresses with {CONNECTIONS} connections each: {len(times)} of {NEW_USERS} right, "
            f"{middle}, others {dict(others)} ({said})",
            flush=True,
        )


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("timing", "flood", "logins"), help="only one of the three")
    parser.add_argument("--tries", type=int, default=50, help="refusals of each kind (50)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the flood (4)")
    parser.add_argument("--guess", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--addresses", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guess:
        # Each connection takes a descriptor.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        asyncio.run(
            crowd_on(arguments.guess, arguments.addresses) if arguments.addresses else guess_on(arguments.guess)
        )
        sys.stdout.flush()
        os._exit(0)  # the thread at standard input would wait
    with scratch(3 * PACKS * 16 * MIB) as directory:
        if arguments.only in (None, "timing"):
            timing(directory, arguments.tries)
            sys.stdout.flush()
        if arguments.only in (None, "logins"):
            logins(directory)
        if arguments.only in (None, "flood"):
            flood(built_client(), directory, arguments.rounds)
    return 0


if __name__ == "__main__":
    run_main(main)
