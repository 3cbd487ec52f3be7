"""
Whose word is taken for a client's address: networks, and the two headers in all their spellings.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.proxies import TrustedProxies

#: values of --trusted-proxy, and the addresses that they trust or do not
NETWORKS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "-"), ("192.0.2.1", "::2", "unknown", "", "localhost")),
    (("none",), ("-",), ("127.0.0.1", "::1", "unknown")),
    (("192.0.2.1",), ("192.0.2.1", "::ffff:192.0.2.1", "-"), ("192.0.2.2", "127.0.0.1", "::1")),
    (
        ("192.0.2.0/24", "2001:db8::/32"),
        ("192.0.2.255", "2001:db8:1::1", "2001:db8::1%eth0"),
        ("192.0.3.0", "2001:db9::"),
    ),
    (("none", "10.0.0.0/8"), ("10.1.2.3", "-"), ("127.0.0.1",)),
    (("0.0.0.0/0",), ("1.2.3.4",), ("::1",)),
)

NO_NETWORKS = {
    "192.0.2.1/24": "192.0.2.1/24 has host bits set",
    "localhost": "neither an address nor a network",
    "": "neither an address nor a network",
    "1.2.3": "neither an address nor a network",
    "1.2.3.4/33": "neither an address nor a network",
    "1.2.3.4,5.6.7.8": "neither an address nor a network",
}

#: (the connection's addresses, X-Forwarded-For, Forwarded) -> the client's, with 127.0.0.0/8 and 10.0.0.0/8 trusted
CLIENTS: tuple[tuple[tuple[str, ...], tuple[bytes, ...], tuple[bytes, ...], str], ...] = (
    # nobody says anything else
    (("127.0.0.1",), (), (), "127.0.0.1"),
    (("-",), (), (), "-"),
    (("192.0.2.1",), (), (), "192.0.2.1"),
    # a stranger's word counts for nothing
    (("192.0.2.1",), (b"198.51.100.1",), (b"for=198.51.100.1",), "192.0.2.1"),
    (("192.0.2.1",), (b"127.0.0.1",), (), "192.0.2.1"),
    # one proxy
    (("127.0.0.1",), (b"192.0.2.1",), (), "192.0.2.1"),
    (("-",), (b"192.0.2.1",), (), "192.0.2.1"),
    (("10.0.0.1",), (b" 192.0.2.1 ",), (), "192.0.2.1"),
    (("10.0.0.1",), (b"192.0.2.1:4711",), (), "192.0.2.1"),
    (("10.0.0.1",), (b"2001:db8::1",), (), "2001:db8::1"),
    (("10.0.0.1",), (b"[2001:DB8:0:0::1]:4711",), (), "2001:db8::1"),
    (("10.0.0.1",), (b"[2001:db8::1]",), (), "2001:db8::1"),
    (("10.0.0.1",), (b"::ffff:192.0.2.1",), (), "192.0.2.1"),
    # what the client wrote itself stands to the left
    (("127.0.0.1",), (b"1.1.1.1, 192.0.2.1",), (), "192.0.2.1"),
    (("127.0.0.1",), (b"1.1.1.1", b"192.0.2.1"), (), "192.0.2.1"),
    (("127.0.0.1",), (b"127.0.0.1, 192.0.2.1",), (), "192.0.2.1"),
    (("127.0.0.1",), (b"-,192.0.2.1",), (), "192.0.2.1"),
    # several trusted ones
    (("127.0.0.1",), (b"192.0.2.1, 10.0.0.7",), (), "192.0.2.1"),
    (("127.0.0.1",), (b"192.0.2.1,10.0.0.7,10.0.0.8",), (), "192.0.2.1"),
    (("127.0.0.1",), (b"10.0.0.6, 10.0.0.7",), (), "10.0.0.6"),
    # nonsense ends the search at the last who could be understood
    (("127.0.0.1",), (b"unknown",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"",), (), "127.0.0.1"),
    (("127.0.0.1",), (b",,,",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"192.0.2.1, garbage, 10.0.0.7",), (), "10.0.0.7"),
    (("127.0.0.1",), (b"192.0.2.1\xff",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"1.2.3.4.5",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"192.0.2.1 for user root",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"fe80::1%x from 1.2.3.4",), (), "127.0.0.1"),
    (("127.0.0.1",), (b"fe80::1%eth0",), (), "fe80::1"),
    (("127.0.0.1",), (b"0:0:0:0:0:ffff:c633:6407",), (), "198.51.100.7"),
    (("127.0.0.1",), (b"-",), (), "127.0.0.1"),
    # Forwarded
    (("127.0.0.1",), (), (b"for=192.0.2.1",), "192.0.2.1"),
    (("127.0.0.1",), (), (b"For=192.0.2.1;proto=https;by=10.0.0.1",), "192.0.2.1"),
    (("127.0.0.1",), (), (b"proto=https; for=192.0.2.1 ;host=x",), "192.0.2.1"),
    (("127.0.0.1",), (), (b'for="[2001:db8::1]:4711"',), "2001:db8::1"),
    (("127.0.0.1",), (), (b'for="192.0.2.1:4711"',), "192.0.2.1"),
    (("127.0.0.1",), (), (b'for="192.0.2\\.1"',), "192.0.2.1"),
    (("127.0.0.1",), (), (b"for=1.1.1.1, for=192.0.2.1, for=10.0.0.7",), "192.0.2.1"),
    (("127.0.0.1",), (), (b"for=1.1.1.1", b"for=192.0.2.1"), "192.0.2.1"),
    (("127.0.0.1",), (), (b'for=1.1.1.1;x="a,for=2.2.2.2", for=192.0.2.1',), "192.0.2.1"),
    (("127.0.0.1",), (), (b'x="\\", for=1.1.1.1, for=192.0.2.1',), "127.0.0.1"),
    (("127.0.0.1",), (), (b"for=unknown",), "127.0.0.1"),
    (("127.0.0.1",), (), (b"for=_hidden, for=10.0.0.7",), "10.0.0.7"),
    (("127.0.0.1",), (), (b"proto=https",), "127.0.0.1"),
    (("127.0.0.1",), (), (b"",), "127.0.0.1"),
    (("127.0.0.1",), (), (b"garbage",), "127.0.0.1"),
    (("127.0.0.1",), (), (b"for=192.0.2.1, garbage",), "127.0.0.1"),
    # X-Forwarded-For comes first
    (("127.0.0.1",), (b"192.0.2.1",), (b"for=1.1.1.1",), "192.0.2.1"),
    (("127.0.0.1",), (b"garbage",), (b"for=1.1.1.1",), "127.0.0.1"),
    # PROXY protocol
    (("127.0.0.1", "192.0.2.1"), (), (), "192.0.2.1"),
    (("127.0.0.1", "192.0.2.1"), (b"1.1.1.1",), (), "192.0.2.1"),
    (("192.0.2.1", "127.0.0.1"), (b"1.1.1.1",), (), "192.0.2.1"),
    (("127.0.0.1", "10.0.0.7"), (b"192.0.2.1",), (), "192.0.2.1"),
    # no more than so many are looked at
    (("127.0.0.1",), (b"192.0.2.1" + b",10.0.0.7" * 31,), (), "192.0.2.1"),
    (("127.0.0.1",), (b"192.0.2.1" + b",10.0.0.7" * 32,), (), "10.0.0.7"),
)


class TrustedProxiesTests(SynchronousTestCase):
    """L{TrustedProxies}."""

    def test_networks(self) -> None:
        """Loopback unless told otherwise; a unix socket always."""
        for values, trusted, others in NETWORKS:
            proxies = TrustedProxies.parse(values)
            self.assertEqual([], [address for address in trusted if not proxies.trusts(address)], values)
            self.assertEqual([], [address for address in others if proxies.trusts(address)], values)

    def test_no_networks(self) -> None:
        """What is no network is refused with a reason."""
        for value, reason in NO_NETWORKS.items():
            error = self.assertRaises(ValueError, TrustedProxies.parse, ("10.0.0.0/8", value))
            self.assertEqual(f"{value}: {reason}", str(error))

    def test_describe(self) -> None:
        """For the log."""
        self.assertEqual("127.0.0.0/8, ::1/128, Unix sockets", TrustedProxies.parse(()).describe())
        self.assertEqual("Unix sockets", TrustedProxies.parse(("none",)).describe())

    def test_clients(self) -> None:
        """The right-most that is not trusted."""
        proxies = TrustedProxies.parse(("127.0.0.0/8", "10.0.0.0/8"))
        for peers, x_forwarded_for, forwarded, client in CLIENTS:
            found = proxies.client_address(peers, x_forwarded_for, forwarded)
            self.assertEqual(client, found, (peers, x_forwarded_for, forwarded))

    @given(st.lists(st.binary(max_size=40), max_size=3), st.lists(st.binary(max_size=40), max_size=3))
    def test_any_bytes(self, x_forwarded_for: list[bytes], forwarded: list[bytes]) -> None:
        """Whatever stands there: an address that can stand in a line of the log, and no error."""
        found = TrustedProxies.parse(()).client_address(["127.0.0.1"], x_forwarded_for, forwarded)
        self.assertTrue(set(found) <= set("0123456789abcdef:."), found)

    def test_long_headers(self) -> None:
        """A header as long as may be costs no time to speak of: nothing is tried again and again."""
        proxies = TrustedProxies.parse(())
        for value in (b"," * 32_000, b'for="' + b"\\" * 32_000, b"a=" * 16_000, b"x" * 32_000, b" " * 32_000):
            for _ in range(20):
                proxies.client_address(["127.0.0.1"], [value], [])
                proxies.client_address(["127.0.0.1"], [], [value])
