"""
The man pages: of the program and its subcommands from the tree of the command line, of the configuration file from the same
tree, of the policy file from F{docs/policy.md}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from resticserver.commands.interface import PROGRAM, Argument, Command, Option
from resticserver.config.sources import variable

from .flags import COMMAND_LINE_ONLY, NO_KEY, PRECEDENCE
from .roff import Converter, bold, heading, inline, italic, item, lines, literal, rows, section

DOCS = Path(__file__).parent.parent

CONFIGURATION, POLICY = f"{PROGRAM}.toml", f"{PROGRAM}-policy"

SYNTAX = f"""
Flags are written `--flag value` or `--flag=value`, switches also `--switch=true` and `--switch=false`. Every flag is also
a key of the `--config` file and an environment variable.

{PRECEDENCE}
"""

ENVIRONMENT = """
A variable begins with `REST_SERVER_` and has the name of its flag in capitals, with underscores: `REST_SERVER_MAX_SIZE` is
`--max-size`. Switches are `true` or `false`. Flags that are repeatable take several values, separated by spaces.
"""

FILES = """
| file | what it is |
|---|---|
| `.htpasswd` in the data directory | the users, unless `--htpasswd-file` names another file |
| `public_key`, `private_key` in the data directory | certificate and key for `--tls`, unless flags name others |
| `.rest-server` in the data directory | stored sizes and the id of the volume, unless `--state-dir` names another directory |
| `/etc/rest-server.toml` | the configuration file of the units and packages, if `--config` names it |
"""

TOML = """
The file that `--config` names, or the variable `REST_SERVER_CONFIG`, is in TOML. Its keys are the flags of the server
without their leading dashes. It is read at the start only. The command line and the environment win over it.

A switch is `true` or `false`. Other values are strings in quotes, or numbers. Flags that are repeatable take a list of
strings. Relative paths start from the directory that the server is started in. An unknown key, or a value of the wrong type,
stops the start; `rest-server config check --config FILE` reports all of them.
"""

EXAMPLE = """\
path = "/var/lib/restic"
listen = [":8000", "unix:/run/restic-rest/socket"]
log = "/var/log/restic/access.log"
private-repos = true
append-only = true
tls = true
tls-cert = "/etc/ssl/backup.pem"
tls-key = "/etc/ssl/private/backup.key"
max-size = "2TiB"
max-connections = 1000
"""

DOCUMENTS = "Documents that are named in parentheses are part of the source distribution."


def pages(program: Command) -> dict[str, list[str]]:
    """All pages by the names of their files, each without its first line."""
    found = {f"{PROGRAM}.1": list(_program_page(program))}
    for command in program.commands:
        found[f"{_page_name(command)}.1"] = list(_command_page(command, program))
    found[f"{CONFIGURATION}.5"] = list(_configuration_page(program))
    found[f"{POLICY}.5"] = list(_policy_page(program))
    return found


def title(file: str, date: str) -> str:
    """The first line of a page."""
    name, _, number = file.rpartition(".")
    volume = {"1": "User Commands", "5": "File Formats"}[number]
    return f'.TH {literal(name.upper())} {number} {date} resticserver "{volume}"'


def _page_name(command: Command) -> str:
    return "-".join(command.path)


def _reference(name: str, number: int) -> str:
    return f"{bold(name)}({number})"


def _link(text: str, target: str) -> str:
    """Links to pages of the manual name these, other links the document. Files and anchors are named by their texts."""
    document = target.partition("#")[0]
    if document == "policy.md":
        return f"{text} ({_reference(POLICY, 5)})"
    if not document.endswith(".md") or document == "options.md":
        return text
    return f"{text} (docs/{document})"


def _link_in_policy(text: str, target: str) -> str:
    return text if target.startswith("policy.md") else _link(text, target)


def _name(name: str, summary: str) -> Iterator[str]:
    yield heading("Name", 1)
    yield rf"{literal(name)} \- {inline(summary)}"


def _see_also(own: str, program: Command, documents: bool = True) -> Iterator[str]:
    yield heading("See also", 1)
    names = [(PROGRAM, 1), *((_page_name(command), 1) for command in program.commands)]
    names += [(CONFIGURATION, 5), (POLICY, 5)]
    others = [name for name in names if f"{name[0]}.{name[1]}" != own]
    for name, number in others:
        yield f".BR {literal(name)} ({number}){',' if (name, number) != others[-1] else ''}"
    if documents:
        yield ".PP"
        yield DOCUMENTS


def _text(markdown: str) -> list[str]:
    return Converter(_link).document(markdown)


# --- section 1


def _program_page(program: Command) -> Iterator[str]:
    operations = (DOCS / "operations.md").read_text(encoding="utf-8")
    yield from _name(PROGRAM, program.summary)
    yield heading("Synopsis", 1)
    yield f"{bold(PROGRAM)} [{italic('flag')} ...]"
    for command in program.commands:
        yield ".br"
        yield f"{bold(command.name)} {italic('...')}"
    yield heading("Description", 1)
    yield from lines(inline(program.text.partition(" Every flag")[0]))
    yield heading("Commands", 1)
    yield from lines(
        inline("Without a command the server runs, in the foreground. Each command has a page of its own.")
    )
    for command in program.commands:
        yield from item(bold(command.name), f"{inline(command.summary)}; see {_reference(_page_name(command), 1)}")
    yield heading("Configuration", 1)
    yield from _text(SYNTAX)
    yield heading("Flags", 1)
    yield from _sections(program.options, _flag)
    yield heading("Environment", 1)
    yield from _text(ENVIRONMENT)
    yield heading("Files", 1)
    yield from _text(FILES)
    yield heading("Signals", 1)
    yield from _text(section(operations, "Signals"))
    yield from _exit_status(program)
    yield from _see_also(f"{PROGRAM}.1", program)


def _sections(options: tuple[Option, ...], entry: Callable[[Option], Iterator[str]]) -> Iterator[str]:
    """Options below the headings of their sections."""
    current = None
    for option in options:
        if option.section != current:
            current = option.section
            yield heading(current, 2)
        yield from entry(option)


def _tag(option: Option) -> str:
    forms = ", ".join(map(bold, option.forms))
    return forms if option.value is None else f"{forms} {italic(option.value.name)}"


def _paragraphs(markdown: str) -> list[str]:
    """The paragraphs of a text; the items of a list are one each."""
    parts: list[tuple[str, str]] = []
    for block in markdown.split("\n\n"):
        first, *entries = re.split(r"^- ", block, flags=re.MULTILINE)
        parts += [("", first)] if first.strip() else []
        parts += [(r"\(bu ", entry) for entry in entries]
    return [mark + inline(" ".join(part.split()), _link) for mark, part in parts]


def _flag(option: Option) -> Iterator[str]:
    """A flag of the server: its text, its default, and its variable."""
    facts = []
    if option.default:
        facts.append(f"Default: {inline(option.default)}.")
    if option.name not in COMMAND_LINE_ONLY:
        facts.append(f"Environment: {bold(variable(option.name))}.")
    yield from item(_tag(option), *_paragraphs(option.text), *([" ".join(facts)] if facts else []))


def _option(option: Option) -> Iterator[str]:
    """An option of a subcommand. Of the server's flags only the short text is here."""
    text = inline(option.summary) + (f" ({', '.join(map(bold, option.value.choices))})" if _has_choices(option) else "")
    yield from item(_tag(option), text)


def _has_choices(option: Option) -> bool:
    """Whether the values are to be listed; some texts have them already."""
    if option.value is None:
        return False
    return not all(choice in f"{option.summary} {option.value.name}" for choice in option.value.choices)


def _argument(argument: Argument) -> Iterator[str]:
    if argument.summary:
        yield from item(italic(argument.value.name), inline(argument.summary))


def _command_page(command: Command, program: Command) -> Iterator[str]:
    name = _page_name(command)
    yield from _name(name, command.summary)
    yield heading("Synopsis", 1)
    for number, one in enumerate(one for one in command.walk() if not one.commands):
        if number:
            yield ".br"
        yield from lines(_usage(one))
    yield heading("Description", 1)
    yield from lines(inline(command.text))
    if command.commands:
        yield heading("Commands", 1)
        for one in command.commands:
            yield heading(one.name, 2)
            yield from lines(inline(one.text or one.summary))
            yield from _arguments_and_options(one)
    yield heading("Options", 1)
    yield from _arguments_and_options(command)
    yield from _exit_status(command)
    yield from _see_also(f"{name}.1", program, documents=False)


def _usage(command: Command) -> str:
    words = [bold(command.name), f"[{italic('option')} ...]"]
    for argument in command.arguments:
        word = italic(argument.value.name) + (" ..." if argument.repeatable else "")
        words.append(word if argument.required else f"[{word}]")
    return " ".join(words)


def _arguments_and_options(command: Command) -> Iterator[str]:
    for argument in command.arguments:
        yield from _argument(argument)
    current = ""
    for option in command.options:
        if option.section != current:
            current = option.section
            yield ".PP"
            yield from lines(inline(f"{current[:1].upper()}{current[1:]}, see rest-server(1):"))
        yield from _option(option)


def _exit_status(command: Command) -> Iterator[str]:
    """The rows of the table in F{docs/operations.md} that are about a command."""
    operations = (DOCS / "operations.md").read_text(encoding="utf-8")
    found = []
    for names, *statuses in rows(section(operations, "Exit status")):
        commands = re.findall(r"`([^`]+)`", names)
        paths = [tuple(name.split()) if name.startswith(PROGRAM) else (PROGRAM, *name.split()) for name in commands]
        mine = [path for path in paths if path[: len(command.path)] == command.path]
        if command.path == (PROGRAM,):
            mine = [path for path in paths if path == command.path]
        if mine:
            found.append((" ".join(mine[0]), statuses))
    if not found:
        return
    yield heading("Exit status", 1)
    for name, statuses in found:
        if len(found) > 1:
            yield heading(name, 2)
        for number, meaning in enumerate(statuses):
            if meaning:
                yield from item(str(number), inline(meaning, _link))


# --- section 5


def _configuration_page(program: Command) -> Iterator[str]:
    yield from _name(CONFIGURATION, "configuration file of rest-server")
    yield heading("Description", 1)
    yield from _text(TOML)
    yield heading("Keys", 1)
    keys = tuple(option for option in program.options if option.name not in NO_KEY)
    yield from _sections(keys, _key)
    yield heading("Example", 1)
    yield from _text(f"```toml\n{EXAMPLE}```")
    yield from _see_also(f"{CONFIGURATION}.5", program)


def _key(option: Option) -> Iterator[str]:
    value = "true|false" if option.value is None else f'"{option.value.name}"'
    value = f"[{value}, ...]" if option.repeatable else value
    facts = [f"Default: {'**false**' if option.default == 'off' else option.default}."] if option.default else []
    tag = f"{bold(option.name)} = {italic(value)}"
    yield from item(tag, *_paragraphs(option.text), *(inline(fact) for fact in facts))


def _policy_page(program: Command) -> Iterator[str]:
    text = (DOCS / "policy.md").read_text(encoding="utf-8")
    head, _, rest = text.partition("\n## ")
    yield from _name(POLICY, "access rules and quotas of rest-server")
    yield heading("Description", 1)
    converter = Converter(_link_in_policy)
    yield from converter.document(head.partition("\n")[2])
    yield from converter.document(f"## {rest}")
    yield from _see_also(f"{POLICY}.5", program)
