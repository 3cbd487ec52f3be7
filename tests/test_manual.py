"""
Man pages and completions: the files in F{etc} are what the code says, and Markdown becomes right roff. Whether the programs that
read them accept them is tried in L{tests.shipping.test_manual}.
"""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.cli import COMMANDS
from resticserver.commands.interface import program
from resticserver.config.options import Options

from .support.processes import process_test

CHECKOUT = Path(__file__).parent.parent
GENERATOR = CHECKOUT / "docs" / "generate_manual.py"

DOCUMENT = r"""# Title

<!-- not shown -->
A `--flag` of **weight**, see [the
document](x.md#part) and [`--other`](#--other); don't \ ~.
- an item
  of two lines
- `.dot`

## Second "part"

```sh
.a 'b' -c \d
```

.dots stay.

| `key` | a | b |
|---|---|---|
| one\|two | x | |
| three | y | z |

| key | meaning |
|---|---|
| `four` | only this |
"""

ROFF = r""".SH TITLE
A \fB\-\-flag\fR of \fBweight\fR, see the document <x.md#part> and
\fB\-\-other\fR <#--other>; don't \e \(ti.
.IP \(bu 2
an item of two lines
.IP \(bu 2
\fB.dot\fR
.SH SECOND \(dqPART\(dq
.RS 4
.EX
\&.a \(aqb\(aq \-c \ed
.EE
.RE
.PP
\&.dots stay.
.TP
one|two
a: x
.TP
three
a: y; b: z
.TP
\fBfour\fR
only this""".splitlines()


def generator() -> dict[str, Any]:
    """The names of the program that makes the files."""
    return runpy.run_path(str(GENERATOR))


class FilesTests(SynchronousTestCase):
    """The files in F{etc/man} and F{etc/completion}."""

    def setUp(self) -> None:
        self.made = generator()

    def test_current(self) -> None:
        """They are what C{make man} makes, and there are no others."""
        self.assertEqual([], [path.relative_to(CHECKOUT).as_posix() for path in self.made["stale"]()])

    @process_test
    def test_elsewhere(self) -> None:
        """They do not depend on where they are made: the temporary directory is in the help."""
        environment = {**os.environ, "TMPDIR": "/elsewhere", "COLUMNS": "40", "LC_ALL": "C"}
        done = subprocess.run(
            [sys.executable, str(GENERATOR), "--check"], env=environment, stderr=subprocess.PIPE, cwd=CHECKOUT
        )
        self.assertEqual((b"", 0), (done.stderr, done.returncode))

    def test_stale(self) -> None:
        """A file that was changed, one that is missing and one too many are found, and put right."""
        names: dict[str, Any] = self.made["main"].__globals__
        for name in ("MAN", "COMPLETION"):
            folder = Path(self.mktemp())
            folder.mkdir()
            self.patch_name(names, name, folder)
        man = names["MAN"]
        self.assertEqual(0, self.made["main"]([]))
        self.assertEqual([], self.made["stale"]())
        page = man / "rest-server.1"
        text = page.read_text()
        page.write_text(text.replace("repository server", "repository"))
        (man / "rest-server-user.1").unlink()
        (man / "rest-server-former.1").write_text("")
        wrong = ["rest-server-former.1", "rest-server-user.1", "rest-server.1"]
        self.assertEqual(wrong, [path.name for path in self.made["stale"]()])
        said = io.StringIO()
        with redirect_stderr(said):
            self.assertEqual(1, self.made["main"](["--check"]))
        self.assertEqual(3, said.getvalue().count(" is not current: run make man\n"))
        self.assertEqual(0, self.made["main"]([]))
        self.assertEqual([], self.made["stale"]())
        self.assertEqual(text, page.read_text())

    def patch_name(self, names: dict[str, Any], name: str, value: object) -> None:
        """Change a name of the generator for this test."""
        self.addCleanup(names.__setitem__, name, names[name])
        names[name] = value

    def test_date(self) -> None:
        """A page keeps its date until its text changes."""
        path = Path(self.mktemp()).with_suffix(".1")
        dated = self.made["_dated"]
        path.write_text(dated(path, ["text"]).replace(dated(path, ["text"]).split()[3], "2001-02-03"))
        self.assertIn(" 2001-02-03 ", dated(path, ["text"]))
        self.assertNotIn(" 2001-02-03 ", dated(path, ["other text"]))

    def test_names(self) -> None:
        """Each command has a page, whose name and summary fit in a line: apropos reads only that."""
        pages = {path.name: path.read_text().splitlines() for path in (CHECKOUT / "etc" / "man").iterdir()}
        for command in COMMANDS:
            self.assertIn(f"rest-server-{command}.1", pages)
        for name, lines in pages.items():
            self.assertEqual(".SH NAME", lines[1])
            self.assertLessEqual(len(lines[2]), 80, f"{name}: {lines[2]}: shorten the command's first sentence")

    def test_example(self) -> None:
        """The server accepts the configuration of the page."""
        path = Path(self.mktemp())
        path.write_text(self.made["man_pages"].EXAMPLE)
        options = Options()
        options.parseOptions(["--config", str(path)])
        self.assertEqual("/var/lib/restic", options.settings.path)

    def test_keys(self) -> None:
        """The page of the configuration file has all keys, and only these."""
        text = (CHECKOUT / "etc" / "man" / "rest-server.toml.5").read_text()
        flags = [option.name for option in program(()).options if option.name not in ("help", "version", "config")]
        keys = [
            line.partition("\\fR")[0].removeprefix("\\fB").replace("\\-", "-")
            for line in text.splitlines()
            if line.startswith("\\fB") and "\\fR = \\fI" in line
        ]
        self.assertEqual(flags, keys)


class RoffTests(SynchronousTestCase):
    """Markdown to roff."""

    def setUp(self) -> None:
        generator()  # makes the modules beside it importable
        self.roff: Any = sys.modules["generator.roff"]

    def test_document(self) -> None:
        """All that the documents have."""
        converter = self.roff.Converter(lambda text, target: f"{text} <{target}>")
        self.assertEqual(ROFF, converter.document(DOCUMENT))

    def test_section(self) -> None:
        """The text below a heading, up to the next one of its kind."""
        text = "# A\n\na\n\n## B\n\nb\n\n### C\n\nc\n\n## D\n\nd\n"
        self.assertEqual("b\n\n### C\n\nc", self.roff.section(text, "B"))
        self.assertEqual("d", self.roff.section(text, "D"))
        self.assertRaises(LookupError, self.roff.section, text, "E")

    def test_other_letters(self) -> None:
        """Only ASCII goes to roff, whose readers take different encodings."""
        self.assertEqual(r"caf\[u00E9] \[u2026]", self.roff.inline("café …"))
