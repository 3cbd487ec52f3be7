"""
Clients of the shipped proxies that wait longer than the proxies' own time-outs: all proxies and all clients at the same time.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from ..support.waiting import wait_until
from .examples import Apache, Caddy, Haproxy, Lighttpd, Nginx
from .proxied import Setting, make_object, needs

#: Longer than 75 s, the longest default of these proxies; restic itself keeps idle connections for 90 s.
PAUSE_S = 95
KINDS = (Nginx, Haproxy, Caddy, Apache, Lighttpd)


class SlowClientTests(SynchronousTestCase):
    """A pause of a minute and a half in the middle of everything."""

    skip = next(filter(None, map(needs, KINDS)), None)

    def test_pauses(self) -> None:
        """An upload, a download and an idle connection continue after it, over each HTTP version."""
        self.failed: list[str] = []
        threads = []
        for kind in KINDS:
            setting = Setting(self, kind)
            setting.serve()
            setting.start_proxy()
            self.assertEqual(200, setting.curl("/alice/pc/?create=true", "--data", "").status)
            for version in kind.versions:
                for client in (self.upload, self.download, self.idle):
                    threads.append(threading.Thread(target=self.run_client, args=(client, setting, version)))
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], self.failed)
        self.assertGreater(time.monotonic() - begun, PAUSE_S)

    def run_client(self, client: Callable[[Setting, str], str], setting: Setting, version: str) -> None:
        """Run one of the clients, and keep what it says of a failure."""
        try:
            wrong = client(setting, version)
        except Exception as error:
            wrong = repr(error)
        if wrong:
            self.failed.append(f"{setting.kind.program} {version} {client.__name__}: {wrong}")

    def upload(self, setting: Setting, version: str) -> str:
        """The client sends nothing in the middle of an upload."""
        path = setting.directory / f"up{version}"
        # Another object for each version.
        url = f"/alice/pc/data/{make_object(path, (32 << 20) if version == '--http2' else (33 << 20))}"
        body = path.read_bytes()
        length = ("-H", f"Content-Length: {len(body)}", "-H", "Transfer-Encoding:")
        command = setting.curl_command(url, version, "--request", "POST", "--upload-file", "-", *length)
        with subprocess.Popen(
            [*command, "--write-out", "%{http_code}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as curl:
            assert curl.stdin is not None and curl.stdout is not None
            curl.stdin.write(body[: len(body) // 2])
            curl.stdin.flush()
            time.sleep(PAUSE_S)
            curl.stdin.write(body[len(body) // 2 :])
            curl.stdin.close()
            answer = curl.stdout.read()
        return "" if answer == b"200" else f"{answer!r}"

    def download(self, setting: Setting, version: str) -> str:
        """The client takes nothing in the middle of a download."""
        path = setting.directory / f"down{version}"
        made = make_object(path, 64 << 20)
        url = f"/alice/pc/data/{made}"
        if version == "--http1.1":
            assert setting.curl(url, "--request", "POST", "--upload-file", str(path)).status == 200
        else:
            wait_until(lambda: setting.curl(url, "--head").status == 200, what="the other version's upload")
        with subprocess.Popen(setting.curl_command(url, version), stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            got = curl.stdout.read(1 << 20)
            time.sleep(PAUSE_S)
            got += curl.stdout.read()
        return "" if got == path.read_bytes() else f"{len(got)} bytes"

    def idle(self, setting: Setting, version: str) -> str:
        """restic's connections wait for their next request."""
        # One request in 95 seconds.
        pace = ("--rate", f"{3600 // PAUSE_S}/h", "--write-out", "%{http_code} %{num_connects}\n")
        both = [setting.curl_command("/-/health", version, *pace)[-1], "--output", "/dev/null"]
        command = [*setting.curl_command("/-/health", version, *pace, "--output", "/dev/null"), *both]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        return "" if done.stdout == "200 1\n200 0\n" else f"{done.stdout!r} {done.stderr!r}"
