"""
Metrics, health and readiness of real servers: in one process and in several, asked by real clients and by a real Prometheus.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.client import Client, Reply, authorization, connect, object_id, random_bytes, read_reply
from ..support.htpasswd import sha_line
from ..support.restic import RESTIC, Restic, change_tree, make_tree
from ..support.scratch import files_below, scratch_directory
from ..support.server import (
    REST_SERVER,
    TWISTD,
    ServerProcess,
    command_line,
    listening_ports,
    opened_by,
    start_server,
)
from ..support.skipping import skipped
from ..support.waiting import PATIENCE_S, wait_until
from ..telemetry.test_metrics import SKIP_WITHOUT_PROMTOOL, Series, blobs, complaints, parsed, series
from . import test_process
from .test_faults import in_parallel
from .test_volume_gone import _namespaces

MIB = 1 << 20
TWO = ("--workers", "2")
METRICS_ON = re.compile(r"\bmetrics on (\S+)$")
CONFIGURATION = Path(__file__).parent.parent.parent / "etc"
PROMETHEUS = shutil.which("prometheus")
#: In what order an object may be asked for.
KINDS = ("data", "index", "keys", "locks", "snapshots")

POLICY = """
[[rule]]
users = ["alice"]
repositories = ["alice/laptop"]
rights = "full"
create = true
delete-repository = true
quota = "20MiB"

[[rule]]
users = ["*"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true

[users."*"]
quota = "100MiB"
"""


def own_address(server: ServerProcess) -> tuple[str, int] | str:
    """Where C{--metrics-listen} is."""
    address = server.wait_for_line(METRICS_ON)[1]
    return address if address.startswith("/") else ("127.0.0.1", int(address.rpartition(":")[2]))


class MetricsCase(SynchronousTestCase):
    """A server whose users have their names for passwords."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 * MIB)
        self.data = self.scratch / "data"
        self.htpasswd = self.scratch / "htpasswd"
        self.htpasswd.write_text("".join(sha_line(user, user) for user in ("alice", "bob", "metrics")))
        self.with_users = ("--htpasswd-file", str(self.htpasswd))

    def start(self, *flags: str, door: str = REST_SERVER) -> ServerProcess:
        """Start one."""
        return start_server(self, self.data, *flags, door=door)

    def ask(
        self, address: Any, path: str, user: str | None = None, password: str | None = None, method: str = "GET"
    ) -> Reply:
        """One request on a connection of its own."""
        where = ("127.0.0.1", address.port) if isinstance(address, ServerProcess) else address
        with Client(where, user, password if password is not None else user or "") as client:
            return client.request(method, path, b"" if method in ("POST", "PUT") else None)

    def status(self, address: Any, path: str, user: str | None = None, method: str = "GET") -> int:
        """Its status."""
        return self.ask(address, path, user, method=method).status

    def found(self, address: Any, user: str | None = "metrics") -> dict[Series, float]:
        """The samples of a page."""
        reply = self.ask(address, "/metrics", user)
        self.assertEqual(200, reply.status, reply)
        self.assertEqual("text/plain; version=0.0.4; charset=utf-8", reply.headers["Content-Type"])
        return parsed(reply.body)

    def wait_for(self, address: Any, key: Series, value: float, user: str | None = "metrics") -> None:
        """Wait until a sample has a value: what is stored is counted in the background."""
        wait_until(lambda: self.found(address, user).get(key) == value, what=(key, value))


class WhoTests(MetricsCase):
    """Who may see what, where."""

    def test_user(self) -> None:
        """With C{--prometheus} the metrics are for the user of that name, whatever else the rules say."""
        server = self.start(*self.with_users, "--prometheus", "--private-repos")
        reply = self.ask(server, "/metrics")
        self.assertEqual((401, "authentication required"), (reply.status, reply.reason))
        self.assertIn("Basic realm=", reply.headers["WWW-Authenticate"])
        self.assertEqual(401, self.ask(server, "/metrics", "metrics", "wrong").status)
        self.assertEqual(403, self.status(server, "/metrics", "alice"))
        self.assertIn(series("rest_server_start_time_seconds"), self.found(server))
        self.assertEqual(401, self.status(server, "/metrics", method="POST"))
        self.assertEqual(405, self.status(server, "/metrics", "metrics", "POST"))

    def test_everyone(self) -> None:
        """With C{--prometheus-no-auth} or C{--no-auth} they are for everyone, and the rest is as closed as before."""
        server = self.start(*self.with_users, "--prometheus", "--prometheus-no-auth")
        self.found(server, None)
        self.assertEqual(401, self.status(server, "/alice/config"))
        self.found(self.start("--no-auth", "--prometheus"), None)

    def test_not_asked_for(self) -> None:
        """Without the flag there are none; health and readiness are always there."""
        server = self.start(*self.with_users)
        self.assertEqual(401, self.status(server, "/metrics"))
        self.assertEqual(404, self.status(server, "/metrics", "metrics"))
        self.assertEqual(404, self.status(server, "/metrics", "alice"))
        self.assertEqual(404, self.status(self.start("--no-auth", "--prometheus-no-auth"), "/metrics"))
        for path, said in (("/-/health", b"ok\n"), ("/-/ready", b"ready\n")):
            reply = self.ask(server, path)
            self.assertEqual((200, said), (reply.status, reply.body))

    def test_address_of_their_own(self) -> None:
        """C{--metrics-listen} has the three pages and nothing else, by the same rules; the main one has no metrics then."""
        server = self.start(*self.with_users, "--metrics-listen", "127.0.0.1:0")
        own = own_address(server)
        self.assertEqual(401, self.status(own, "/metrics"))
        self.assertEqual(401, self.ask(own, "/metrics", "metrics", "wrong").status)
        self.assertEqual(403, self.status(own, "/metrics", "alice"))
        self.found(own)
        self.assertEqual((b"ok\n", b"ready\n"), (self.ask(own, "/-/health").body, self.ask(own, "/-/ready").body))
        self.assertEqual(200, self.status(server, "/alice/?create=true", "alice", "POST"))
        for path in ("/", "/alice/config", "/alice/", "/alice/data/", "/-/", "/-/metrics", "/anything"):
            for method in ("GET", "POST", "DELETE", "HEAD"):
                for user in (None, "alice", "metrics"):
                    self.assertEqual(404, self.status(own, path, user, method), f"{method} {path} {user}")
        self.assertEqual(404, self.status(server, "/metrics", "metrics"))

    def test_address_for_everyone(self) -> None:
        """C{--prometheus-no-auth} holds for it too, and both addresses may have them."""
        server = self.start(*self.with_users, "--metrics-listen", "127.0.0.1:0", "--prometheus-no-auth", "--prometheus")
        self.found(own_address(server), None)
        self.found(server, None)

    def test_unix_socket(self) -> None:
        """It may be a unix socket, which is gone with the server."""
        path = self.scratch / "metrics.sock"
        server = self.start("--no-auth", "--metrics-listen", f"unix:{path}")
        self.assertEqual(str(path), own_address(server))
        self.found(str(path), None)
        self.assertEqual(0, server.stop())
        self.assertFalse(path.exists())

    def test_twistd(self) -> None:
        """Under twistd it is the same."""
        server = self.start(*self.with_users, "--metrics-listen", "127.0.0.1:0", "--prometheus", door=TWISTD)
        self.found(own_address(server))
        self.found(server)
        self.assertEqual(200, self.status(server, "/-/ready"))

    def test_methods(self) -> None:
        """Health and readiness take GET and HEAD; everything else is 405, for everyone."""
        server = self.start(*self.with_users, "--metrics-listen", "127.0.0.1:0")
        for address in (server, own_address(server)):
            for path in ("/-/health", "/-/ready"):
                reply = self.ask(address, path, method="HEAD")
                self.assertEqual((200, b""), (reply.status, reply.body))
                for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                    reply = self.ask(address, path, method=method)
                    self.assertEqual((405, "GET, HEAD"), (reply.status, reply.headers["Allow"]), f"{method} {path}")

    def test_never_a_repository(self) -> None:
        """Nobody can make a repository in their place, and no folder in the data directory becomes one."""
        (self.data / "-" / "health").mkdir(parents=True)
        (self.data / "-" / "health" / "config").write_bytes(b"x")
        (self.data / "-" / "config").write_bytes(b"x")
        server = self.start("--no-auth", "--prometheus", "--auto-create")
        for path in ("/-/", "/-/health/", "/-/ready/", "/-/x/", "/-/-/"):
            self.assertEqual(404, self.status(server, f"{path}?create=true", method="POST"), path)
            self.assertEqual(404, self.status(server, f"{path}config"), path)
            self.assertEqual(404, self.status(server, f"{path}data/{object_id(b'')}", method="POST"), path)
        self.assertEqual(b"ok\n", self.ask(server, "/-/health").body)
        self.assertEqual(["config", "health"], sorted(os.listdir(self.data / "-")))
        wait_until(lambda: series("rest_server_size_bytes") in self.found(server, None), what="a count")
        self.assertFalse([key for key in self.found(server, None) if "-" in dict(key[1]).get("repo", "")])

    def test_prefix(self) -> None:
        """With C{--proxy-prefix} all pages are there with it and without."""
        server = self.start(
            "--no-auth", "--prometheus", "--metrics-listen", "127.0.0.1:0", "--proxy-prefix", "/a/backup"
        )
        for address in (server, own_address(server)):
            for before in ("", "/a/backup"):
                for path in ("/-/health", "/-/ready", "/metrics"):
                    self.assertEqual(200, self.status(address, before + path), before + path)
            self.assertEqual(404, self.status(address, "/backup/-/health"))
        self.assertEqual(200, self.status(server, "/a/backup/-x/?create=true", method="POST"))

    def test_tls(self) -> None:
        """They are behind TLS as all else is, but for an address that says C{plain=yes}; the certificate's end is among them."""
        files = make_certificate(self.scratch)
        for suffix, context in (("", files.client_context()), (":plain=yes", None)):
            server = self.start("--no-auth", *files.flags, "--metrics-listen", f"127.0.0.1:0{suffix}")
            with Client(own_address(server), tls=context) as client:
                found = parsed(client.get("/metrics").body)
            left_s = found[series("rest_server_certificate_expiry_timestamp_seconds")] - time.time()
            self.assertTrue(29 * 86400 < left_s < 31 * 86400, left_s)

    def test_certificate_renewed(self) -> None:
        """After a renewal its end is the new one's."""
        files = make_certificate(self.scratch)
        server = self.start("--no-auth", *files.flags, "--metrics-listen", "127.0.0.1:0:plain=yes")
        key = series("rest_server_certificate_expiry_timestamp_seconds")
        before = self.found(own_address(server), None)[key]
        time.sleep(1.1)  # they end a second apart at least
        make_certificate(self.scratch)
        server.signal(signal.SIGHUP)
        wait_until(lambda: self.found(own_address(server), None)[key] > before, what="the new certificate")


class SharedWhoTests(WhoTests):
    """The same with workers."""

    every_server = TWO


class StartTests(MetricsCase):
    """Addresses that cannot be had."""

    def flags(self, *flags: str) -> list[str]:
        """Those of a server that would start."""
        return ["--no-auth", "--path", str(self.data), "--listen", "127.0.0.1:0", *self.every_server, *flags]

    def taken(self) -> str:
        """An address at which another listens."""
        other = socket.socket()
        self.addCleanup(other.close)
        other.bind(("127.0.0.1", 0))
        other.listen()
        return f"127.0.0.1:{other.getsockname()[1]}"

    def test_taken(self) -> None:
        """One that is taken ends the start, with one line and a status; no process is left."""
        address = self.taken()
        for door in (REST_SERVER, TWISTD):
            ended = test_process.run_to_end(self.scratch, command_line(door, self.flags("--metrics-listen", address)))
            self.assertGreater(ended.status, 0, ended)
            self.assertEqual(1, ended.err.count("cannot listen on"), ended)
            self.assertIn(f"cannot listen on {address}", ended.err)
            self.assertNotIn("Traceback", ended.out + ended.err)
        wait_until(lambda: not self.processes(), what="the end of all processes")

    def test_nothing_is_said_too_early(self) -> None:
        """That the server serves is not said by one that does not start after all: scripts wait for that line."""
        ended = test_process.run_to_end(
            self.scratch, command_line(REST_SERVER, self.flags("--metrics-listen", self.taken()))
        )
        self.assertNotIn("start server on", ended.out + ended.err)

    def processes(self) -> list[str]:
        """Those that work in the scratch directory: the server and all that it has started."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/cwd") == str(self.scratch):
                    found.append(pid)
            except OSError:
                continue
        return found

    def test_bad_address(self) -> None:
        """One that is none is said with the flag that it was given to."""
        for value in ("nonsense", "127.0.0.1", ""):
            command = command_line(REST_SERVER, self.flags("--metrics-listen", value))
            ended = test_process.run_to_end(self.scratch, command)
            self.assertGreater(ended.status, 0, ended)
            self.assertIn("--metrics-listen", ended.err)


class SharedStartTests(StartTests):
    """The same with workers."""

    every_server = TWO


class CountsTests(MetricsCase):
    """What is counted, whoever is asked."""

    def test_several_connections(self) -> None:
        """
        Many clients at once: the page, whichever connection it is asked for on, adds up to what they have done, by user,
        repository and type, to the byte.
        """
        server = self.start(*self.with_users, "--prometheus", "--private-repos")
        for user in ("alice", "bob"):
            for repository in ("laptop", "nas"):
                path = f"/{user}/{repository}/?create=true"
                self.assertEqual(200, self.status(server, path, user, "POST"))
        wanted: list[Counter[Series]] = [Counter() for _ in range(8)]

        def work(number: int) -> None:
            user, repository = ("alice", "bob")[number % 2], ("laptop", "nas")[number // 2 % 2]
            counted = wanted[number]

            def count(operation: str, kind: str, size_bytes: int) -> None:
                labels = {"user": user, "repo": f"{user}/{repository}", "type": kind}
                counted[series(f"rest_server_blob_{operation}_total", **labels)] += 1
                counted[series(f"rest_server_blob_{operation}_bytes_total", **labels)] += size_bytes

            with server.client(user, user) as client:
                for turn in range(12):
                    kind = KINDS[turn % len(KINDS)]
                    # Small ones, and such as go past the reactor's thread.
                    body = random_bytes(1000 * number + turn, (10, 3000, 100_000, 600_000)[turn % 4] + turn)
                    path = f"/{user}/{repository}/{kind}/{object_id(body)}"
                    self.assertEqual(200, client.post(path, body).status)
                    count("write", kind, len(body))
                    self.assertEqual(200, client.post(path, body).status)
                    self.assertEqual(body, client.get(path).body)
                    count("read", kind, len(body))
                    self.assertEqual(5, len(client.get(path, {"Range": "bytes=2-6"}).body))
                    count("read", kind, 5)
                    client.head(path)
                    if turn % 3 == 0:
                        self.assertEqual(200, client.delete(path).status)
                        count("delete", kind, len(body))
                        self.assertEqual(200, client.delete(path).status)
                if number < 4:
                    self.assertEqual(200, client.post(f"/{user}/{repository}/config", b"config").status)
                    count("write", "config", 6)
                    client.get(f"/{user}/{repository}/config")
                    count("read", "config", 6)

        in_parallel(8, work)
        whole = sum(wanted, Counter())
        clients = [server.client("metrics", "metrics") for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)
        for client in clients * 2:
            self.assertEqual(dict(whole), blobs(parsed(client.get("/metrics").body)))

    def test_requests(self) -> None:
        """Requests by method and status, their durations and their traffic, of all connections together."""
        server = self.start("--no-auth", "--prometheus", "--metrics-listen", "127.0.0.1:0")
        clients = [server.client() for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)
        body = random_bytes(1, 50_000)
        for number, client in enumerate(clients):
            client.create_repository(f"/r{number}/")
            client.save("data", body, f"/r{number}/")
            client.get(f"/r{number}/data/{object_id(body)}")
            client.get(f"/r{number}/config")
            client.request("PATCH", f"/r{number}/config")
        # Not on the main address, which would count that, too.
        found = self.found(own_address(server), None)
        for method, code, number in (("POST", "200", 8), ("GET", "200", 4), ("GET", "404", 4), ("other", "405", 4)):
            self.assertEqual(number, found[series("rest_server_http_requests_total", method=method, code=code)], method)
        self.assertEqual(20, found[series("rest_server_http_request_duration_seconds_count")])
        self.assertEqual(4 * 50_000, found[series("rest_server_http_received_bytes_total")])
        self.assertGreaterEqual(found[series("rest_server_http_sent_bytes_total")], 4 * 50_000)
        self.assertEqual(0, found[series("rest_server_http_requests_in_flight")])

    def test_in_flight(self) -> None:
        """Uploads that are under way are requests in flight, in whatever process."""
        server = self.start("--no-auth", "--metrics-listen", "127.0.0.1:0")
        with server.client() as client:
            client.create_repository("/r/")
        key = series("rest_server_http_requests_in_flight")
        begun = []
        for _ in range(3):
            connection = connect(("127.0.0.1", server.port))
            self.addCleanup(connection.close)
            connection.sendall(
                b"POST /r/data/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\nbegin" % (b"ab" * 32)
            )
            begun.append(connection)
        self.wait_for(own_address(server), key, 3, None)
        for connection in begun:
            connection.close()
        self.wait_for(own_address(server), key, 0, None)

    def test_nothing_for_the_asking(self) -> None:
        """Strangers, wrong names and repositories that do not exist add no series, however many there are."""
        server = self.start(*self.with_users, "--prometheus", "--max-depth", "3")
        before = self.found(server).keys()
        with server.client("alice", "alice") as client:
            for number in range(40):
                body = b"%d" % number
                client.get(f"/invented{number}/config")
                client.head(f"/invented{number}/data/{object_id(body)}")
                client.delete(f"/alice/invented{number}/locks/{object_id(body)}")
                client.post(f"/alice/invented{number}/data/{object_id(body)}", body)
                client.post(f"/a/b/c{number}/config", body)
                client.request(f"INVENTED{number}", "/")
        for number in range(20):
            self.ask(server, f"/invented{number}/config", f"nobody{number}")
        after = self.found(server).keys()
        more = {key for key in after - before if key[0] != "rest_server_http_requests_total"}
        self.assertEqual(set(), more)
        methods = {dict(labels)["method"] for name, labels in after if name == "rest_server_http_requests_total"}
        self.assertLessEqual(methods, {"GET", "HEAD", "POST", "DELETE", "other"})

    def test_deleted_repository(self) -> None:
        """
        A repository that was deleted has no series any more: who may make and delete repositories could else fill the
        memory with names.
        """
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        server = self.start(*self.with_users, "--prometheus", "--policy", str(policy))
        with server.client("alice", "alice") as client:
            for repository in ("laptop", "gone1", "gone2"):
                client.create_repository(f"/alice/{repository}/")
                client.save("keys", b"a key", f"/alice/{repository}/")
            for repository in ("gone1", "gone2"):
                self.assertEqual(200, client.delete(f"/alice/{repository}/").status)

        def repositories() -> set[str]:
            return {dict(key[1]).get("repo", "alice/laptop") for key in self.found(server)}

        gone = series("rest_server_repository_size_bytes", user="alice", repo="alice/gone2")
        wait_until(lambda: gone not in self.found(server), what="a new count")
        self.assertEqual({"alice/laptop"}, repositories())

    def test_names_on_disk(self) -> None:
        """Whatever names lie in the data directory, also such that are no UTF-8, the page is there for all the others."""
        for name in (b"caf\xe9", b"new\nline", b'quo"te', b"\xff\xfe\\"):
            path = os.path.join(os.fsencode(self.data), name)
            os.makedirs(path)
            with open(os.path.join(path, b"config"), "wb") as file:
                file.write(b"12345")
        server = self.start("--no-auth", "--prometheus")
        with server.client() as client:
            client.create_repository("/alice/")
            client.post("/alice/config", b"123")
        key = series("rest_server_repository_size_bytes", user="alice", repo="alice")
        wait_until(lambda: self.status(server, "/metrics") != 200 or self.found(server, None).get(key) == 3, what=key)
        self.assertEqual(3, self.found(server, None).get(key))
        time.sleep(0.5)  # for the count of all
        self.assertEqual(200, self.status(server, "/metrics"))

    def test_stored(self) -> None:
        """Sizes, objects, quotas and last snapshots are those that C{rest-server usage} and the disk have."""
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        old = self.data / "bob" / "snapshots" / ("ab" * 32)
        old.parent.mkdir(parents=True)
        old.write_bytes(b"x" * 1000)
        os.utime(old, (1_600_000_000, 1_600_000_000))
        flags = (*self.with_users, "--prometheus", "--policy", str(policy), "--max-size", "150MiB")
        server = self.start(*flags)
        bob = {"user": "bob", "repo": "bob"}
        self.wait_for(server, series("rest_server_repository_size_bytes", **bob), 1000)
        last = "rest_server_repository_last_snapshot_timestamp_seconds"
        wait_until(lambda: series(last, **bob) in self.found(server), what="bob's last snapshot")
        laptop = {"user": "alice", "repo": "alice/laptop"}
        began = time.time()
        with server.client("alice", "alice") as client:
            client.create_repository("/alice/laptop/")
            client.save("data", random_bytes(1, 2 * MIB), "/alice/laptop/")
            without = self.found(server)
            client.save("snapshots", b"a snapshot", "/alice/laptop/")
            found = self.found(server)
            removed = client.save("locks", b"a lock", "/alice/laptop/")
            self.assertEqual(200, client.delete(f"/alice/laptop/locks/{removed}").status)
        self.assertNotIn(series(last, **laptop), without)
        self.assertEqual(1_600_000_000, found[series(last, **bob)])
        self.assertTrue(began - 2 <= found[series(last, **laptop)] <= time.time() + 2)
        stored = 2 * MIB + 10
        for name, labels, value in (
            ("repository_size_bytes", laptop, stored),
            ("repository_objects", laptop, 2),
            ("repository_quota_bytes", laptop, 20 * MIB),
            ("repository_quota_free_bytes", laptop, 20 * MIB - stored),
            ("user_size_bytes", {"user": "alice"}, stored),
            ("user_quota_bytes", {"user": "alice"}, 100 * MIB),
            ("user_size_bytes", {"user": "bob"}, 1000),
            ("size_bytes", {}, stored + 1000),
            ("quota_bytes", {}, 150 * MIB),
        ):
            self.assertEqual(value, found[series(f"rest_server_{name}", **labels)], name)
        self.assertNotIn(series("rest_server_repository_quota_bytes", **bob), found)
        self.assertEqual(stored, self.found(server)[series("rest_server_repository_size_bytes", **laptop)])
        server.stop()
        server = self.start(*flags)
        self.wait_for(server, series("rest_server_repository_size_bytes", **laptop), stored)

    def test_stored_without_limits(self) -> None:
        """What is stored is known also where nothing is limited, at once after an upload and soon after a start."""
        server = self.start("--no-auth", "--metrics-listen", "127.0.0.1:0")
        with server.client() as client:
            client.create_repository("/r/")
            client.save("data", random_bytes(1, 1000), "/r/")
            found = self.found(own_address(server), None)
        key = series("rest_server_repository_size_bytes", user="r", repo="r")
        self.assertEqual(1000, found[key])
        self.assertNotIn(series("rest_server_quota_bytes"), found)
        server.kill()
        self.wait_for(own_address(self.start("--no-auth", "--metrics-listen", "127.0.0.1:0")), key, 1000, None)

    def test_logins(self) -> None:
        """Wrong passwords and addresses that are refused are counted, on all addresses and in all processes together."""
        flags = (
            "--metrics-listen",
            "127.0.0.1:0",
            "--prometheus",
            "--auth-failures",
            "2/minute",
            "--trusted-proxy",
            "none",
        )
        server = self.start(*self.with_users, *flags)
        own = own_address(server)
        before = self.found(own)
        self.assertEqual(0, before[series("rest_server_auth_failures_total")])
        self.assertEqual(0, before[series("rest_server_auth_lockouts_total")])
        statuses: Counter[int] = Counter()
        for number in range(12):
            with connect_from("127.0.0.2", own if number % 3 == 0 else ("127.0.0.1", server.port)) as connection:
                header = authorization(f"user{number}", "guess")
                path = "/metrics" if number % 3 == 0 else "/alice/config"
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
                statuses[read_reply(connection).status] += 1
                if statuses[403]:
                    break
        self.assertEqual(1, statuses[403], statuses)
        found = self.found(own)
        self.assertEqual(statuses[401], found[series("rest_server_auth_failures_total")])
        self.assertEqual(1, found[series("rest_server_auth_lockouts_total")])

    def test_disk(self) -> None:
        """The file system's size is that of the data directory's."""
        found = self.found(self.start("--no-auth", "--prometheus"), None)
        status = os.statvfs(self.data)
        self.assertEqual(status.f_blocks * status.f_frsize, found[series("rest_server_disk_size_bytes")])
        self.assertGreater(found[series("rest_server_disk_free_bytes")], 0)

    @skipped(SKIP_WITHOUT_PROMTOOL)
    def test_promtool(self) -> None:
        """C{promtool check metrics} finds nothing in the page of a server that has everything, on either address."""
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        files = make_certificate(self.scratch)
        flags = (
            "--policy",
            str(policy),
            "--max-size",
            "1GiB",
            "--prometheus",
            "--metrics-listen",
            "127.0.0.1:0:plain=yes",
        )
        server = self.start(*self.with_users, *files.flags, *flags)
        context = files.client_context()
        with Client(("127.0.0.1", server.port), "alice", "alice", context) as client:
            for repository in ("/alice/laptop/", "/alice/a%22b%5Cc%20%C3%BC/".replace("%5C", "")):
                client.create_repository(repository)
                for kind in KINDS:
                    name = client.save(kind, kind.encode(), repository)
                    client.get(f"{repository}{kind}/{name}")
                    client.delete(f"{repository}{kind}/{name}")
                    client.save(kind, kind.encode(), repository)
        with Client(("127.0.0.1", server.port), "metrics", "metrics", context) as client:
            page = client.get("/metrics").body
        for text in (page, self.ask(own_address(server), "/metrics", "metrics").body):
            for name in ("quota_free_bytes", "certificate_expiry", "last_snapshot", "auth_failures", 'a\\"bc ü'):
                self.assertIn(name.encode(), text)
            self.assertEqual("", complaints(text))
            self.assertNotIn(b"_created", text)


class ProcessTests(MetricsCase):
    """What every Prometheus client says of its process: C{process_*} and C{python_info}, one series each, without labels."""

    NAMES = (
        "process_start_time_seconds",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    )

    def pids(self, server: ServerProcess) -> list[int]:
        """The server's processes."""
        return [server.pid, *server.workers()]

    def cpu_s(self, server: ServerProcess) -> float:
        """What C{/proc} says that they have used."""
        used = 0
        for pid in self.pids(server):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            used += int(fields[11]) + int(fields[12])
        return used / os.sysconf("SC_CLK_TCK")

    def test_figures(self) -> None:
        """They are there and true: those of all processes together, as C{/proc} has them."""
        before_s = time.time()
        server = self.start(*self.with_users, "--prometheus")
        found = self.found(server)
        self.assertEqual(set(self.NAMES), {name for name, _ in found if name.startswith("process_")})
        values = {name: found[series(name)] for name in self.NAMES}
        # The kernel counts in hundredths of a second, and one that begins a second before is none of this test's.
        self.assertTrue(before_s - 2 < values["process_start_time_seconds"] < time.time() + 2, values)
        self.assertEqual(values["process_start_time_seconds"], self.found(server)[series("process_start_time_seconds")])
        descriptors = sum(len(opened_by(pid)) for pid in self.pids(server))
        self.assertLessEqual(abs(values["process_open_fds"] - descriptors), 8)
        limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in self.pids(server)]
        self.assertEqual(sum(limits), values["process_max_fds"])
        resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids(server))
        self.assertLess(abs(values["process_resident_memory_bytes"] / (resident * resource.getpagesize()) - 1), 0.3)
        self.assertGreater(values["process_virtual_memory_bytes"], values["process_resident_memory_bytes"])
        first_s = self.cpu_s(server)
        cpu_s = self.found(server)[series("process_cpu_seconds_total")]
        # Workers' own start is in the parent's children as well where one has been replaced, and here none has.
        self.assertTrue(first_s <= cpu_s + 0.1 and cpu_s <= self.cpu_s(server) + 0.1, (first_s, cpu_s))
        (info,) = [dict(labels) for name, labels in found if name == "python_info"]
        self.assertEqual({"implementation", "major", "minor", "patchlevel", "version"}, set(info))
        self.assertIn(series("python_gc_collections_total", generation="2"), found)

    def test_cpu_never_goes_back(self) -> None:
        """Not when a worker has ended either: Prometheus would take that for a restart, and count all of it twice."""
        server = self.start(*self.with_users, "--prometheus")
        before = self.found(server)[series("process_cpu_seconds_total")]
        for pid in server.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: pid not in server.workers() and len(server.workers()) == 2)
        for _ in range(20):
            after = self.found(server)[series("process_cpu_seconds_total")]
            self.assertGreaterEqual(after, before)
            before = after


class SharedProcessTests(ProcessTests):
    """The same with workers."""

    every_server = TWO


class SharedCountsTests(CountsTests):
    """The same with workers."""

    every_server = TWO


def connect_from(source: str, address: Any) -> socket.socket:
    """A connection from another loopback address than all the others."""
    return socket.create_connection(address, PATIENCE_S, source_address=(source, 0))


class WorkersTests(MetricsCase):
    """Processes that die, are replaced or hang."""

    every_server = TWO

    def setUp(self) -> None:
        super().setUp()
        self.server = self.start("--no-auth", "--metrics-listen", "127.0.0.1:0", "--prometheus")
        self.own = own_address(self.server)
        with self.server.client() as client:
            client.create_repository("/r/")
        self.uploads = 0

    def upload(self, number: int) -> None:
        """So many uploads on each of four connections, which are two for each worker."""
        clients = [self.server.client() for _ in range(4)]
        for client in clients:
            client.get("/r/config")
        for _ in range(number):
            for client in clients:
                self.uploads += 1
                client.save("data", b"upload %d" % self.uploads, "/r/")
        for client in clients:
            client.close()

    def written(self, address: Any = None) -> float:
        """How many the page says."""
        key = series("rest_server_blob_write_total", user="", repo="r", type="data")
        return self.found(address or self.own, None).get(key, 0.0)

    def wait_until_known(self) -> None:
        """
        Wait until the parent has been told of all uploads: by themselves workers tell it what they have counted once a
        second, and what is younger would be lost with them.
        """
        workers = self.server.workers()
        self.addCleanup(self.continue_, workers)

        def known() -> bool:
            # While they stand still, the page is what the parent knows.
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            try:
                return self.written() == self.uploads
            finally:
                self.continue_(workers)

        wait_until(known, what="the workers' word")

    def continue_(self, workers: list[int]) -> None:
        """Let workers that stand still go on."""
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def both_serve(self) -> bool:
        """Whether there are two workers."""
        return self.found(self.own, None)[series("rest_server_workers")] == 2

    def test_killed(self) -> None:
        """What a worker had counted a little earlier than it was killed is not lost, and its successor counts on from there."""
        self.upload(5)
        self.wait_until_known()
        for kill in range(1, 3):
            pid = self.server.workers()[0]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: pid not in self.server.workers(), what="its end")
            self.assertEqual(self.uploads, self.written())
            wait_until(self.both_serve, what="its successor")
            self.upload(3)
            self.assertEqual(self.uploads, self.written())
            self.assertEqual(self.uploads, self.written(self.server))
            self.assertEqual(20 + 12 * kill, self.uploads)
            self.wait_until_known()

    def test_replaced(self) -> None:
        """A worker that is replaced loses nothing, not even the last moment's, also with connections that go on for a while."""
        before = set(self.server.workers())
        stays = self.server.client()
        self.addCleanup(stays.close)
        stays.get("/r/config")
        self.upload(5)
        self.server.signal(signal.SIGUSR2)
        self.server.wait_for_line("all workers were replaced")
        stays.save("data", b"the last of the old ones", "/r/")
        self.uploads += 1
        self.assertEqual(self.uploads, self.written())
        stays.close()
        wait_until(lambda: not before & set(self.server.workers()), what="the end of the old ones")
        self.assertEqual(self.uploads, self.written())
        self.upload(5)
        self.assertEqual(self.uploads, self.written())
        self.assertEqual(self.uploads, self.written(self.server))
        self.assertEqual(41, self.uploads)

    def test_hangs(self) -> None:
        """One that does not answer costs the page a moment and what that one has counted lately, until it goes on."""
        self.upload(5)
        pid = self.server.workers()[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            self.assertLessEqual(self.written(), self.uploads)
            self.assertEqual(200, self.status(self.own, "/-/health"))
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(self.uploads, self.written())

    def test_while_they_come_and_go(self) -> None:
        """There is a page at every moment of it, and no number ever goes down."""
        self.upload(3)
        self.wait_until_known()
        last = self.written()
        os.kill(self.server.workers()[0], signal.SIGKILL)
        self.server.signal(signal.SIGUSR2)
        until = time.monotonic() + 4
        while time.monotonic() < until:
            now = self.written()
            self.assertGreaterEqual(now, last)
            last = now
        self.assertEqual(self.uploads, last)

    def test_stop(self) -> None:
        """With somebody who asks all the time the server still stops in order."""
        clients = [Client(self.own), self.server.client()]
        for client in clients:
            self.addCleanup(client.close)
            client.get("/metrics")
        self.assertEqual(0, self.server.stop())
        self.assertTrue(self.server.said("shutdown cleanly"))


#: For the start of a server that waits longer than usual (half a minute) for the rest of a request that it has answered.
PATIENT_WITH_CLIENTS = (
    sys.executable,
    "-c",
    "import runpy, sys; from resticserver.web.http1.exchange import Exchange; Exchange.swallow_timeout_s = 600.0; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
)


class StopTests(MetricsCase):
    """The end of a server whose metrics somebody is reading."""

    def test_second_signal(self) -> None:
        """A second signal ends it at once, also when a client of the own address owes the rest of its request for a while."""
        flags = ("--no-auth", "--metrics-listen", "127.0.0.1:0", "--shutdown-timeout", "600")
        server = start_server(self, self.data, *flags, wrapper=PATIENT_WITH_CLIENTS)
        own = own_address(server)
        connection = connect(own)
        self.addCleanup(connection.close)
        connection.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nbegin")
        self.assertEqual(405, read_reply(connection).status)
        server.signal(signal.SIGTERM)
        wait_until(lambda: refuses(own), what="the end of the listening")
        server.signal(signal.SIGTERM)
        # By itself it would wait for ten minutes.
        self.assertEqual(0, server.wait())

    def test_slow_reader(self) -> None:
        """Whoever asks for metrics and does not read them has the time of a transfer, and keeps no server from stopping then."""
        for number in range(150):
            # Long names make a long page, which no socket takes at once.
            path = self.data.joinpath(*(f"{number:03d}{'x' * 200}" for _ in range(14)))
            path.mkdir(parents=True)
            (path / "config").write_bytes(b"x")
        server = self.start(
            "--no-auth", "--metrics-listen", f"unix:{self.scratch}/own", "--max-depth", "14", "--shutdown-timeout", "3"
        )
        own = own_address(server)
        size = "rest_server_repository_size_bytes"
        wait_until(
            lambda: sum(key[0] == size for key in self.found(own, None)) == 150, what="the count of all repositories"
        )
        connection = connect(own)
        self.addCleanup(connection.close)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(b"H", connection.recv(1))
        self.assertEqual(0, server.stop())


class SharedStopTests(StopTests):
    """The same with workers."""

    every_server = TWO


def refuses(address: Any) -> bool:
    """Whether nobody listens there."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


class NoHindranceTests(MetricsCase):
    """Metrics must cost those nothing who only make backups."""

    skip = _namespaces() if not shutil.which("setpriv") and os.geteuid() == 0 else None

    def test_a_folder_that_cannot_be_read(self) -> None:
        """
        What cannot be counted, and that nobody uses, is no reason to refuse an upload anywhere else; without C{--prometheus}
        it is none either.
        """
        foreign = self.data / "foreign" / "data" / "00"
        foreign.mkdir(parents=True)
        foreign.chmod(0)
        self.addCleanup(foreign.chmod, 0o700)
        for flag in ("--debug", "--prometheus"):
            server = start_server(self, self.data, "--no-auth", flag, *self.every_server, wrapper=unprivileged())
            with server.client() as client:
                client.create_repository("/alice/")
                body = flag.encode()
                reply = client.post(f"/alice/data/{object_id(body)}", body)
                self.assertEqual(200, reply.status, f"{flag}: {reply.reason}")
            server.stop()


class SharedNoHindranceTests(NoHindranceTests):
    """The same with workers."""

    every_server = TWO


def unprivileged() -> tuple[str, ...]:
    """
    For the start of a server that may write only where modes let it: who runs the tests as root has a root without that
    privilege (which may still read the interpreter, wherever that is).
    """
    if os.geteuid():
        return ()
    capabilities = "-dac_override,-dac_read_search,-fowner"
    return ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")


class ReadyTests(MetricsCase):
    """A data directory that goes and comes back."""

    def begin(self, server: ServerProcess) -> None:
        """A server with something stored, ready on both addresses."""
        self.server = server
        self.addresses = (("127.0.0.1", server.port), own_address(server))
        with server.client() as client:
            client.create_repository("/alice/")
            client.save("data", b"stored", "/alice/")
        for address in self.addresses:
            self.assertEqual((200, b"ready\n"), self.ready(address))

    def ready(self, address: Any) -> tuple[int, bytes]:
        """What C{/-/ready} says."""
        reply = self.ask(address, "/-/ready")
        return reply.status, reply.body

    def everywhere(self, address: Any) -> set[int]:
        """What several connections are told, of which each worker has some."""
        clients = [Client(address) for _ in range(6)]
        try:
            return {client.get("/-/ready").status for client in clients}
        finally:
            for client in clients:
                client.close()

    def assert_not_ready(self, volume: Path, reason: bytes) -> None:
        """503 with the reason on both addresses; it lives on; uploads fail as the server's fault and leave nothing anywhere."""
        before = files_below(volume)
        for address in self.addresses:
            wait_until(lambda: self.everywhere(address) == {503}, what="503")
            self.assertIn(reason, self.ready(address)[1])
        for _ in range(3):
            for address in self.addresses:
                reply = self.ask(address, "/-/health")
                self.assertEqual((200, b"ok\n"), (reply.status, reply.body))
                self.assertEqual(200, self.ask(address, "/metrics").status)
            for length in (10, 100_000, 2 * MIB):
                body = random_bytes(length, length)
                path = f"/alice/data/{object_id(body)}"
                for sent in (body, iter((body,))):
                    with self.server.client() as client:
                        self.assertIn(client.post(path, sent).status, range(500, 600), path)
            self.assertIn(self.status(self.server, "/new/?create=true", method="POST"), range(500, 600))
        self.assertEqual(before, files_below(volume))

    def assert_ready_again(self) -> None:
        """As before."""
        for address in self.addresses:
            wait_until(lambda: self.everywhere(address) == {200}, what="200")
        with self.server.client() as client:
            client.save("data", b"and again", "/alice/")
            self.assertEqual({object_id(b"stored"), object_id(b"and again")}, set(client.list("data", "/alice/")))

    @contextmanager
    def mounted(self) -> Iterator[tuple[Path, Path]]:
        """A server on a volume that is mounted in a namespace of its own: the volume, and where it is mounted."""
        self.volume, mount_point = self.scratch / "volume", self.scratch / "mounted"
        self.volume.mkdir()
        mount_point.mkdir()
        script = f'mount --bind "{self.volume}" "{mount_point}" && exec "$@"'
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        # A mount with a file that is open for writing cannot be made read-only, but by the kernel itself.
        flags = ("--no-auth", "--auto-create", "--prometheus", "--metrics-listen", "127.0.0.1:0", *self.every_server)
        elsewhere = ("--state-dir", str(self.scratch / "state"))
        self.begin(start_server(self, mount_point / "data", *flags, *elsewhere, wrapper=wrapper))
        yield self.volume, mount_point

    def inside(self, *command: str) -> None:
        """Run something where the server is."""
        subprocess.run(["nsenter", f"--mount=/proc/{self.server.pid}/ns/mnt", *command], check=True)

    @skipped(_namespaces())
    def test_unmounted(self) -> None:
        """Lazily unmounted: an empty directory is in its place."""
        with self.mounted() as (volume, mount_point):
            self.inside("umount", "--lazy", str(mount_point))
            self.inside("mkdir", str(mount_point / "data"))
            self.assert_not_ready(volume, b"the volume with the repositories is missing")
            self.assertEqual([], os.listdir(mount_point / "data"))
            self.inside("rmdir", str(mount_point / "data"))
            self.inside("mount", "--bind", str(volume), str(mount_point))
            self.assert_ready_again()
        self.server.wait_for_line("not ready: ")
        self.server.wait_for_line("ready again")

    @skipped(_namespaces())
    def test_nothing_in_its_place(self) -> None:
        """Lazily unmounted, and not even a directory is left."""
        with self.mounted() as (volume, mount_point):
            self.inside("umount", "--lazy", str(mount_point))
            self.assert_not_ready(volume, b"is missing")
            self.assertEqual([], os.listdir(mount_point))
            self.inside("mount", "--bind", str(volume), str(mount_point))
            self.assert_ready_again()

    @skipped(_namespaces())
    def test_read_only(self) -> None:
        """Remounted read-only, as the kernel does it with a disk that has errors."""
        with self.mounted() as (volume, mount_point):
            self.inside("mount", "-o", "remount,bind,ro", str(mount_point))
            self.assert_not_ready(volume, b"Read-only file system")
            with self.server.client() as client:
                self.assertEqual(b"stored", client.get(f"/alice/data/{object_id(b'stored')}").body)
            self.inside("mount", "-o", "remount,bind,rw", str(mount_point))
            self.assert_ready_again()

    @skipped(None if shutil.which("setpriv") or os.geteuid() else "setpriv is not installed")
    def test_unwritable(self) -> None:
        """The server's user may not write there any more."""
        flags = ("--no-auth", "--auto-create", "--prometheus", "--metrics-listen", "127.0.0.1:0", *self.every_server)
        self.begin(start_server(self, self.data, *flags, wrapper=unprivileged()))
        modes = {
            path: stat.S_IMODE(path.stat().st_mode) for path in (self.data, *self.data.rglob("*")) if path.is_dir()
        }

        def restore() -> None:
            for path, mode in modes.items():
                path.chmod(mode)

        self.addCleanup(restore)
        for path in modes:
            path.chmod(0o500)
        self.assert_not_ready(self.data, b"Permission denied")
        restore()
        self.assert_ready_again()

    def test_nearly_full(self) -> None:
        """Where C{--min-free} refuses uploads it is not ready, and says why."""
        flags = ("--no-auth", "--metrics-listen", "127.0.0.1:0", "--min-free", "1000TiB", *self.every_server)
        server = start_server(self, self.data, *flags)
        for address in (server, own_address(server)):
            reply = self.ask(address, "/-/ready")
            self.assertEqual(503, reply.status)
            self.assertIn(b"must stay free", reply.body)
            self.assertEqual(200, self.status(address, "/-/health"))


class SharedReadyTests(ReadyTests):
    """The same with workers."""

    every_server = TWO


class FilesTests(SynchronousTestCase):
    """The files in C{etc}."""

    skip = SKIP_WITHOUT_PROMTOOL

    def checked(self, *arguments: str) -> None:
        """C{promtool} finds nothing wrong."""
        finished = subprocess.run(["promtool", "check", *arguments], capture_output=True, text=True)
        self.assertEqual(0, finished.returncode, finished)

    def test_alerts(self) -> None:
        """C{promtool check rules}."""
        self.checked("rules", str(CONFIGURATION / "prometheus" / "alerts.yml"))

    def test_scrape(self) -> None:
        """C{promtool check config}."""
        self.checked("config", "--syntax-only", str(CONFIGURATION / "prometheus" / "scrape.yml"))


class Prometheus:
    """
    A real Prometheus with a storage of its own.

    @param configuration: its configuration file.
    """

    def __init__(self, test: SynchronousTestCase, directory: Path, configuration: Path) -> None:
        command = [
            str(PROMETHEUS),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(command, cwd=directory, stdin=nothing, stdout=nothing, stderr=nothing)
        test.addCleanup(self.stop)
        # It does not say which port it has got, but the system does.
        port = wait_until(self._port, what="Prometheus's port")
        self.address = ("127.0.0.1", port)
        wait_until(self._answers, what="Prometheus")

    def _port(self) -> int | None:
        assert self._process.poll() is None, "Prometheus ended"
        return next(iter(listening_ports(self._process.pid)), None)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "Prometheus ended"
        try:
            with Client(self.address) as client:
                return client.get("/-/ready").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def ask(self, path: str, **parameters: str) -> Any:
        """A question of its HTTP API."""
        with Client(self.address) as client:
            reply = client.get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(reply.body)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: labels and values."""
        return [(each["metric"], float(each["value"][1])) for each in self.ask("query", query=expression)["result"]]


class PrometheusTests(MetricsCase):
    """A real Prometheus, set up as the example says, that scrapes servers which a real restic backs up to."""

    skip = "prometheus or restic is not installed" if PROMETHEUS is None or RESTIC is None else None

    def configuration(self, server: ServerProcess, other: ServerProcess, authority: Path) -> Path:
        """The example, with the servers of the test, and quicker."""
        (self.scratch / "password").write_text("metrics")
        text = (CONFIGURATION / "prometheus" / "scrape.yml").read_text()
        for before, after in (
            ("scrape_interval: 1m", "scrape_interval: 2s\n  scrape_timeout: 2s\n  evaluation_interval: 1s"),
            ("/etc/prometheus/alerts.yml", str(CONFIGURATION / "prometheus" / "alerts.yml")),
            ("scheme: http  # https with --tls", f"scheme: https\n    tls_config:\n      ca_file: {authority}"),
            ("/etc/prometheus/rest-server.password", str(self.scratch / "password")),
            ("backup.example.org:8000", f"127.0.0.1:{server.port}"),
            ("127.0.0.1:9100", f"127.0.0.1:{own_address(other)[1]}"),
        ):
            self.assertIn(before, text)
            # The last: what is said of it in a comment stands before.
            text = after.join(text.rsplit(before, 1))
        path = self.scratch / "prometheus.yml"
        path.write_text(text)
        return path

    def test_scraped(self) -> None:
        """
        Both jobs of the example work; every query of the dashboard and every alert has data; what they say is true; and an
        alert for what really happens is raised.
        """
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        files = make_certificate(self.scratch)
        users = (*self.with_users, "--auth-failures", "2/minute", "--trusted-proxy", "none")
        server = self.start(
            *(*users, *files.flags, "--prometheus", "--policy", str(policy), "--max-size", "1GiB", "--workers", "2"),
            *("--scrub-interval", "20s"),
        )
        other = start_server(
            self, self.scratch / "other", *self.with_users, "--metrics-listen", "127.0.0.1:0", "--prometheus-no-auth"
        )
        prometheus = Prometheus(self, self.scratch, self.configuration(server, other, files.authority))
        up = {"rest-server": 1.0, "rest-server-local": 1.0}
        wait_until(lambda: {each["job"]: value for each, value in prometheus.query("up")} == up, what="both are up")

        restic = Restic(
            self,
            f"https://alice:alice@127.0.0.1:{server.port}/alice/laptop/",
            self.scratch,
            "--cacert",
            str(files.authority),
        )
        tree = self.scratch / "tree"
        make_tree(tree, seed=1, size_bytes=8 * MIB)
        restic.create()
        restic.succeed("backup", str(tree))
        change_tree(tree, seed=2)
        restic.succeed("backup", str(tree))
        restic.succeed("check", "--read-data")
        restic.succeed("forget", "--keep-last", "1", "--prune")
        with Client(("127.0.0.1", server.port), "alice", "alice", files.client_context()) as client:
            body = random_bytes(1, 21 * MIB)
            self.assertEqual(507, client.post(f"/alice/laptop/data/{object_id(body)}", body).status)
        self.guess(server, files.client_context())

        dashboard = json.loads((CONFIGURATION / "grafana" / "dashboard.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
        self.assertGreater(len(queries), 20)
        for query in queries:
            for variable, value in (("$instance", ".*"), ("$group", "type"), ("$__rate_interval", "1m")):
                query = query.replace(variable, value)
            self.assertNotIn("$", query)
            wait_until(lambda: prometheus.query(query), what=query)

        rules = prometheus.ask("rules")["groups"][0]["rules"]
        self.assertEqual(13, len(rules))
        for rule in rules:
            threshold = re.search(r" (>|<|==) [0-9.e+]+$", rule["query"])
            assert threshold is not None, rule
            beyond = {">": "> -1", "<": "< 1e18", "==": "== 1"}[threshold[1]]
            query = f"{rule['query'][: threshold.start()]} {beyond}"
            wait_until(lambda: prometheus.query(query), what=query)

        self.assert_true(prometheus)

        def firing() -> set[str]:
            alerts = prometheus.ask("alerts")["alerts"]
            return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

        wait_until(lambda: "RestServerLockouts" in firing(), what="the alert")
        other.kill()
        (down,) = [rule["query"] for rule in rules if rule["name"] == "RestServerDown"]
        wait_until(lambda: [each["job"] for each, _ in prometheus.query(down)] == ["rest-server-local"], what=down)

    def assert_true(self, prometheus: Prometheus) -> None:
        """What it knows is what is on disk."""
        stored = [self.data / "alice/laptop" / name for name in files_below(self.data / "alice/laptop")]
        of_laptop = '{repo="alice/laptop",job="rest-server"}'
        size = f"rest_server_repository_size_bytes{of_laptop}"
        whole = float(sum(path.stat().st_size for path in stored))
        wait_until(lambda: [value for _, value in prometheus.query(size)] == [whole], what=(size, whole))
        left = "sum(rest_server_blob_write_bytes_total{user='alice'}) - sum(rest_server_blob_delete_bytes_total{user='alice'})"
        wait_until(lambda: prometheus.query(left) == [({}, whole)], what=(left, whole))
        (snapshot,) = [path for path in stored if path.parent.name == "snapshots"]
        youngest = f"rest_server_repository_last_snapshot_timestamp_seconds{of_laptop}"
        ((_, last),) = wait_until(lambda: prometheus.query(youngest), what=youngest)
        self.assertAlmostEqual(snapshot.stat().st_mtime, last, delta=5)

    def guess(self, server: ServerProcess, context: Any) -> None:
        """Wrong passwords, from an address that nobody else has, until it is refused."""
        for number in range(20):
            with connect_from("127.0.0.2", ("127.0.0.1", server.port)) as plain:
                with context.wrap_socket(plain, server_hostname="localhost") as connection:
                    header = authorization(f"user{number}", "guess")
                    connection.sendall(f"GET /config HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
                    if read_reply(connection).status == 403:
                        return
        raise AssertionError("it was never refused")


class DashboardTests(MetricsCase):
    """
    rest-server's own Grafana dashboard, which comes with it (C{examples/compose-with-grafana}): every query of it has data, so it
    works as it is for those who come from there.
    """

    skip = "prometheus is not installed" if PROMETHEUS is None else None

    #: What its variable C{instance} is filled by, and what C{group} may be. The job's name is that of its Prometheus example.
    INSTANCES = 'process_start_time_seconds{job="rest_server"}'
    GROUPS = ("type", "repo", "user")
    #: One panel each; an older version of it has the instance in braces.
    PANELS = tuple(
        f"sum(rate(rest_server_blob_{operation}{unit}_total{instance}[15s])) by ($group)"
        for operation in ("write", "read", "delete")
        for unit in ("_bytes", "")
        for instance in ("", '{instance="$instance"}')
    )
    CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: rest_server
    basic_auth: {{username: metrics, password: metrics}}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""

    def test_every_query(self) -> None:
        """While objects are written, read and deleted, each panel has a curve above nothing for each of its groups."""
        server = self.start(*self.with_users, "--prometheus")
        configuration = self.scratch / "prometheus.yml"
        configuration.write_text(self.CONFIGURATION.format(port=server.port))
        prometheus = Prometheus(self, self.scratch, configuration)
        with Client(("127.0.0.1", server.port), "alice", "alice") as client:
            client.create_repository("/alice/laptop/")

            def work() -> None:
                name = client.save("data", random_bytes(time.monotonic_ns(), 1000), "/alice/laptop/")
                client.get(f"/alice/laptop/data/{name}")
                client.delete(f"/alice/laptop/data/{name}")

            def instances() -> Any:
                work()
                return prometheus.ask("label/instance/values", **{"match[]": self.INSTANCES})

            self.assertEqual([f"127.0.0.1:{server.port}"], wait_until(instances, what=self.INSTANCES))
            for panel in self.PANELS:
                for group in self.GROUPS:
                    query = panel.replace("$group", group).replace("$instance", f"127.0.0.1:{server.port}")
                    value = {"type": "data", "repo": "alice/laptop", "user": "alice"}[group]

                    def has_data(query: str = query, expected: dict[str, str] = {group: value}) -> bool:  # noqa: B006
                        work()
                        found = prometheus.query(query)
                        return [labels for labels, rate in found if rate > 0] == [expected]

                    wait_until(has_data, what=query)


class SharedDashboardTests(DashboardTests):
    """The same with workers."""

    every_server = TWO
