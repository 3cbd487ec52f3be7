"""
Makes F{docs/options.md} of the flags that the server declares and of what L{resticserver.config.reference} says of them. The man
pages and the completions are made by F{docs/generate_manual.py}.

    python docs/generate_options.py            # writes the page (make docs)
    python docs/generate_options.py --check    # exit status 1 if it is not current
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from inspect import cleandoc
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generator.flags import COMMAND_LINE_ONLY, NO_KEY, PRECEDENCE, signature

from resticserver.commands.interface import Option, server_options
from resticserver.config.sources import variable

PAGE = Path(__file__).parent / "options.md"

INTRODUCTION = f"""\
# Options

<!-- Generated: edit resticserver/config/reference.py and run `make docs`. -->

`rest-server` and `twistd restic-rest` take the same flags: `--flag value` or `--flag=value`, and for switches also
`--switch=true` and `--switch=false`.

Every flag is also a key of the [`--config`](#--config) file and an environment variable:

| where | one value | a switch | several values |
|---|---|---|---|
| command line | `--max-size 1TiB` | `--no-auth` | `--listen :8000 --listen :8001` |
| environment | `REST_SERVER_MAX_SIZE=1TiB` | `REST_SERVER_NO_AUTH=true` | `REST_SERVER_LISTEN=":8000 :8001"` |
| `--config` file | `max-size = "1TiB"` | `no-auth = true` | `listen = [":8000", ":8001"]` |

{PRECEDENCE.strip()}

## Summary
"""


def wrapped(text: str) -> str:
    """A text in Markdown with its prose at most 100 columns wide; list items keep their lines' beginnings."""
    paragraphs = []
    for paragraph in cleandoc(text).split("\n\n"):
        items = paragraph.split("\n- ") if paragraph.startswith("- ") else [paragraph]
        lines = [items[0], *(f"- {item}" for item in items[1:])]
        paragraphs.append("\n".join(_fill(line, "  " if line.startswith("- ") else "") for line in lines))
    return "\n\n".join(paragraphs)


def _fill(line: str, indent: str) -> str:
    return textwrap.fill(
        " ".join(line.split()), 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    paragraphs = INTRODUCTION.split("\n\n")
    yield "\n\n".join(text if text.startswith(("#", "<", "|")) else wrapped(text) for text in paragraphs).rstrip("\n")
    yield ""
    yield "| flag | default |"
    yield "|---|---|"
    options = server_options()
    for option in options:
        # A bar would end the table's cell, even inside code.
        cell = signature(option).replace("|", r"\|")
        yield f"| [`{cell}`](#--{option.name}) | {option.default} |"
    for title, section in groupby(options, lambda option: option.section):
        yield f"\n## {title}"
        for option in section:
            yield f"\n### `--{option.name}`"
            yield f"\n{wrapped(option.text)}\n"
            yield from _facts(option)


def _facts(option: Option) -> Iterator[str]:
    """Where the flag can be given, and what holds without it."""
    yield f"- Usage: `{signature(option)}`{', repeatable' if option.repeatable else ''}"
    if option.default:
        yield f"- Default: {option.default}"
    if option.name not in COMMAND_LINE_ONLY:
        yield f"- Environment: `{variable(option.name)}`"
    if option.name not in NO_KEY:
        yield f"- Key of the file: `{option.name}`"


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is current."""
    if arguments == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            print(f"{PAGE} is not current: run make docs", file=sys.stderr)
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
