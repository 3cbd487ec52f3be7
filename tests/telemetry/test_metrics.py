"""
L{resticserver.telemetry.metrics}: what is counted of requests, and the text that is made of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from resticserver.targets import Kind as TargetKind
from resticserver.targets import Target
from resticserver.telemetry import metrics
from resticserver.telemetry.last_day import Written
from resticserver.telemetry.metrics import (
    DURATION_BUCKETS_S,
    Exposition,
    Family,
    MetricType,
    RequestCounts,
    Sample,
    Tally,
)
from resticserver.telemetry.record import Effect, Ending, Operation, Record

from ..contract.store import id_of
from ..support.memory import Bench, HeldPool, request
from ..support.processes import process_test
from ..support.skipping import skipped

PROMTOOL = shutil.which("promtool")
#: What a test case's C{skip} is set to.
SKIP_WITHOUT_PROMTOOL = (
    None if PROMTOOL else "promtool is not installed (Debian and Ubuntu: apt-get install prometheus)"
)

#: A sample's name with its labels, sorted.
Series = tuple[str, tuple[tuple[str, str], ...]]

NAME = "ab" * 32
LAPTOP = ("alice", "laptop")
PACK = Target(LAPTOP, TargetKind.OBJECT, "data", NAME)

PLAIN = Record(
    started=0.0,
    duration_s=0.004,
    address="192.0.2.7",
    user="alice",
    method=b"POST",
    uri=b"/",
    version=b"HTTP/1.1",
    target=PACK,
    status=200,
    sent_bytes=5,
    received_bytes=70,
    referer=None,
    user_agent=None,
    ending=Ending.DONE,
    effect=Effect(Operation.WRITE, 64),
)


def parsed(text: bytes | str) -> dict[Series, float]:
    """
    All samples of a page, as Prometheus' own client library reads them.

    @raise AssertionError: one is there twice.
    """
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(text if isinstance(text, str) else text.decode("utf-8")):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def series(name: str, **labels: str) -> Series:
    """A key of L{parsed}."""
    return name, tuple(sorted(labels.items()))


def blobs(found: dict[Series, float]) -> dict[Series, float]:
    """Only rest-server's own families."""
    return {key: value for key, value in found.items() if key[0].startswith("rest_server_blob_")}


def counted_by(tally: Tally) -> dict[Series, float]:
    """What a tally says, as a page has it."""
    return parsed(Exposition().text(tally.counted, ()))


def complaints(text: bytes) -> str:
    """What C{promtool check metrics} finds in a page; nothing, if it is clean."""
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    said = (checked.stdout + checked.stderr).decode()
    return said if said or not checked.returncode else f"status {checked.returncode}"


class TallyTests(SynchronousTestCase):
    """L{Tally}."""

    def test_objects(self) -> None:
        """Each operation has its own families, with user, repository and type; numbers and bytes are sums."""
        tally = Tally()
        for record in (
            PLAIN,
            PLAIN._replace(effect=Effect(Operation.WRITE, 36)),
            PLAIN._replace(method=b"GET", sent_bytes=40, effect=Effect(Operation.READ)),
            PLAIN._replace(method=b"DELETE", sent_bytes=0, effect=Effect(Operation.DELETE, 64)),
            PLAIN._replace(target=Target((), TargetKind.CONFIG, "config", "config"), user=None),
            PLAIN._replace(target=Target(("bob",), TargetKind.OBJECT, "keys", NAME), user="bob"),
        ):
            tally(record)
        laptop = {"user": "alice", "repo": "alice/laptop", "type": "data"}
        wanted = {}
        for operation, labels, number, size_bytes in (
            ("write", laptop, 2, 100),
            ("read", laptop, 1, 40),
            ("delete", laptop, 1, 64),
            ("write", {"user": "", "repo": "", "type": "config"}, 1, 64),
            ("write", {"user": "bob", "repo": "bob", "type": "keys"}, 1, 64),
        ):
            wanted[series(f"rest_server_blob_{operation}_total", **labels)] = float(number)
            wanted[series(f"rest_server_blob_{operation}_bytes_total", **labels)] = float(size_bytes)
        self.assertEqual(wanted, blobs(counted_by(tally)))

    def test_without_effect(self) -> None:
        """What changed and read nothing makes no series of objects, whatever it asked for; it is a request all the same."""
        tally = Tally()
        for number in range(50):
            target = Target((f"invented{number}",), TargetKind.OBJECT, "data", NAME)
            tally(PLAIN._replace(target=target, user=f"somebody{number}", status=404, effect=None))
        tally(PLAIN._replace(target=None, status=404, effect=Effect(Operation.READ)))
        found = counted_by(tally)
        self.assertEqual({}, blobs(found))
        self.assertEqual(51, found[series("rest_server_http_requests_total", method="POST", code="404")])

    def test_methods_are_bounded(self) -> None:
        """Clients may send any method; those that mean nothing here have one label together."""
        tally = Tally()
        for method in (b"GET", b"HEAD", b"POST", b"DELETE", b"PUT", b"get", b"-", b"X" * 200, b'A"B', b"\xff"):
            tally(PLAIN._replace(method=method, effect=None))
        requests = {
            key: value for key, value in counted_by(tally).items() if key[0] == "rest_server_http_requests_total"
        }
        wanted = {
            series("rest_server_http_requests_total", method=method, code="200"): number
            for method, number in (("GET", 1), ("HEAD", 1), ("POST", 1), ("DELETE", 1), ("other", 6))
        }
        self.assertEqual(wanted, requests)

    def test_traffic(self) -> None:
        """Bytes of bodies are summed, those of requests that failed too."""
        tally = Tally()
        tally(PLAIN)
        tally(PLAIN._replace(status=403, effect=None, received_bytes=1000, sent_bytes=20))
        found = counted_by(tally)
        self.assertEqual(1070, found[series("rest_server_http_received_bytes_total")])
        self.assertEqual(25, found[series("rest_server_http_sent_bytes_total")])

    def test_durations(self) -> None:
        """A histogram: each bucket counts what took up to its end, the last all; their sum is the time of all."""
        tally = Tally()
        durations = (0.0, 0.001, 0.0011, 0.3, 300.0, 301.0, 5000.0)
        for duration_s in durations:
            tally(PLAIN._replace(duration_s=duration_s))
        found = counted_by(tally)
        name = "rest_server_http_request_duration_seconds"
        for end in DURATION_BUCKETS_S:
            wanted = sum(duration_s <= end for duration_s in durations)
            self.assertEqual(wanted, found[series(f"{name}_bucket", le=str(end))], end)
        self.assertEqual(len(durations), found[series(f"{name}_bucket", le="+Inf")])
        self.assertEqual(len(durations), found[series(f"{name}_count")])
        self.assertAlmostEqual(sum(durations), found[series(f"{name}_sum")])

    def test_syncs(self) -> None:
        """What several threads observe adds up, through what is taken and added meanwhile."""
        tally, whole = Tally(), Tally()

        def sync() -> None:
            for duration_s in (0.0001, 0.003, 60.0) * 1000:
                tally.synced(duration_s)

        threads = [threading.Thread(target=sync) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            whole.add(json.loads(json.dumps(tally.take())))
        whole.add(tally.take())
        found = counted_by(whole)
        name = "rest_server_fsync_duration_seconds"
        for end, wanted in (("0.0001", 4000), ("0.001", 4000), ("0.005", 8000), ("30.0", 8000), ("+Inf", 12_000)):
            self.assertEqual(wanted, found[series(f"{name}_bucket", le=end)], end)
        self.assertEqual(12_000, found[series(f"{name}_count")])
        self.assertAlmostEqual(4000 * 60.0031, found[series(f"{name}_sum")], 3)

    def test_take_and_add(self) -> None:
        """What is taken of several processes, by JSON, adds up to what one would have counted; nothing is taken twice."""
        records = [
            PLAIN._replace(
                user=user,
                target=Target((repository,), TargetKind.OBJECT, kind, NAME),
                status=status,
                duration_s=duration_s,
                effect=Effect(operation, 10 * number + 1) if status < 300 else None,
            )
            for number, (user, repository, kind, status, duration_s, operation) in enumerate(
                (user, repository, kind, status, duration_s, operation)
                for user in (None, "alice", 'ал"иса\n')
                for repository in ("a", "b\\c")
                for kind in ("data", "keys")
                for status in (200, 206, 507)
                for duration_s in (0.0005, 7.0, 1000.0)
                for operation in Operation
            )
        ]
        whole, parent = Tally(), Tally()
        workers = [Tally(), Tally(), Tally()]
        for number, record in enumerate(records):
            whole(record)
            worker = workers[number % 3 if number % 7 else 0]
            worker(record)
            if number % 5 == 0:
                parent.add(json.loads(json.dumps(worker.take())))
        for worker in workers:
            for _ in range(2):
                parent.add(json.loads(json.dumps(worker.take())))
        self.assertEqual(set(), {(one, two) for one, two in counted_by(workers[0]).items() if two})
        got, wanted = counted_by(parent), counted_by(whole)
        self.assertEqual(wanted.keys(), got.keys())
        for key, value in wanted.items():
            self.assertAlmostEqual(value, got[key], 6, key)

    def test_take_leaves_nothing(self) -> None:
        """After it the tally counts from zero, and what was taken does not change any more."""
        tally = Tally()
        tally(PLAIN)
        taken = tally.take()
        before = json.dumps(taken)
        tally(PLAIN)
        self.assertEqual(before, json.dumps(taken))
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        self.assertEqual(1, counted_by(tally)[key])

    def test_last_writes(self) -> None:
        """The last upload to each repository but of locks, in one process or several; a download or a deletion is none."""
        tally, parent = Tally(), Tally()
        for started, user, kind, operation in (
            (10.0, "alice", "data", Operation.WRITE),
            (20.0, "bob", "snapshots", Operation.WRITE),
            (30.0, "carol", "locks", Operation.WRITE),
            (40.0, "dave", "data", Operation.READ),
            (50.0, "erin", "data", Operation.DELETE),
        ):
            target = Target(LAPTOP, TargetKind.OBJECT, kind, NAME)
            tally(PLAIN._replace(user=user, target=target, effect=Effect(operation, 7), started=started))
        tally(PLAIN._replace(user="frank", effect=None, started=60.0))
        expected = {"alice/laptop": Written("bob", 20.004)}
        self.assertEqual(expected, tally.writes.by_repository)
        parent.add(json.loads(json.dumps(tally.take())))
        self.assertEqual((expected, {}), (parent.writes.by_repository, tally.writes.by_repository))
        parent.forget({"alice/laptop"})
        self.assertEqual({}, parent.writes.by_repository)

    def test_copy(self) -> None:
        """What is written by another thread does not change meanwhile."""
        tally = Tally()
        tally(PLAIN)
        copied = tally.counted.copy()
        before = Exposition().text(copied, ())
        tally(PLAIN)
        tally(PLAIN._replace(user="bob", status=503, duration_s=90.0))
        self.assertEqual(before, Exposition().text(copied, ()))
        self.assertNotEqual(before, Exposition().text(tally.counted, ()))

    def test_forget(self) -> None:
        """A repository that is gone has no series; those below it and beside it have."""
        tally = Tally()
        for repository in (("alice",), LAPTOP, ("alice2",)):
            for operation in Operation:
                tally(
                    PLAIN._replace(target=Target(repository, TargetKind.OBJECT, "data", NAME), effect=Effect(operation))
                )
        tally.forget({"alice"})
        self.assertEqual({"alice/laptop", "alice2"}, {dict(labels)["repo"] for _, labels in blobs(counted_by(tally))})
        tally.forget({"nothing"})
        self.assertEqual(12, len(blobs(counted_by(tally))))


def gauges(*samples: tuple[tuple[str, ...], float], name: str = "rest_server_some_bytes") -> Family:
    """A family with the labels of a repository's."""
    return Family(MetricType.GAUGE, name, "Some bytes", ("user", "repo"), [Sample(*sample) for sample in samples])


class ExpositionTests(SynchronousTestCase):
    """L{Exposition}."""

    #: Names that users and repositories may have, or that lie in the data directory.
    ODD = (
        "plain",
        'quo"te',
        'all"\\\n',
        "back\\slash",
        "\\n",
        "\\",
        "new\nline",
        '"',
        "tab\tand\rreturn",
        "müller@example.org",
        "алиса",
        "\N{SNOWMAN}\U0001f600",
        '{a="b"} 1',
        " spaces ",
        "#HELP",
        "",
    )

    def test_escaped(self) -> None:
        """Whatever stands in a label comes out as it was, and no other series with it."""
        wanted = {}
        samples = []
        for number, name in enumerate(self.ODD):
            samples.append(((name, f"{name}/x"), float(number)))
            wanted[series("rest_server_some_bytes", user=name, repo=f"{name}/x")] = float(number)
        text = Exposition().text(RequestCounts(), (gauges(*samples),))
        found = {key: value for key, value in parsed(text).items() if key[0] == "rest_server_some_bytes"}
        self.assertEqual(wanted, found)

    def test_one_line_a_sample(self) -> None:
        """No name ends a line: the page has as many lines as it would have with plain names."""

        def lines(names: tuple[str, ...]) -> int:
            tally = Tally()
            for name in names:
                tally(PLAIN._replace(user=name, target=Target((name,), TargetKind.OBJECT, "data", NAME)))
            return Exposition().text(tally.counted, ()).count(b"\n")

        self.assertEqual(lines(tuple(f"n{number}" for number in range(len(self.ODD)))), lines(self.ODD))

    def test_names_that_are_no_utf8(self) -> None:
        """
        Below the data directory may lie what no client can name, in any bytes: it must not cost all the others their metrics.
        """
        name = b"caf\xe9".decode("utf-8", "surrogateescape")
        text = Exposition().text(RequestCounts(), (gauges(((name, name), 1.0), (("alice", "alice"), 2.0)),))
        self.assertEqual(2.0, parsed(text)[series("rest_server_some_bytes", user="alice", repo="alice")])

    def test_cached_is_the_same(self) -> None:
        """One that has written before says the same as a new one, whatever has changed: values, labels, nothing."""
        exposition = Exposition()
        tally = Tally()
        steps: list[tuple[Family, ...]] = [
            (gauges((("a", "a/b"), 1.0)),),
            (gauges((("a", "a/b"), 1.0)),),
            (gauges((("a", "a/b"), 2.0)),),
            (gauges((("a", "a/c"), 2.0)),),
            (gauges((("a", "a/c"), 2.0), (("b", "b"), 0.0)),),
            (gauges((("b", "b"), 0.0), (("a", "a/c"), 2.0)),),
            (gauges(),),
            (),
            (gauges(name="rest_server_other_bytes"), gauges((("a", "a/b"), 1.0))),
            (gauges((("a", "a/b"), 1.0)), gauges(name="rest_server_other_bytes")),
        ]
        seen = set()
        for number, families in enumerate(steps):
            if number % 2:
                tally(PLAIN._replace(user=f"user{number}", duration_s=float(number)))
            text = exposition.text(tally.counted, families)
            self.assertEqual(Exposition().text(tally.counted, families), text, number)
            self.assertEqual(text, exposition.text(tally.counted.copy(), families), number)
            seen.add(text)
        self.assertGreater(len(seen), 6)

    def test_what_has_not_changed_is_not_written_again(self) -> None:
        """Only the families whose values are others (and the histogram) go through the client library a second time."""
        written: list[str] = []
        writes = metrics._family

        def family(one: Family) -> bytes:
            written.append(one.name)
            return writes(one)

        self.patch(metrics, "_family", family)
        exposition, tally = Exposition(), Tally()
        tally(PLAIN)
        exposition.text(tally.counted, (gauges((("a", "a"), 1.0)),))
        self.assertIn("rest_server_blob_write", written)
        written.clear()
        exposition.text(tally.counted, (gauges((("a", "a"), 1.0)),))
        self.assertEqual([], written)
        tally(PLAIN._replace(received_bytes=0, sent_bytes=0))
        exposition.text(tally.counted, (gauges((("a", "a"), 2.0)),))
        self.assertEqual(
            {
                "rest_server_blob_write",
                "rest_server_blob_write_bytes",
                "rest_server_http_requests",
                "rest_server_some_bytes",
            },
            set(written),
        )

    def test_nothing_counted(self) -> None:
        """Before the first request all families are there, so that nobody takes their absence for a fault."""
        text = Exposition().text(RequestCounts(), ()).decode()
        for operation in ("write", "read", "delete"):
            for suffix in ("", "_bytes"):
                self.assertIn(f"# TYPE rest_server_blob_{operation}{suffix}_total counter\n", text)
        self.assertIn("# TYPE rest_server_http_request_duration_seconds histogram\n", text)

    def test_no_created_series(self) -> None:
        """C{_created} would be as many series again, of no use."""
        tally = Tally()
        tally(PLAIN)
        text = Exposition().text(
            tally.counted, (Family(MetricType.COUNTER, "rest_server_x", "X", (), [Sample((), 1)]),)
        )
        self.assertIn(b"rest_server_x_total 1.0\n", text)
        self.assertNotIn(b"_created", text)
        self.assertNotIn(b"# EOF", text)

    def test_large_numbers(self) -> None:
        """Bytes are exact up to what Prometheus can keep."""
        size_bytes = (1 << 53) - 1
        text = Exposition().text(RequestCounts(), (gauges((("a", "a"), size_bytes)),))
        self.assertEqual(size_bytes, parsed(text)[series("rest_server_some_bytes", user="a", repo="a")])

    def test_form(self) -> None:
        """Each line is a comment or a sample, and each family is there once, with its help and its type before it."""
        tally = Tally()
        for operation in Operation:
            tally(PLAIN._replace(effect=Effect(operation, 3)))
        text = Exposition().text(tally.counted, (gauges((("a", "a"), 1.0)),)).decode()
        self.assertTrue(text.endswith("\n"))
        sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"\\]*"(,[a-z]+="[^"\\]*")*\})? [0-9.e+]+|# (HELP|TYPE) [a-z_]+ .+')
        for line in text.splitlines():
            self.assertTrue(sample.fullmatch(line), line)
        types = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
        self.assertEqual(len(types), len(set(types)))

    @skipped(SKIP_WITHOUT_PROMTOOL)
    @process_test
    def test_promtool(self) -> None:
        """C{promtool check metrics} finds nothing, also with odd names."""
        tally = Tally()
        for name in self.ODD:
            for operation in Operation:
                target = Target((name,), TargetKind.OBJECT, "data", NAME)
                tally(PLAIN._replace(user=name, target=target, effect=Effect(operation, 3)))
        self.assertEqual("", complaints(Exposition().text(tally.counted, (gauges((("a", 'b"\\\n'), 1.0)),))))


class EffectTests(SynchronousTestCase):
    """What requests on the real channel count as."""

    def bench(self, pool: Any = None) -> Bench:
        """A site over a store with one repository, C{alice/laptop}."""
        bench = Bench(self.mktemp(), pool=pool)
        bench.store.create_repository(LAPTOP)
        return bench

    def ask(self, bench: Bench, *asked: bytes) -> list[int]:
        """Requests one after the other; their statuses."""
        connection = bench.connect()
        connection.send(*asked)
        return connection.statuses()

    def counted(self, bench: Bench) -> dict[tuple[str, str, str], tuple[float, float]]:
        """Numbers and bytes by operation, repository and type."""
        tally = Tally()
        for record in bench.records:
            tally(record)
        return {
            (operation, repository, kind): both
            for (operation, _, repository, kind), both in tally.counted.blobs.items()
        }

    def test_each_operation(self) -> None:
        """Written, read and removed is one each, with its bytes; the config is an object too."""
        bench = self.bench()
        body = b"x" * 300
        name = id_of(body)
        statuses = self.ask(
            bench,
            request("POST", f"/alice/laptop/data/{name}", body),
            request("POST", "/alice/laptop/config", b"config!"),
            request("GET", f"/alice/laptop/data/{name}"),
            request("GET", f"/alice/laptop/data/{name}", Range="bytes=10-19"),
            request("GET", "/alice/laptop/config"),
            request("DELETE", f"/alice/laptop/data/{name}"),
        )
        self.assertEqual([200, 200, 200, 206, 200, 200], statuses)
        self.assertEqual(
            {
                ("write", "alice/laptop", "data"): (1, 300),
                ("write", "alice/laptop", "config"): (1, 7),
                ("read", "alice/laptop", "data"): (2, 310),
                ("read", "alice/laptop", "config"): (1, 7),
                ("delete", "alice/laptop", "data"): (1, 300),
            },
            self.counted(bench),
        )

    def test_nothing_done(self) -> None:
        """
        Equal bytes that are there already, removals of what is not there, looks, lists, refusals and whatever names no
        repository make no series.
        """
        bench = self.bench()
        name = id_of(b"x")
        self.ask(bench, request("POST", f"/alice/laptop/locks/{name}", b"x"))
        bench.records.clear()
        other = id_of(b"other")
        for method, path, body, headers in (
            ("POST", f"/alice/laptop/locks/{name}", b"x", {}),
            ("POST", f"/alice/laptop/locks/{name}", b"y", {}),
            ("POST", f"/alice/laptop/locks/{other}", b"not other", {}),
            ("POST", f"/bob/locks/{name}", b"x", {}),
            ("POST", "/bob/config", b"x", {}),
            ("POST", "/bob/pc/?create=true", b"", {}),
            ("HEAD", f"/alice/laptop/locks/{name}", None, {}),
            ("HEAD", "/alice/laptop/config", None, {}),
            ("GET", "/alice/laptop/locks/", None, {}),
            ("GET", f"/alice/laptop/locks/{other}", None, {}),
            ("GET", f"/nobody/locks/{name}", None, {}),
            ("GET", f"/alice/laptop/locks/{name}", None, {"Range": "bytes=5-"}),
            ("DELETE", f"/alice/laptop/locks/{other}", None, {}),
            ("DELETE", f"/nobody/locks/{name}", None, {}),
            ("PUT", f"/alice/laptop/locks/{name}", b"x", {}),
            ("GET", "/no/such/path/at/all", None, {}),
        ):
            self.ask(bench, request(method, path, body, **headers))
        self.assertEqual(16, len(bench.records))
        self.assertEqual({}, self.counted(bench))

    def test_healed(self) -> None:
        """A damaged file that is replaced is written."""
        bench = self.bench()
        body = b"sound"
        path = f"/alice/laptop/keys/{id_of(body)}"
        self.ask(bench, request("POST", path, body))
        bench.records.clear()
        with open(f"{bench.store.path}{path}", "wb") as file:
            file.write(b"dam")
        self.assertEqual([200], self.ask(bench, request("POST", path, body)))
        self.assertEqual({("write", "alice/laptop", "keys"): (1, 5)}, self.counted(bench))

    def test_written_though_its_client_is_gone(self) -> None:
        """An upload that is committed after its client went away is written, and counted."""
        pool = HeldPool()
        bench = self.bench(pool)
        body = b"late"
        connection = bench.ask(request("POST", f"/alice/laptop/data/{id_of(body)}", body))
        connection.lose()
        pool.release(9)
        self.assertEqual(len(body), bench.store.size_of(LAPTOP, "data", id_of(body)))
        self.assertEqual({("write", "alice/laptop", "data"): (1, 4)}, self.counted(bench))

    def test_removed_though_its_client_is_gone(self) -> None:
        """A removal that happens after its client went away is counted."""
        pool = HeldPool()
        bench = self.bench(pool)
        body = b"late"
        bench.ask(request("POST", f"/alice/laptop/data/{id_of(body)}", body))
        pool.release(9)
        bench.records.clear()
        connection = bench.ask(request("DELETE", f"/alice/laptop/data/{id_of(body)}"))
        connection.lose()
        pool.release(9)
        self.assertEqual({("delete", "alice/laptop", "data"): (1, 4)}, self.counted(bench))

    def test_lost_upload(self) -> None:
        """One whose client went away before its end is not written, and not counted."""
        bench = self.bench()
        whole = request("POST", f"/alice/laptop/data/{id_of(b'12345')}", b"12345")
        connection = bench.connect()
        connection.send(whole[:-1])
        connection.lose()
        self.assertEqual(1, len(bench.records))
        self.assertEqual({}, self.counted(bench))

    def test_everyone_is_no_user(self) -> None:
        """Without authentication the label of the user is empty, as rest-server has it."""
        bench = self.bench()
        self.ask(bench, request("POST", "/alice/laptop/config", b"c"))
        tally = Tally()
        for record in bench.records:
            tally(record)
        key = series("rest_server_blob_write_total", user="", repo="alice/laptop", type="config")
        self.assertEqual(1, counted_by(tally)[key])
