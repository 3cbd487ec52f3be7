"""
The declarations of all flags: names, defaults, and the short texts of C{--help}. L{resticserver.config.options} parses them, and
L{resticserver.config.reference} has the long texts.
"""

from __future__ import annotations

from typing import Any

from twisted.python import usage

from .settings import default_path

#: The description at the end of C{--help}.
DESCRIPTION = (
    "Serves restic repositories below a directory over HTTP. See https://restic.readthedocs.io/ for how to use them. "
    'Every flag is also a key of the --config file (max-size = "1TiB", no-auth = true) and an environment variable '
    "(REST_SERVER_MAX_SIZE=1TiB); the command line wins over the environment, the environment over the file. "
    "Subcommands, each with --help: rest-server config (check and show the configuration), rest-server user (users and "
    "passwords), rest-server policy (check access rules), rest-server usage (how much is stored), rest-server status (the "
    "state of a running server), rest-server health (whether it is ready), rest-server trash (list, restore and remove "
    "deleted objects), rest-server scrub (verify what is stored), rest-server objects (try an object store)."
)

#: Switches: name, short form, text.
SWITCHES: list[list[Any]] = [
    ["no-auth", None, "disable authentication"],
    ["private-repos", None, "users can only access the repositories below the folder of their name"],
    ["append-only", None, "nothing can be deleted except locks"],
    ["read-only", None, "nothing can be created or deleted except locks"],
    ["auto-create", None, "an upload creates a missing repository, as in rest-server"],
    ["no-verify-upload", None, "do not verify the hash of uploads, except for names that exist. Not recommended"],
    ["group-accessible-repos", None, "let the group access repositories (files 0660, directories 0770)"],
    [
        "objects-unconditional",
        None,
        "use an object store that ignores conditions. Only for a single server on its bucket",
    ],
    ["tls", None, "serve TLS"],
    ["prometheus", None, "serve metrics at /metrics to the user metrics, and a status page"],
    ["prometheus-no-auth", None, "serve metrics to everyone"],
    ["debug", None, "log debug messages"],
]

#: Flags with a value: name, short form, default, text. Those that may be repeated are methods of the parser.
PARAMETERS: list[list[Any]] = [
    ["config", None, None, "TOML file with flags as keys"],
    ["path", None, None, f"data directory (default {default_path()}), s3://bucket/prefix or az://container/prefix"],
    ["htpasswd-file", None, None, "htpasswd file with the users (default .htpasswd in the data directory)"],
    ["policy", None, None, "TOML file with access rules and quotas for users and repositories"],
    ["max-depth", None, "2", "how many folders deep a repository may be"],
    [
        "proxy-prefix",
        None,
        None,
        "path prefix of all repositories, such as /backup, if a proxy forwards it unchanged",
    ],
    [
        "proxy-auth-username",
        None,
        None,
        "header in which a trusted proxy passes the user name, instead of passwords",
    ],
    [
        "auth-failures",
        None,
        "20/minute",
        "failed logins per user and per address before further ones are slowed down; 0 turns this off",
    ],
    ["tls-cert", None, None, "TLS certificate chain, PEM (default public_key in the data directory)"],
    ["tls-key", None, None, "TLS private key, PEM (default private_key in the data directory)"],
    ["tls-min-ver", None, "1.2", "lowest TLS version, 1.2 or 1.3"],
    ["tls-client-ca", None, None, "CA certificates that client certificates are verified with, PEM"],
    ["tls-client-auth", None, "required", "whether clients must have a certificate: required or optional"],
    ["tls-client-user", None, "cn", "certificate field with the user name: cn, email, dns, or none"],
    ["max-size", None, "0", "limit for all repositories together, such as 500GiB; 0 for no limit"],
    ["min-free", None, "0", "how much of the disk uploads must leave free, such as 20GiB or 5%"],
    ["delete-delay", None, "0", "how long deleted objects are kept in the trash, such as 30d; 0 turns this off"],
    [
        "state-dir",
        None,
        None,
        "directory for stored sizes and the volume's id (default .rest-server in the data directory)",
    ],
    ["spool-dir", None, None, "directory for uploads on their way to an object store (default --state-dir)"],
    ["spool-size", None, "4GiB", "how much may wait there at once; 0 for no limit"],
    ["scrub-interval", None, "0", "read and verify every stored object again within this time, as 30d; 0 is never"],
    ["scrub-rate", None, "20M", "how many bytes a second that reads at most; 0 for no limit"],
    ["metrics-listen", None, None, "address for metrics, health checks and status only, in the forms of --listen"],
    [
        "on-event",
        None,
        None,
        "command to run for each event (new snapshot, quota reached, ...), with JSON on its standard input",
    ],
    ["warn-snapshot-age", None, "7d", "age of the last snapshot from which on the status page warns; 0 turns it off"],
    ["warn-first-snapshot", None, "1d", "how long a new repository may have no snapshot before it warns"],
    ["warn-lock-age", None, "30m", "age of a lock from which on it warns"],
    ["warn-quota", None, "90%", "used part of a quota from which on it warns"],
    ["warn-disk", None, "90%", "used part of the disk from which on it warns"],
    ["warn-certificate", None, "14d", "how long before its end it warns of the certificate, and an event tells so"],
    ["warn-scrub", None, "1.5", "age of the oldest check, in scrub intervals, from which on it warns"],
    ["log", None, None, "write an access log to this file (- for stdout)"],
    ["log-format", None, "combined", "format of the access log: combined (Apache's) or json"],
    ["header-timeout", None, "60s", "how long the head of a request may take"],
    [
        "stall-timeout",
        None,
        "310s",
        "how long a transfer may move no byte; restic itself gives up after five minutes",
    ],
    ["max-connections", None, "0", "connections at once; 0 for no limit"],
    ["max-connections-per-address", None, "0", "connections at once from one address; 0 for no limit"],
    ["max-object-size", None, "1GiB", "largest object that is stored; 0 for no limit"],
    ["max-uploads", None, "0", "uploads at once, locks not counted; 0 for no limit"],
    ["bandwidth", None, "0", "bytes a second for all uploads, and for all downloads, such as 50M; 0 for no limit"],
    ["bandwidth-up", None, None, "the same for uploads only (default --bandwidth)"],
    ["bandwidth-down", None, None, "the same for downloads only (default --bandwidth)"],
    ["cpu-profile", None, None, "write a CPU profile of the reactor's thread to this file"],
    ["workers", None, "1", "number of worker processes, or auto to decide by the cores"],
    ["shutdown-timeout", None, "30", "seconds to wait for transfers when the server stops"],
]

#: Flags with a fixed set of values.
CHOICES = {
    "tls-min-ver": ("1.2", "1.3"),
    "tls-client-auth": ("required", "optional"),
    "tls-client-user": ("cn", "email", "dns", "none"),
    "log-format": ("combined", "json"),
}
#: Flags whose values are paths on this machine.
DIRECTORIES = ("path", "state-dir", "spool-dir")
FILES = ("config", "htpasswd-file", "policy", "tls-cert", "tls-key", "tls-client-ca", "log", "cpu-profile")

#: What Twisted's own completion for zsh completes (C{twistd restic-rest}).
COMPLETIONS = usage.Completions(
    optActions={
        **{flag: usage.CompleteFiles() for flag in FILES},
        **{flag: usage.CompleteDirs() for flag in DIRECTORIES},
        **{flag: usage.CompleteList(list(values)) for flag, values in CHOICES.items()},
    }
)
