"""
docs/operations.md has every line that the server logs, and none that it does not: the lines are read from the source.

A placeholder is one word in capitals there (C{start server on ADDRESS}), and words that are in capitals anyway (C{TLS}) count as
one, too. What to do with a line that these tests name: add it to the table under "Log lines", with what it means and
what to do; or, where it is named as one that nobody logs, take it from there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from .test_layers import CHECKOUT, MODULES, belongs_to

DOCUMENT = CHECKOUT / "docs" / "operations.md"
HEADING = "## Log lines"
#: What C{twisted.logger} calls these lines; C{debug} is for who looks for a fault in the source.
LEVELS = ("info", "warn", "error", "critical", "failure")
#: Events that are logged only with C{--debug}.
QUIET = ("REPOSITORY_CREATED", "REPOSITORY_DELETED", "CORRUPTION", "LOCKOUT")
#: Those have their own output, on a terminal.
SUBCOMMANDS = ("resticserver.commands", "resticserver.config.console")
#: Lines that are only one placeholder carry others: a worker's, a request of the access log, the reason of a failed start.
CARRIERS = {"{record}", "{text}", "{line}", "{problem}"}
#: What is put together of what several modules say.
MORE = (
    "a file of repository {repository} is {problem}: {type} {name}: {reason}",
    "start server on {address}",
    "metrics on {address}",
    "{number} more TLS handshakes failed within {seconds} s; the last: {last}",
    "{number} more times the limit {limit} was reached within {seconds} s; the last: {last}",
    "{number} more such requests and connections within {seconds} s; the last: {last}",
)


def texts_of(node: ast.expr, function: ast.AST | None) -> Iterator[str]:
    """What an expression may be as a format; C{{}} for each part that is not known before."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            pieces = [""]
            for value in values:
                found = list(texts_of(value, function)) if isinstance(value, ast.Constant) else ["{}"]
                if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.IfExp):
                    found = list(texts_of(value.value, function))
                pieces = [f"{before}{after}" for before in pieces for after in found]
            yield from pieces
        case ast.IfExp(body=body, orelse=other):
            for branch in (body, other):
                yield from list(texts_of(branch, function)) or ["{}"]
        case ast.Name(id=name) if function is not None:
            for child in ast.walk(function):
                if isinstance(child, ast.Assign) and any(
                    isinstance(to, ast.Name) and to.id == name for to in child.targets
                ):
                    yield from texts_of(child.value, None)
        case ast.BoolOp(values=values):
            for value in values:
                yield from list(texts_of(value, function)) or ["{}"]
        case ast.Call(func=ast.Attribute(attr="format" | "replace", value=value)):
            yield from texts_of(value, function)


def calls_in(source: str) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Each call, with the function that it is in."""

    def walk(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield child, function
            inside = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from walk(child, inside)

    module = ast.parse(source)
    return walk(module, module)


def lines_in(source: str) -> Iterator[str]:
    """The formats of all lines that a module logs."""
    for call, function in calls_in(source):
        match call:
            case ast.Call(
                func=ast.Attribute(attr=level, value=ast.Name(id="_log") | ast.Attribute(attr="_log")), args=[first, *_]
            ) if level in LEVELS:
                for text in texts_of(first, function):
                    yield from with_values(text, call.keywords, function)
            case ast.Call(func=ast.Name(id="Event" | "event_of"), args=[kind, words, *_]):
                if not (isinstance(kind, ast.Attribute) and kind.attr in QUIET):
                    yield from texts_of(words, function)
            case ast.Call(func=ast.Attribute(attr="say", value=ast.Attribute(attr=name)), args=[words]) if (
                name.endswith("_lines")
            ):
                yield from texts_of(words, function)
            case ast.Call(
                func=ast.Attribute(attr="limited", value=ast.Attribute(attr="limited" | "_limited")), args=args
            ):
                yield from texts_of(args[1], function)
            case ast.Call(func=ast.Name(id="print"), args=[words], keywords=keywords):
                if any(word.arg == "file" for word in keywords):
                    yield from texts_of(words, function)
            case ast.Call(func=ast.Attribute(attr="append", value=ast.Name(id="warnings")), args=[words]):
                yield from texts_of(words, function)


def with_values(text: str, keywords: list[ast.keyword], function: ast.AST) -> Iterator[str]:
    """A format with those of its values put in that stand in the source."""
    lines = [text]
    for keyword in keywords:
        values = list(texts_of(keyword.value, function)) if f"{{{keyword.arg}}}" in text else []
        if values and "{}" not in values:
            lines = [line.replace(f"{{{keyword.arg}}}", value) for line in lines for value in values]
    yield from lines


def canonical(line: str) -> str:
    """A line with one sign for each placeholder, and for each word in capitals."""
    return re.sub(r"(?<![\w*-])[A-Z][A-Z0-9-]*(?![\w])", "*", re.sub(r"\{[^{}]*\}", "*", line))


def logged() -> dict[str, str]:
    """All lines of the package: as they are compared, and as they are."""
    found = {canonical(line): line for line in MORE}
    for module, path in MODULES.items():
        if not belongs_to(module, *SUBCOMMANDS):
            for line in lines_in(path.read_text(encoding="utf-8")):
                if line not in CARRIERS and canonical(line) not in ("*", "* *"):
                    found[canonical(line)] = line
    return found


def documented(path: Path = DOCUMENT) -> dict[str, str]:
    """All lines of the document's tables: as they are compared, and as they are."""
    section = path.read_text(encoding="utf-8").split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row[2:].split(" | ")[0])]
    return {canonical(line): line for line in lines}


class ReaderTests(SynchronousTestCase):
    """How lines are read from the source."""

    def test_forms(self) -> None:
        """Every form in which a line is logged is found."""
        source = (
            'def f():\n    words = "a {b}"\n    _log.error(words, b=1)\n'
            '    self._log.info("c" if x else f"d {e} {1 if y else 2}")\n'
            '    _log.warn("{state}", state=f"g: {h}" if x else "i")\n'
            '    _log.failure("j", failure)\n    _log.debug("k")\n    other.error("l")\n'
            '    message = f"m {n}"\n    tell(Event(kind, message))\n    tell(Event(EventKind.LOCKOUT, "o"))\n'
            '    print(f"p: {q}", file=sys.stderr)\n    print("r")\n    warnings.append(f"s {t}")\n'
            '    _log.error(\n        "u: {v}",\n        v=v,\n    )\n'
        )
        expected = {"a *", "c", "d * *", "g: *", "i", "j", "m *", "p: *", "s *", "u: *"}
        self.assertEqual(expected, {canonical(line) for line in lines_in(source)})

    def test_canonical(self) -> None:
        """Placeholders of either side, and what is no placeholder."""
        for one, other in (
            ("start server on {address}", "start server on ADDRESS"),
            ("Quota initialized, currently using {gib:.2f} GiB", "Quota initialized, currently using N GiB"),
            ("TLS enabled, private key {key}", "TLS enabled, private key FILE"),
            ("{a}: {b}", "A: B"),
        ):
            self.assertEqual(canonical(one), canonical(other))
        self.assertNotEqual(canonical("the volume at {path} is back"), canonical("no volume at PATH is back"))


class DocumentTests(SynchronousTestCase):
    """The table and the source."""

    def test_every_line_is_there(self) -> None:
        """What is logged is in the table."""
        known = documented()
        self.assertEqual([], sorted(line for key, line in logged().items() if key not in known))

    def test_nothing_else_is_there(self) -> None:
        """What is in the table is logged."""
        known = logged()
        self.assertEqual([], sorted(line for key, line in documented().items() if key not in known))

    def test_there_are_many(self) -> None:
        """The source is really read."""
        self.assertGreater(len(logged()), 60)
        for line in (
            "start server on *",
            "not ready: *",
            "refused an upload to repository *: *",
            "the volume at * is back",
        ):
            self.assertIn(line, logged())
