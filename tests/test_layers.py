"""
The layers of docs/design.md: who may import whom, read from the source and, where only that can tell, by importing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import resticserver

from .support.processes import process_test

PACKAGE = "resticserver"
SOURCE = Path(resticserver.__file__).parent
CHECKOUT = Path(__file__).parent.parent

#: The order of the packages, lowest first: a module imports from its own package and from those further down, and what stands
#: on one line knows nothing of its neighbours. A word of the domain is a module directly in the package.
ORDER = """
words threads
process
access storage telemetry
objects limits
quota config
web.http1
web.transfer net
web
service
workers commands
server
tap
cli
"""
RANKS = {name: rank for rank, line in enumerate(ORDER.split("\n")[1:-1]) for name in line.split()}


def modules() -> dict[str, Path]:
    """All modules of the package by name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def package_of(module: str) -> str:
    """The package of a module as L{ORDER} names it."""
    parts = module.split(".")[1:]
    for length in (2, 1):
        name = ".".join(parts[:length])
        if len(parts) >= length and name in RANKS:
            return name
    return "words"


def imports_of_modules() -> dict[str, set[str]]:
    """By module of ours, which others it imports, for type checkers or not."""
    found: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, imported, _ in all_imports():
        own = own_module(imported)
        if own is not None and own != module:
            found[module].add(own)
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, however long the way round (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        open_.append(module)
        for other in imports[module]:
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in open_:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            at = open_.index(module)
            group = sorted(open_[at:])
            del open_[at:]
            if len(group) > 1:
                found.append(group)

    for module in imports:
        if module not in number:
            visit(module)
    return found


def imports_in(module: str, source: str, is_package: bool) -> Iterator[tuple[str, bool]]:
    """
    What a module imports, as full names (C{package.module} or C{package.module.name}), and whether at module level.
    Imports for type checkers only count like all others.
    """

    def walk(node: ast.AST, at_top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = _absolute(module, is_package, child)
                yield from ((f"{base}.{alias.name}", at_top) for alias in child.names)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, at_top and not inside)

    return walk(ast.parse(source), True)


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def all_imports() -> Iterator[tuple[str, str, bool]]:
    """Importer, what it imports, whether at module level; for the whole package."""
    for module, path in MODULES.items():
        for imported, at_top in imports_in(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"):
            yield module, imported, at_top


def belongs_to(name: str, *packages: str) -> bool:
    """Whether a full name is one of these, or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def own_module(imported: str) -> str | None:
    """The module of ours that an import names, or takes a name from; C{None} for others' modules."""
    if imported in MODULES:
        return imported
    module = imported.rpartition(".")[0]
    return module if module in MODULES else None


class ImportReaderTests(SynchronousTestCase):
    """How imports are read; the other tests here rely on it."""

    def test_forms(self) -> None:
        """Every form of an import is seen, wherever it stands."""
        source = (
            "import a.b, c\n"
            "from . import d\n"
            "from .e import f as g\n"
            "from ..h.i import j\n"
            "from k import *\n"
            "if x:\n    import l\n"
            "class C:\n    import m\n    def f(self):\n        from n import o\n"
            "async def f():\n    try:\n        import p\n    finally:\n        pass\n"
        )
        top = {"a.b", "c", "r.s.d", "r.s.e.f", "r.h.i.j", "k.*", "l", "m"}
        found = set(imports_in("r.s.t", source, False))
        self.assertEqual({(name, True) for name in top} | {("n.o", False), ("p", False)}, found)
        self.assertEqual([("r.s.x", True)], list(imports_in("r.s", "from . import x", True)))

    def test_packages(self) -> None:
        """Modules belong to the packages of L{ORDER}, and each of those is there."""
        for module, package in (
            ("resticserver.errors", "words"),
            ("resticserver.storage.local", "storage"),
            ("resticserver.access", "access"),
            ("resticserver.web.routes", "web"),
            ("resticserver.web.http1.channel", "web.http1"),
            ("resticserver.tap", "tap"),
        ):
            self.assertIn(module, MODULES)
            self.assertEqual(package, package_of(module), module)
        self.assertEqual(set(RANKS), {package_of(module) for module in MODULES})

    def test_circles(self) -> None:
        """Circles are found, of two and of more; a way in or out of one is none."""
        imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}, "g": {"a"}}
        self.assertEqual([["a", "b", "c"], ["e", "f"]], sorted(circles(imports)))


class LayerTests(SynchronousTestCase):
    """The package as it is."""

    def assert_none(self, bad: list[str]) -> None:
        """No import is one that must not be."""
        self.assertEqual([], sorted(set(bad)))

    def test_only_downwards(self) -> None:
        """A module imports only from its own package and those below, not from a neighbour."""
        bad = []
        for module, imports in imports_of_modules().items():
            for own in imports:
                here, there = package_of(module), package_of(own)
                if here != there and RANKS[there] >= RANKS[here]:
                    bad.append(f"{module} imports {own}")
        self.assert_none(bad)

    def test_no_circles(self) -> None:
        """No modules import each other, not even for type checkers."""
        self.assertEqual([], circles(imports_of_modules()))

    def test_storage_and_access_know_no_reactor_and_no_http(self) -> None:
        """They are plain blocking Python."""
        bad = [
            f"{module} imports {imported}"
            for module, imported, _ in all_imports()
            if belongs_to(module, f"{PACKAGE}.storage", f"{PACKAGE}.access")
            and belongs_to(imported, "twisted.internet", "twisted.web", "klein", "werkzeug", "asyncio", "http")
        ]
        self.assert_none(bad)

    def test_words_of_the_domain_know_nothing(self) -> None:
        """Errors, names and settings need only Python."""
        bad = [
            f"{module} imports {imported}"
            for module, imported, _ in all_imports()
            if package_of(module) == "words"
            and not belongs_to(imported, PACKAGE)
            and imported.partition(".")[0] not in sys.stdlib_module_names
        ]
        self.assert_none(bad)

    def test_klein(self) -> None:
        """Only C{web/routes.py} imports Klein, which installs the reactor; only C{service/frontend.py} imports that, late."""
        api = f"{PACKAGE}.web.routes"
        bad = []
        for module, imported, at_top in all_imports():
            if belongs_to(imported, "klein", "werkzeug") and module != api:
                bad.append(f"{module} imports {imported}")
            if belongs_to(imported, api) and (module != f"{PACKAGE}.service.frontend" or at_top):
                bad.append(f"{module} imports {imported}")
        self.assert_none(bad)

    def test_reactor(self) -> None:
        """
        Only C{threads/reactor.py} imports the reactor, when it is asked for it; and only C{tap.py}, C{cli.py} and
        C{workers/child.py} ask.
        """
        asked = f"{PACKAGE}.threads.reactor.installed_reactor"
        importers = set()
        for module, imported, at_top in all_imports():
            if belongs_to(imported, "twisted.internet.reactor"):
                self.assertEqual((f"{PACKAGE}.threads.reactor", False), (module, at_top))
            if belongs_to(imported, asked):
                importers.add(module)
        self.assertEqual(importers, {f"{PACKAGE}.tap", f"{PACKAGE}.cli", f"{PACKAGE}.workers.child"})

    @process_test
    def test_imports_do_no_work(self) -> None:
        """To import a module (but C{web/routes.py}, for Klein) installs no reactor, starts no thread, opens no logging."""
        program = (
            "import importlib, sys, threading\n"
            "for name in sys.argv[1:]:\n"
            "    importlib.import_module(name)\n"
            "    for heavy in ('twisted.internet.reactor', 'klein', 'prometheus_client.twisted'):\n"
            "        if heavy in sys.modules: sys.exit(f'{name} imports {heavy}')\n"
            "    if threading.active_count() != 1: sys.exit(f'{name} starts a thread')\n"
        )
        names = [name for name in MODULES if name != f"{PACKAGE}.web.routes" and not name.endswith("__main__")]
        done = subprocess.run(
            [sys.executable, "-c", program, *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.assertEqual("", done.stdout.decode())

    def test_no_globals(self) -> None:
        """No function changes a module's names: state has an owner."""
        bad = [
            f"{module}: line {node.lineno}"
            for module, path in MODULES.items()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Global)
        ]
        self.assert_none(bad)

    def test_plugin_directory(self) -> None:
        """C{twisted/} is Twisted's: one file of ours in it, and no C{__init__.py} that would hide Twisted."""
        files = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "twisted").rglob("*.py")}
        self.assertEqual({"twisted/plugins/restic_rest.py"}, files)

    def test_module_docstrings(self) -> None:
        """A reader finds a feature by the file list: each module says what it is for."""
        bad = [
            module
            for module, path in MODULES.items()
            if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        ]
        self.assert_none(bad)
