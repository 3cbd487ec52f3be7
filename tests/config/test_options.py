"""
The flags: in the forms that Go's flags take, to settings, or to one line that says what is wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import fields, replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver import __version__
from resticserver.config.options import Options
from resticserver.config.settings import Settings, default_path
from resticserver.process.cores import default_workers, usable_cores
from resticserver.telemetry.concerns import Thresholds

#: Settings without a flag.
DEFAULT = Settings(path=default_path(), path_is_default=True)

#: The switches and what they set.
SWITCHES = (
    ("--no-auth", "no_auth"),
    ("--append-only", "append_only"),
    ("--private-repos", "private_repos"),
    ("--no-verify-upload", "no_verify_upload"),
    ("--group-accessible-repos", "group_accessible_repos"),
    ("--read-only", "read_only"),
    ("--auto-create", "auto_create"),
    ("--objects-unconditional", "objects_unconditional"),
    ("--tls", "tls"),
    ("--prometheus", "prometheus"),
    ("--prometheus-no-auth", "prometheus_no_auth"),
    ("--debug", "debug"),
)

#: arguments -> what is different from DEFAULT; paths with a dot in front are relative to where the user stands
FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    ((), {}),
    (("--path", "/srv/restic"), {"path": "/srv/restic", "path_is_default": False}),
    (("--path=/srv/restic",), {"path": "/srv/restic", "path_is_default": False}),
    (("--path", "/srv/a=b"), {"path": "/srv/a=b", "path_is_default": False}),
    (("--path=/srv/a=b",), {"path": "/srv/a=b", "path_is_default": False}),
    (("--path", "backups"), {"path": "./backups", "path_is_default": False}),
    (("--path", "./x/../backups/"), {"path": "./backups", "path_is_default": False}),
    (
        ("--no-auth", "--path=s3://bucket/x/", "--state-dir=/var/lib/x", "--spool-dir=/var/tmp", "--spool-size=1GiB"),
        {
            "no_auth": True,
            "path": "s3://bucket/x",
            "path_is_default": False,
            "state_dir": "/var/lib/x",
            "spool_dir": "/var/tmp",
            "spool_size_bytes": 1 << 30,
        },
    ),
    (
        ("--no-auth", "--path=s3://bucket", "--state-dir=/x", "--scrub-interval=30d"),
        {
            "no_auth": True,
            "path": "s3://bucket",
            "path_is_default": False,
            "state_dir": "/x",
            "scrub_interval_s": 2592000.0,
        },
    ),
    (("--max-size", "500GiB"), {"max_size_bytes": 500 << 30}),
    (("--max-size=1000000",), {"max_size_bytes": 1_000_000}),
    (("--min-free", "20GB"), {"min_free_bytes": 20 * 10**9}),
    (("--min-free=2.5%",), {"min_free_percent": 2.5}),
    (
        ("--scrub-interval", "30d", "--scrub-rate", "20MB"),
        {"scrub_interval_s": 2592000.0, "scrub_rate_bytes": 20000000},
    ),
    (("--scrub-interval=0", "--scrub-rate=0"), {"scrub_interval_s": 0.0, "scrub_rate_bytes": 0}),
    (("--scrub-rate", "1MiB/s"), {"scrub_rate_bytes": 1 << 20}),
    (("--delete-delay", "12h"), {"delete_delay_s": 43200.0}),
    (("--delete-delay=30d",), {"delete_delay_s": 30 * 86400.0}),
    (("--state-dir", "/var/lib/restic-rest"), {"state_dir": "/var/lib/restic-rest"}),
    (("--metrics-listen", "127.0.0.1:9090"), {"metrics_listen": "127.0.0.1:9090"}),
    (("--log=-", "--log-format", "json"), {"log": "-", "log_format": "json"}),
    (("--on-event", "cat -u 'a b'"), {"on_event": ("cat", "-u", "a b")}),
    (("--listen", ":8001"), {"listen": (":8001",)}),
    (("--listen=127.0.0.1:0",), {"listen": ("127.0.0.1:0",)}),
    (("--listen", ":1", "--listen=unix:/run/x", "--listen", "[::1]:2"), {"listen": (":1", "unix:/run/x", "[::1]:2")}),
    (("--listen", "tcp:8000:interface=127.0.0.1"), {"listen": ("tcp:8000:interface=127.0.0.1",)}),
    (("--htpasswd-file", "/etc/htpasswd"), {"htpasswd_file": "/etc/htpasswd"}),
    (("--htpasswd-file=users",), {"htpasswd_file": "./users"}),
    (("--log", "/var/log/access.log"), {"log": "/var/log/access.log"}),
    (("--log=-",), {"log": "-"}),
    (("--log", "access.log"), {"log": "./access.log"}),
    (("--cpu-profile", "out.prof"), {"cpu_profile": "./out.prof"}),
    (
        ("--tls", "--tls-cert", "c.pem", "--tls-key=/k.pem"),
        {"tls": True, "tls_cert": "./c.pem", "tls_key": "/k.pem"},
    ),
    (("--tls", "--tls-min-ver", "1.3"), {"tls": True, "tls_min_ver": "1.3"}),
    (("--tls", "--tls-min-ver=1.2"), {"tls": True}),
    (("--warn-snapshot-age", "30h"), {"thresholds": Thresholds(snapshot_age_s=108_000.0)}),
    (("--warn-first-snapshot", "3d"), {"thresholds": Thresholds(first_snapshot_s=259_200.0)}),
    (("--warn-lock-age", "2h"), {"thresholds": Thresholds(lock_age_s=7200.0)}),
    (("--warn-quota", "75%", "--warn-disk=99.5"), {"thresholds": Thresholds(quota=0.75, disk=0.995)}),
    (("--warn-certificate", "30d", "--warn-scrub=2"), {"thresholds": Thresholds(certificate_s=2_592_000.0, scrub=2.0)}),
    (
        (*(f"--warn-{name}=0" for name in ("snapshot-age", "first-snapshot", "lock-age", "quota")), "--warn-scrub=0"),
        {"thresholds": Thresholds(snapshot_age_s=0, first_snapshot_s=0, lock_age_s=0, quota=0, scrub=0)},
    ),
    (("--warn-quota", "100 %", "--warn-disk", "0%"), {"thresholds": Thresholds(quota=1.0, disk=0)}),
    (("--shutdown-timeout", "5"), {"shutdown_timeout_s": 5.0}),
    (("--shutdown-timeout=0",), {"shutdown_timeout_s": 0.0}),
    (("--shutdown-timeout", "2.5"), {"shutdown_timeout_s": 2.5}),
    (("--shutdown-timeout", "90s"), {"shutdown_timeout_s": 90.0}),
    (("--workers", "1"), {}),
    (("--workers=4",), {"workers": 4}),
    (("--workers", "auto"), {"workers": default_workers(usable_cores())}),
    (("--policy", "rules.toml"), {"policy": "./rules.toml"}),
    (("--max-depth", "0"), {"max_depth": 0}),
    (("--max-depth=16",), {"max_depth": 16}),
    (("--proxy-prefix", "/backup"), {"proxy_prefix": ("backup",)}),
    (("--proxy-prefix=/a/b/",), {"proxy_prefix": ("a", "b")}),
    (("--proxy-auth-username", "X-Remote-User"), {"proxy_auth_username": "X-Remote-User"}),
    (("--trusted-proxy", "10.0.0.1", "--trusted-proxy=::1"), {"trusted_proxies": ("10.0.0.1", "::1")}),
    (("--trusted-proxy=none",), {"trusted_proxies": ("none",)}),
    (("--auth-failures", "5/minute"), {"auth_failures": 5}),
    (("--auth-failures=0",), {"auth_failures": 0}),
    (("--header-timeout", "2m"), {"header_timeout_s": 120.0}),
    (("--stall-timeout=400",), {"stall_timeout_s": 400.0}),
    (("--max-connections", "1000"), {"max_connections": 1000}),
    (("--max-connections-per-address", "20"), {"max_connections_per_address": 20}),
    (("--max-object-size", "256MiB"), {"max_object_size_bytes": 256 << 20}),
    (("--max-object-size=0",), {"max_object_size_bytes": 0}),
    (("--max-uploads", "40"), {"max_uploads": 40}),
    (("--max-uploads", "4", "--workers=4"), {"max_uploads": 4, "workers": 4}),
    (("--bandwidth", "50M"), {"bandwidth_up": 50 << 20, "bandwidth_down": 50 << 20}),
    (("--bandwidth", "50M", "--bandwidth-up=0"), {"bandwidth_up": 0, "bandwidth_down": 50 << 20}),
    (("--bandwidth-up=1MB", "--bandwidth-down", "64K"), {"bandwidth_up": 10**6, "bandwidth_down": 64 << 10}),
    (("--tls", "--tls-client-ca", "ca.pem"), {"tls": True, "tls_client_ca": "./ca.pem"}),
    (
        ("--tls", "--tls-client-ca=/ca.pem", "--tls-client-auth=optional", "--tls-client-user", "dns"),
        {"tls": True, "tls_client_ca": "/ca.pem", "tls_client_required": False, "tls_client_user": "dns"},
    ),
    # a flag's value may look like a flag
    (("--path", "--no-auth"), {"path": "./--no-auth", "path_is_default": False}),
    # the last one holds
    (("--path", "/a", "--path=/b"), {"path": "/b", "path_is_default": False}),
    (("--no-auth", "--no-auth=false"), {}),
    (("--no-auth=false", "--no-auth"), {"no_auth": True}),
    (("--no-auth=false", "--no-auth=true", "--no-auth=0"), {}),
    (("--tls", "--tls-min-ver", "1.3", "--tls-min-ver", "1.2"), {"tls": True}),
    # what is switched off needs nothing
    (("--no-auth", "--private-repos=false"), {"no_auth": True}),
    (("--help=false",), {}),
)

#: arguments -> a part of the line
ERRORS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--bogus",), "unknown flag: --bogus"),
    (("--bogus=1",), "unknown flag: --bogus"),
    (("--=x",), "unknown flag: --"),
    (("--NO-AUTH",), "unknown flag: --NO-AUTH"),
    (("---no-auth",), "unknown flag: ---no-auth"),
    # abbreviations, which getopt would take
    (("--no-au",), "unknown flag: --no-au"),
    (("--pat", "/srv"), "unknown flag: --pat"),
    (("--htpasswd=/etc/htpasswd",), "unknown flag: --htpasswd"),
    (("--append",), "unknown flag: --append"),
    (("--lis=:1",), "unknown flag: --lis"),
    # single-dash long flags
    (("-path", "/srv"), "-p"),
    (("-no-auth",), "-n"),
    (("-x",), "-x"),
    # values
    (("--path",), "flag needs an argument: --path"),
    (("--no-auth", "--listen"), "flag needs an argument: --listen"),
    (("--no-auth=yes",), "--no-auth=yes"),
    (("--no-auth=",), "--no-auth="),
    (("--tls=2",), "--tls=2"),
    (("--warn-snapshot-age", "old"), "--warn-snapshot-age 'old' is not a duration"),
    (("--warn-quota", "100.01%"), "--warn-quota 100.01%: must be a percentage from 0% to 100%"),
    (("--warn-disk", "20GiB"), "--warn-disk 20GiB: must be a percentage"),
    (("--warn-disk", ""), "--warn-disk"),
    (("--warn-scrub", "0.99"), "--warn-scrub 0.99: must be a number of intervals from 1"),
    (("--warn-scrub", "-1"), "--warn-scrub -1"),
    (("--shutdown-timeout", "soon"), "--shutdown-timeout soon"),
    (("--shutdown-timeout=",), "--shutdown-timeout"),
    (("--shutdown-timeout", "-1"), "--shutdown-timeout -1"),
    (("--shutdown-timeout", "nan"), "--shutdown-timeout nan"),
    (("--shutdown-timeout", "inf"), "--shutdown-timeout inf"),
    (("--shutdown-timeout", "1.2.3"), "--shutdown-timeout 1.2.3"),
    (("--workers", "0"), "--workers 0: must be a number from 1"),
    (("--workers=",), "--workers"),
    (("--workers", "-2"), "--workers -2"),
    (("--workers", "1000"), "--workers 1000"),
    (("--workers", "many"), "--workers many"),
    (("--tls", "--tls-min-ver", "1.1"), "1.1"),
    (("--tls", "--tls-min-ver=tls1.2"), "tls1.2"),
    (("--tls-min-ver=",), "--tls-min-ver"),
    # what is no flag
    (("serve",), "unexpected argument: serve"),
    (("--no-auth", "true"), "unexpected argument: true"),
    (("--no-auth", "--", "/srv"), "unexpected argument: /srv"),
    (("--", "--no-auth"), "unexpected argument: --no-auth"),
    (("",), "unexpected argument"),
    # flags that make no sense together
    (("--tls-cert", "c.pem"), "--tls-cert needs --tls"),
    (("--tls-key", "k.pem"), "--tls-key needs --tls"),
    (("--tls=false", "--tls-cert=c.pem"), "--tls-cert needs --tls"),
    (("--tls-client-ca", "ca.pem"), "--tls-client-ca needs --tls"),
    (("--tls", "--tls-client-auth", "optional"), "--tls-client-auth needs --tls-client-ca"),
    (("--tls", "--tls-client-user", "dns"), "--tls-client-user needs --tls-client-ca"),
    (("--tls", "--tls-client-ca=c", "--tls-client-auth=maybe"), "--tls-client-auth maybe"),
    (("--tls", "--tls-client-ca=c", "--tls-client-user=o"), "--tls-client-user o"),
    (("--no-auth", "--private-repos"), "--private-repos cannot be combined with --no-auth"),
    (("--no-auth", "--policy", "rules.toml"), "--policy cannot be combined with --no-auth"),
    (("--no-auth", "--proxy-auth-username", "X-User"), "--proxy-auth-username cannot be combined with --no-auth"),
    (("--no-auth", "--tls", "--tls-client-ca", "c"), "--tls-client-ca cannot be combined with --no-auth"),
    (("--proxy-auth-username", "X User"), "--proxy-auth-username X User: not a header name"),
    (("--proxy-auth-username", "X-User:"), "not a header name"),
    (("--proxy-auth-username=",), "not a header name"),
    (("--trusted-proxy", "10.0.0.1/8"), "--trusted-proxy 10.0.0.1/8: 10.0.0.1/8 has host bits set"),
    (("--trusted-proxy", "proxy"), "--trusted-proxy proxy: neither an address nor a network"),
    (("--proxy-prefix", "backup"), "--proxy-prefix backup: must be a path such as /backup"),
    (("--proxy-prefix", "/a/../b"), "--proxy-prefix /a/../b"),
    (("--proxy-prefix", "/"), "--proxy-prefix /: "),
    (("--auth-failures", "many"), "--auth-failures many"),
    (("--max-depth", "17"), "--max-depth 17"),
    (("--header-timeout", "soon"), "--header-timeout 'soon' is not a duration, such as 60s, 5m, 12h or 30d"),
    (("--header-timeout", "0"), "--header-timeout 0: must be at least 1s"),
    (("--stall-timeout", "-1"), "--stall-timeout '-1' is not a duration"),
    (("--max-connections", "-1"), "--max-connections -1: must be a number, or 0 for no limit"),
    (("--max-uploads", "3", "--workers=4"), "--max-uploads 3: must be at least 4, one per worker"),
    (("--bandwidth", "10"), "--bandwidth 10: must be at least 64K (bytes a second)"),
    (("--bandwidth=fast", "--bandwidth-up=1M", "--bandwidth-down=1M"), "--bandwidth 'fast' is not a size"),
    (("--max-depth", "9" * 5000), "--max-depth 999"),
    (("--max-depth", "１"), "--max-depth １"),
    (("--policy", ""), "--policy must not be empty"),
    (("--path", ""), "--path must not be empty"),
    (("--state-dir=",), "--state-dir must not be empty"),
    (("--path", "s3://bucket/x"), "--path: an object store needs --state-dir"),
    (
        ("--path=s3://bucket", "--state-dir=/x", "--no-auth", "--min-free=5%"),
        "--min-free cannot be used with an object store: it has no file system",
    ),
    (
        ("--path=s3://bucket", "--state-dir=/x", "--no-auth", "--group-accessible-repos"),
        "--group-accessible-repos cannot be used with an object store",
    ),
    (("--spool-dir=/x",), "--spool-dir needs a --path that names an object store"),
    (("--spool-size=lots",), "--spool-size 'lots' is not a size"),
    (("--path=file:///srv",), "--path: file:///srv: no directory"),
    (("--path=s3:https://host/bucket",), "--path: s3:https://host/bucket: restic's form of an address"),
    (("--path=rest:http://host/",), "--path: rest:http://host/: no directory"),
    (("--path=AZ+x.y-z://",), "--path: AZ+x.y-z://: no directory"),
    (("--state-dir=s3://b",), "--state-dir s3://b: must be a local directory"),
    (("--htpasswd-file=https://h/x",), "--htpasswd-file https://h/x: must be a local file"),
    (("--log=syslog://h/x",), "--log syslog://h/x: must be a local file"),
    (("--tls", "--tls-client-ca="), "--tls-client-ca must not be empty"),
    (("--max-depth", "-1"), "--max-depth -1"),
)


def settings_of(*arguments: str) -> Settings:
    """The settings of a command line."""
    options = Options()
    options.parseOptions(list(arguments))
    return options.settings


def absolute(value: Any) -> Any:
    """A path of the table as the settings have it; anything else as it is."""
    return os.path.abspath(value) if isinstance(value, str) and value.startswith("./") else value


class FlagTests(SynchronousTestCase):
    """L{Options.parseOptions}."""

    def test_table(self) -> None:
        """Each command line is these settings."""
        for arguments, changes in FLAGS:
            wanted = {name: absolute(value) for name, value in changes.items()}
            self.assertEqual(replace(DEFAULT, **wanted), settings_of(*arguments), arguments)

    def test_switches(self) -> None:
        """Each switch in every form of Go's: alone, or with a boolean in any of its spellings."""
        for flag, name in SWITCHES:
            switched_on: dict[str, Any] = {name: True}
            for form in ("", "=true", "=1", "=TRUE", "=True", "=t", "=T"):
                self.assertEqual(replace(DEFAULT, **switched_on), settings_of(f"{flag}{form}"), flag + form)
            for form in ("=false", "=0", "=FALSE", "=False", "=f", "=F"):
                self.assertEqual(DEFAULT, settings_of(f"{flag}{form}"), flag + form)

    def test_errors(self) -> None:
        """Each of these ends the program with one line, which says what is wrong and is no traceback."""
        accepted = []
        for arguments, part in ERRORS:
            stdout, stderr = io.StringIO(), io.StringIO()
            try:
                with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                    settings_of(*arguments)
            except SystemExit as error:
                line = str(error.code)
                self.assertTrue(line.startswith("rest-server: "), line)
                self.assertEqual(1, len(line.splitlines()), line)
                self.assertIn(part, line, arguments)
            else:
                accepted.append(arguments)
            self.assertEqual(("", ""), (stdout.getvalue(), stderr.getvalue()))
        self.assertEqual([], accepted)

    def test_relative_sockets(self) -> None:
        """A unix socket's path is one from where the user stands, also behind the PROXY protocol and with a mode."""
        for given, wanted in (
            ("unix:rest.sock", "unix:{}/rest.sock"),
            ("unix:./x/../y.sock:mode=600", "unix:{}/y.sock:mode=600"),
            ("haproxy:unix:y.sock", "haproxy:unix:{}/y.sock"),
            ("unix:/run/x", "unix:/run/x"),
        ):
            wanted = wanted.format(os.getcwd())
            self.assertEqual((wanted,), settings_of("--listen", given).listen)
            self.assertEqual(wanted, settings_of("--metrics-listen", given).metrics_listen)

    def test_all_settings_have_a_flag(self) -> None:
        """No setting but by a flag, and every flag is tried in a table here."""
        tried = {name for _, changes in FLAGS for name in changes} | {name for _, name in SWITCHES}
        self.assertEqual({field.name for field in fields(Settings)}, tried)

    def test_through_json(self) -> None:
        """Settings come to a worker as they are, whatever is in them."""
        odd = os.fsdecode(b"/srv/\xff")
        for arguments in (*(arguments for arguments, _ in FLAGS), ("--path", odd), ("--path", "/srv/\u2603")):
            settings = settings_of(*arguments)
            self.assertEqual(settings, Settings.from_json(json.loads(json.dumps(settings.as_json()))))

    def test_environment_is_left_alone(self) -> None:
        """Settings come from flags alone; the environment is neither read nor changed."""
        for name in ("PATH", "LISTEN", "NO_AUTH", "RESTIC_REST_LISTEN", "REST_SERVER_PATH"):
            self.addCleanup(os.environ.update, {name: os.environ[name]} if name in os.environ else {})
            if name not in os.environ:
                self.addCleanup(os.environ.pop, name, None)
                os.environ[name] = "/elsewhere"
        before = dict(os.environ)
        arguments = ["--no-auth=false", "--path", "/srv"]
        self.assertEqual(replace(DEFAULT, path="/srv", path_is_default=False), settings_of(*arguments))
        self.assertEqual(before, dict(os.environ))
        self.assertEqual(["--no-auth=false", "--path", "/srv"], arguments)

    def test_two_servers(self) -> None:
        """What one command line says is not in the next."""
        settings_of("--listen", ":1", "--no-auth")
        self.assertEqual(DEFAULT, settings_of())


class DefaultFileTests(SynchronousTestCase):
    """L{Settings}: files that no flag names lie in the data directory, as rest-server has it."""

    def test_in_the_data_directory(self) -> None:
        """.htpasswd, public_key and private_key."""
        settings = settings_of("--path", "/srv")
        self.assertEqual("/srv/.htpasswd", settings.htpasswd_path)
        self.assertEqual(("/srv/public_key", "/srv/private_key"), (settings.certificate_path, settings.key_path))

    def test_elsewhere(self) -> None:
        """Unless a flag says otherwise."""
        settings = settings_of("--tls", "--tls-cert=/c", "--tls-key=/k", "--htpasswd-file=/h", "--path=/srv")
        self.assertEqual(("/h", "/c", "/k"), (settings.htpasswd_path, settings.certificate_path, settings.key_path))


class HelpTests(SynchronousTestCase):
    """What the program says of itself."""

    def output_of(self, *arguments: str) -> str:
        """What a command line prints to stdout before it exits with success."""
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            error = self.assertRaises(SystemExit, settings_of, *arguments)
        self.assertEqual(0, error.code)
        return stdout.getvalue()

    def test_help(self) -> None:
        """C{--help} and C{-h} list every flag."""
        for flag in ("--help", "-h", "--help=true"):
            words = self.output_of(flag).replace("=", " ").split()
            for name in (*(flag[0] for flag in Options.optFlags), *(flag[0] for flag in Options.optParameters)):
                self.assertIn(f"--{name}", words)
            for name in ("--listen", "--trusted-proxy", "--version", "--help"):
                self.assertIn(name, words)

    def test_flags_of_the_documentation(self) -> None:
        """None of the flags that people have in their units is missing."""
        known = {flag[0] for flag in (*Options.optFlags, *Options.optParameters)} | {"listen", "version", "help"}
        wanted = (
            "path listen no-auth append-only no-verify-upload group-accessible-repos htpasswd-file private-repos tls"
            " tls-cert tls-key tls-min-ver log debug cpu-profile shutdown-timeout version help proxy-auth-username"
        )
        self.assertEqual(set(), set(wanted.split()) - known)

    def test_version(self) -> None:
        """C{--version} and C{-v} print one line that begins as rest-server's, with this server's version."""
        for flag in ("--version", "-v"):
            (line,) = self.output_of(flag).splitlines()
            self.assertTrue(line.startswith(f"rest-server {__version__} "), line)
            self.assertIn("Twisted", line)
