"""
C{--workers}: that several processes are one server, whoever of them dies, stops or is replaced.

What holds for every server, however many processes it has, is tested by the other modules' cases with C{--workers 2}.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import Authority, make_certificate
from ..support.client import Client, connect, object_id, random_bytes, read_reply
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, change_tree, make_tree
from ..support.scratch import contents_below, files_below, object_path, scratch_directory
from ..support.server import (
    REST_SERVER,
    TWISTD,
    ServerProcess,
    command_line,
    is_running,
    opened_by,
    server_environment,
    start_server,
)
from ..support.skipping import skipped
from ..support.waiting import wait_until
from . import test_access, test_process, test_volume_gone

MIB = 1 << 20
TWO = ("--workers", "2")


class SharedStopTests(test_process.StopTests):
    """The stop, with workers."""

    every_server = TWO


class SharedUnixSocketTests(test_process.UnixSocketTests):
    """Unix sockets, with workers."""

    every_server = TWO


class SharedSocketActivationTests(test_process.SocketActivationTests):
    """systemd's sockets, with workers."""

    every_server = TWO


class SharedAccessLogTests(test_process.AccessLogTests):
    """The access log, with workers."""

    every_server = TWO

    def test_reopened_on_sighup(self) -> None:
        """After a rotation each worker goes on in the new file, and no line is lost."""
        server = start_server(self, self.data, "--log", str(self.log))
        rotated = self.scratch / "access.log.1"
        with server.client() as one, server.client() as other:
            for client in (one, other):
                client.get("/config")
            self.entries(2)
            self.log.rename(rotated)
            for client in (one, other):
                client.get("/config")
            self.entries(4, rotated)
            server.signal(signal.SIGHUP)

            def all_in_the_new() -> bool:
                opened = [opened_by(pid) for pid in server.workers()]
                return all(str(self.log) in files and str(rotated) not in files for files in opened)

            wait_until(all_in_the_new, what="the new log in both workers")
            for client in (one, other):
                client.get("/config")
            self.entries(2)
            self.entries(4, rotated)

    def test_one_line_a_request(self) -> None:
        """Under load from all workers there is one whole line for each request, in a file and on a pipe."""
        for log in (str(self.log), "-"):
            server = start_server(self, self.data, "--log", log)
            paths = [f"/{'x' * 40 * number}{number}" for number in range(40)]

            def work(server: ServerProcess = server, paths: list[str] = paths) -> None:
                with server.client() as client:
                    for path in paths * 5:
                        client.get(path)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.stop()
            lines = server.out if log == "-" else self.log.read_text().splitlines()
            entries = [test_process.COMBINED.match(line) for line in lines]
            self.assertNotIn(None, entries)
            asked = [entry["request"].split()[1] for entry in entries if entry is not None]
            self.assertEqual(sorted(paths * 20), sorted(asked))


class SharedDaemonTests(test_process.DaemonTests):
    """twistd's daemon, with workers."""

    every_server = TWO


class SharedBadInputTests(test_process.BadInput, SynchronousTestCase):
    """Starts that fail, with workers: one line and a status, whether parent or worker found out."""

    door = REST_SERVER
    every_server = TWO

    def test_bad_values(self) -> None:
        """Numbers that are none. (All other flags are read as they are without workers.)"""
        self.assert_refused("--workers 0", *self.start_flags("--no-auth", "--workers", "0"))
        self.assert_refused("--workers some", *self.start_flags("--no-auth", "--workers=some"))

    def test_a_worker_that_cannot_start(self) -> None:
        """Under twistd too a fault that only the workers find ends the server."""
        path = str(self.scratch / "missing" / "access.log")
        ended = test_process.run_to_end(
            self.scratch, command_line(TWISTD, [*self.start_flags("--no-auth", "--log", path), *TWO])
        )
        self.assertGreater(ended.status, 0)
        self.assertEqual(1, len(ended.err.splitlines()), ended.err)
        self.assertIn(f"cannot open {path}: No such file", ended.err)


class SharedGuessingTests(test_access.GuessingTests):
    """Guessing is counted once, whichever worker hears the guesses."""

    every_server = TWO


class SharedVolumeGoneTests(test_volume_gone.VolumeGoneTests):
    """An unmounted volume, with workers."""

    every_server = TWO


class WorkersCase(SynchronousTestCase):
    """A server with two workers."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 * MIB)
        self.data = self.scratch / "data"

    def start(self, *flags: str, door: str = REST_SERVER) -> ServerProcess:
        """Start it."""
        return start_server(self, self.data, "--workers", "2", *flags, door=door)

    def connections(self, server: ServerProcess, count: int) -> list[socket.socket]:
        """Connections that each have been served once; closed after the test."""
        made = []
        for _ in range(count):
            connection = connect(("127.0.0.1", server.port))
            self.addCleanup(connection.close)
            made.append(connection)
        for connection in made:
            connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
        for connection in made:
            self.assertEqual(404, read_reply(connection).status)
        return made

    def begin_upload(self, server: ServerProcess, body: bytes) -> tuple[socket.socket, int]:
        """A connection with the first half of an upload, and the worker that takes it."""
        connection = connect(("127.0.0.1", server.port))
        self.addCleanup(connection.close)
        head = f"POST /data/{object_id(body)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode("ascii") + body[: len(body) // 2])

        def taker() -> int | None:
            return next((pid for pid in server.workers() if server.open_files_below(self.data, pid)), None)

        pid = wait_until(taker, what="the beginning of the upload")
        assert pid is not None
        return connection, pid


def sockets_of(pid: int) -> int:
    """How many sockets a process has."""
    return sum(target.startswith("socket:") for target in opened_by(pid))


class DealTests(WorkersCase):
    """Connections are shared evenly."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.start()
        self.pids = self.server.workers()
        self.assertEqual(2, len(self.pids))
        self.idle = {pid: sockets_of(pid) for pid in self.pids}

    def shares(self, total: int) -> list[int]:
        """How many connections each worker has, once it is so many together."""

        def counted() -> list[int] | None:
            shares = [sockets_of(pid) - self.idle[pid] for pid in self.pids]
            return shares if sum(shares) == total else None

        shares = wait_until(counted, what=f"{total} connections")
        assert shares is not None
        return shares

    def test_even(self) -> None:
        """Few connections and many: no worker has two more than the other."""
        for count in (2, 3, 5, 10):
            connections = self.connections(self.server, count)
            shares = self.shares(count)
            self.assertLessEqual(max(shares) - min(shares), 1, shares)
            for connection in connections:
                connection.close()
            self.assertEqual([0, 0], self.shares(0))

    def test_even_after_some_have_ended(self) -> None:
        """The ends count as well: new connections go where the most have ended."""
        connections = self.connections(self.server, 10)
        self.assertEqual([5, 5], self.shares(10))
        # They were dealt in turn, so every second one is the same worker's.
        for connection in connections[:8:2]:
            connection.close()
        self.assertEqual([1, 5], sorted(self.shares(6)))

        def dealt() -> bool:
            made = self.connections(self.server, 4)
            if self.shares(10) == [5, 5]:
                return True
            # The counts come to the parent a moment after the sockets are closed: once more.
            for connection in made:
                connection.close()
            self.shares(6)
            return False

        wait_until(dealt, what="an even deal")


class LossTests(WorkersCase):
    """Workers that die, and a parent that does."""

    def test_killed_worker(self) -> None:
        """
        Its upload leaves nothing, its place is taken, and nobody else notices: the other worker's connections go on.
        """
        server = self.start()
        with server.client() as client:
            client.create_repository()
        body = random_bytes(seed=1, length=4 * MIB)
        upload, pid = self.begin_upload(server, body)
        others = self.connections(server, 3)
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(b"", test_process._rest_of(upload))
        server.wait_for_line(rf"worker \d \(process {pid}\) ended by signal 9; starting another one now")
        survivors = 0
        for connection in others:
            connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                survivors += read_reply(connection).status == 404
            except (OSError, ValueError):
                pass
            except Exception as error:
                self.assertEqual("RemoteDisconnected", type(error).__name__)
        self.assertGreaterEqual(survivors, 1)
        wait_until(lambda: len(server.workers()) == 2, what="the new worker")
        self.assertNotIn(pid, server.workers())
        self.assertEqual(set(), files_below(self.data))
        with server.client() as client:
            client.save("data", body)
        self.assertEqual(0, server.stop())
        self.assertIsNone(server.said("Traceback"))

    def test_patience(self) -> None:
        """One that dies again and again is replaced more and more slowly; connections wait where nobody is."""
        server = self.start("--workers", "1")
        self.assertEqual([], server.workers())  # the last flag holds: one process
        server.stop()
        server = self.start()

        def kill_both() -> None:
            pids = wait_until(lambda: len(server.workers()) == 2 and server.workers(), what="two workers")
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

        for line in ("starting another one now$", "starting another one in 1 s$", "starting another one in 2 s$"):
            kill_both()
            wait_until(lambda: sum(line[:-1] in said for said in server.err) == 2, what=line)
        with server.client() as client:
            self.assertEqual(404, client.get("/config").status)

    def test_killed_parent(self) -> None:
        """No process stays; what was on its way comes to its end, and idle connections do at once."""
        for door in (REST_SERVER, TWISTD):
            server = self.start(door=door)
            with server.client() as client:
                client.create_repository()
            body = random_bytes(seed=2, length=2 * MIB)
            upload, _ = self.begin_upload(server, body)
            idle = self.connections(server, 2)
            pids = server.workers()
            server.process.kill()
            for connection in idle:
                self.assertEqual(b"", test_process._rest_of(connection))
            self.assertTrue(any(map(is_running, pids)))
            upload.sendall(body[len(body) // 2 :])
            self.assertEqual(200, read_reply(upload, "POST").status)
            wait_until(lambda: not any(map(is_running, pids)), what="the end of the workers")
            path = object_path(self.data, "data", object_id(body))
            self.assertEqual(body, path.read_bytes())
            path.unlink()

    def test_killed_parent_and_a_slow_client(self) -> None:
        """Transfers that do not come to their end are cut after the time-out."""
        server = self.start("--shutdown-timeout", "1")
        with server.client() as client:
            client.create_repository()
        upload, pid = self.begin_upload(server, random_bytes(seed=2, length=2 * MIB))
        server.process.kill()
        self.assertEqual(b"", test_process._rest_of(upload))
        wait_until(lambda: not is_running(pid), what="the end of the worker")
        self.assertEqual(set(), files_below(self.data))

    def test_signals_to_a_worker(self) -> None:
        """What is for the parent does nothing to a worker: a terminal and systemd send to all processes."""
        server = self.start()
        pids = server.workers()
        (connection,) = self.connections(server, 1)
        for pid in pids:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(404, read_reply(connection).status)
        self.assertEqual(pids, server.workers())

    def test_interrupt_of_the_group(self) -> None:
        """Ctrl-C reaches all processes of the terminal, and is a stop as any other."""
        server = start_server(self, self.data, "--workers", "2", wrapper=("setsid",))
        with server.client() as client:
            client.create_repository()
        body = random_bytes(seed=3, length=2 * MIB)
        upload, _ = self.begin_upload(server, body)
        os.killpg(server.pid, signal.SIGINT)
        upload.sendall(body[len(body) // 2 :])
        self.assertEqual(200, read_reply(upload, "POST").status)
        self.assertEqual(0, server.wait())
        self.assertEqual(1, server.err.count("shutdown cleanly"))
        self.assertIsNone(server.said("Traceback|KeyboardInterrupt|ended"))


class Load:
    """Clients that ask without a pause until they are told to stop, and what went wrong."""

    def __init__(self, test: SynchronousTestCase, ask: Callable[[int], object], clients: int = 4) -> None:
        self._stop = threading.Event()
        self._ask = ask
        self.failures: list[Exception] = []
        self.done = [0] * clients
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(clients)]
        test.addCleanup(self.end)
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        try:
            while not self._stop.is_set():
                self._ask(number)
                self.done[number] += 1
        except Exception as error:
            self.failures.append(error)

    def more(self) -> None:
        """Wait until each has been served some more times, or failed."""
        enough = [done + 5 for done in self.done]
        wait_until(
            lambda: self.failures or all(map(lambda now, then: now >= then, self.done, enough)),
            what="load",
        )

    def end(self) -> None:
        """No more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


class ReplacementTests(WorkersCase):
    """SIGUSR2: new workers for old ones, one after the other."""

    def replace(self, server: ServerProcess) -> list[int]:
        """Replace all workers; the old ones' processes."""
        old = server.workers()
        said = server.err.count("all workers were replaced")
        server.signal(signal.SIGUSR2)
        wait_until(lambda: server.err.count("all workers were replaced") > said, what="new workers")
        return old

    def test_under_load(self) -> None:
        """No request fails, on connections that are kept as on new ones; the old workers end."""
        server = self.start()
        clients = [server.client() for _ in range(2)]
        for client in clients:
            self.addCleanup(client.close)
        clients[0].create_repository()

        def ask(number: int) -> None:
            if number < len(clients):
                client = clients[number]
                name = client.save("data", os.urandom(1000))
                assert client.head(f"/data/{name}").status == 200
                return
            with server.client() as client:
                assert client.get("/config").status == 404

        load = Load(self, ask)
        load.more()
        for _ in range(2):
            old = self.replace(server)
            load.more()
            wait_until(lambda: not any(map(is_running, old)), what="the end of the old workers")
        load.more()
        load.end()
        self.assertEqual([], load.failures)
        self.assertEqual(2, len(server.workers()))
        self.assertEqual(0, server.stop())
        self.assertIsNone(server.said("Traceback|ended"))

    def test_transfers_come_to_their_end(self) -> None:
        """An upload that was begun goes on in the old worker, and an idle connection is good for one more request."""
        server = self.start(door=TWISTD)
        with server.client() as client:
            client.create_repository()
        body = random_bytes(seed=4, length=2 * MIB)
        upload, pid = self.begin_upload(server, body)
        idle = self.connections(server, 2)
        server.signal(signal.SIGUSR2)
        server.wait_for_line("all workers were replaced")
        for connection in idle:
            connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = read_reply(connection)
            self.assertEqual((404, "close"), (reply.status, reply.headers["Connection"]))
            self.assertEqual(b"", test_process._rest_of(connection))
        self.assertTrue(is_running(pid))
        upload.sendall(body[len(body) // 2 :])
        self.assertEqual(200, read_reply(upload, "POST").status)
        upload.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual("close", read_reply(upload).headers["Connection"])
        wait_until(lambda: not is_running(pid), what="the end of the old worker")
        wait_until(lambda: len(server.workers()) == 2, what="the end of the other one")

    def test_stop_meanwhile(self) -> None:
        """A stop in the midst of it leaves no process, old or new."""
        server = self.start()
        self.connections(server, 2)
        pids = set(server.workers())
        server.signal(signal.SIGUSR2)
        server.wait_for_line("replacing all workers")
        pids |= set(server.workers())
        self.assertEqual(0, server.stop())
        pids |= set(server.workers())
        wait_until(lambda: not any(map(is_running, pids)), what="the end of all workers")

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """Backups, a check and a prune while workers are replaced all the time."""
        server = self.start()
        restic = Restic(self, f"{server.url}/", self.scratch)
        tree = self.scratch / "tree"
        make_tree(tree, seed=1, size_bytes=16 * MIB)
        done = threading.Event()
        replaced = [0]

        def replace() -> None:
            while not done.is_set():
                self.replace(server)
                replaced[0] += 1

        restic.create()
        replacing = threading.Thread(target=replace)
        replacing.start()
        try:
            restic.succeed("backup", str(tree))
            change_tree(tree, seed=2)
            restic.succeed("backup", str(tree))
            self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
            restic.succeed("forget", "--keep-last", "1", "--prune")
            self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
            target = self.scratch / "restored"
            restic.succeed("restore", "latest", "--target", str(target))
            self.assertEqual(contents_below(tree), contents_below(target / tree.relative_to("/")))
        finally:
            done.set()
            replacing.join()
        self.assertGreater(replaced[0], 0)


class ReloadTests(WorkersCase):
    """What is read again holds in all workers at once, and is said once."""

    def reload(self, server: ServerProcess, line: str) -> None:
        """SIGHUP, and wait for what it says."""
        said = sum(line in one for one in server.err)
        server.signal(signal.SIGHUP)
        wait_until(lambda: sum(line in one for one in server.err) == said + 1, what=line)

    def test_users(self) -> None:
        """A password that was right a moment ago on this very connection is not any more; a new one is."""
        users = self.scratch / "users"
        users.write_text(sha_line("alice", "first"))
        server = self.start("--htpasswd-file", str(users))
        old = [server.client("alice", "first") for _ in range(4)]
        for client in old:
            self.addCleanup(client.close)
            self.assertEqual(404, client.get("/config").status)
        users.write_text(sha_line("alice", "second"))
        self.reload(server, "Reloaded htpasswd file")
        self.assertEqual([401] * 4, [client.get("/config").status for client in old])
        for _ in range(4):
            with server.client("alice", "second") as client:
                self.assertEqual(404, client.get("/config").status)
        users.write_bytes(b"\xff\xfe\0")
        self.reload(server, "could not reload htpasswd file")
        with server.client("alice", "second") as client:
            self.assertEqual(404, client.get("/config").status)

    def test_policy(self) -> None:
        """Rules change in all workers; a broken file is said once and changes none, nor does a worker start without."""
        users, policy = self.scratch / "users", self.scratch / "policy.toml"
        users.write_text(sha_line("alice", "alice"))
        rule = '[[rule]]\nusers = ["alice"]\nrepositories = ["**"]\nrights = "{}"\n'
        # More than a socket takes at once.
        policy.write_text(rule.format("append") + f"# {'x' * 2 * MIB}\n")
        server = self.start("--htpasswd-file", str(users), "--policy", str(policy))
        clients = [server.client("alice", "alice") for _ in range(4)]
        for client in clients:
            self.addCleanup(client.close)

        def statuses() -> list[int]:
            return [client.post(f"/locks/{object_id(b'x')}", b"x").status for client in clients]

        self.assertEqual([200] * 4, statuses())
        policy.write_text(rule.format("read").replace("alice", "bob"))
        self.reload(server, "Reloaded policy")
        self.assertEqual([403] * 4, statuses())
        policy.write_text("broken")
        self.reload(server, "could not reload the policy")
        self.assertEqual([403] * 4, statuses())
        old = server.workers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2 and not set(old) & set(server.workers()), what="new workers")
        with server.client("alice", "alice") as client:
            self.assertEqual(403, client.post(f"/locks/{object_id(b'x')}", b"x").status)

    def test_certificates(self) -> None:
        """A new certificate is served by all workers; a broken one is said once, and the one before is served on."""
        authority = Authority()
        files = make_certificate(self.scratch, authority)
        server = self.start(*files.flags)

        def serials() -> set[str]:
            found = set()
            for _ in range(4):
                with connect(("127.0.0.1", server.port)) as plain:
                    with files.client_context().wrap_socket(plain, server_hostname="localhost") as connection:
                        found.add(str((connection.getpeercert() or {})["serialNumber"]))
            return found

        (first,) = serials()
        make_certificate(self.scratch, authority)
        self.reload(server, "Reloaded TLS certificate")
        (second,) = serials()
        self.assertNotEqual(first, second)
        files.certificate.write_bytes(b"broken")
        wait_until(lambda: server.said("could not reload the TLS certificate"), what="the complaint")
        self.assertEqual({second}, serials())
        make_certificate(self.scratch, authority)
        wait_until(lambda: serials().isdisjoint({first, second}), what="the third certificate")


class ListenersTests(WorkersCase):
    """What stands before HTTP is the same in a worker."""

    def test_endpoint_strings(self) -> None:
        """Plain TCP, TLS of its own, the PROXY protocol and a unix socket, all at once."""
        certificate = make_certificate(self.scratch)
        path, log = self.scratch / "socket", self.scratch / "log"
        addresses = (
            "127.0.0.1:0",
            "tcp:0:interface=127.0.0.1",
            f"ssl:0:interface=127.0.0.1:privateKey={certificate.key}:certKey={certificate.certificate}",
            "haproxy:tcp:0:interface=127.0.0.1",
            f"haproxy:unix:{path}",
        )
        server = self.start("--log", str(log), *(flag for address in addresses for flag in ("--listen", address)))
        wait_until(lambda: sum("start server on" in line for line in server.err) == len(addresses), what="all of them")
        found = [line.rpartition(" ")[2] for line in server.err if "start server on" in line]
        self.assertEqual(str(path), found[-1])
        ports = [int(address.rpartition(":")[2]) for address in found[:-1]]
        for _ in range(2):
            for port, tls in ((ports[0], None), (ports[1], None), (ports[2], certificate.client_context())):
                with Client(("127.0.0.1", port), tls=tls) as client:
                    self.assertEqual(404, client.get("/config").status)
            for address in (("127.0.0.1", ports[3]), str(path)):
                with connect(address) as connection:
                    connection.sendall(b"PROXY TCP4 203.0.113.5 127.0.0.1 4711 80\r\n")
                    connection.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n")
                    self.assertEqual(404, read_reply(connection).status)
        server.stop()
        self.assertFalse(path.exists())
        addresses_seen = [line.split()[0] for line in log.read_text().splitlines()]
        self.assertEqual(sorted(["127.0.0.1"] * 6 + ["203.0.113.5"] * 4), sorted(addresses_seen))

    def test_tls(self) -> None:
        """C{--tls} holds but where a listener opts out, and for a unix socket."""
        certificate = make_certificate(self.scratch)
        path = self.scratch / "socket"
        server = self.start(
            *certificate.flags,
            *("--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0:plain=yes", "--listen", f"unix:{path}"),
        )
        wait_until(lambda: server.said(r"start server on .*socket$"), what="all of them")
        lines = [line.rpartition(":")[2] for line in server.err if "start server on 127" in line]
        for address, tls in (
            (("127.0.0.1", int(lines[0])), certificate.client_context()),
            (("127.0.0.1", int(lines[1])), None),
            (str(path), certificate.client_context()),
        ):
            with Client(address, tls=tls) as client:
                self.assertEqual(404, client.get("/config").status)
        with connect(("127.0.0.1", int(lines[0]))) as plain, self.assertRaises(ssl.SSLError):
            certificate.client_context().wrap_socket(plain, server_hostname="wrong.example.org")

    def test_client_that_is_gone(self) -> None:
        """Clients that connect and reset at once do no harm and are not counted for ever."""
        server = self.start()
        idle = sum(map(sockets_of, server.workers()))
        for _ in range(100):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.connect(("127.0.0.1", server.port))
            connection.close()

        def dealt() -> bool:
            wait_until(lambda: sum(map(sockets_of, server.workers())) == idle, what="the ends of all")
            made = self.connections(server, 6)
            shares = [sockets_of(pid) for pid in server.workers()]
            for connection in made:
                connection.close()
            return max(shares) - min(shares) <= 1

        wait_until(dealt, what="an even deal")
        server.stop()
        self.assertIsNone(server.said("Traceback"))


class SharedStoreTests(WorkersCase):
    """One data directory, several processes."""

    def test_volume_gone_before_a_worker_began(self) -> None:
        """A worker that was started while the volume was gone misses it all the same, and so does one that never saw it."""
        server = self.start()
        with server.client() as client:
            client.create_repository()
        away = self.scratch / "away"
        self.data.rename(away)
        self.data.mkdir()
        statuses = []
        for _ in range(4):
            with server.client() as client:
                statuses.append(client.get("/data/").status)
        self.assertEqual([503] * 4, statuses)
        server.wait_for_line("no volume is at")
        self.assertEqual(1, sum("no volume is at" in line for line in server.err))
        old = server.workers()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server.workers()) == 2 and not set(old) & set(server.workers()), what="new workers")
        for _ in range(4):
            with server.client() as client:
                self.assertEqual(503, client.get("/data/").status)
                self.assertEqual(503, client.post("/?create=true").status)
        self.assertEqual([], os.listdir(self.data))
        self.data.rmdir()
        away.rename(self.data)
        for _ in range(4):
            with server.client() as client:
                self.assertEqual(200, client.get("/data/").status)

    def test_the_same_object(self) -> None:
        """Many who send the same object, and some that send others under a name that is taken, all are answered rightly."""
        server = self.start()
        with server.client() as client:
            client.create_repository()
        body = random_bytes(seed=5, length=300_000)
        statuses: list[tuple[str, int]] = []

        def send(kind: str, name: str, content: bytes) -> None:
            with server.client() as client:
                statuses.append((name, client.post(f"/{kind}{name}", content).status))

        name = object_id(body)
        for _ in range(3):
            threads = [threading.Thread(target=send, args=("data/", name, body)) for _ in range(6)]
            threads += [threading.Thread(target=send, args=("", "config", b"%d" % number)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual({(name, 200), ("config", 200), ("config", 403)}, set(statuses))
        self.assertEqual(body, object_path(self.data, "data", name).read_bytes())

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """Backup, check, prune and restore with users, TLS and several workers."""
        users = self.scratch / "users"
        users.write_text(sha_line("alice", "secret"))
        certificate = make_certificate(self.scratch)
        server = self.start("--htpasswd-file", str(users), "--private-repos", *certificate.flags)
        url = f"https://alice:secret@127.0.0.1:{server.port}/alice/"
        restic = Restic(self, url, self.scratch, "--cacert", str(certificate.authority))
        tree = self.scratch / "tree"
        make_tree(tree, seed=1, size_bytes=16 * MIB)
        restic.create()
        restic.succeed("backup", str(tree))
        change_tree(tree, seed=2)
        restic.succeed("backup", str(tree))
        restic.succeed("forget", "--keep-last", "1", "--prune")
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        target = self.scratch / "restored"
        restic.succeed("restore", "latest", "--target", str(target))
        self.assertEqual(contents_below(tree), contents_below(target / tree.relative_to("/")))
        self.assertEqual(0, server.stop())


class ProfileTests(WorkersCase):
    """C{--cpu-profile}."""

    def test_one_each(self) -> None:
        """Each worker has its own file."""
        path = self.scratch / "profile"
        server = self.start("--cpu-profile", str(path))
        self.connections(server, 2)
        self.assertEqual(0, server.stop())
        self.assertEqual(["profile.1", "profile.2"], sorted(file.name for file in self.scratch.glob("profile*")))


class SystemdTests(WorkersCase):
    """systemd's own program for socket activation."""

    @skipped(None if shutil.which("systemd-socket-activate") else "systemd-socket-activate is not installed")
    def test_activated(self) -> None:
        """The server and its workers start with the first connection, which waits and is served."""
        path = self.scratch / "activated"
        server = ServerProcess(
            [
                *("systemd-socket-activate", "-l", str(path)),
                *command_line(REST_SERVER, ["--path", str(self.data), "--no-auth", *TWO]),
            ],
            self.scratch,
        )
        self.addCleanup(server.clean_up)
        server.wait_for_line("Listening on")
        for _ in range(3):
            with Client(str(path)) as client:
                self.assertEqual(404, client.get("/config").status)
        self.assertEqual(0, server.stop())


class EnvironmentTests(WorkersCase):
    """What a worker gets from where the server was started."""

    def test_current_directory(self) -> None:
        """Modules of the same names in the current directory are not the server's."""
        for name in ("resticserver", "json", "twisted"):
            (self.scratch / name).mkdir()
            (self.scratch / name / "__init__.py").write_text("raise SystemExit('wrong')\n")
        server = ServerProcess(
            command_line(REST_SERVER, ["--path", str(self.data), "--no-auth", "--listen", "127.0.0.1:0", *TWO]),
            self.scratch,
        )
        self.addCleanup(server.clean_up)
        with server.client() as client:
            self.assertEqual(404, client.get("/config").status)

    def test_command_line(self) -> None:
        """Nothing of the settings stands in the process list; parent and workers can be told apart."""
        users = self.scratch / "users"
        users.write_text(sha_line("alice", "secret"))
        server = self.start("--htpasswd-file", str(users))
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-4:-1] for pid in server.workers()]
        self.assertEqual(
            [[b"-m", b"resticserver.workers.child", b"1"], [b"-m", b"resticserver.workers.child", b"2"]],
            sorted(commands),
        )
        self.assertNotIn("LISTEN_PID", server_environment())
