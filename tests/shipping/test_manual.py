"""
Man pages and completions against the installed program: they have what each command's C{--help} has and no more, and the
programs that read them accept them. The pages go through mandoc and man, the completions through bash, zsh and fish.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import installed, server_environment
from ..support.skipping import skipped
from ..support.waiting import PATIENCE_S

ETC = Path(__file__).parent.parent.parent / "etc"
MAN = ETC / "man"
BASH, ZSH, FISH = (ETC / "completion" / name for name in ("rest-server.bash", "_rest-server", "rest-server.fish"))

#: The beginning of a line of help or of a page that describes an option, and the options in it.
TAG = re.compile(r"^ {0,8}(-.*?)(?:  |$)", re.MULTILINE)
OPTION = re.compile(r"(?:^|[ ,])(--[a-z][a-z-]*|-\w)(?=[ ,=]|$)")

#: What loads completions in most installations of bash.
LOADER = Path("/usr/share/bash-completion/bash_completion")

Names = tuple[str, ...]


def without(program: str) -> str | None:
    """Why a test is skipped that needs a program."""
    return None if shutil.which(program) else f"needs {program}"


def environment() -> dict[str, str]:
    """For the program and the shells: it is on the path, and lines are wide enough."""
    folder = str(Path(installed("rest-server")).parent)
    wide = {"PATH": f"{folder}:{os.environ['PATH']}", "COLUMNS": "500", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    return server_environment(wide)


def output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; it must succeed and complain of nothing."""
    done = subprocess.run(command, capture_output=True, env=environment(), cwd=cwd, timeout=PATIENCE_S)
    if done.returncode or done.stderr:
        raise AssertionError(f"{command}: {done.returncode}, {done.stderr.decode()}{done.stdout.decode()}")
    return done.stdout.decode()


@cache
def help_of(command: Names) -> str:
    """What C{--help} of a command prints."""
    return output(installed("rest-server"), *command, "--help")


def options_in(text: str) -> set[str]:
    """The options that lines describe, in all their forms."""
    return {option for tag in TAG.findall(text) for option in OPTION.findall(tag)}


def long_only(options: Iterable[str]) -> set[str]:
    """Those with two dashes."""
    return {option for option in options if option.startswith("--")}


def commands_below(command: Names) -> list[str]:
    """The subcommands that a command's help names."""
    text = help_of(command)
    if not command:
        return re.findall(r"rest-server ([a-z]+) \(", " ".join(text.replace("rest-\nserver", "rest-server").split()))
    positional = re.search(r"positional arguments:\n(.*?)\n\n", text, re.DOTALL)
    return re.findall(r"^ {4}([a-z][a-z-]*)\b", positional[1], re.MULTILINE) if positional is not None else []


@cache
def all_commands() -> tuple[Names, ...]:
    """Every command that the help leads to; the server itself is the empty one."""
    found: list[Names] = []
    waiting: list[Names] = [()]
    while waiting:
        command = waiting.pop(0)
        found.append(command)
        waiting += [(*command, name) for name in commands_below(command)]
    return tuple(found)


@process_test
class HelpTests(SynchronousTestCase):
    """How the help is read; the other tests rely on it."""

    def test_commands(self) -> None:
        """Commands of both depths are found."""
        found = all_commands()
        for command in ((), ("user",), ("user", "add"), ("config", "check"), ("policy", "check"), ("scrub",)):
            self.assertIn(command, found)
        self.assertNotIn(("scrub", "REPO"), found)
        self.assertGreater(len(found), 15)

    def test_options(self) -> None:
        """All forms are found, and nothing in the text of an option."""
        text = "  -a, --all X  not --this\n  --long, -l\n      --equals=    -x\n         --text\n"
        self.assertEqual({"-a", "--all", "--long", "-l", "--equals"}, options_in(text))
        self.assertTrue({"--path", "--no-auth", "--help", "-h", "--version", "-v"} <= options_in(help_of(())))
        self.assertEqual(
            {"-h", "--help", "--config", "--path", "--htpasswd-file"}, options_in(help_of(("user", "list")))
        )


@process_test
@skipped(without("mandoc"))
class PageTests(SynchronousTestCase):
    """F{etc/man}."""

    def rendered(self, name: str) -> str:
        """A page as text, without overstriking."""
        return re.sub(r".\x08", "", output("mandoc", "-T", "utf8", str(MAN / name)))

    def section(self, page: str, heading: str) -> str:
        """The part of a page below a heading, up to the next one of the same or a higher level."""
        found = re.search(rf"^( *){re.escape(heading)}\n(.*?)(?=^\1?\S|\Z)", page, re.MULTILINE | re.DOTALL)
        if found is None:
            raise AssertionError(f"no heading {heading!r}")
        return found[2]

    def test_lint(self) -> None:
        """mandoc has nothing to say about any page."""
        pages = sorted(MAN.iterdir())
        self.assertGreater(len(pages), 8)
        for page in pages:
            self.assertEqual("", output("mandoc", "-T", "lint", "-W", "all", str(page)), page.name)

    def test_one_for_each_command(self) -> None:
        """Every subcommand has a page, and no other thing."""
        wanted = {f"rest-server-{command[0]}.1" for command in all_commands() if len(command) == 1}
        wanted |= {"rest-server.1", "rest-server.toml.5", "rest-server-policy.5"}
        self.assertEqual(wanted, {path.name for path in MAN.iterdir()})

    def test_options(self) -> None:
        """Each command's options are those of its help."""
        for command in all_commands():
            page = self.rendered("-".join(["rest-server", *command[:1]]) + ".1")
            if len(command) == 2:
                page = self.section(page, f"rest-server {' '.join(command)}")
            else:
                page = self.section(page, "OPTIONS" if command else "FLAGS")
            self.assertEqual(options_in(help_of(command)), options_in(page), command)

    def test_commands(self) -> None:
        """A page has the commands of the help."""
        self.assertEqual(
            [f"rest-server {name}" for name in commands_below(())],
            re.findall(r"^ {7}(rest-server [a-z]+)$", self.section(self.rendered("rest-server.1"), "COMMANDS"), re.M),
        )

    def test_references(self) -> None:
        """Every page that is referred to exists."""
        present = {f"{path.stem}({path.suffix[1:]})" for path in MAN.iterdir()}
        for path in MAN.iterdir():
            named = set(re.findall(r"\brest-server[a-z.-]*\(\d\)", self.rendered(path.name)))
            self.assertEqual(set(), named - present, path.name)

    @skipped(without("man"))
    def test_man(self) -> None:
        """man-db shows the pages, and groff has no warning."""
        for page in sorted(MAN.iterdir()):
            text = output("man", "--warnings", "-l", str(page))
            self.assertIn(page.stem.upper(), text)
            self.assertIn("SEE ALSO", text)

    @skipped(without("mandb"))
    def test_apropos(self) -> None:
        """An installed page is found by its summary and shown by its name."""
        root = scratch_directory(self)
        root.chmod(0o755)
        for page in MAN.iterdir():
            folder = root / f"man{page.suffix[1:]}"
            folder.mkdir(exist_ok=True, mode=0o755)
            shutil.copy(page, folder)
        subprocess.run(["mandb", "--quiet", "--create", str(root)], check=True, timeout=PATIENCE_S)
        found = output("apropos", "-M", str(root), "rest-server")
        self.assertEqual(len(list(MAN.iterdir())), len(found.splitlines()))
        self.assertIn("rest-server.toml (5)", found)
        self.assertIn("FLAGS", output("man", "-M", str(root), "rest-server"))
        self.assertIn("RIGHTS", output("man", "-M", str(root), "5", "rest-server-policy"))


class ShellCase(SynchronousTestCase):
    """The same cases for each shell."""

    def setUp(self) -> None:
        self.folder = scratch_directory(self)
        (self.folder / "directory of one").mkdir()
        (self.folder / "a file.toml").touch()

    def complete(self, line: str) -> set[str]:
        """What is offered at the end of a line: whole words."""
        raise NotImplementedError

    def check_options(self) -> None:
        """After each command its options are offered, and no others."""
        for command in all_commands():
            line = " ".join(["rest-server", *command, "--"])
            self.assertEqual(long_only(options_in(help_of(command))), self.complete(line), line)

    def check_commands(self) -> None:
        """The subcommands of the help are offered."""
        for command in all_commands():
            if names := commands_below(command):
                line = " ".join(["rest-server", *command, ""])
                self.assertEqual(set(names), self.complete(line), line)

    def check_values(self) -> None:
        """Choices, files and directories, of the server and of subcommands."""
        both = {"a file.toml", "directory of one"}
        for line, wanted in (
            ("rest-server --tls-min-ver ", {"1.2", "1.3"}),
            ("rest-server --no-auth --log-format ", {"combined", "json"}),
            ("rest-server trash list --type ", {"config", "data", "index", "keys", "snapshots"}),
            ("rest-server config check --tls-client-auth ", {"required", "optional"}),
            ("rest-server --config ", both),
            ("rest-server user add --htpasswd-file ", both),
            ("rest-server --path ", {"directory of one"}),
            ("rest-server usage --state-dir ", {"directory of one"}),
            ("rest-server --listen ", set()),
        ):
            self.assertEqual(wanted, {word.rstrip("/") for word in self.complete(line)}, line)

    def check_places(self) -> None:
        """A subcommand is the first word; the value of an option is none."""
        self.assertIn("--tls", self.complete("rest-server --path user --"))
        self.assertNotIn("--cost", self.complete("rest-server --path user --"))
        self.assertIn("--cost", self.complete("rest-server user add --path . alice --"))
        self.assertNotIn("add", self.complete("rest-server --no-auth a"))


@process_test
@skipped(without("bash"))
class BashTests(ShellCase):
    """F{etc/completion/rest-server.bash}."""

    def complete(self, line: str) -> set[str]:
        """See L{ShellCase.complete}."""
        program = (
            'source $1; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
            "complete -p rest-server > /dev/null || exit 1\n"
            "function=$(complete -p rest-server); function=${function#*-F }; ${function%% *}\n"
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        # Readline separates the equals sign.
        words = re.sub(r"(?<=\S)=", " = ", line).split(" ")
        return set(filter(None, output("bash", "-c", program, "bash", str(BASH), *words, cwd=self.folder).splitlines()))

    def test_all(self) -> None:
        """Options, commands, values, places."""
        self.check_options()
        self.check_commands()
        self.check_values()
        self.check_places()

    def test_short_and_equals(self) -> None:
        """Short forms are offered; a value may follow an equals sign."""
        self.assertEqual({"-v", "-h"}, {word for word in self.complete("rest-server -") if word[1] != "-"})
        self.assertEqual({"1.2", "1.3"}, self.complete("rest-server --tls-min-ver="))
        self.assertEqual({"1.3"}, self.complete("rest-server --tls-min-ver=1.3"))
        self.assertEqual({"directory of one"}, self.complete("rest-server --path=dir"))

    @skipped(None if LOADER.exists() else "needs bash-completion")
    def test_loaded(self) -> None:
        """bash-completion finds the file by the name that it is installed with, when it is first needed."""
        folder = self.folder / "share" / "completions"
        folder.mkdir(parents=True)
        shutil.copy(BASH, folder / "rest-server")
        with Terminal(["bash", "--norc", "--noprofile", "-i"], str(self.folder)) as terminal:
            terminal.enter(f"BASH_COMPLETION_USER_DIR={folder.parent}; source {LOADER}; bind 'set bell-style none'")
            self.assertIn("rest-server scrub --accept-missing ", terminal.keys("rest-server scr\t--acc\t"))
            self.assertIn("--path directory\\ of\\ one/", terminal.keys("rest-server usage --path d\t"))

    def test_interactive(self) -> None:
        """A real line in an interactive bash is completed."""
        folder = str(self.folder)
        with Terminal(["bash", "--norc", "--noprofile", "-i"], folder) as terminal:
            terminal.enter(f"source {BASH}; bind 'set bell-style none'")
            self.assertIn("rest-server scrub --accept-missing ", terminal.keys("rest-server scr\t--acc\t"))
            self.assertIn("--config a\\ file.toml ", terminal.keys("rest-server --config a\t"))
            self.assertIn("--path=directory\\ of\\ one/", terminal.keys("rest-server --path=d\t"))


@process_test
@skipped(without("fish"))
class FishTests(ShellCase):
    """F{etc/completion/rest-server.fish}."""

    def complete(self, line: str) -> set[str]:
        """See L{ShellCase.complete}."""
        program = "set -p fish_complete_path $argv[1]; complete -C $argv[2]"
        home = self.folder / "directory of one" / "home"
        home.mkdir(exist_ok=True)
        command = ("env", f"HOME={home}", "fish", "--no-config", "-c", program, str(FISH.parent), line)
        return {found.partition("\t")[0] for found in output(*command, cwd=self.folder).splitlines()}

    def test_all(self) -> None:
        """Options, commands, values, places."""
        self.check_options()
        self.check_commands()
        self.check_values()
        self.check_places()

    def test_short_and_equals(self) -> None:
        """Short forms are offered; a value may follow an equals sign."""
        self.assertTrue({"-v", "-h"} <= self.complete("rest-server -"))
        self.assertEqual({"--tls-min-ver=1.2", "--tls-min-ver=1.3"}, self.complete("rest-server --tls-min-ver="))


class Terminal:
    """
    An interactive shell at a terminal of its own.

    @param command: the shell.
    @param folder: where it runs.
    """

    PROMPT = "ready>"

    def __init__(self, command: list[str], folder: str) -> None:
        self._pid, self._fd = pty.fork()
        if not self._pid:
            os.chdir(folder)
            os.execvpe(command[0], command, {**environment(), "HOME": folder, "PS1": self.PROMPT})
        self._number = 0

    def __enter__(self) -> Terminal:
        # Wide and long enough for every list, so that no shell asks whether to show it.
        self.enter(f"stty rows 500 columns 500; LINES=500; COLUMNS=500; PS1='{self.PROMPT}'")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)  # the shell gets SIGHUP
        os.waitpid(self._pid, 0)

    def enter(self, command: str) -> str:
        """Run a command; what it prints."""
        self._number += 1
        # The shell echoes the line, so the mark is not written there as it is printed.
        os.write(self._fd, f"{command}; echo 'e'nd{self._number}.\n".encode())
        return self._until(f"end{self._number}.\r")

    def keys(self, keys: str) -> str:
        """Press keys, then abandon the line; what was shown up to then, without what was overwritten."""
        os.write(self._fd, keys.encode())
        # Shells do not draw a line as long as there are more keys.
        shown = self._until(None)
        self.press("")
        return re.sub(r"[^\r\n]\x08", "", shown)

    def press(self, keys: str) -> None:
        """Press keys, then abandon the line, whatever is shown."""
        self._number += 1
        # ^A ^K: to the beginning of the line, and remove all of it.
        os.write(self._fd, f"{keys}\x01\x0becho 'e'nd{self._number}.\n".encode())
        self._until(f"end{self._number}.\r")

    def _until(self, mark: str | None) -> str:
        """Read until a mark comes, or, without one, until the shell has been quiet for a while."""
        self._shown = ""
        until_s = time.monotonic() + PATIENCE_S
        while mark is None or mark not in self._shown:
            if time.monotonic() > until_s:
                raise AssertionError(f"{mark} did not come: {self._shown!r}")
            ready, _, _ = select.select([self._fd], [], [], 1.5 if mark is None else 0.5)
            if not ready:
                if mark is None:
                    break
                continue
            self._shown += os.read(self._fd, 1 << 16).decode("utf-8", "replace")
        return self._shown


@process_test
@skipped(without("zsh"))
class ZshTests(ShellCase):
    """F{etc/completion/_rest-server}, in an interactive zsh."""

    def setUp(self) -> None:
        super().setUp()
        self.terminal = Terminal(["zsh", "-f", "-i"], str(self.folder)).__enter__()
        self.addCleanup(self.terminal.__exit__)
        self.terminal.enter(f"fpath=({ZSH.parent} $fpath); autoload -Uz compinit; compinit -u -D; unsetopt beep")

    def keep_matches(self) -> None:
        """Have compadd write what it offers to a file, which is easier to read than the terminal."""
        self.terminal.enter(
            "compadd() { local -a __kept; [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]] || "
            '{ builtin compadd -A __kept "$@"; print -rl -- $__kept >> kept; }; builtin compadd "$@" }'
        )

    def complete(self, line: str) -> set[str]:
        """See L{ShellCase.complete}."""
        kept = self.folder / "kept"
        kept.unlink(missing_ok=True)
        self.terminal.press(line + "\t")
        found = set(kept.read_text().splitlines()) if kept.exists() else set()
        kept.unlink(missing_ok=True)
        return {word.replace("\\ ", " ") for word in found} - {"kept", ""}

    def test_all(self) -> None:
        """Options, commands, values, places."""
        self.keep_matches()
        self.check_options()
        self.check_commands()
        self.check_values()
        self.check_places()

    def test_shown(self) -> None:
        """The list has the texts of the help; a line is completed."""
        shown = self.terminal.keys("rest-server user \t")
        self.assertRegex(shown, r"passwd +-- change the password of a user")
        self.assertIn("rest-server scrub --accept-missing", self.terminal.keys("rest-server scr\t--acc\t"))
        self.assertRegex(self.terminal.keys("rest-server --path\t\t"), r"--path=")
