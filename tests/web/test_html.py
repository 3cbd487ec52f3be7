"""
L{resticserver.web.html}: whatever is put in is text.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.web.html import Markup, document, element


class ElementTests(SynchronousTestCase):
    """L{element} and L{document}."""

    def test_table(self) -> None:
        """Elements, attributes, and what is in them."""
        for made, expected in (
            (element("p"), "<p></p>"),
            (element("p", None, "", []), "<p></p>"),
            (element("p", "a", ["b", None, ["c"]], element("b", "d")), "<p>abc<b>d</b></p>"),
            (element("p", (x for x in "ab")), "<p>ab</p>"),
            (element("p", class_="x", aria_label=None, viewBox="0 0"), '<p class="x" viewBox="0 0"></p>'),
            (element("meta", http_equiv="refresh"), '<meta http-equiv="refresh"/>'),
            (element("p", Markup("<i>")), "<p><i></p>"),
        ):
            self.assertEqual(expected, made)
            self.assertIsInstance(made, Markup)

    def test_escaped(self) -> None:
        """Text does not become markup, neither in content nor in an attribute, nor when it was made of markup."""
        hostile = "<script>\"'&amp;"
        self.assertEqual("<p>&lt;script&gt;\"'&amp;amp;</p>", element("p", hostile))
        self.assertEqual('<p title="&lt;script&gt;&quot;&#x27;&amp;amp;"></p>', element("p", title=hostile))
        self.assertEqual("<p>&lt;b&gt;&lt;/b&gt;x</p>", element("p", element("b") + "x"))
        self.assertEqual("<p>&lt;b&gt;</p>", element("p", Markup("<B>").lower()))

    def test_document(self) -> None:
        """Bytes in UTF-8; what is no Unicode is spelled out."""
        self.assertEqual(b"<!DOCTYPE html>\n<p>\xc3\xa4\\udcff</p>", document(element("p", "ä\udcff")))
