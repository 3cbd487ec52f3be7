"""
The shipped F{Dockerfile}: built from a local base without network, and run by podman as users would run it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import resticserver

from ..integration.test_packaging import CHECKOUT
from ..support.certificates import make_certificate
from ..support.scratch import scratch_directory
from ..support.skipping import skipped
from ..support.waiting import wait_until
from .container_case import MINIMAL, SLIM, ContainerCase, built_s, images, next_port
from .containers import build_image

SHELLCHECK = shutil.which("shellcheck")
MOST_MINIMAL_BYTES = 100_000_000
FIRST_START = (
    "there are no users yet: add one with 'docker exec -it CONTAINER create_user NAME', or set DISABLE_AUTHENTICATION=1"
)
_CREATE_USER = "usage: create_user USER [PASSWORD]; without PASSWORD it is asked for, or read from a pipe"


class BothCase(ContainerCase):
    """With both images."""

    needed = (SLIM, MINIMAL)


class ImageTests(BothCase):
    """What is built."""

    def labels(self, name: str) -> dict[str, Any]:
        """The configuration of an image."""
        found: dict[str, Any] = json.loads(
            self.sandbox.podman("image", "inspect", "--format", "{{json .Config}}", name)
        )
        return found

    def test_configuration(self) -> None:
        """User, port, volume, signal, health check and labels, the same in both targets; the default one is C{slim}."""
        default = "localhost/resticserver:default"
        build_image(self.sandbox, images().context, images().base, "", default, resticserver.__version__)
        self.assertEqual(self.labels(SLIM), self.labels(default))
        for name in (default, SLIM, MINIMAL):
            found = self.labels(name)
            self.assertEqual("8000:8000", found["User"], name)
            self.assertEqual(({"8000/tcp": {}}, {"/data": {}}), (found["ExposedPorts"], found["Volumes"]), name)
            self.assertEqual(["/entrypoint.sh"], found["Entrypoint"], name)
            self.assertEqual("SIGTERM", found["StopSignal"].replace("15", "SIGTERM"), name)
            check = json.loads(self.sandbox.podman("image", "inspect", "--format", "{{json .HealthCheck}}", name))
            self.assertEqual(["CMD-SHELL", "rest-server health --running || exit 1"], check["Test"], name)
            self.assertEqual(resticserver.__version__, found["Labels"]["org.opencontainers.image.version"], name)
            self.assertEqual("BSD-2-Clause", found["Labels"]["org.opencontainers.image.licenses"], name)
            status, said = self.run_once("--", "rest-server", "--version", image=name)
            self.assertEqual(0, status, said)
            self.assertIn(f"rest-server {resticserver.__version__} (Python/Twisted)", said)

    def test_size_and_time(self) -> None:
        """C{minimal} is at most 100 MB. The build takes a minute at most on an idle machine; the figures are printed."""
        sizes = {
            name: int(self.sandbox.podman("image", "inspect", "--format", "{{.Size}}", name))
            for name in (images().base, SLIM, MINIMAL)
        }
        print()
        for name, size in sizes.items():
            print(f"{name}: {size / 1e6:.1f} MB")
        for name in (SLIM, MINIMAL):
            print(f"{name} built in {built_s(name):.1f} s")
        self.assertLessEqual(sizes[MINIMAL], MOST_MINIMAL_BYTES)

    def test_object_stores(self) -> None:
        """With C{EXTRAS=objects} the image has what an object store needs, and says so without."""
        name = "localhost/resticserver:objects"
        build_image(self.sandbox, images().context, images().base, "", name, resticserver.__version__, "objects")
        keys = (
            "--env=AWS_ACCESS_KEY_ID=a",
            "--env=AWS_SECRET_ACCESS_KEY=b",
            "--env=AWS_ENDPOINT_URL=http://127.0.0.1:1",
        )
        for image, words in ((name, "the object store does not answer"), (SLIM, "resticserver[objects]")):
            status, said = self.run_once(*keys, "--", "rest-server", "objects", "probe", "s3://bucket", image=image)
            self.assertEqual(1, len(said.splitlines()), said)
            self.assertIn(words, said)
            self.assertNotEqual(0, status)

    def test_other_version(self) -> None:
        """A version label that is not the program's is refused."""
        error = self.assertRaises(
            AssertionError,
            build_image,
            self.sandbox, images().context, images().base, "build", "localhost/resticserver:wrong", "99.1",
        )  # fmt: skip
        self.assertIn(f"VERSION=99.1, but this is {resticserver.__version__}", str(error))

    def test_make_image(self) -> None:
        """C{make image} builds the same with podman, with the version's label."""
        self.sandbox.succeed(
            "make", "image", "ENGINE=podman", "IMAGE=localhost/made",
            f"BUILD_FLAGS=--quiet --isolation=chroot --build-arg=BASE={images().base}",
            cwd=images().context,
        )  # fmt: skip
        for name, other in (("localhost/made:latest", SLIM), ("localhost/made:minimal", MINIMAL)):
            self.assertEqual(self.labels(other), self.labels(name))

    def test_nothing_superfluous(self) -> None:
        """Neither pip nor tests of others are in the images, and C{minimal} has no program but Python and a shell."""
        script = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
        for name in (SLIM, MINIMAL):
            status, said = self.run_once(
                "--", "/opt/resticserver/bin/python", "-c", script, "pip", "twisted.test", "twisted", image=name
            )
            self.assertEqual((0, "['twisted']"), (status, said), name)
        status, said = self.run_once("--", "/bin/sh", "-c", "echo /bin/* /usr/bin/* /sbin/*", image=MINIMAL)
        programs = {Path(path).name for path in said.split() if "*" not in path}
        self.assertLessEqual(programs, {"sh", "dash", "python3", "python3.11", "python3.12", "python3.13"}, said)


class ServingTests(BothCase):
    """The server does its work there."""

    def test_restic(self) -> None:
        """restic init, backup, check as uid 1234 and with C{--workers}, in both targets; all ends with the container."""
        for image, flags in ((SLIM, ()), (MINIMAL, ("--env=REST_SERVER_WORKERS=2",))):
            server = self.run_server(*flags, image=image)
            self.assertIn(FIRST_START, server.log())
            self.assertEqual((0, ""), server.exec("create_user", "alice", "secret"))
            server.reload()
            wait_until(lambda: self.get("/", "alice:secret")[0] == 405, what="alice")
            self.back_up(f"http://alice:secret@127.0.0.1:{self.port}/alice/laptop/")
            python = "/opt/resticserver/bin/python"
            status, said = server.exec(python, "-c", "print(open('/proc/1/status').read())")
            found = dict(line.split(":\t", 1) for line in said.splitlines())
            self.assertEqual(
                ("1234\t1234\t1234\t1234", "0000000000000000", "0000000000000000", "1"),
                (found["Uid"], found["CapEff"], found["CapBnd"], found["NoNewPrivs"]),
                image,
            )
            status, said = server.exec(python, "-c", "open('/opt/x', 'w')")
            self.assertEqual(1, status)
            self.assertIn("Read-only file system", said)
            self.assertEqual(0, server.exec("rest-server", "usage")[0])
            self.assertEqual(0, server.stop(20), server.log())
            self.assertNotIn("Traceback", server.log())
            server.remove()

    def test_users(self) -> None:
        """The image's own user and any other one can serve: in a volume of podman's, and in a directory of theirs."""
        for user in ("8000:8000", "1234", "0", "70000:70000"):
            self.port = next_port()
            volume: tuple[str, ...] = ()
            if user == "70000:70000":
                volume = (f"--volume={self.directory(user)}:/data",)
            server = self.run_server(*volume, user=user)
            self.assertEqual((0, ""), server.exec("create_user", "alice", "secret"), user)
            server.reload()
            wait_until(lambda: self.get("/alice/?create=true", "alice:secret")[0] == 405, what=user)
            self.assertEqual((0, "alice"), server.exec("rest-server", "user", "list"), user)
            server.remove()

    def test_stop(self) -> None:
        """SIGTERM ends it with 0, also with workers and with a client that is connected; no process is killed for it."""
        for flags in ((), ("--env=REST_SERVER_WORKERS=2",)):
            server = self.run_server("--env=DISABLE_AUTHENTICATION=1", *flags)
            self.assertEqual(200, self.get("/-/ready")[0])
            begun = time.monotonic()
            self.assertEqual(0, server.stop(45), server.log())
            print(f"\nstopped in {time.monotonic() - begun:.1f} s")
            self.assertIn("shutdown", server.log())
            server.remove()

    def test_no_zombies(self) -> None:
        """As process 1 the server reaps what hooks leave behind, and leaves the hooks' own statuses alone."""
        hook = self.directory(mode="755")
        path = hook / "hook"
        self.sandbox.write(
            str(path.relative_to(self.sandbox.directory)),
            "#!/bin/sh\nexec >/dev/null 2>&1\nfor i in 1 2 3; do (sleep 0.3 & sleep 0.1 &); done\necho ran >>/data/ran\n",
            0o755,
        )
        for flags in ((), ("--env=REST_SERVER_WORKERS=2",)):
            server = self.run_server(
                "--env=DISABLE_AUTHENTICATION=1", f"--volume={hook}:/hooks:ro", "--env=REST_SERVER_ON_EVENT=/hooks/hook",
                *flags,
            )  # fmt: skip
            self.back_up(f"http://127.0.0.1:{self.port}/laptop/")
            wait_until(lambda: server.exec("test", "-s", "/data/ran")[0] == 0, what="the hook")
            zombies = "cat /proc/[0-9]*/status | grep '^State:.Z'; true"
            wait_until(lambda: server.exec("sh", "-c", zombies) == (0, ""), what="no zombies")
            self.assertNotIn("--on-event", server.log())
            server.remove()


class HealthTests(BothCase):
    """The health check."""

    def test_data_directory_gone(self) -> None:
        """It succeeds, and fails with the reason when the data directory is gone; again when it is back."""
        volume = self.directory()
        data = volume / "restic"
        self.sandbox.succeed("install", "-d", "-o", "1234", data)
        for image in (SLIM, MINIMAL):
            server = self.run_server(
                f"--volume={volume}:/srv",
                "--env=DATA_DIRECTORY=/srv/restic",
                "--env=DISABLE_AUTHENTICATION=yes",
                image=image,
            )
            self.assertEqual((0, ""), server.health())
            self.sandbox.succeed("mv", data, volume / "elsewhere")
            wait_until(lambda: server.health()[0] == 1, what="the health check to fail")
            last = server.inspected(".State.Healthcheck.Log")[-1]
            self.assertEqual(1, last["ExitCode"])
            self.assertRegex(last["Output"], "^rest-server health: not ready: .+")
            print(f"\n{last['Output']}")
            self.sandbox.succeed("mv", volume / "elsewhere", data)
            wait_until(lambda: server.health()[0] == 0, what="the health check to succeed")
            server.remove()

    def test_wherever_it_listens(self) -> None:
        """It finds the server by the flags of C{OPTIONS}, of the container, of the environment and of a file."""
        files = make_certificate(scratch_directory(self))
        directory = self.directory(mode="755")
        for name, source in (("cert.pem", files.certificate), ("key.pem", files.key)):
            self.sandbox.write(f"{directory.name}/{name}", source.read_text())
        self.sandbox.write(f"{directory.name}/server.toml", 'listen = ["127.0.0.1:8003"]\n')
        tls = "--tls --tls-cert /keys/cert.pem --tls-key /keys/key.pem"
        common = (f"--volume={directory}:/keys:ro", "--env=DISABLE_AUTHENTICATION=1")
        for words in (
            ("--env=OPTIONS=--listen :9000",),
            (f"--env=OPTIONS=--listen :9000 {tls}",),
            ("--", "--listen", "unix:/data/server.sock"),
            ("--env=REST_SERVER_LISTEN=127.0.0.1:9001 127.0.0.1:9002",),
            ("--env=REST_SERVER_CONFIG=/keys/server.toml",),
            ("--init", "--env=OPTIONS=--listen :9000"),
        ):
            server = self.run_server(*common, *words)
            self.assertEqual((0, ""), server.health(), (words, server.inspected(".State.Healthcheck.Log")))
            server.remove()

    def test_ended(self) -> None:
        """It fails where no server runs."""
        status, said = self.run_once("--", "sh", "-c", "rest-server health --running || exit 1")
        self.assertEqual((1, "rest-server health: no rest-server is running"), (status, said))


class VariableTests(BothCase):
    """The variables of rest-server's image, the server's own, and arguments."""

    def test_data_directory(self) -> None:
        """C{DATA_DIRECTORY} is where the repositories are; C{REST_SERVER_PATH} wins; commands in the container follow."""
        volume = self.directory()
        self.sandbox.succeed("install", "-d", "-o", "1234", volume / "a", volume / "b")
        common = (f"--volume={volume}:/srv", "--env=DATA_DIRECTORY=/srv/a", "--env=PASSWORD_FILE=/srv/a/.htpasswd")
        server = self.run_server(*common)
        self.assertIn("Data directory: /srv/a\n", server.log())
        self.assertEqual((0, ""), server.exec("create_user", "alice", "secret"))
        self.assertEqual((0, "alice"), server.exec("rest-server", "user", "list"))
        self.sandbox.succeed("test", "-s", volume / "a" / ".htpasswd")
        server.remove()
        server = self.run_server(*common, "--env=REST_SERVER_PATH=/srv/b")
        self.assertIn("Data directory: /srv/b\n", server.log())
        self.assertIn("Loaded htpasswd file /srv/b/.htpasswd\n", server.log())

    def test_password_file(self) -> None:
        """C{PASSWORD_FILE} is made for the owner alone, and the scripts use it; C{REST_SERVER_HTPASSWD_FILE} wins."""
        secrets = self.directory()
        common = (f"--volume={secrets}:/secrets", "--env=PASSWORD_FILE=/secrets/users")
        server = self.run_server(*common)
        self.assertIn("Loaded htpasswd file /secrets/users\n", server.log())
        self.assertEqual("600", self.sandbox.succeed("stat", "-c", "%a", secrets / "users").strip())
        self.assertEqual((0, ""), server.exec("create_user", "alice", "secret"))
        self.assertEqual((0, ""), server.exec("create_user", "bob", "secret"))
        self.assertEqual((0, ""), server.exec("delete_user", "bob"))
        self.assertRegex(self.sandbox.succeed("cat", secrets / "users"), r"^alice:\$2y\$[^\n]+\n$")
        server.remove()
        server = self.run_server(*common, "--env=REST_SERVER_HTPASSWD_FILE=/secrets/others")
        self.assertIn("Loaded htpasswd file /secrets/others\n", server.log())

    def test_read_only_password_file(self) -> None:
        """A file that is mounted alone and read-only works; with users there is no hint, and none is made elsewhere."""
        directory = self.directory(mode="755")
        self.sandbox.write(f"{directory.name}/users", "alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
        server = self.run_server(f"--volume={directory}/users:/run/users:ro", "--env=PASSWORD_FILE=/run/users")
        self.assertNotIn("no users", server.log())
        self.assertEqual(405, self.get("/", "alice:secret")[0])
        self.assertEqual(401, self.get("/", "alice:wrong")[0])
        self.assertEqual(1, server.exec("test", "-e", "/data/.htpasswd")[0])

    def test_disable_authentication(self) -> None:
        """Any value of C{DISABLE_AUTHENTICATION} turns it off, an empty one does not."""
        server = self.run_server("--env=DISABLE_AUTHENTICATION=false")
        self.assertIn("Authentication disabled", server.log())
        self.assertNotIn("no users", server.log())
        self.assertEqual(1, server.exec("test", "-e", "/data/.htpasswd")[0])
        self.assertEqual(405, self.get("/")[0])
        server.remove()
        server = self.run_server("--env=DISABLE_AUTHENTICATION=")
        self.assertIn("Authentication enabled", server.log())
        self.assertEqual(401, self.get("/")[0])

    def test_options(self) -> None:
        """C{OPTIONS} is split at spaces, without file names for C{*}; arguments that are flags stand behind it."""
        server = self.run_server("--env=OPTIONS=--append-only --no-auth  --on-event /bin/*", wait=False)
        wait_until(lambda: server.inspected(".State.Status") == "exited", what="the end")
        self.assertIn("rest-server: --on-event '/bin/*': no such program", server.log())
        self.assertEqual(1, server.inspected(".State.ExitCode"))
        server.remove()
        server = self.run_server(
            "--env=OPTIONS=--append-only --no-auth --max-size 1GiB", "--", "--max-size=2GiB", "--prometheus"
        )
        self.assertIn("Append only mode enabled", server.log())
        self.assertNotIn("no users", server.log())
        wait_until(
            lambda: re.search(r"^rest_server_quota_bytes 2\.147483648e\+09$", self.get("/metrics")[1], re.MULTILINE),
            what="a limit of 2 GiB",
        )

    def test_environment(self) -> None:
        """Each C{REST_SERVER_} variable is the flag of its name; a wrong value is one line and status 1."""
        server = self.run_server(
            "--env=REST_SERVER_PRIVATE_REPOS=true", "--env=REST_SERVER_APPEND_ONLY=true", "--env=REST_SERVER_LOG=-",
            "--env=REST_SERVER_PORT=tcp://10.0.0.1:8000",
        )  # fmt: skip
        self.assertIn("Private repositories enabled", server.log())
        self.assertIn("Append only mode enabled", server.log())
        self.assertEqual(401, self.get("/alice/config")[0])
        wait_until(lambda: '"GET /alice/config HTTP/1.1" 401' in server.log(), what="the access log on stdout")
        status, said = self.run_once("--env=REST_SERVER_MAX_SIZE=much")
        self.assertEqual(1, status)
        hint, error = said.splitlines()
        self.assertTrue(hint.startswith(FIRST_START), hint)
        self.assertTrue(error.startswith("rest-server: REST_SERVER_MAX_SIZE"), error)

    def test_users_of_a_proxy(self) -> None:
        """Where a proxy identifies the users no passwords are demanded, as without a container."""
        server = self.run_server("--env=REST_SERVER_PROXY_AUTH_USERNAME=X-User")
        self.assertIn("Proxy Authentication enabled.", server.log())
        self.assertNotIn("no users", server.log())

    def test_commands(self) -> None:
        """Arguments that are no flags replace the server, as in rest-server's image; so does the old entrypoint's name."""
        self.assertEqual((0, "hello"), self.run_once("--", "echo", "hello"))
        status, said = self.run_once("--", "rest-server", "user", "list")
        self.assertEqual((1, "rest-server user: /data/.htpasswd: No such file or directory"), (status, said))
        server = self.run_server("--env=DISABLE_AUTHENTICATION=1", "--", "/entrypoint.sh")
        self.assertIn("Data directory: /data\n", server.log())
        server.remove()
        server = self.run_server("--", "rest-server", "--no-auth", "--path", "/data", "--read-only")
        self.assertIn("Read only mode enabled", server.log())

    def test_unwritable(self) -> None:
        """A directory that the user of the container may not write is one line that says what to do."""
        for image in (SLIM, MINIMAL):
            status, said = self.run_once(f"--volume={self.directory('0')}:/data", image=image)
            self.assertEqual(1, status)
            self.assertEqual(
                "cannot create /data/.htpasswd: mount a directory there that the user of the container may write (chown "
                "it, or use --user), or name another file in PASSWORD_FILE",
                said,
            )


class ShellTests(SynchronousTestCase):
    """The scripts of the image."""

    @skipped(None if SHELLCHECK else "shellcheck is not installed (Debian: apt-get install shellcheck)")
    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say about them."""
        assert SHELLCHECK is not None
        names = ("entrypoint", "rest-server", "create_user", "delete_user")
        scripts = [str(CHECKOUT / "etc" / "docker" / name) for name in names]
        for command in (
            ["--external-sources", *scripts],
            ["--shell=sh", str(CHECKOUT / "etc" / "docker" / "variables")],
        ):
            done = subprocess.run([SHELLCHECK, *command], capture_output=True, text=True, cwd=CHECKOUT)
            self.assertEqual((0, ""), (done.returncode, done.stdout + done.stderr))


class ScriptTests(BothCase):
    """C{create_user} and C{delete_user}."""

    def test_create_user(self) -> None:
        """It adds, it changes the password of a user that exists, and it reads the password from a pipe."""
        for image in (SLIM, MINIMAL):
            server = self.run_server(image=image)
            self.assertEqual((0, ""), server.exec("create_user", "alice", "first pass$word"))
            server.reload()
            wait_until(lambda: self.get("/", "alice:first pass$word")[0] == 405, what="alice")
            self.assertEqual((0, ""), server.exec("create_user", "alice", "second"))
            server.reload()
            wait_until(lambda: self.get("/", "alice:second")[0] == 405, what="the new password")
            self.assertEqual(401, self.get("/", "alice:first pass$word")[0])
            self.assertEqual((0, ""), server.exec("create_user", "bob", stdin="piped\n"))
            server.reload()
            wait_until(lambda: self.get("/", "bob:piped")[0] == 405, what="bob")
            self.assertEqual((0, "alice\nbob"), server.exec("rest-server", "user", "list"))
            # A name that is a part of another one is another one.
            self.assertEqual((0, ""), server.exec("create_user", "bo", "x"))
            self.assertEqual((0, "alice\nbob\nbo"), server.exec("rest-server", "user", "list"))
            server.remove()

    def test_wrong(self) -> None:
        """Wrong arguments are one line, and change nothing."""
        server = self.run_server()
        for words, wanted in (
            (("create_user",), (2, _CREATE_USER)),
            (("create_user", "a", "b", "c"), (2, _CREATE_USER)),
            (("create_user", ""), (2, _CREATE_USER)),
            (("create_user", "alice", ""), (1, "rest-server user: the password is empty")),
            (("create_user", "-a/b", "x"), (1, "rest-server user: '-a/b' is not a user name")),
            (("delete_user",), (2, "usage: delete_user USER")),
            (("delete_user", "a", "b"), (2, "usage: delete_user USER")),
            (("delete_user", "carol"), (1, "rest-server user: no such user: carol")),
        ):  # fmt: skip
            self.assertEqual(wanted, server.exec(*words), words)
        self.assertEqual((0, ""), server.exec("rest-server", "user", "list"))

    def test_delete_user(self) -> None:
        """It removes a user, who cannot log in any more."""
        server = self.run_server()
        for name in ("alice", "bob"):
            self.assertEqual((0, ""), server.exec("create_user", name, "secret"))
        server.reload()
        wait_until(lambda: self.get("/", "alice:secret")[0] == 405, what="alice")
        self.assertEqual((0, ""), server.exec("delete_user", "alice"))
        self.assertEqual((0, "bob"), server.exec("rest-server", "user", "list"))
        wait_until(lambda: self.get("/", "alice:secret")[0] == 401, what="alice to be refused")

    def test_no_password_in_titles(self) -> None:
        """While the password is hashed, which takes a while, no process in the container shows it."""
        server = self.run_server()
        script = (
            "create_user alice password-in-a-title & sleep 0.4; "
            "while kill -0 $! 2>/dev/null; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; sleep 0.05; done; wait $!"
        )
        # The title of the shell that runs this has the password, so the script comes on standard input.
        status, said = server.exec("sh", stdin=script)
        self.assertEqual(0, status, said)
        titles = said.split("create_user alice password-in-a-title")
        self.assertIn("rest-server user add --password-stdin -- alice", titles[-1])
        self.assertNotIn("password-in-a-title", titles[-1])
        self.assertEqual((0, "alice"), server.exec("rest-server", "user", "list"))
