"""L{resticserver.workers.monitoring}: what workers send, and what they get from the parent."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from resticserver.errors import Unavailable
from resticserver.workers.ipc import Failed, IpcConnectionLost
from resticserver.workers.messages import GetMetrics
from resticserver.workers.monitoring import SEND_S, MonitoringRequests, WorkerMonitoring

from ..service.test_monitoring import MonitoringCase, steady
from ..support.memory import InlinePool
from ..support.wires import DirectIpc
from ..telemetry.test_metrics import PLAIN, parsed, series


class WorkerMonitoringTests(MonitoringCase):
    """L{WorkerMonitoring} and what the parent makes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.parent = self.monitoring(gather=self.gather_counts)
        self.requests = MonitoringRequests(self.clock, self.parent, InlinePool())
        self.gathers = False
        self.busy = 0
        self.workers = []
        for name in ("one", "other"):
            ipc: Any = DirectIpc(self.requests.handlers(name))
            worker = WorkerMonitoring(self.clock, ipc, InlinePool(), lambda: self.busy)
            worker.startService()
            self.workers.append((worker, ipc))

    async def gather_counts(self) -> None:
        """Have all workers send their counts, if the test wants that."""
        for worker, _ in self.workers if self.gathers else ():
            worker.send()

    def written(self, text: bytes) -> float:
        """How many objects were written."""
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        return parsed(text).get(key, 0.0)

    def test_sent_now_and_then(self) -> None:
        """What a worker has counted is with the parent after C{SEND_S}, whether anyone asks or not: then it may be killed."""
        for worker, _ in self.workers:
            worker.tally(PLAIN)
        self.assertEqual(0, self.written(self.answer(self.parent).body))
        self.clock.advance(SEND_S)
        self.assertEqual(2, self.written(self.answer(self.parent).body))
        self.clock.pump([SEND_S] * 5)
        self.assertEqual(2, self.written(self.answer(self.parent).body))

    def test_sent_at_the_end(self) -> None:
        """A worker that ends in peace loses nothing, and sends no more."""
        worker, ipc = self.workers[0]
        worker.tally(PLAIN)
        worker.stopService()
        self.assertEqual(1, self.written(self.answer(self.parent).body))
        told = ipc.told
        self.clock.pump([SEND_S] * 3)
        self.assertEqual(told, ipc.told)

    def test_in_flight(self) -> None:
        """What is being answered goes with it."""
        self.busy = 3
        self.clock.advance(SEND_S)
        self.assertEqual(6, self.found(self.parent)[series("rest_server_http_requests_in_flight")])

    def test_the_whole_at_any_worker(self) -> None:
        """Whoever is asked says what the parent says, in the same bytes."""
        self.gathers = True
        for worker, _ in self.workers:
            worker.tally(PLAIN)
        for worker, _ in self.workers:
            answer = self.successResultOf(Deferred.fromCoroutine(worker.metrics()))
            self.assertEqual(2, self.written(answer.body))
            self.assertEqual(steady(self.answer(self.parent).body), steady(answer.body))
            self.assertEqual(self.answer(self.parent).content_type, answer.content_type)

    def test_odd_names_on_the_wire(self) -> None:
        """Any name comes through."""
        self.workers[0][0].tally(PLAIN._replace(user='al"иса\\'))
        self.clock.advance(SEND_S)
        answer = self.successResultOf(Deferred.fromCoroutine(self.workers[1][0].metrics()))
        key = series("rest_server_blob_write_total", user='al"иса\\', repo="alice/laptop", type="data")
        self.assertEqual(1, parsed(answer.body)[key])

    def test_no_parent(self) -> None:
        """Without a parent nobody knows the whole: 503."""
        worker, ipc = self.workers[0]
        for error in (IpcConnectionLost("gone"), Failed("broken")):
            ipc.error = error
            self.failureResultOf(Deferred.fromCoroutine(worker.metrics()), Unavailable)

    def test_asked(self) -> None:
        """The parent takes the question under the name that workers use."""
        text = self.successResultOf(self.requests.handlers("one")[GetMetrics]())
        self.assertEqual(steady(self.answer(self.parent).body), steady(text.encode()))
