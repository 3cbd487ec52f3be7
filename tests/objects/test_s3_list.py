"""
What is taken for a page of a list, and what is refused.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.objects.engine import Found
from resticserver.objects.pages import Ascending, BadPage, Page
from resticserver.objects.s3_list import parse_page

PREFIX = "alice/"
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
WHEN = "2024-02-29T12:00:00.500Z"
WHEN_S = datetime(2024, 2, 29, 12, 0, 0, 500_000, UTC).timestamp()

#: XML has no control characters; keys are sent encoded.
keys_of_all_kinds = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def contents(key: str, size: object = 5, modified: str = WHEN, more: str = "<ETag>&quot;0a&quot;</ETag>") -> str:
    """An object of a page; the key is put in as it is."""
    return f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified>{more}<Size>{size}</Size></Contents>"


def page_text(objects: str = "", head: str = "", truncated: str = "false", namespace: str = NAMESPACE) -> str:
    """A page in the order of AWS's elements; C{head} is put in front of the objects."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult{namespace}><Name>b</Name><Prefix>alice/</Prefix>'
        f"<MaxKeys>1000</MaxKeys>{head}<IsTruncated>{truncated}</IsTruncated>{objects}</ListBucketResult>"
    )


def page_of(keys: list[str], token: str | None = None, encode: bool = True) -> bytes:
    """A page as AWS sends it, for keys with the prefix."""
    head = f"<KeyCount>{len(keys)}</KeyCount>" + ("<EncodingType>url</EncodingType>" if encode else "")
    if token is not None:
        head += f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
    texts = [quote_plus(key, safe="/") if encode else escape(key) for key in keys]
    objects = "".join(contents(text, number) for number, text in enumerate(texts))
    return page_text(objects, head, "false" if token is None else "true").encode()


class PageTests(SynchronousTestCase):
    """Pages as engines send them."""

    def parse(self, text: str, prefix: str = PREFIX) -> Page:
        """The page in a text."""
        return parse_page(text.encode(), prefix)

    def assert_bad(self, text: str, words: str) -> None:
        """The text is refused with these words."""
        self.assertIn(words, str(self.assertRaises(BadPage, self.parse, text)))

    def test_empty(self) -> None:
        """A list may be empty, and a page of a longer list too."""
        self.assertEqual(Page([], None, []), self.parse(page_text()))
        more = page_text(head="<NextContinuationToken>t</NextContinuationToken>", truncated="true")
        self.assertEqual(Page([], "t", []), self.parse(more))

    def test_forms(self) -> None:
        """The order of elements, spaces, other elements with children and the namespace do not matter."""
        for objects in (
            contents("alice/a"),
            contents("alice/a", more="<ETag/><StorageClass>X</StorageClass><Owner><ID>1</ID><DisplayName/></Owner>"),
            contents("alice/a", more='<Owner xsi:type="User" xmlns:xsi="http://x/y"> <ID>1</ID> </Owner>\n<X >1</X >'),
            contents(
                "alice/a", more="<ChecksumAlgorithm>A</ChecksumAlgorithm><ChecksumAlgorithm>B</ChecksumAlgorithm>"
            ),
            f"\n <Contents>\n <Size>5</Size>\n<LastModified>{WHEN}</LastModified>\n <Key>alice/a</Key>\n</Contents>\n ",
        ):
            for namespace in (NAMESPACE, ""):
                found = self.parse(page_text(objects, namespace=namespace)).found
                self.assertEqual([Found("a", 5, WHEN_S)], found)
        self.assertEqual(1, len(self.parse("\ufeff" + page_text(contents("alice/a"))).found))

    def test_times(self) -> None:
        """Times have fractions or none, and a zone."""
        for text, seconds in (
            ("1970-01-01T00:00:00Z", 0.0),
            ("1970-01-01T00:00:01.250Z", 1.25),
            ("1970-01-01T00:00:01.25+00:00", 1.25),
            ("1970-01-01T01:00:00.000000001+01:00", 0.0),
        ):
            self.assertEqual(seconds, self.parse(page_text(contents("alice/a", modified=text))).found[0].modified_s)
        for text in ("1970-01-01T00:00:00", "1970-01-01", "yesterday", "0", "1970-13-01T00:00:00Z"):
            self.assert_bad(page_text(contents("alice/a", modified=text)), "the time of an object is wrong")

    def test_other_answers(self) -> None:
        """What is no list at all is refused."""
        error = "<Error><Code>InternalError</Code><Message>Try again</Message></Error>"
        self.assert_bad(error, "the answer is 'Error', not ListBucketResult")
        self.assert_bad(page_text(error), "'Error' is an error")
        self.assert_bad("", "no XML")
        self.assert_bad("<html><p>Sorry</html>", "no XML")
        self.assert_bad(page_text().replace("ListBucketResult", "ListVersionsResult"), "not ListBucketResult")
        self.assert_bad(page_text(namespace=' xmlns="urn:x"'), "not ListBucketResult")

    def test_encodings(self) -> None:
        """Only UTF-8 is read, whatever the text says that it is."""
        text = page_text(contents("alice/ä"))
        self.assertEqual("ä", self.parse(text.replace("UTF-8", "ISO-8859-1")).found[0].key)
        for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-32"):
            self.assertRaises(BadPage, parse_page, text.encode(encoding), PREFIX)

    def test_declarations(self) -> None:
        """No declaration is taken: an entity can be a billion times as large as its name."""
        entity = '<!DOCTYPE x [<!ENTITY a "alice/a">]>'
        for text in (
            page_text(contents("&a;")).replace("?>", f"?>{entity}"),
            page_text(contents("alice/a")).replace("?>", "?><!DOCTYPE x SYSTEM 'http://127.0.0.1/x'>"),
            page_text(f"<!-- {contents('alice/a')} -->"),
            page_text("<![CDATA[<Contents>]]>"),
            page_text(f"<?x {contents('alice/a')}?>"),
        ):
            self.assert_bad(text, "a declaration, a comment or an instruction")
        self.assert_bad(page_text(contents("alice/&a;")), "no XML")

    def test_end_of_the_list(self) -> None:
        """It must be said exactly once whether there is more, and how to get it."""
        token = "<NextContinuationToken>t</NextContinuationToken>"
        self.assert_bad(page_text(truncated="true"), "NextContinuationToken is missing")
        self.assert_bad(
            page_text(head="<NextContinuationToken/>", truncated="true"), "NextContinuationToken is missing"
        )
        self.assert_bad(page_text(head=token + token, truncated="true"), "twice")
        self.assert_bad(page_text(head=token.replace("t<", "t\ufffd<"), truncated="true"), "cannot write")
        self.assert_bad(page_text().replace("<IsTruncated>false</IsTruncated>", ""), "IsTruncated is missing")
        self.assert_bad(page_text(head="<IsTruncated>true</IsTruncated>"), "twice")
        for value in ("", "False", "0", " false", "no", "<b>false</b>"):
            self.assertRaises(BadPage, self.parse, page_text(truncated=value))

    def test_objects(self) -> None:
        """Each object has one key, one size and one time."""
        whole = contents("alice/a")
        for part in re.findall("<(?:Key|Size|LastModified)>.*?>", whole):
            self.assertRaises(BadPage, self.parse, page_text(whole.replace(part, "")))
            self.assertRaises(BadPage, self.parse, page_text(whole.replace(part, part + part)))
            name, value = part[1:].split(">")[0], part.split(">")[1].split("<")[0]
            for other in (
                f"<{name}/>",
                f"<{name}></{name}>",
                f"<{name}><b>{value}</b></{name}>",
                f"<{name}>{value}<b/></{name}>",
            ):
                self.assertRaises(BadPage, self.parse, page_text(whole.replace(part, other)))
            self.assertRaises(BadPage, self.parse, page_text(whole.replace(part, f"<Owner>{part}</Owner>")))
        for size in ("-1", "1.5", "0x1", "", " 1", "1_0", "٣", "9" * 20):
            self.assertRaises(BadPage, self.parse, page_text(contents("alice/a", size)))
        for place in (f"<Owner>{whole}</Owner>", f"<Contents>{whole}</Contents>", f"<X><Key>alice/b</Key></X>{whole}"):
            self.assertRaises(BadPage, self.parse, page_text(place))

    def test_key_count(self) -> None:
        """If the number of keys is given, it must be right."""
        self.assertEqual(1, len(self.parse(page_text(contents("alice/a"), "<KeyCount>1</KeyCount>")).found))
        for count in ("0", "2", "", "x"):
            self.assert_bad(page_text(contents("alice/a"), f"<KeyCount>{count}</KeyCount>"), "KeyCount")

    def test_prefix(self) -> None:
        """Keys outside of the prefix are refused, and groups of keys."""
        for key in ("bob/a", "alice", "Alice/a", "/alice/a", "alic"):
            self.assert_bad(page_text(contents(key)), "does not begin with the prefix")
        self.assertEqual([""], [found.key for found in self.parse(page_text(contents("alice/"))).found])
        group = "<CommonPrefixes><Prefix>alice/data/</Prefix></CommonPrefixes>"
        self.assert_bad(page_text(group), "grouped, which was not asked for")

    def test_folders(self) -> None:
        """With a delimiter there are folders as well, which are encoded like keys; nothing is below them."""

        def read(objects: str, *names: str, head: str = "") -> Page:
            groups = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in names)
            return parse_page(page_text(objects + groups, head).encode(), PREFIX, by_folder=True)

        page = read(contents("alice/config"), "alice/data/", "alice/a&amp;b+c/", head="<KeyCount>3</KeyCount>")
        self.assertEqual((["config"], ["data/", "a&b+c/"]), ([found.key for found in page.found], page.folders))
        self.assertEqual(["a&b c/"], read("", "alice/a&amp;b+c/", head="<EncodingType>url</EncodingType>").folders)
        self.assertEqual([], read(contents("alice/config")).folders)
        for objects, names in (
            (contents("alice/data/x"), []),
            ("", ["alice/data"]),
            ("", ["alice/"]),
            ("", ["alice/data/ab/"]),
            ("", ["bob/data/"]),
            ("", [""]),
            ("", ["<b>alice/data/</b>"]),
            ("<CommonPrefixes/>", []),
            ("<CommonPrefixes><Prefix>alice/a/</Prefix><Prefix>alice/b/</Prefix></CommonPrefixes>", []),
            ("<X><CommonPrefixes><Prefix>alice/a/</Prefix></CommonPrefixes></X>", []),
        ):
            self.assertRaises(BadPage, read, objects, *names)
        self.assertRaises(BadPage, read, contents("alice/config"), "alice/data/", head="<KeyCount>1</KeyCount>")

    def test_encoded_keys(self) -> None:
        """A space is a plus or C{%20}, a plus is C{%2B}; bad escapes are refused."""
        url = "<EncodingType>url</EncodingType>"
        for text, key in (
            ("a+b", "a b"),
            ("a%20b", "a b"),
            ("a%2Bb%25", "a+b%"),
            ("%C3%A4%2f", "ä/"),
            ("a&amp;b+c", "a&b c"),
        ):
            self.assertEqual(key, self.parse(page_text(contents(f"alice/{text}"), url)).found[0].key)
        for text in ("a%", "a%2", "a%GG", "%%41", "%ff", "%C3", "% 41", "%+1"):
            self.assertRaises(BadPage, self.parse, page_text(contents(f"alice/{text}"), url))
        self.assert_bad(page_text(head="<EncodingType>base64</EncodingType>"), "EncodingType is 'base64'")

    def test_plain_keys(self) -> None:
        """Keys that are not encoded are taken as they are, but not if the engine has replaced characters."""
        for text, key in (("a+b%41", "a+b%41"), ("&lt;&#228;&#x20AC;&amp;amp;", "<ä€&amp;"), ("&#13;x", "\rx")):
            self.assertEqual(key, self.parse(page_text(contents(f"alice/{text}"))).found[0].key)
        self.assert_bad(page_text(contents("alice/a\ufffd")), "cannot write")

    @given(
        st.lists(keys_of_all_kinds, max_size=5), st.none() | keys_of_all_kinds.filter(lambda text: text.isprintable())
    )
    def test_round_trip(self, keys: list[str], token: str | None) -> None:
        """Any keys come back as they were, and so do tokens."""
        page = parse_page(page_of([PREFIX + key for key in keys], token), PREFIX)
        self.assertEqual([Found(key, number, WHEN_S) for number, key in enumerate(keys)], page.found)
        self.assertEqual(token, page.token)

    @given(
        st.lists(st.text(st.characters(exclude_categories=["C"], exclude_characters="\ufffd"), max_size=9), max_size=5)
    )
    def test_round_trip_of_plain_keys(self, keys: list[str]) -> None:
        """Keys come back without an encoding as well."""
        page = parse_page(page_of([PREFIX + key for key in keys], encode=False), PREFIX)
        self.assertEqual(keys, [found.key for found in page.found])

    @given(keys_of_all_kinds)
    def test_all_escaped(self, key: str) -> None:
        """An engine may encode every character."""
        text = page_text(contents(quote(PREFIX + key, safe="")), "<EncodingType>url</EncodingType>")
        self.assertEqual(key, self.parse(text).found[0].key)


class DamageTests(SynchronousTestCase):
    """A page that is cut or changed gives the same list, or none."""

    def setUp(self) -> None:
        self.body = page_of([f"alice/data/ab/{number:064x}" for number in range(6)], "next")
        self.page = parse_page(self.body, PREFIX)
        self.assertEqual(6, len(self.page.found))

    def assert_same_or_bad(self, body: bytes) -> None:
        """No other list comes of it."""
        try:
            page = parse_page(body, PREFIX)
        except BadPage:
            return
        self.assertEqual(self.page, page)

    def test_every_cut(self) -> None:
        """A page that is cut is refused, wherever it is cut."""
        for length in range(len(self.body)):
            self.assertRaises(BadPage, parse_page, self.body[:length], PREFIX)

    @settings(max_examples=500)
    @given(st.data())
    def test_holes(self, data: st.DataObject) -> None:
        """A hole that takes a part of a tag never leaves out an object, nor makes one of two."""
        start = data.draw(st.integers(0, len(self.body) - 1))
        end = data.draw(st.integers(start + 1, len(self.body)))
        if re.search(rb"[<>]", self.body[start:end]):
            self.assert_same_or_bad(self.body[:start] + self.body[end:])

    @settings(max_examples=300)
    @given(st.data())
    def test_whole_elements_left_out(self, data: st.DataObject) -> None:
        """Elements that are left out, sent twice or swapped change nothing, or the page is refused."""
        pieces = re.findall(rb"<[^>]*>|[^<]+", self.body)
        start = data.draw(st.integers(0, len(pieces) - 1))
        end = data.draw(st.integers(start, len(pieces)))
        put = data.draw(st.integers(0, len(pieces)))
        if b"<" not in b"".join(pieces[start:end]):
            return
        rest = pieces[:start] + pieces[end:]
        self.assert_same_or_bad(b"".join(rest))
        self.assert_same_or_bad(b"".join(pieces[:put] + pieces[start:end] + pieces[put:]))

    @settings(max_examples=500)
    @given(st.data())
    def test_changed_markup(self, data: st.DataObject) -> None:
        """A byte of a tag that becomes another one changes nothing, or the page is refused."""
        places = [place for tag in re.finditer(rb"<[^>]*>", self.body) for place in range(*tag.span())]
        place = data.draw(st.sampled_from(places))
        byte = data.draw(st.integers(0, 255))
        self.assert_same_or_bad(self.body[:place] + bytes((byte,)) + self.body[place + 1 :])

    @given(st.binary(max_size=300))
    def test_anything(self, body: bytes) -> None:
        """Any bytes are refused."""
        self.assertRaises(BadPage, parse_page, body, PREFIX)

    def test_no_slow_pages(self) -> None:
        """A page that never fits takes no longer to refuse than one that fits to read."""
        nested = "<Owner>" + "<a>x</a> " * 20_000
        for objects in (
            f"<Contents>{nested}</Owner>",
            "<Contents>" * 20_000 + "</Contents>" * 20_000,
            "<Contents><A>" * 20_000 + "</A></Contents>" * 20_000,
            "<Contents>" + "<A>x</A>" * 50_000 + "<B><C><D/></C></B></Contents>",
            "<Contents>" + " " * 100_000 + "x</Contents>",
            "<Contents><A " + 'b="c" ' * 20_000 + "/></Contents>",
        ):
            self.assertRaises(BadPage, parse_page, page_text(objects).encode(), PREFIX)


class AscendingTests(SynchronousTestCase):
    """The order of keys over all pages of a list."""

    def check(self, *pages: list[str], after: str | None = None) -> None:
        """Check these pages."""
        order = Ascending(after)
        for page in pages:
            order.check(page)

    def test_in_order(self) -> None:
        """S3's order and the one of directories are taken."""
        self.check([], ["a", "b"], [], ["c"])
        self.check(["a-b", "a/b"], ["a0"])
        self.check(["a/b", "a/b/c"], ["a/b-c", "a-b"])
        self.check(["\uffee", "\U0001f600"])
        self.check(["b"], after="a")
        self.check([""], ["a"])

    def test_out_of_order(self) -> None:
        """A key that comes twice or too late is found, in a page or between two; so is a change of the order."""
        for pages in (
            [["b", "a"]],
            [["a", "a"]],
            [["a"], ["a"]],
            [["a", "b"], ["a", "b"]],
            [["b"], [], ["a"]],
            [["a/b", "a-b"], ["b-c", "b/c"]],
            [["a-b", "a/b"], ["b/c", "b-c"]],
            [["\U0001f600", "\uffee"]],
        ):
            self.assertRaises(BadPage, self.check, *pages)
        for first in ("a", "b"):
            self.assertRaises(BadPage, self.check, [first], after="b")

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), unique=True))
    def test_order_of_bytes(self, keys: list[str]) -> None:
        """The order is the one of the keys' bytes."""
        self.check(sorted(keys, key=str.encode))

    @given(st.lists(st.text("ab/-0", min_size=1, max_size=4), unique=True), st.integers(0, 20))
    def test_order_of_folders(self, keys: list[str], cut: int) -> None:
        """The order of folders is the one of their lists of names."""
        keys.sort(key=lambda key: key.split("/"))
        self.check(keys[:cut], keys[cut:])
