"""
Lists of a bucket over HTTP: against a server that answers as it is told, and against SeaweedFS.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.objects.credentials import Credentials, new_session
from resticserver.objects.engine import AccessRefused, BucketMissing, EngineError
from resticserver.objects.location import Location
from resticserver.objects.pages import MAX_PAGE_BYTES
from resticserver.objects.s3 import S3Lists, open_s3
from resticserver.objects.s3_requests import S3Requests
from resticserver.objects.s3_settings import find_settings
from resticserver.objects.signed_requests import ATTEMPTS_WITHIN_S, PAUSES_S

from ..support.certificates import make_certificate
from ..support.engines import shared_seaweedfs
from ..support.processes import process_test
from .environment import aws_environment
from .test_credentials import profile
from .test_s3_list import page_of

BUCKET = Location("s3", "bucket")
KEYS = [f"alice/{number:04}" for number in range(10)]


def error(code: str, message: str = "words") -> bytes:
    """S3's description of an error."""
    return (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message><Token-0>geheim-token</Token-0></Error>'
    ).encode()


class Reply:
    """
    What the server says to one request.

    @param cut: how many bytes of the body are left out, though C{Content-Length} counts them.
    @param wait: called before anything is sent.
    @param trickle_s: the pause after each byte of the body.
    """

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        *,
        cut: int = 0,
        wait: Callable[[], object] = lambda: None,
        headers: dict[str, str] | None = None,
        trickle_s: float = 0,
    ) -> None:
        self.body = body
        self.status = status
        self.cut = cut
        self.wait = wait
        self.headers = headers or {}
        self.trickle_s = trickle_s


class _Server(ThreadingHTTPServer):
    """Clients that go away are no errors."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing for them."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class AnswerServer:
    """
    An HTTP server in a thread, which answers with one reply after the other; the last one is repeated.

    @ivar requests: the queries that came, with the C{Authorization} of each.
    @ivar connections: how many connections were made.
    """

    def __init__(self, test: SynchronousTestCase, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[tuple[str, dict[str, str], str]] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """One connection."""

            protocol_version = "HTTP/1.1"
            # Head and body in one segment: the second of two waits for the client's acknowledgement, which it delays.
            wbufsize = -1

            def setup(self) -> None:
                """Count it."""
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                """Answer with the next reply."""
                parts = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
                outer.requests.append((parts.path, query, self.headers["Authorization"]))
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                reply.wait()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                body = reply.body[: len(reply.body) - reply.cut]
                try:
                    for place in range(0, len(body), 1 if reply.trickle_s else len(body) or 1):
                        self.wfile.write(body[place : place + 1] if reply.trickle_s else body)
                        self.wfile.flush()
                        time.sleep(reply.trickle_s)
                except OSError:
                    self.close_connection = True
                if reply.cut:
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        self.server = _Server(("127.0.0.1", 0), Handler)
        test.addCleanup(self.server.server_close)
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        thread.start()
        test.addCleanup(thread.join)
        test.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class ListCase(SynchronousTestCase):
    """Lists of a bucket at a server that answers as it is told."""

    def setUp(self) -> None:
        self.home = aws_environment(self)
        (self.home / ".aws/credentials").write_text(profile("A"))
        self.pauses: list[float] = []

    def lists(self, endpoint: str, page_objects: int = 1000, **timeouts: Any) -> S3Lists:
        """The lists of the bucket at an endpoint; pauses are kept and take no time."""
        with self.environment(AWS_ENDPOINT_URL=endpoint):
            settings = find_settings(BUCKET, new_session())
            requests = S3Requests(settings, Credentials(str(BUCKET)), pause=self.pauses.append, **timeouts)
        lists = S3Lists(requests, page_objects)
        self.addCleanup(lists.close)
        return lists

    def environment(self, **variables: str) -> Any:
        """Variables for the time of a block."""
        return mock.patch.dict("os.environ", variables)

    def serve(self, *replies: Reply) -> AnswerServer:
        """A server with these replies."""
        return AnswerServer(self, *replies)

    def keys(self, lists: S3Lists, prefix: str = "alice/", after: str = "") -> list[str]:
        """The keys of the whole list."""
        return [found.key for page in lists.list_pages(prefix, after) for found in page]

    def assert_failed(self, server: AnswerServer, words: str, kind: type[EngineError] = EngineError) -> EngineError:
        """The list of the server's replies fails with an error of exactly this kind, with words for the log."""
        raised: EngineError = self.assertRaises(kind, self.keys, self.lists(server.url))
        self.assertIs(kind, type(raised))
        self.assertIn(words, raised.detail)
        self.assertNotIn("geheim", f"{raised.detail}{raised}{raised!r}")
        return raised


class PagesTests(ListCase):
    """Lists without faults."""

    def test_pages(self) -> None:
        """Page follows page on one connection, each asked for with the token of the one before."""
        server = self.serve(
            Reply(page_of(KEYS[:4], "t/1+ &")),
            Reply(page_of([], "t2")),
            Reply(page_of(KEYS[4:8], "t3")),
            Reply(page_of(KEYS[8:])),
        )
        pages = list(self.lists(server.url).list_pages("alice/"))
        self.assertEqual([4, 4, 2], [len(page) for page in pages])
        self.assertEqual([key.removeprefix("alice/") for key in KEYS], [found.key for page in pages for found in page])
        self.assertEqual(1, server.connections)
        asked = {"list-type": "2", "encoding-type": "url", "max-keys": "1000", "prefix": "alice/"}
        tokens: list[dict[str, str]] = [{}, *({"continuation-token": token} for token in ("t/1+ &", "t2", "t3"))]
        self.assertEqual([asked | token for token in tokens], [query for _, query, _ in server.requests])
        self.assertEqual({"/bucket"}, {path for path, _, _ in server.requests})

    def test_streamed(self) -> None:
        """A page is given out before the next one is asked for."""
        server = self.serve(Reply(page_of(KEYS[:4], "t")), Reply(b"", 500))
        pages = self.lists(server.url).list_pages("alice/")
        self.assertEqual(4, len(next(pages)))
        self.assertEqual(1, len(server.requests))
        self.assertRaises(EngineError, next, pages)

    def test_after(self) -> None:
        """Only later keys are asked for, and others are refused."""
        server = self.serve(Reply(page_of(KEYS[4:])))
        self.assertEqual(KEYS[4:], [f"alice/{key}" for key in self.keys(self.lists(server.url), after="0003")])
        self.assertEqual("alice/0003", server.requests[0][1]["start-after"])
        raised = self.assertRaises(EngineError, self.keys, self.lists(server.url), after="0004")
        self.assertIn("not in ascending order", raised.detail)

    def test_folder(self) -> None:
        """A folder is listed with a delimiter, page by page; its own object and an empty name are left out."""

        def page(keys: list[str], folders: list[str], token: str | None = None) -> Reply:
            groups = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
            body = page_of(keys, token).replace(b"</ListBucketResult>", groups.encode() + b"</ListBucketResult>")
            return Reply(body.replace(b"KeyCount>", b"Was>"))

        first = page(["alice/", "alice/config"], ["alice//", "alice/data/"], "t")
        server = self.serve(first, page(["alice/x"], ["alice/keys/"]))
        self.assertEqual((["data", "keys"], ["config", "x"]), self.lists(server.url).list_folder("alice/"))
        self.assertEqual(["/", "/"], [query["delimiter"] for _, query, _ in server.requests])
        for second in (
            page([], ["alice/data/"]),
            page(["alice/config"], []),
            page(["alice/data/x"], []),
            Reply(error("X")),
        ):
            self.assertRaises(EngineError, self.lists(self.serve(first, second).url).list_folder, "alice/")

    def test_check_bucket(self) -> None:
        """One request for one key, whatever it is."""
        server = self.serve(Reply(page_of(["bob/x"], "more")))
        self.lists(server.url).check_bucket()
        self.assertEqual("1", server.requests[0][1]["max-keys"])
        self.assertRaises(BucketMissing, self.lists(self.serve(Reply(error("NoSuchBucket"), 404)).url).check_bucket)
        self.assertRaises(AccessRefused, self.lists(self.serve(Reply(error("AccessDenied"), 403)).url).check_bucket)

    def test_large_pages(self) -> None:
        """A page of the longest keys is read."""
        keys = [f"alice/{'ä' * 500}{number:04}" for number in range(1000)]
        server = self.serve(Reply(page_of(keys)))
        self.assertEqual(1000, len(self.keys(self.lists(server.url))))

    def test_threads(self) -> None:
        """Several lists at once do not mix their answers."""
        server = self.serve(Reply(page_of(KEYS)))
        lists = self.lists(server.url)
        results: list[list[str]] = []
        threads = [threading.Thread(target=lambda: results.append(self.keys(lists))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([[key.removeprefix("alice/") for key in KEYS]] * 8, results)

    def test_close(self) -> None:
        """Closing twice is harmless."""
        lists = self.lists(self.serve(Reply(page_of(KEYS))).url)
        self.keys(lists)
        lists.close()
        lists.close()

    def test_open(self) -> None:
        """All that a bucket needs is found at once."""
        server = self.serve(Reply(page_of(KEYS)))
        with self.environment(AWS_ENDPOINT_URL=server.url):
            settings, credentials, lists = open_s3(BUCKET)
        self.addCleanup(lists.close)
        lists.check_bucket()
        self.assertEqual((f"{server.url}/bucket", "A"), (settings.bucket_url, credentials.current().access_key))


class FaultTests(ListCase):
    """A list is whole, or it raises."""

    def test_wrong_answers(self) -> None:
        """Answers with status 200 that are no whole page are asked for again, and then are an error."""
        whole = page_of(KEYS)
        for body, words in (
            (error("InternalError"), "the answer is 'Error'"),
            (page_of(KEYS, "t").replace(b"NextContinuationToken", b"X"), "NextContinuationToken is missing"),
            (whole[:-20], "no XML"),
            (whole.replace(b"<IsTruncated>false</IsTruncated>", b""), "IsTruncated is missing"),
            (page_of(["bob/a"]), "does not begin with the prefix"),
            (b"", "no XML"),
            (b"<html>Welcome</html>", "the answer is 'html'"),
        ):
            server = self.serve(Reply(body))
            self.pauses.clear()
            self.assert_failed(server, words)
            self.assertEqual(list(PAUSES_S), self.pauses)
            self.assertEqual(len(PAUSES_S) + 1, len(server.requests))

    def test_wrong_second_page(self) -> None:
        """A fault of a later page ends the list with an error as well."""
        for second, words in (
            (Reply(error("SlowDown")), "the answer is 'Error'"),
            (Reply(page_of(KEYS[:4], "t")), "not in ascending order"),
            (Reply(page_of(KEYS[3:])), "not in ascending order"),
            (Reply(page_of(KEYS[8:3:-1])), "not in ascending order"),
            (Reply(page_of(KEYS[5:], "t")), "does not come to an end"),
            (Reply(page_of([], "t")), "does not come to an end"),
        ):
            self.assert_failed(self.serve(Reply(page_of(KEYS[:4], "t")), second), words)

    def test_endless(self) -> None:
        """Pages without objects do not go on for ever."""
        tokens = iter(range(10**9))
        reply = Reply(b"")

        def another() -> None:
            reply.body = page_of([], f"t{next(tokens)}")

        reply.wait = another
        self.assert_failed(self.serve(reply), "does not come to an end")

    def test_passing_faults(self) -> None:
        """What passes within three more attempts is no error."""
        page = Reply(page_of(KEYS))
        whole = page_of(KEYS)
        for faults in (
            [Reply(error("InternalError"), 500)] * 3,
            [Reply(error("SlowDown"), 503), Reply(b"", 502), Reply(b"<html>", 504)],
            [Reply(whole, cut=1), Reply(whole, cut=len(whole)), Reply(whole[:-1])],
            [Reply(error("InternalError")), Reply(error("TooMany"), 429)],
        ):
            server = self.serve(*faults, page)
            self.pauses.clear()
            self.assertEqual(10, len(self.keys(self.lists(server.url))))
            self.assertEqual(list(PAUSES_S)[: len(faults)], self.pauses)

    def test_failing_for_good(self) -> None:
        """After three more attempts, or at once if another one has no sense, it is an error."""
        raised = self.assert_failed(
            self.serve(Reply(error("InternalError", "try\n again"), 500)), "500 InternalError: try again"
        )
        self.assertEqual(EngineError.default, str(raised))
        self.assertEqual(3, len(self.pauses))
        for status, body, words in (
            (400, error("AuthorizationHeaderMalformed"), "400 AuthorizationHeaderMalformed: words"),
            (404, error("NoSuchKey"), "404 NoSuchKey"),
            (404, b"<html>geheim</html>", "404"),
            (404, b"geheim", "404"),
            (405, b"", "405"),
            (501, error("NotImplemented"), "501"),
        ):
            server = self.serve(Reply(body, status))
            self.assert_failed(server, words)
            self.assertEqual(1 if status < 500 else 4, len(server.requests))

    def test_redirect(self) -> None:
        """A redirect is not followed: the signature would go to another host. The region of the bucket is named."""
        other = self.serve(Reply(page_of(KEYS)))
        headers = {"Location": f"{other.url}/bucket", "x-amz-bucket-region": "eu-west-3"}
        server = self.serve(Reply(error("PermanentRedirect"), 301, headers=headers))
        self.assert_failed(server, "the bucket is in the region eu-west-3")
        self.assertEqual([], other.requests)

    def test_missing_bucket(self) -> None:
        """A missing bucket is told apart, at once."""
        server = self.serve(Reply(error("NoSuchBucket"), 404))
        self.assert_failed(server, "404 NoSuchBucket", BucketMissing)
        self.assertEqual(1, len(server.requests))

    def test_declaration_in_an_error(self) -> None:
        """No entity is expanded in the description of an error either."""
        body = b'<!DOCTYPE a [<!ENTITY c "NoSuchBucket">]>' + error("&c;")
        self.assert_failed(self.serve(Reply(body, 404)), "404")

    def test_slow(self) -> None:
        """An answer that does not come is an error, and one that comes byte by byte as well."""
        held = threading.Event()
        self.addCleanup(held.set)
        server = self.serve(Reply(page_of(KEYS), wait=held.wait))
        lists = self.lists(server.url, read_timeout_s=0.1)
        raised = self.assertRaises(EngineError, self.keys, lists)
        self.assertIn("ReadTimeoutError", raised.detail)
        server = self.serve(Reply(page_of(KEYS), trickle_s=0.01))
        lists = self.lists(server.url, answer_timeout_s=0.1)
        raised = self.assertRaises(EngineError, self.keys, lists)
        self.assertIn("takes longer than 0.1 seconds", raised.detail)
        self.assertEqual(4, server.connections)

    def test_time_for_all_attempts(self) -> None:
        """No attempt begins later than half a minute after the first."""
        self.assertTrue(sum(PAUSES_S) < ATTEMPTS_WITHIN_S <= 30)
        now = [0.0]

        def pass_time() -> None:
            now[0] += 20

        server = self.serve(Reply(b"", 500, wait=pass_time))
        with self.environment(AWS_ENDPOINT_URL=server.url):
            settings = find_settings(BUCKET, new_session())
        requests = S3Requests(settings, Credentials(str(BUCKET)), pause=self.pauses.append, clock=lambda: now[0])
        self.addCleanup(requests.close)
        self.assertRaises(EngineError, S3Lists(requests).check_bucket)
        self.assertEqual(2, len(server.requests))

    def test_too_large(self) -> None:
        """An answer that is too large is not read to its end."""
        server = self.serve(Reply(b"<" + b" " * (MAX_PAGE_BYTES + (1 << 20))))
        self.assert_failed(server, f"larger than {MAX_PAGE_BYTES} bytes")

    def test_no_connection(self) -> None:
        """Nobody listens, or the name has no address: the log says which, without the query."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            raised = self.assertRaises(EngineError, self.keys, self.lists(f"http://127.0.0.1:{port}"))
        self.assertIn("NewConnectionError: Connection refused", raised.detail)
        self.assertNotIn("list-type", raised.detail)
        self.assertEqual(3, len(self.pauses))

    def test_closed_by_the_engine(self) -> None:
        """An idle connection that the engine has closed is no error."""
        server = self.serve(Reply(page_of(KEYS), headers={"Connection": "close"}))
        lists = self.lists(server.url)
        for _ in range(3):
            self.assertEqual(10, len(self.keys(lists)))
        self.assertEqual(([], 3), (self.pauses, server.connections))


class CredentialTests(ListCase):
    """What happens when the engine refuses the credentials."""

    def test_refused(self) -> None:
        """They are looked for anew once; with the same ones there is no second attempt."""
        for status, code in ((403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (401, "Unauthorized")):
            server = self.serve(Reply(error(code), status))
            self.assert_failed(server, f"{status} {code}: words", AccessRefused)
            self.assertEqual(1, len(server.requests))
        self.assertEqual([], self.pauses)

    def test_replaced_before_a_request(self) -> None:
        """A new file is used for the next page."""
        server = self.serve(Reply(page_of(KEYS[:4], "t")), Reply(page_of(KEYS[4:])))
        pages = self.lists(server.url).list_pages("alice/")
        next(pages)
        (self.home / ".aws/credentials").write_text(profile("NEW"))
        self.assertEqual(1, len(list(pages)))
        self.assertEqual(["A", "NEW"], [used.split("Credential=")[1].split("/")[0] for _, _, used in server.requests])

    def test_replaced_during_a_request(self) -> None:
        """If others are there after a refusal, the request is made once more with them."""
        refusal = Reply(
            error("InvalidAccessKeyId"), 403, wait=lambda: (self.home / ".aws/credentials").write_text(profile("NEW"))
        )
        server = self.serve(refusal, Reply(page_of(KEYS)))
        self.assertEqual(10, len(self.keys(self.lists(server.url))))
        self.assertEqual(2, len(server.requests))
        self.assertIn("Credential=NEW/", server.requests[1][2])

    def test_refused_twice(self) -> None:
        """There is no third attempt."""
        keys = iter("BCDEFG")
        refusal = Reply(
            error("AccessDenied"), 403, wait=lambda: (self.home / ".aws/credentials").write_text(profile(next(keys)))
        )
        server = self.serve(refusal)
        self.assert_failed(server, "403 AccessDenied", AccessRefused)
        self.assertEqual(2, len(server.requests))

    def test_nothing_is_logged(self) -> None:
        """No failure logs anything by itself: the caller does, with the detail."""
        with capturedLogs() as logs:
            self.assert_failed(self.serve(Reply(error("AccessDenied"), 403)), "403", AccessRefused)
        self.assertEqual([], [formatEvent(event) for event in logs])


class TransportTests(ListCase):
    """Certificates and proxies."""

    def test_certificates(self) -> None:
        """The engine's certificate must be of an authority that is trusted: C{AWS_CA_BUNDLE} names one."""
        files = make_certificate(self.home)
        server = self.serve(Reply(page_of(KEYS)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        server.server.socket = context.wrap_socket(
            server.server.socket, server_side=True, do_handshake_on_connect=False
        )
        url = server.url.replace("http://", "https://")
        raised = self.assertRaises(EngineError, self.keys, self.lists(url))
        self.assertIn("SSLError", raised.detail)
        self.assertEqual([], server.requests)
        with self.environment(AWS_CA_BUNDLE=str(files.authority)):
            self.assertEqual(10, len(self.keys(self.lists(url))))

    def test_wrong_authorities(self) -> None:
        """A file without certificates is found at the start, but only if certificates are to be verified."""
        file = self.home / "ca.pem"
        file.write_text("geheim")
        with self.environment(AWS_CA_BUNDLE=str(file)):
            raised = self.assertRaises(StartError, self.lists, "https://127.0.0.1:1")
            self.assertEqual(f"--path: cannot read {file} (AWS_CA_BUNDLE): it has no valid certificates", str(raised))
            self.lists("http://127.0.0.1:1")

    def test_proxy(self) -> None:
        """A proxy of the environment is used, with its password, but for hosts that are excepted."""
        proxy = self.serve(Reply(page_of(KEYS)))
        address = proxy.url.removeprefix("http://")
        with self.environment(http_proxy=f"http://user:geheim@{address}"):
            self.assertEqual(10, len(self.keys(self.lists("http://127.0.0.1:1"))))
            with self.environment(no_proxy="127.0.0.1"):
                self.assertRaises(EngineError, self.keys, self.lists("http://127.0.0.1:1"))
        self.assertEqual(1, len(proxy.requests))


@process_test
class SeaweedTests(ListCase):
    """A real engine."""

    def setUp(self) -> None:
        super().setUp()
        self.engine = shared_seaweedfs()
        self.bucket = self.engine.new_bucket(self)
        pair = self.engine.credentials
        self.credentials = self.home / ".aws/credentials"
        self.write_credentials(pair.access_key, pair.secret_key)

    def write_credentials(self, key: str, secret: str) -> None:
        """Write the file."""
        self.credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    def real_lists(self, page_objects: int = 1000, bucket: str = "") -> S3Lists:
        """The lists of the bucket."""
        with self.environment(AWS_ENDPOINT_URL=self.engine.endpoint):
            settings = find_settings(Location("s3", bucket or self.bucket), new_session())
            lists = S3Lists(S3Requests(settings, Credentials("s3://x"), pause=self.pauses.append), page_objects)
        self.addCleanup(lists.close)
        return lists

    def put(self, *keys: str) -> None:
        """Store objects."""
        for key in keys:
            status = self.engine.request("PUT", f"/{self.bucket}/{urllib.parse.quote(key)}", body=key.encode()).status
            self.assertEqual(200, status, key)

    def test_keys(self) -> None:
        """All kinds of keys are found as they were stored, with sizes and times, whatever the size of a page."""
        keys = [
            *("alice/config", "alice/data/00/a", "alice/data/ff/b", "alice/keys/1", "alice-2/config", "alice2/config"),
            *("alice/Größe 50%+1/config", "alice/a b/x", "alice/a+b/x", "alice/<&>'\"/x", "\U0001f600/x", "\uffee/x"),
        ]
        self.put(*keys)
        before = time.time()
        for page_objects in (1, 2, 5, 1000):
            lists = self.real_lists(page_objects)
            found = [found for page in lists.list_pages("") for found in page]
            self.assertEqual(sorted(keys), sorted(each.key for each in found))
            self.assertEqual({key: len(key.encode()) for key in keys}, {each.key: each.size_bytes for each in found})
            self.assertTrue(all(abs(each.modified_s - before) < 600 for each in found))
            below = {key.removeprefix("alice/data/") for key in keys if key.startswith("alice/data/")}
            self.assertEqual(below, set(self.keys(lists, "alice/data/")))
        self.assertEqual([], self.keys(lists, "bob/"))

    def test_folders(self) -> None:
        """Folders are found whatever the size of a page, also those of which one name begins with the other."""
        self.put("x", "a b+c%/x", "al/config", "al/data/00/x", "al/keys/k", "al-2/config", "al0/config", "al.d", "z")
        for page_objects in (1, 2, 1000):
            lists = self.real_lists(page_objects)
            folders, names = lists.list_folder("")
            self.assertEqual((["a b+c%", "al", "al-2", "al0"], ["al.d", "x", "z"]), (sorted(folders), sorted(names)))
            self.assertEqual((["data", "keys"], ["config"]), lists.list_folder("al/"))
            self.assertEqual(([], []), lists.list_folder("nobody/"))

    def test_after(self) -> None:
        """A list can begin after an object, or after all of a folder."""
        self.put("alice/config", "alice/data/00/a", "alice/data/ff/b", "alice/index/1", "alice/keys/1")
        lists = self.real_lists(2)
        self.assertEqual(["data/ff/b", "index/1", "keys/1"], self.keys(lists, after="data/00/a"))
        self.assertEqual(["index/1", "keys/1"], self.keys(lists, after="data/\U0010ffff"))
        self.assertEqual([], self.keys(lists, after="keys/1"))

    def test_failures(self) -> None:
        """A bucket that is missing, a key that is unknown, a wrong secret; then all is well again without a restart."""
        self.put("alice/config")
        lists = self.real_lists()
        lists.check_bucket()
        self.assertRaises(BucketMissing, self.real_lists(bucket="missing-bucket").check_bucket)
        pair = self.engine.credentials
        for key, secret in (("UNKNOWN", pair.secret_key), (pair.access_key, "wrong")):
            self.write_credentials(key, secret)
            raised = self.assertRaises(AccessRefused, self.keys, lists)
            self.assertIn("403", raised.detail)
            self.assertNotIn(pair.secret_key, raised.detail)
        self.write_credentials(pair.access_key, pair.secret_key)
        self.assertEqual(["config"], self.keys(lists))
