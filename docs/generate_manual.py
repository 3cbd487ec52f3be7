"""
Makes the man pages in F{etc/man} and the completions in F{etc/completion} of the command line.

    python docs/generate_manual.py            # writes the files (make man)
    python docs/generate_manual.py --check    # exit status 1 if one is not current
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generator import completions, man_pages

from resticserver.cli import COMMANDS
from resticserver.commands.interface import PROGRAM, program
from resticserver.dates import day_text

ETC = Path(__file__).parent.parent / "etc"
MAN, COMPLETION = ETC / "man", ETC / "completion"


def files() -> dict[Path, str]:
    """All files and what they contain. The date of a page is that of its last change."""
    tree = program(COMMANDS)
    found = {MAN / name: _dated(MAN / name, lines) for name, lines in man_pages.pages(tree).items()}
    found[COMPLETION / f"{PROGRAM}.bash"] = completions.bash(tree)
    found[COMPLETION / f"_{PROGRAM}"] = completions.zsh(tree)
    found[COMPLETION / f"{PROGRAM}.fish"] = completions.fish(tree)
    return found


def _dated(path: Path, lines: list[str]) -> str:
    """A page, with the date of the file if it is the same otherwise."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    date = re.match(r"\.TH \S+ \d (\S+)", old)
    for day in (date[1] if date is not None else "", day_text(time.time())):
        page = "\n".join([man_pages.title(path.name, day), *lines]) + "\n"
        if page == old:
            break
    return page


def stale() -> list[Path]:
    """Files that are not current, and files that no longer belong there."""
    made = files()
    present = {*MAN.glob("*"), *COMPLETION.glob("*")}
    wrong = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return sorted([*wrong, *(present - made.keys())])


def main(arguments: list[str]) -> int:
    """Write the files, or say whether they are current."""
    if arguments == ["--check"]:
        wrong = stale()
        for path in wrong:
            print(f"{path} is not current: run make man", file=sys.stderr)
        return 1 if wrong else 0
    made = files()
    for path in stale():
        if path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
