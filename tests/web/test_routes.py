"""
restic's protocol, as PROTOCOL says it: statuses, headers and bodies of each operation.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from tests.support.memory import Bench, HeldPool, request

BLOB = b"0123456789" * 10
NAME = hashlib.sha256(BLOB).hexdigest()
OTHER = "ab" * 32


class ApiCase(SynchronousTestCase):
    """A repository at the root."""

    def setUp(self) -> None:
        self.bench = Bench(self.mktemp())
        self.bench.store.create_repository(())

    def ask(
        self, method: str, path: str, body: bytes | None = None, /, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one answer."""
        connection = self.bench.ask(request(method, path, body, **headers))
        head, _, content = connection.received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.reason = lines[0].split(" ", 2)[2]
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split(" ")[1]), fields, content

    def put(self, kind: str = "data", blob: bytes = BLOB) -> str:
        """Save a blob; its name."""
        name = hashlib.sha256(blob).hexdigest()
        self.assertEqual(self.ask("POST", f"/{kind}/{name}", blob)[0], 200)
        return name


class RepositoryTests(ApiCase):
    """Create."""

    def test_create(self) -> None:
        """Exactly 200, again and again; the directories are there."""
        for _ in range(2):
            status, headers, body = self.ask("POST", "/alice/laptop/?create=true", b"")
            self.assertEqual((status, headers["Content-Length"], body), (200, "0", b""))
        for kind in ("data/00", "data/ff", "index", "keys", "locks", "snapshots"):
            self.assertTrue(os.path.isdir(os.path.join(self.bench.store.path, "alice/laptop", kind)))

    def test_create_needs_the_parameter(self) -> None:
        """400 without create=true, and nothing is made."""
        for query in ("", "?create=false", "?create", "?create=True"):
            self.assertEqual(self.ask("POST", f"/bob/{query}", b"")[0], 400)
        self.assertFalse(os.path.exists(os.path.join(self.bench.store.path, "bob")))

    def test_unknown_repository(self) -> None:
        """A save into a repository that is not there: 404 with the reason, and nothing is made."""
        self.assertEqual(self.ask("POST", f"/nobody/data/{NAME}", BLOB)[0], 404)
        self.assertEqual(self.reason, "no such repository")
        self.assertEqual(self.ask("POST", "/a/b/c/?create=true", b"")[0], 404)
        self.assertEqual(self.reason, "a repository may be at most 2 folders deep (--max-depth)")
        self.assertFalse(os.path.exists(os.path.join(self.bench.store.path, "nobody")))


class ObjectTests(ApiCase):
    """Save, load, stat, remove."""

    def test_load(self) -> None:
        """Whole and in parts, with exact lengths and types and never a validator."""
        self.put()
        cases: dict[str | None, tuple[int, bytes, str | None]] = {
            None: (200, BLOB, None),
            "bytes=0-": (206, BLOB, "bytes 0-99/100"),
            "bytes=10-": (206, BLOB[10:], "bytes 10-99/100"),
            "bytes=10-19": (206, BLOB[10:20], "bytes 10-19/100"),
            "bytes=90-1000": (206, BLOB[90:], "bytes 90-99/100"),
            "bytes=-7": (206, BLOB[-7:], "bytes 93-99/100"),
            "bytes=0-1,4-5": (200, BLOB, None),
            "lines=1-2": (200, BLOB, None),
            "bytes=100-": (416, b"the range starts past the end of the object\n", "bytes */100"),
        }
        for wanted, (status, body, content_range) in cases.items():
            extra = {} if wanted is None else {"Range": wanted}
            got, headers, content = self.ask("GET", f"/data/{NAME}", **extra)
            self.assertEqual((got, content, headers.get("Content-Range")), (status, body, content_range), wanted)
            self.assertEqual(headers["Content-Length"], str(len(body)))
            if status != 416:
                self.assertEqual(headers["Content-Type"], "application/octet-stream")
            self.assertFalse({"ETag", "Last-Modified", "Content-Encoding", "Transfer-Encoding"} & headers.keys())

    def test_if_range(self) -> None:
        """Nothing has a validator here, so whatever a client compares with is not what is there: it gets the whole."""
        self.put()
        for condition in ('"abc"', 'W/"abc"', "Sun, 06 Nov 1994 08:49:37 GMT"):
            self.assertEqual(
                (200, BLOB), self.ask("GET", f"/data/{NAME}", **{"Range": "bytes=1-2", "If-Range": condition})[0::2]
            )

    def test_large(self) -> None:
        """An object that does not go out in one write."""
        blob = os.urandom(1_500_000)
        name = self.put(blob=blob)
        self.assertEqual(self.ask("GET", f"/data/{name}")[2], blob)
        self.assertEqual(self.ask("GET", f"/data/{name}", Range="bytes=1-1200000")[2], blob[1:1200001])

    def test_empty(self) -> None:
        """An empty object with bytes=0- is 200 and empty."""
        name = self.put(blob=b"")
        status, headers, body = self.ask("GET", f"/data/{name}", Range="bytes=0-")
        self.assertEqual((status, headers["Content-Length"], body), (200, "0", b""))

    def test_stat(self) -> None:
        """HEAD tells the length and sends nothing."""
        self.put()
        self.assertEqual(self.ask("HEAD", f"/data/{NAME}")[1]["Content-Length"], "100")
        self.assertEqual(self.ask("HEAD", f"/data/{OTHER}")[0::2], (404, b""))

    def test_wrong_hash(self) -> None:
        """400, and nothing is there."""
        self.assertEqual(self.ask("POST", f"/data/{OTHER}", BLOB)[0], 400)
        self.assertEqual(self.ask("HEAD", f"/data/{OTHER}")[0], 404)

    def test_again(self) -> None:
        """The same bytes again are 200; other bytes under the name are 403 and change nothing; damage is healed."""
        self.put()
        self.put()
        self.assertEqual(self.ask("POST", f"/data/{NAME}", b"other")[0], 403)
        self.assertEqual(self.ask("GET", f"/data/{NAME}")[2], BLOB)
        with open(os.path.join(self.bench.store.path, "data", NAME[:2], NAME), "r+b") as file:
            file.write(b"XXXX")
        self.put()
        self.assertEqual(self.ask("GET", f"/data/{NAME}")[2], BLOB)

    def test_config(self) -> None:
        """Any bytes; equal ones again are 200, others 403; Range is ignored."""
        self.assertEqual(self.ask("HEAD", "/config")[0], 404)
        self.assertEqual(self.ask("POST", "/config", b"secret config")[0], 200)
        self.assertEqual(self.ask("POST", "/config", b"secret config")[0], 200)
        self.assertEqual(self.ask("POST", "/config", b"other")[0], 403)
        self.assertEqual(self.ask("GET", "/config", Range="bytes=1-2")[0::2], (200, b"secret config"))
        self.assertEqual(self.ask("HEAD", "/config")[1]["Content-Length"], "13")
        self.assertEqual(self.ask("DELETE", "/config")[0], 200)

    def test_remove(self) -> None:
        """200, also for what is not there."""
        self.put()
        for _ in range(2):
            self.assertEqual(self.ask("DELETE", f"/data/{NAME}")[0], 200)

    def test_names(self) -> None:
        """A name that is no id is 404, never 400; but what nothing takes is 405 everywhere."""
        self.assertEqual(self.ask("OPTIONS", "/data/x", b"")[0], 405)
        self.assertEqual(self.ask("PATCH", "/no/such/path", b"")[0], 405)
        for name in ("foobar", NAME.upper(), NAME[:-1], NAME + "0", "..", "%2e%2e", NAME + "%00"):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                self.assertEqual(self.ask(method, f"/data/{name}", b"")[0], 404, name)


class ListTests(ApiCase):
    """Lists in both versions."""

    def test_versions(self) -> None:
        """v2 where Accept names it, v1 else; the type to the byte."""
        self.put("keys")
        v1 = (200, "application/vnd.x.restic.rest.v1", [NAME])
        v2 = (200, "application/vnd.x.restic.rest.v2", [{"name": NAME, "size": 100}])
        cases = {
            None: v1,
            "*/*": v1,
            "application/vnd.x.restic.rest.v1": v1,
            "application/vnd.x.restic.rest.v2": v2,
            "text/html, application/vnd.x.restic.rest.v2;q=0.9": v2,
        }
        for accept, (status, content_type, entries) in cases.items():
            extra = {} if accept is None else {"Accept": accept}
            got, headers, body = self.ask("GET", "/keys/", **extra)
            self.assertEqual((got, headers["Content-Type"], json.loads(body)), (status, content_type, entries))

    def test_empty(self) -> None:
        """An empty list is [] and not null."""
        self.assertEqual(self.ask("GET", "/locks/")[2], b"[]")

    def test_missing(self) -> None:
        """404 only where the type's directory is not there."""
        self.assertEqual(self.ask("GET", "/nobody/keys/")[0], 404)

    def test_long(self) -> None:
        """A list of more than one chunk comes in chunks and is whole JSON."""
        names = set()
        for number in range(3000):
            name = hashlib.sha256(b"%d" % number).hexdigest()
            names.add(name)
            with open(os.path.join(self.bench.store.path, "data", name[:2], name), "wb"):
                pass
        _, headers, body = self.ask("GET", "/data/", Accept="application/vnd.x.restic.rest.v2")
        self.assertEqual(headers["Transfer-Encoding"], "chunked")
        self.assertEqual({entry["name"] for entry in json.loads(unchunked(body))}, names)

    def test_failing_half_way(self) -> None:
        """An error after the first byte ends the connection: a short list must never parse."""
        self.test_long()
        real = self.bench.store.list_objects

        def failing(*args: Any, **kwargs: Any) -> Any:
            listing = real(*args, **kwargs)
            parts = listing.__class__.__iter__

            class Failing(listing.__class__):  # type: ignore[misc, name-defined]
                def __iter__(self) -> Any:
                    for number, part in enumerate(parts(self)):
                        if number == 200:
                            raise OSError(5, "Input/output error")
                        yield part

            listing.__class__ = Failing
            return listing

        self.bench.store.list_objects = failing  # type: ignore[method-assign]
        connection = self.bench.ask(request("GET", "/data/"))
        self.assertTrue(connection.transport.aborted)
        self.assertFalse(connection.received.endswith(b"0\r\n\r\n"))
        self.assertRaises(ValueError, json.loads, unchunked(connection.received.partition(b"\r\n\r\n")[2]))


class PolicyTests(SynchronousTestCase):
    """Append-only on the wire."""

    def test_append_only(self) -> None:
        """DELETE is 403 but for locks, with a reason; saves and equal saves work."""
        bench = Bench(self.mktemp(), policy=Policy(append_only=True))
        bench.store.create_repository(())
        for kind in ("data", "index", "keys", "snapshots", "locks"):
            path = f"/{kind}/{NAME}"
            for _ in range(2):
                self.assertEqual(bench.ask(request("POST", path, BLOB)).statuses(), [200])
            connection = bench.ask(request("DELETE", path))
            self.assertEqual(connection.statuses(), [200 if kind == "locks" else 403])
        self.assertIn(b"append-only", bench.ask(request("DELETE", "/config")).received)


class BackPressureTests(SynchronousTestCase):
    """Downloads that a slow client takes."""

    def test_paused(self) -> None:
        """While the transport has enough, one chunk is in hand and no more is read."""
        pool = HeldPool()
        bench = Bench(self.mktemp(), pool=pool)
        bench.store.create_repository(())
        blob = os.urandom(4 << 20)
        name = hashlib.sha256(blob).hexdigest()
        with open(os.path.join(bench.store.path, "data", name[:2], name), "wb") as file:
            file.write(blob)
        connection = bench.ask(request("GET", f"/data/{name}"))
        pool.release()
        connection.channel.pauseProducing()
        pool.release(20)
        self.assertEqual(pool.jobs, [])
        self.assertLess(len(connection.received), 1 << 20)
        connection.channel.resumeProducing()
        pool.release(30)
        self.assertTrue(connection.received.endswith(blob[-1000:]))
        self.assertEqual(bench.records[0].sent_bytes, len(blob))

    def test_stalled(self) -> None:
        """A client that takes nothing for five minutes is given up, and the record says truncated."""
        pool = HeldPool()
        bench = Bench(self.mktemp(), pool=pool)
        bench.store.create_repository(())
        blob = os.urandom(4 << 20)
        name = hashlib.sha256(blob).hexdigest()
        with open(os.path.join(bench.store.path, "data", name[:2], name), "wb") as file:
            file.write(blob)
        connection = bench.ask(request("GET", f"/data/{name}"))
        pool.release(2)
        connection.channel.pauseProducing()
        bench.clock.advance(311)
        self.assertTrue(connection.transport.aborted)
        pool.release(3)
        self.assertEqual([record.ending.value for record in bench.records], ["truncated"])


def unchunked(data: bytes) -> bytes:
    """The content of a chunked body, as far as it is there."""
    content = b""
    while data:
        length, _, data = data.partition(b"\r\n")
        content += data[: int(length or b"0", 16)]
        data = data[int(length or b"0", 16) + 2 :]
    return content
