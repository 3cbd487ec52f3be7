"""
Floods of wrong passwords, beside those who have the right one: a real server with bcrypt hashes of the usual cost.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import bcrypt
from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id, random_bytes
from ..support.flood import Flood
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import wait_until

#: Users with a password each: each of them logs in once, so that no login is remembered.
NEW_USERS = 6
KIB = 1 << 10
#: Loopback's own addresses count as clients' addresses where this is all that is trusted.
NO_PROXY = ("--trusted-proxy", "192.0.2.1")


class FloodCase(SynchronousTestCase):
    """A server with users alice, nat, and some more."""

    flags: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.directory = scratch_directory(self, 100 << 20)
        users = ["alice", "nat", *(f"new{number}" for number in range(NEW_USERS))]
        self.users = self.directory / "users"
        lines = [f"{user}:{bcrypt.hashpw(user.encode(), bcrypt.gensalt(10)).decode()}\n" for user in users]
        self.users.write_text("".join(lines))

    def start(self, *flags: str) -> ServerProcess:
        """Start it, with a repository."""
        said = ("--htpasswd-file", str(self.users), "--prometheus", *flags, *self.flags)
        server = start_server(self, self.directory / "data", *said)
        with server.client("alice", "alice") as alice:
            alice.create_repository("/repo/")
            self.assertEqual(200, alice.post("/repo/config", b"x").status)
        return server

    def log_in(self, server: ServerProcess, user: str, **headers: str) -> int:
        """The status of a right login on a connection of its own."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with server.client(user, user) as client:
            return client.get("/repo/config", named).status

    def assert_new_clients(self, server: ServerProcess, flood: Flood, **headers: str) -> None:
        """Each of the new users gets in, at the first try."""
        statuses = [self.log_in(server, f"new{number}", **headers) for number in range(NEW_USERS)]
        self.assertEqual([200] * NEW_USERS, statuses, flood)

    def by_address(self, addresses: int, connections: int = 17, leaves: int = 0) -> None:
        """Clients at 127.0.0.1 beside so many other addresses, which are neither slowed nor refused: the slots stay full."""
        server = self.start(*NO_PROXY, "--auth-failures", "0")
        sources = [f"127.0.0.{number + 2}" for number in range(addresses)]
        with Flood(server.port, sources, connections=connections, leaves=leaves) as flood:
            self.assert_new_clients(server, flood)


if TYPE_CHECKING:
    _Base = FloodCase
else:
    _Base = object


class BothWays(_Base):
    """Tests for servers with workers and without."""

    def test_sixty_addresses_that_do_not_wait(self) -> None:
        """Sixty, where every second guess is given up by its client: it must not keep its slot."""
        self.by_address(60, connections=4, leaves=2)

    def test_behind_a_proxy(self) -> None:
        """Attackers and a client behind the same trusted proxy: addresses of one /64, of one /48, and IPv4 addresses."""
        server = self.start()
        claimed = [
            *(f"2001:db8:1:1::{number:x}" for number in range(1, 20)),
            *(f"2001:db8:2:{number:x}::1" for number in range(1, 20)),
            *(f"198.51.100.{number}" for number in range(1, 20)),
        ]
        with Flood(server.port, ["127.0.0.1"], claimed, connections=2) as flood:
            self.assert_new_clients(server, flood, X_Forwarded_For="203.0.113.7")

    def test_same_address(self) -> None:
        """Whoever logged in before from an address goes on there when somebody behind the same NAT begins to guess."""
        server = self.start(*NO_PROXY)
        self.assertEqual(200, self.log_in(server, "nat"))
        with Flood(server.port, ["127.0.0.1"], leaves=2) as flood:
            wait_until(lambda: flood.guesses > 500, what=flood)
            statuses = [self.log_in(server, "nat") for _ in range(20)]
            self.assertEqual([200] * 20, statuses, flood)

    def test_everything_else(self) -> None:
        """Readiness, quotas, metrics and the status page give the right answers, on new connections and on old ones."""
        server = self.start("--max-size", str(1000 * KIB), *NO_PROXY)
        fits, large = random_bytes(1, 300 * KIB), random_bytes(2, 800 * KIB)
        sources = [f"127.0.0.{number + 2}" for number in range(60)]
        with server.client("alice", "alice") as alice:
            self.assertEqual(200, alice.get("/repo/config").status)
            with Flood(server.port, sources, connections=4, leaves=5) as flood:
                for number in range(5):
                    with server.client() as stranger:
                        self.assertEqual(200, stranger.get("/-/ready").status, flood)
                        self.assertEqual(200, stranger.get("/-/health").status, flood)
                    with server.client("alice", "alice") as again:
                        for client in (alice, again):
                            status = client.get("/-/status.json")
                            self.assertEqual(200, status.status, flood)
                            names = [one["repository"] for one in json.loads(status.body)["repositories"]]
                            self.assertEqual(["repo"], names)
                            self.assertEqual(200, client.get("/-/status").status, flood)
                            self.assertEqual(200, client.post(f"/repo/data/{object_id(fits)}", fits).status, flood)
                            self.assertEqual(507, client.post(f"/repo/data/{object_id(large)}", large).status, flood)
                            name = object_id(b"%d" % number)
                            self.assertEqual(200, client.post(f"/repo/keys/{name}", b"%d" % number).status, flood)
                            self.assertEqual(200, client.delete(f"/repo/keys/{name}").status, flood)


class FloodTests(BothWays, FloodCase):
    """Who gets in beside a flood."""

    def test_two_addresses(self) -> None:
        """Two with 17 connections each, which is more than there are slots."""
        self.by_address(2)

    def test_four_addresses(self) -> None:
        """Four."""
        self.by_address(4)

    def test_sixty_addresses(self) -> None:
        """Sixty: more addresses than slots."""
        self.by_address(60, connections=4)

    def test_addresses_that_are_never_refused(self) -> None:
        """The same where all these are trusted proxies' addresses, that say nothing of their clients."""
        server = self.start()
        with Flood(server.port, [f"127.0.0.{number + 2}" for number in range(4)]) as flood:
            self.assert_new_clients(server, flood)


class WorkersFloodTests(BothWays, FloodCase):
    """With two workers, whose passwords the parent judges: who has asked, and who is gone, it hears from them."""

    flags = ("--workers", "2")
