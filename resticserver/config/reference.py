"""
What every flag does, in full: the source of C{docs/options.md}. Nothing is imported here, and the server itself does not
need it: C{docs/generate_options.py} makes the page of it, together with the flags that L{options} declares.

The short texts of C{--help} stand with the flags. C{tests/test_documents.py} compares both lists, so a new flag needs an
entry here, and C{make docs} afterwards.
"""

from __future__ import annotations

from typing import NamedTuple


class OptionReference(NamedTuple):
    """
    One flag, as its users read about it.

    @ivar flag: its name, without dashes.
    @ivar value: what stands for its value, empty for a switch.
    @ivar default: what holds without it, in Markdown.
    @ivar text: what it does, in Markdown; links are relative to C{docs/}. Lines are wrapped anew, empty ones kept.
    @ivar repeatable: whether it may be given several times.
    """

    flag: str
    value: str
    default: str
    text: str
    repeatable: bool = False


class Section(NamedTuple):
    """Flags that belong together, in the order of the page."""

    title: str
    options: tuple[OptionReference, ...]


REFERENCE = (
    Section(
        "General",
        (
            OptionReference(
                "config",
                "FILE",
                "none",
                """
                A TOML file whose keys are flags without their leading dashes. It is read at the start only. An example
                is [etc/rest-server.toml](../etc/rest-server.toml).
                """,
            ),
            OptionReference(
                "path",
                "DIR",
                "`restic` in the system's temporary directory",
                """
                The data directory, which holds all repositories. It is created if it is missing. Without this flag the
                server logs a warning, because the system may empty its temporary directory at any time.

                `s3://BUCKET/PREFIX` names an [object store](scaling.md) instead. Endpoint, region and credentials come
                from the usual variables (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...) and files
                (`~/.aws/config`, `~/.aws/credentials`). `az://CONTAINER/PREFIX` is a container of Azure Blob Storage, with
                `AZURE_STORAGE_ACCOUNT` and `AZURE_STORAGE_KEY` or a shared access signature.
                """,
            ),
            OptionReference(
                "state-dir",
                "DIR",
                "`.rest-server` in the data directory",
                """
                The directory for stored sizes, which make the next start fast, and for the id of the data volume. It is
                created if it is missing. On another disk than the data it lets the server
                [detect at the start](operations.md#when-the-disk-is-missing) that the volume is missing.
                """,
            ),
            OptionReference(
                "spool-dir",
                "DIR",
                "`--state-dir`",
                """
                Where uploads to an [object store](scaling.md) wait until they are whole and verified, in files without
                names. Nothing in it is needed after a restart; a disk that is slow to flush does no harm.
                """,
            ),
            OptionReference(
                "spool-size",
                "SIZE",
                "`4GiB`",
                """
                How much may wait in `--spool-dir` at once; `0` for no limit. An upload that does not fit is answered
                503 with `Retry-After`, and restic tries again.
                """,
            ),
            OptionReference(
                "objects-unconditional",
                "",
                "off",
                """
                Start also with an object store that ignores `If-None-Match: *`. Only for a single server on its
                bucket: two uploads of one config at the same time could both succeed otherwise.
                """,
            ),
            OptionReference(
                "workers",
                "N|auto",
                "`1`",
                """
                The number of worker processes, up to 128; `auto` is 1 on one or two cores, and else one per core. See
                [several processes](operations.md#several-processes).
                """,
            ),
            OptionReference(
                "shutdown-timeout",
                "SECONDS",
                "`30`",
                """
                How long the server waits for transfers in progress when it stops. See
                [signals](operations.md#signals).
                """,
            ),
            OptionReference(
                "version", "", "", "Print the versions of the server, Python, Twisted and OpenSSL. Also `-v`."
            ),
            OptionReference("help", "", "", "Print the flags. Also `-h`."),
        ),
    ),
    Section(
        "Listening",
        (
            OptionReference(
                "listen",
                "ADDR",
                "`:8000`",
                """
                An address to listen on. Repeatable. These forms are supported:

                - `:port` and `[::]:port`: IPv4 and IPv6;
                - `host:port` and `[::1]:port`;
                - `unix:/path` and `unix:path`: a Unix socket with mode 0660;
                - a Twisted endpoint string, such as `haproxy:tcp:8000`.

                With `--tls` an address that ends in `:plain=yes` serves without TLS. Sockets that systemd passes to the
                server replace all these addresses.
                """,
                repeatable=True,
            ),
            OptionReference(
                "proxy-prefix",
                "PATH",
                "none",
                """
                The path prefix of all repositories. Use `/backup` if a proxy forwards `/backup/laptop/` unchanged.
                """,
            ),
            OptionReference(
                "trusted-proxy",
                "NETWORK",
                "`127.0.0.0/8` and `::1`",
                """
                A network of proxies whose `X-Forwarded-For`, `Forwarded` and user header are trusted. Repeatable; `none`
                trusts no network. Unix sockets are always trusted.
                """,
                repeatable=True,
            ),
        ),
    ),
    Section(
        "TLS",
        (
            OptionReference(
                "tls",
                "",
                "off",
                """
                Serve TLS on every listener, except on addresses that end in `:plain=yes`. See
                [TLS](how-to.md#enable-tls).
                """,
            ),
            OptionReference(
                "tls-cert",
                "FILE",
                "`public_key` in the data directory",
                """
                The certificate and its chain, PEM. A renewed file is served within two seconds, without a restart.
                Needs `--tls`.
                """,
            ),
            OptionReference(
                "tls-key",
                "FILE",
                "`private_key` in the data directory",
                "The private key of the certificate, PEM, without a passphrase. Needs `--tls`.",
            ),
            OptionReference("tls-min-ver", "VERSION", "`1.2`", "The lowest TLS version to accept, `1.2` or `1.3`."),
            OptionReference(
                "tls-client-ca",
                "FILE",
                "none",
                """
                CA certificates, PEM. Clients are asked for a certificate that one of them has signed. See
                [client certificates](how-to.md#require-client-certificates). Needs `--tls`.
                """,
            ),
            OptionReference(
                "tls-client-auth",
                "required|optional",
                "`required`",
                "Whether a client must have a certificate. Needs `--tls-client-ca`.",
            ),
            OptionReference(
                "tls-client-user",
                "FIELD",
                "`cn`",
                """
                The certificate field with the user name: `cn` is the common name; `email` and `dns` are the only
                alternative name of that type. With `none` the certificate admits the client, and a password identifies the
                user.
                Needs `--tls-client-ca`.
                """,
            ),
        ),
    ),
    Section(
        "Authentication",
        (
            OptionReference(
                "no-auth",
                "",
                "off",
                """
                Disable authentication: no password is required, and no htpasswd file is read. Without this flag the server
                starts only if there is an htpasswd file, or another source of users. Cannot be combined with
                `--private-repos`, `--policy`, `--proxy-auth-username` or `--tls-client-ca`.
                """,
            ),
            OptionReference(
                "htpasswd-file",
                "FILE",
                "`.htpasswd` in the data directory",
                """
                The users and the hashes of their passwords, in UTF-8. Hashes may be bcrypt, `{SHA}`, `$apr1$`, `$5$` and
                `$6$`. If a user has several lines, the last one counts, as in rest-server. The file is read again within
                ten seconds of a change.
                """,
            ),
            OptionReference(
                "auth-failures",
                "N/minute",
                "`20/minute`",
                """
                How many failed logins a user and an address may have before further ones are slowed down. Addresses with
                many attempts at once are refused. Addresses of trusted proxies, and therefore loopback, are only slowed
                down. 0 turns this off. See
                [guessed passwords](how-to.md#slow-down-and-ban-password-guessers).
                """,
            ),
            OptionReference(
                "proxy-auth-username",
                "HEADER",
                "none",
                """
                The header in which a trusted proxy passes the user name. Passwords are then accepted only if
                `--htpasswd-file` is given.
                """,
            ),
        ),
    ),
    Section(
        "Authorization",
        (
            OptionReference(
                "policy",
                "FILE",
                "none",
                """
                A TOML file with [rules and quotas](policy.md) for users and repositories. It is read again within ten
                seconds of a change.
                """,
            ),
            OptionReference(
                "private-repos",
                "",
                "off",
                "Users can access only the repositories below the folder of their name.",
            ),
            OptionReference(
                "append-only",
                "",
                "off",
                """
                Nothing can be deleted except locks. See
                [append-only repositories](how-to.md#keep-clients-from-deleting-backups).
                """,
            ),
            OptionReference(
                "read-only",
                "",
                "off",
                """
                Nothing can be created or deleted except locks, which restic needs for reading, and nothing is removed from
                the [trash](how-to.md#undo-deletions). The file system may be read-only as well: then locks are answered
                403, and clients need `--no-lock`. See
                [read-only disks](operations.md#read-only-disks).
                """,
            ),
            OptionReference(
                "max-depth",
                "N",
                "`2`",
                "How many folders deep a repository may be, from 0 to 16.",
            ),
        ),
    ),
    Section(
        "Storage",
        (
            OptionReference(
                "max-size",
                "SIZE",
                "none",
                """
                The limit for all repositories together. A size is a number of bytes, or has a unit: `500GiB` and `2T`
                count in 1024s, `500GB` in 1000s. See [quotas](policy.md#quotas).
                """,
            ),
            OptionReference(
                "min-free",
                "SIZE|PERCENT",
                "none",
                """
                How much of the disk uploads must leave free, such as `20GiB` or `5%`. See
                [a full disk](policy.md#a-full-disk).
                """,
            ),
            OptionReference(
                "delete-delay",
                "DURATION",
                "none",
                """
                How long deleted objects are kept in the [trash](how-to.md#undo-deletions), such as `12h` or `30d` (units
                `s`, `m`, `h`, `d`, `w`); `0` deletes at once. A [policy](policy.md#trash) can have longer delays. A shorter
                delay set later does not shorten what is in the trash already. In an object store the trash is the
                [old versions of the bucket](scaling.md#undo-deletions).
                """,
            ),
            OptionReference(
                "auto-create",
                "",
                "off",
                """
                An upload creates its repository if that is missing, as in rest-server. Without this flag the upload is
                answered 404.
                """,
            ),
            OptionReference(
                "no-verify-upload",
                "",
                "off",
                """
                Do not compare the SHA-256 of an upload with its name. The hash is still computed if an object of that name
                exists. Not recommended.
                """,
            ),
            OptionReference(
                "group-accessible-repos",
                "",
                "off",
                "Create files with mode 0660 and directories with 0770 instead of 0600 and 0700, whatever the umask.",
            ),
        ),
    ),
    Section(
        "Verification of stored data",
        (
            OptionReference(
                "scrub-interval",
                "DURATION",
                "none",
                """
                Read every stored object again within this time, such as `30d` or `4w` (`s`, `m`, `h`, `d`, `w`), and
                compare its SHA-256 with its name. New objects are verified within a day. Without this flag only
                `rest-server scrub` does that. See [check stored data](how-to.md#check-stored-data). With an
                [object store](scaling.md#verify-what-a-bucket-has) each object is a request, and one of several servers
                on a bucket is enough.
                """,
            ),
            OptionReference(
                "scrub-rate",
                "SIZE",
                "`20M`",
                """
                How many bytes a second this reads at most, such as `20M`; `0` is no limit. While clients transfer it
                reads only as much as it needs to keep the interval.
                """,
            ),
        ),
    ),
    Section(
        "Limits",
        (
            OptionReference(
                "header-timeout",
                "TIME",
                "`60s`",
                """
                How long the head of a request may take from its first byte; then it is answered 408. A time is a number of
                seconds, or has a unit: `s`, `m`, `h`, `d`, `w`. A connection without a request is closed after three
                minutes. See [limits](how-to.md#limit-clients), also for the flags below.
                """,
            ),
            OptionReference(
                "stall-timeout",
                "TIME",
                "`310s`",
                """
                How long a client may send no byte of a body, or take no byte of an answer; then its connection is closed. restic
                itself gives up after five minutes, so with less a backup over a bad line may fail that would go on.
                """,
            ),
            OptionReference(
                "max-connections",
                "N",
                "none",
                """
                How many connections there may be. Further ones are closed at once, without an answer. Connections of
                `--metrics-listen` do not count.
                """,
            ),
            OptionReference(
                "max-connections-per-address",
                "N",
                "none",
                """
                How many connections there may be from one address (for IPv6 from one /64). Unix sockets and
                [trusted proxies](#--trusted-proxy), and therefore loopback, have no such limit. restic opens five
                connections, and one more for its lock.
                """,
            ),
            OptionReference(
                "max-object-size",
                "SIZE",
                "`1GiB`",
                """
                The largest object that is stored; others are answered 413. restic's packs are up to 128 MiB
                (`--pack-size`) and a little more, its indexes usually smaller. `0` is no limit.
                """,
            ),
            OptionReference(
                "max-uploads",
                "N",
                "none",
                """
                How many uploads there may be at once, without those of locks. Further ones are answered 503 with
                `Retry-After`, and restic tries them again. Each of several [workers](#--workers) has an equal part, and at
                least one.
                """,
            ),
            OptionReference(
                "bandwidth",
                "SIZE",
                "none",
                """
                How many bytes a second all uploads together may bring, and all downloads together: `50M` is 50 MiB a second in
                each direction. At least `64K`. Only bytes of objects and lists count, not those of TLS and HTTP. A
                [policy](policy.md#bandwidth) can limit each user.
                """,
            ),
            OptionReference(
                "bandwidth-up",
                "SIZE",
                "`--bandwidth`",
                "The same for uploads only.",
            ),
            OptionReference(
                "bandwidth-down",
                "SIZE",
                "`--bandwidth`",
                "The same for downloads only.",
            ),
        ),
    ),
    Section(
        "Monitoring",
        (
            OptionReference(
                "prometheus",
                "",
                "off",
                """
                Serve metrics at `/metrics`, for the user `metrics`, and a status page at `/-/status`. See
                [monitoring](monitoring.md).
                """,
            ),
            OptionReference(
                "prometheus-no-auth",
                "",
                "off",
                "Serve metrics to everyone. If there are users, the status page still asks for one.",
            ),
            OptionReference(
                "metrics-listen",
                "ADDR",
                "none",
                """
                A separate listener for metrics, health checks and status pages, where nothing else is served. It accepts
                the forms of `--listen`. With `--tls` it serves TLS as well, unless the address ends in `:plain=yes`.
                """,
            ),
            OptionReference(
                "on-event",
                "COMMAND",
                "none",
                """
                A command that is run for each [event](monitoring.md#events), with JSON on its standard input: a backup has
                finished, an upload was refused, and so on.
                """,
            ),
            OptionReference(
                "warn-snapshot-age",
                "TIME",
                "`7d`",
                """
                The [status page](monitoring.md#status-page) and `rest-server status` warn of a repository whose last
                snapshot is older than this. This and the other `--warn-…` flags are turned off by `0`.
                """,
            ),
            OptionReference(
                "warn-first-snapshot",
                "TIME",
                "`1d`",
                """
                They warn of a repository that has no snapshot this long after it was created.
                """,
            ),
            OptionReference(
                "warn-lock-age",
                "TIME",
                "`30m`",
                """
                They warn of a lock that is older than this. restic itself calls a lock stale after half an hour.
                """,
            ),
            OptionReference(
                "warn-quota",
                "PERCENT",
                "`90%`",
                """
                They warn of a quota of which this much is used. A quota that is used up is always reported.
                """,
            ),
            OptionReference(
                "warn-disk",
                "PERCENT",
                "`90%`",
                """
                They warn of the data directory's disk if this much of it is used.
                """,
            ),
            OptionReference(
                "warn-certificate",
                "TIME",
                "`14d`",
                """
                They warn of a TLS certificate that expires within this time, and from then on there is an
                [event](monitoring.md#events) a day. A certificate that has expired is always reported.
                """,
            ),
            OptionReference(
                "warn-scrub",
                "N",
                "`1.5`",
                """
                They warn of a [scrub](how-to.md#check-stored-data) if its oldest check is older than this many times
                `--scrub-interval` and a day.
                """,
            ),
            OptionReference(
                "log",
                "FILE",
                "none",
                """
                Write an [access log](monitoring.md#access-log) to this file; `-` is standard output. It is reopened on
                SIGHUP.
                """,
            ),
            OptionReference(
                "log-format",
                "FORMAT",
                "`combined`",
                """
                `combined` is Apache's combined format; `json` is
                [one object a line](monitoring.md#access-log-as-json). Needs `--log`.
                """,
            ),
            OptionReference("debug", "", "off", "Log more, with one line for each request."),
            OptionReference(
                "cpu-profile",
                "FILE",
                "none",
                """
                Write a profile of the reactor's thread to this file when the server stops, for `pstats` or snakeviz. With
                several workers the files are `FILE.1`, `FILE.2` and so on.
                """,
            ),
        ),
    ),
)
