"""
The proxies of Debian with the files that are shipped for them, between the real restic (and curl, which speaks HTTP/2) and the
real server. The client has another address than the proxy.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from ..support.restic import ImpatientRestic, make_tree
from ..support.scratch import files_below
from ..support.waiting import wait_until
from .examples import Apache, Caddy, Haproxy, Lighttpd, Nginx, ProxyExample
from .proxied import CLIENT, Setting, make_object, needs
from .watching import Watch

OBJECT_BYTES = 500 << 20
#: As much as restic's largest packs.
PACK_BYTES = 128 << 20
#: A proxy that stores or keeps the object has more than this at some time, and one that streams it does not.
MOST_BYTES = 100 << 20


class ProxyTests:
    """Mixed into a test case for each proxy."""

    kind: type[ProxyExample]
    #: What the server gets of a path that has every kind of encoding.
    path_at_server = "/alice/a%40b%2Fc%20d//%C3%BC/config"

    def _setting(self, *flags: str) -> Setting:
        assert isinstance(self, SynchronousTestCase)
        setting = Setting(self, self.kind)
        setting.serve(*flags)
        setting.start_proxy()
        return setting

    def test_restic(self) -> None:
        """From init to prune; the log has the client's address and user in every line."""
        setting = self._setting()
        restic = setting.restic("pc")
        tree = setting.directory / "tree"
        make_tree(tree, seed=11, size_bytes=60 << 20)
        restic.succeed("init")
        restic.succeed("backup", str(tree))
        restic.succeed("check", "--read-data")
        restic.succeed("restore", "latest", "--target", str(setting.directory / "back"))
        subprocess.run(["diff", "-r", tree, setting.directory / "back" / tree.relative_to("/")], check=True)
        shutil.rmtree(tree / "big")
        restic.succeed("backup", str(tree))
        restic.succeed("forget", "--keep-last", "1", "--prune")
        restic.succeed("check", "--read-data")
        lines = [line for line in setting.lines() if '"GET /-/ready ' not in line]
        assert any("POST /alice/pc/data/" in line for line in lines)
        assert any("DELETE /alice/pc/data/" in line for line in lines)
        others = [line for line in lines if not line.startswith(f"{CLIENT} - alice ")]
        assert others == [], others
        refused = [line for line in lines if not re.search(r'" (200|206|404) ', line)]
        assert refused == [], refused

    def test_streams(self) -> None:
        """An object of 500 MB in each direction with each HTTP version, while the other side is slower than the proxy."""
        setting = self._setting("--bandwidth-up", "250M")
        big = setting.directory / "big"
        path = f"/alice/pc/data/{make_object(big, OBJECT_BYTES)}"
        assert setting.curl("/alice/pc/?create=true", "--data", "").status == 200
        for version in self.kind.versions:
            with Watch(setting.proxy.pids) as up:
                answered = setting.curl(path, version, "--request", "POST", "--upload-file", str(big))
            assert (answered.status, answered.http) == (200, version[6:]), (answered, setting.proxy.said())
            back = setting.directory / "back"
            with Watch(setting.proxy.pids) as down:
                answered = setting.curl(path, version, "--output", str(back), "--limit-rate", "250M")
            assert (answered.status, answered.http) == (200, version[6:]), (answered, setting.proxy.said())
            assert subprocess.run(["cmp", str(big), str(back)]).returncode == 0
            for direction, watch in (("up", up), ("down", down)):
                print(
                    f"{self.kind.program} {version[2:]} {direction}: memory {watch.memory_bytes >> 20} MiB, files "
                    f"{watch.file_bytes >> 20} MiB, written {watch.written_bytes >> 20} MiB"
                )
                most = max(watch.memory_bytes, watch.file_bytes, watch.written_bytes)
                assert most < MOST_BYTES and not watch.files, (version, direction, vars(watch))
            # Otherwise the next upload would only be compared.
            assert setting.curl(path, "--request", "DELETE").status == 200

    def test_refused_early(self) -> None:
        """A refusal that comes before the end of a large upload reaches the client with its reason."""
        setting = self._setting("--max-size", "10MiB")
        pack = setting.directory / "pack"
        name = make_object(pack, PACK_BYTES)
        assert setting.curl("/alice/pc/?create=true", "--data", "").status == 200
        # Twice: HAProxy 2.6 may use a connection again on which it has not sent all of a body.
        for version in self.kind.versions * 2:
            for path, status, reason in (("/bob/pc", 403, ""), ("/alice/pc", 507, "quota of 10 MiB")):
                answered = setting.curl(f"{path}/data/{name}", version, "--request", "POST", "--upload-file", str(pack))
                assert answered.status == status and reason in answered.body, (version, answered, setting.proxy.said())
        assert not any(found.startswith("alice/pc/data") for found in files_below(setting.directory / "data"))
        setting.server.stop()
        (setting.directory / "data" / "alice").rename(setting.directory / "old")
        setting.serve("--max-size", "10MiB")
        tree = setting.directory / "tree"
        make_tree(tree, seed=12, size_bytes=60 << 20)
        restic = setting.restic("pc", ImpatientRestic)
        assert isinstance(restic, ImpatientRestic)
        restic.create()
        ended = restic.run_until("507", "backup", str(tree))
        assert "507" in ended.out and "502" not in ended.out, ended

    def test_wrong_password(self) -> None:
        """The client's address is what fail2ban reads."""
        setting = self._setting()
        assert setting.curl("/alice/pc/config", password="wrong").status == 401
        wait_until(
            lambda: setting.server.said(f"auth failure from {CLIENT} for user alice$"), what=lambda: setting.server.err
        )

    def test_aborted_upload(self) -> None:
        """Nothing is left of it, and the server learns it at once."""
        setting = self._setting()
        pack = setting.directory / "pack"
        path = f"/alice/pc/data/{make_object(pack, PACK_BYTES)}"
        assert setting.curl("/alice/pc/?create=true", "--data", "").status == 200
        before = files_below(setting.directory / "data")
        for number, version in enumerate(self.kind.versions, 1):
            slowly = ("--request", "POST", "--upload-file", str(pack), "--limit-rate", "20M")
            with subprocess.Popen(setting.curl_command(path, version, *slowly), stdout=subprocess.DEVNULL) as curl:
                wait_until(
                    lambda: setting.server.open_files_below(setting.directory / "data" / "alice"), what="an upload"
                )
                curl.kill()
            wait_until(
                lambda: not setting.server.open_files_below(setting.directory / "data" / "alice"),
                what="the upload's end",
            )
            aborted = re.compile(rf'{CLIENT} - alice .*"POST {path} HTTP/1\.[01]" (499|400) ')
            wait_until(lambda: sum(map(bool, map(aborted.match, setting.lines()))) >= number, what=setting.lines)
            assert len([line for line in setting.lines() if f"POST {path}" in line]) == number, setting.lines()
        assert files_below(setting.directory / "data") == before

    def test_addresses_and_paths(self) -> None:
        """What a client says of its address is not forwarded, and its path is."""
        setting = self._setting()
        claims = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"}
        headers = [part for name, value in claims.items() for part in ("-H", f"{name}: {value}")]
        for version in self.kind.versions:
            setting.curl("/alice/a%40b%2Fc%20d//%C3%BC/config", version, *headers)
        wait_until(
            lambda: len([line for line in setting.lines() if "%C3%BC" in line]) == len(self.kind.versions),
            what=setting.lines,
        )
        for line in setting.lines():
            assert line.startswith(f"{CLIENT} - "), line
        paths = {line.split('"')[1].split()[1] for line in setting.lines() if "%C3%BC" in line}
        assert paths == {self.path_at_server}, paths

    def test_restarts(self) -> None:
        """A server that is away is a 502 or 503; when it is back the next upload succeeds, also on kept connections."""
        setting = self._setting()
        with setting.client() as client:
            client.create_repository("/alice/pc/")
            client.save("data", b"before", "/alice/pc/")
            setting.server.stop()
            assert client.get("/alice/pc/config").status in (502, 503)
            setting.serve()
            wait_until(lambda: client.get("/-/ready").status == 200, what=setting.proxy.said)
            name = client.save("data", b"after", "/alice/pc/")
            assert client.get(f"/alice/pc/data/{name}").body == b"after"

    def test_not_ready(self) -> None:
        """What is stored is still served when uploads are not possible, and the answer of a refusal is the server's."""
        setting = self._setting()
        with setting.client() as client:
            client.create_repository("/alice/pc/")
            name = client.save("data", b"before", "/alice/pc/")
            setting.server.stop()
            setting.serve("--min-free", "999TiB")
            wait_until(lambda: client.get("/-/ready").status == 503, what=setting.proxy.said)
            # Longer than HAProxy needs to find that out.
            self._until_noticed(setting)
            assert client.get(f"/alice/pc/data/{name}").body == b"before"
            reply = client.post(f"/alice/pc/data/{hashlib.sha256(b'x').hexdigest()}", b"x")
            assert (reply.status, b"must stay free" in reply.body) == (507, True), reply

    def _until_noticed(self, setting: Setting) -> None:
        """Wait until the proxy knows that the server is not ready; most do not ask."""


class NginxTests(ProxyTests, SynchronousTestCase):
    """nginx."""

    kind = Nginx
    skip = needs(Nginx)

    def test_watch_notices(self) -> None:
        """The check for streaming can fail: nginx's own way is to store uploads and answers."""
        setting = Setting(self, self.kind)
        setting.serve()
        setting.start_proxy(("proxy_request_buffering off", "proxy_request_buffering on"))
        big = setting.directory / "big"
        path = f"/alice/pc/data/{make_object(big, OBJECT_BYTES)}"
        self.assertEqual(200, setting.curl("/alice/pc/?create=true", "--data", "").status)
        with Watch(setting.proxy.pids) as watch:
            answered = setting.curl(path, "--request", "POST", "--upload-file", str(big))
        self.assertEqual(200, answered.status)
        self.assertGreater(watch.file_bytes, MOST_BYTES)
        self.assertGreater(watch.written_bytes, MOST_BYTES)
        self.assertTrue(watch.files)


class HaproxyTests(ProxyTests, SynchronousTestCase):
    """HAProxy."""

    kind = Haproxy
    skip = needs(Haproxy)

    def _until_noticed(self, setting: Setting) -> None:
        wait_until(lambda: "Server restic_rest/ready is DOWN" in setting.proxy.said(), what=setting.proxy.said)

    def test_proxy_protocol(self) -> None:
        """The lines that the file offers for the PROXY protocol."""
        setting = Setting(self, self.kind)
        setting.serve(listen="haproxy:tcp:{port}:interface=127.0.0.1")
        setting.start_proxy(
            ("    server ready 127.0.0.1:8000 check inter 10s\n", ""),
            ("    server not_ready 127.0.0.1:8000 backup\n", ""),
            ("    #server ", "    server "),
            ("    http-request set-header X-Forwarded-For %[src]\n", ""),
        )
        restic = setting.restic("pc")
        tree = setting.directory / "tree"
        make_tree(tree, seed=13, size_bytes=20 << 20)
        restic.succeed("init")
        restic.succeed("backup", str(tree))
        restic.succeed("check", "--read-data")
        lines = [line for line in setting.lines() if "/alice/pc/" in line]
        self.assertTrue(lines)
        self.assertEqual([], [line for line in lines if not line.startswith(f"{CLIENT} - alice ")])


class CaddyTests(ProxyTests, SynchronousTestCase):
    """Caddy."""

    kind = Caddy
    skip = needs(Caddy)


class ApacheTests(ProxyTests, SynchronousTestCase):
    """Apache."""

    kind = Apache
    skip = needs(Apache)


class LighttpdTests(ProxyTests, SynchronousTestCase):
    """lighttpd, whose way to normalize URLs is the main file's."""

    kind = Lighttpd
    path_at_server = "/alice/a@b/c%20d/%C3%BC/config"
    skip = needs(Lighttpd)

    def test_http1_only(self) -> None:
        """HTTP/2 is off, since an early refusal would be lost."""
        self.assertEqual("1.1", self._setting().curl("/-/ready", "--http2").http)
