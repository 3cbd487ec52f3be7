"""
The scripts for FreeBSD and OpenBSD under each shell that is at hand, with the real server. F{rc.subr} and daemon(8) are stand-ins
that do what their manual pages say of the parts that the scripts use: there is no BSD here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client
from ..support.scratch import scratch_directory
from ..support.server import installed, is_running
from ..support.waiting import wait_until
from .examples import ETC, free_port, substituted

SHELLS = tuple(filter(shutil.which, ("dash", "mksh", "ksh")))
SHELLCHECK = shutil.which("shellcheck")

#: FreeBSD: what is started is F{command} with its arguments; its process is the one in the pidfile.
FREEBSD_SUBR = """
load_rc_config() { . "$RC_CONF"; }
_pid() { [ -s "$pidfile" ] && _found=$(cat "$pidfile") && kill -0 "$_found" 2>/dev/null && echo "$_found"; }
run_rc_command() {
    eval "_enabled=\\$$rcvar"
    case $1 in
    start)
        [ "$_enabled" = YES ] || { echo "Cannot 'start' $name. Set $rcvar to YES in /etc/rc.conf"; return 1; }
        for _needed in $required_files; do [ -r "$_needed" ] || { echo "$_needed is not readable."; exit 1; }; done
        for _needed in $required_dirs; do [ -d "$_needed/." ] || { echo "$_needed is not a directory."; exit 1; }; done
        eval "$command $command_args" ;;
    stop)
        _old=$(_pid) || { echo "$name not running?"; return 1; }
        kill -TERM "$_old"
        while kill -0 "$_old" 2>/dev/null; do sleep 0.1; done ;;
    status) _pid >/dev/null && echo "$name is running as pid $(_pid)." || { echo "$name is not running."; return 1; } ;;
    reload)
        _pid >/dev/null || { echo "$name not running?"; return 1; }
        eval "$reload_cmd" ;;
    *) echo "unknown command $1 ($extra_commands)"; return 1 ;;
    esac
}
"""

#: FreeBSD's daemon(8): -f, -r, -P its own pidfile, -p the child's, -u the user, -o the output.
DAEMON = """#!{python}
import getopt, os, signal, subprocess, sys, time
options, command = getopt.getopt(sys.argv[1:], "frP:p:u:o:")
options = dict(options)
assert "-f" in options and "-r" in options and options["-u"], options
if os.fork():
    os._exit(0)
os.setsid()
open(options["-P"], "w").write(str(os.getpid()))
child = None
stopping = False
def stop(*_):
    global stopping
    stopping = True
    if child:
        child.terminate()
signal.signal(signal.SIGTERM, stop)
output = open(options["-o"], "a")
os.dup2(os.open(os.devnull, os.O_RDWR), 1)
os.dup2(1, 2)
while not stopping:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    open(options["-p"], "w").write(str(child.pid))
    child.wait()
    if not stopping:
        time.sleep(1)
os.unlink(options["-P"])
os.unlink(options["-p"])
"""

#: OpenBSD: processes are found by their whole command line, which F{pexp} must match.
OPENBSD_SUBR = """
pexp="$daemon${daemon_flags:+ $daemon_flags}"
rc_reload_signal=HUP
rc_cmd() {
    case $1 in
    start)
        [ "$rc_bg" = YES ] || { echo "the server would not return"; return 1; }
        pgrep -xf "$pexp" >/dev/null && return 0
        $daemon $daemon_flags >>"$RC_LOG" 2>&1 </dev/null &
        sleep 0.5 ;;
    check) pgrep -xf "$pexp" >/dev/null ;;
    reload) pkill -"$rc_reload_signal" -xf "$pexp" ;;
    stop)
        pkill -TERM -xf "$pexp" || return 1
        _left=$((${daemon_timeout} * 10))
        while pgrep -xf "$pexp" >/dev/null && [ $_left -gt 0 ]; do sleep 0.1; _left=$((_left - 1)); done
        ! pgrep -xf "$pexp" >/dev/null ;;
    *) echo "unknown command $1"; return 1 ;;
    esac
}
"""


class ScriptTests:
    """Mixed into a test case for each system."""

    script: ClassVar[Path]
    status: ClassVar[str]

    def prepare(self, directory: Path) -> tuple[Path, dict[str, str]]:
        """
        The script with this test's paths, what its stand-ins need, and a server that would be started.

        @return: the script, and what is to be in its environment.
        """
        raise NotImplementedError

    def server(self, directory: Path) -> int:
        """The server's process; 0 without one."""
        pattern = f"[^ ]*python[0-9.]* {installed('rest-server')} --config {directory}/rest-server.toml .*"
        found = subprocess.run(["pgrep", "-xf", pattern], capture_output=True, text=True)
        return int(found.stdout or 0)

    def test_life(self) -> None:
        """Start, status, reload, stop, each as often as an administrator may call it."""
        assert isinstance(self, SynchronousTestCase)
        if not SHELLS:
            self.skipTest("dash, mksh or ksh is not installed")
        for shell in SHELLS:
            self.live(shell)

    def live(self, shell: str) -> None:
        """All of it in one shell."""
        assert isinstance(self, SynchronousTestCase)
        directory = scratch_directory(self)
        port = free_port()
        log = directory / "access.log"
        (directory / "rest-server.toml").write_text(f'listen = ["127.0.0.1:{port}"]\nno-auth = true\nlog = "{log}"\n')
        (directory / "data").mkdir()
        script, environment = self.prepare(directory)

        def call(command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [shell, str(script), command],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=100,
            )

        def ready() -> bool:
            with contextlib.suppress(OSError), Client(("127.0.0.1", port)) as client:
                return client.get("/-/ready").status == 200
            return False

        def clean_up() -> None:
            pid = self.server(directory)
            if pid:
                os.kill(pid, signal.SIGKILL)

        self.addCleanup(clean_up)
        self.assertNotEqual(0, call(self.status).returncode)
        for _ in range(2):
            started = call("start")
            self.assertEqual((0, ""), (started.returncode, started.stderr), (shell, started))
            wait_until(ready, what=(shell, started))
            self.assertEqual(0, call(self.status).returncode)
            pid = self.server(directory)
            log.rename(directory / "rotated")
            reloaded = call("reload")
            self.assertEqual((0, ""), (reloaded.returncode, reloaded.stderr), (shell, reloaded))
            wait_until(log.exists, what="a new access log")
            self.assertEqual(pid, self.server(directory))
            pid = self.crash(directory, pid)
            stopped = call("stop")
            self.assertEqual((0, ""), (stopped.returncode, stopped.stderr), (shell, stopped))
            self.assertFalse(is_running(pid))
            self.assertEqual(0, self.server(directory))
            self.assertNotEqual(0, call(self.status).returncode)

    def crash(self, directory: Path, pid: int) -> int:
        """Where the script has the server started again, kill it; the process that there is then."""
        return pid

    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say."""
        assert isinstance(self, SynchronousTestCase)
        if SHELLCHECK is None:
            self.skipTest("shellcheck is not installed")
        dialect = "ksh" if "ksh" in self.script.read_text().splitlines()[0] else "sh"
        done = subprocess.run([SHELLCHECK, "-s", dialect, str(self.script)], capture_output=True, text=True)
        self.assertEqual((0, ""), (done.returncode, done.stdout))
        self.assertTrue(os.access(self.script, os.X_OK))


class FreebsdTests(ScriptTests, SynchronousTestCase):
    """FreeBSD's."""

    script = ETC / "freebsd" / "restic_rest"
    status = "status"

    def prepare(self, directory: Path) -> tuple[Path, dict[str, str]]:
        """F{rc.conf} names all paths, so the script itself is unchanged."""
        (directory / "rc.subr").write_text(FREEBSD_SUBR)
        daemon = directory / "daemon"
        daemon.write_text(DAEMON.format(python=sys.executable))
        daemon.chmod(0o755)
        settings = {
            "enable": "YES",
            "program": installed("rest-server"),
            "config": str(directory / "rest-server.toml"),
            "path": str(directory / "data"),
            "log": str(directory / "server.log"),
            "run": str(directory),
            "daemon": str(daemon),
        }
        (directory / "rc.conf").write_text(
            "".join(f'restic_rest_{name}="{value}"\n' for name, value in settings.items())
        )
        return self.script, {"RC_SUBR": str(directory / "rc.subr"), "RC_CONF": str(directory / "rc.conf")}

    def crash(self, directory: Path, pid: int) -> int:
        """daemon(8) starts it again."""
        os.kill(pid, signal.SIGKILL)
        return wait_until(lambda: (found := self.server(directory)) not in (0, pid) and found, what="another server")

    def test_not_enabled(self) -> None:
        """Nothing is started that F{rc.conf} does not enable."""
        directory = scratch_directory(self)
        (directory / "rest-server.toml").write_text("no-auth = true\n")
        script, environment = self.prepare(directory)
        (directory / "rc.conf").write_text("")
        done = subprocess.run(
            ["sh", str(script), "start"], env={**os.environ, **environment}, capture_output=True, text=True
        )
        self.assertEqual(1, done.returncode)
        self.assertIn("restic_rest_enable", done.stdout)


class OpenbsdTests(ScriptTests, SynchronousTestCase):
    """OpenBSD's, whose C{rcctl} sets the flags and nothing else: the program's path is substituted."""

    script = ETC / "openbsd" / "restic_rest"
    status = "check"

    def prepare(self, directory: Path) -> tuple[Path, dict[str, str]]:
        """Program and flags as an administrator changes them."""
        (directory / "rc.subr").write_text(OPENBSD_SUBR)
        text = substituted(
            self.script.read_text(),
            [
                ("/opt/resticserver/bin/rest-server", installed("rest-server")),
                ("/etc/rest-server.toml --path /var/restic", f"{directory}/rest-server.toml --path {directory}/data"),
            ],
        )
        script = directory / "restic_rest"
        script.write_text(text)
        return script, {"RC_SUBR": str(directory / "rc.subr"), "RC_LOG": str(directory / "server.log")}


class OpenrcTests(SynchronousTestCase):
    """OpenRC's, which tests/shipping/test_openrc.py runs."""

    if SHELLCHECK is None:
        skip = "shellcheck is not installed"

    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say but that it does not see what reads the variables."""
        script = ETC / "openrc" / "restic-rest"
        done = subprocess.run([str(SHELLCHECK), "-s", "sh", "-e", "SC2034", script], capture_output=True, text=True)
        self.assertEqual((0, ""), (done.returncode, done.stdout))
