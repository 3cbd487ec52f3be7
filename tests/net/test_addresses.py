"""
Where a client on the server's machine reaches the addresses of C{--listen}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.net.addresses import Place, place_of

LOOPBACK = ("127.0.0.1", "::1")
PLACES = (
    (":8000", False, Place(LOOPBACK, 8000)),
    ("0.0.0.0:8000", False, Place(LOOPBACK, 8000)),
    ("[::]:8000", False, Place(LOOPBACK, 8000)),
    ("127.0.0.5:8000", False, Place(("127.0.0.5",), 8000)),
    ("[::1]:443", True, Place(("::1",), 443, tls=True)),
    ("backup.example.org:8000", True, Place(("backup.example.org",), 8000, tls=True)),
    (":8000:plain=yes", True, Place(LOOPBACK, 8000)),
    ("unix:/run/restic.sock", False, Place(path="/run/restic.sock")),
    ("unix:/run/restic.sock:mode=660", True, Place(path="/run/restic.sock", tls=True)),
    ("unix:/run/restic.sock:plain=yes", True, Place(path="/run/restic.sock")),
    ("tcp:8000", False, Place(LOOPBACK, 8000)),
    ("tcp:8000:127.0.0.1", False, Place(("127.0.0.1",), 8000)),
    ("tcp:port=8000:interface=127.0.0.1", True, Place(("127.0.0.1",), 8000, tls=True)),
    (r"tcp6:8000:interface=\:\:1", False, Place(("::1",), 8000)),
    (r"tcp6:8000:50:interface=\:\:", False, Place(LOOPBACK, 8000)),
    ("ssl:8443:privateKey=key.pem:interface=127.0.0.1", False, Place(("127.0.0.1",), 8443, tls=True)),
    ("tls:/etc/keys", False, Place(LOOPBACK, 443, tls=True)),
    ("tls:/etc/keys:8443", False, Place(LOOPBACK, 8443, tls=True)),
    ("haproxy:tcp:8000", False, Place(LOOPBACK, 8000, proxied=True)),
    ("haproxy:127.0.0.1:8000", True, Place(("127.0.0.1",), 8000, tls=True, proxied=True)),
    ("haproxy:unix:/run/restic.sock", False, Place(path="/run/restic.sock", proxied=True)),
    ("haproxy:ssl:8443", False, Place(LOOPBACK, 8443, tls=True, proxied=True)),
)
UNKNOWN = (
    (":0", "the system chose the port"),
    ("tcp:0", "the system chose the port"),
    (":99999", "the port must be from 0 to 65535"),
    ("tcp:http", "the port must be from 0 to 65535"),
    ("tcp:interface=127.0.0.1", "the port must be from 0 to 65535"),
    ("systemd:domain=INET:index=0", "it is a socket that was passed to the server"),
    ("fd:3", "it is a socket that was passed to the server"),
    ("8000", "neither host:port nor unix:/path nor an endpoint string"),
)


class PlaceTests(SynchronousTestCase):
    """L{place_of}."""

    def test_places(self) -> None:
        """Host, port, path, TLS and PROXY protocol of each form."""
        for address, tls, wanted in PLACES:
            self.assertEqual(wanted, place_of(address, tls), address)

    def test_unknown(self) -> None:
        """What a client cannot be told, and why."""
        for address, reason in UNKNOWN:
            error = self.assertRaises(ValueError, place_of, address, False)
            self.assertEqual(reason, str(error), address)

    def test_words(self) -> None:
        """A place reads as the address that C{rest-server health} takes."""
        for address, tls, words in (
            (":8000", False, "http://127.0.0.1:8000"),
            ("[::1]:8000", True, "https://[::1]:8000"),
            ("unix:/run/restic.sock", True, "unix:/run/restic.sock"),
        ):
            self.assertEqual(words, str(place_of(address, tls)))
