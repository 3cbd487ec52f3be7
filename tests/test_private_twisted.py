"""
Every private name of Twisted, pyOpenSSL and argparse that the package uses, and that it is still there: after an upgrade of
these or of Python a failure here says what to look at first.
"""

from __future__ import annotations

import argparse
import ast
import inspect
from collections import defaultdict
from typing import Any

from OpenSSL import SSL
from twisted.internet import abstract, endpoints, tcp, unix
from twisted.protocols import tls
from twisted.protocols.haproxy import _v1parser, _v2parser, _wrapper
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http

from .test_layers import MODULES

#: By name, the classes that have it: as their own attribute, or set on their instances.
ATTRIBUTES: dict[str, tuple[type[Any], ...]] = {
    "_aborted": (tls.TLSMemoryBIOProtocol,),
    "_appSendBuffer": (tls.TLSMemoryBIOProtocol,),
    "_action_groups": (argparse.ArgumentParser,),
    "_backlog": (endpoints.TCP4ServerEndpoint, endpoints.TCP6ServerEndpoint),
    "_choices_actions": (argparse._SubParsersAction,),
    "_cleanup": (http.Request,),
    "_disconnected": (http.Request,),
    "_from_ssl": (SSL.Connection,),
    "_fromListeningDescriptor": (tcp.Port, unix.Port),
    "_group_actions": (argparse._ArgumentGroup,),
    "_handshakeDone": (tls.TLSMemoryBIOProtocol,),
    "_into_ssl": (SSL.Connection,),
    "_interface": (endpoints.TCP4ServerEndpoint, endpoints.TCP6ServerEndpoint),
    "_lostTLSConnection": (tls.TLSMemoryBIOProtocol,),
    "_port": (endpoints.TCP4ServerEndpoint, endpoints.TCP6ServerEndpoint),
    "_proxyInfo": (_wrapper.HAProxyProtocolWrapper,),
    "_raise_ssl_error": (SSL.Connection,),
    "_shutdownTLS": (tls.TLSMemoryBIOProtocol,),
    "_sslContextFactory": (endpoints.SSL4ServerEndpoint,),
    "_tempDataBuffer": (abstract.FileDescriptor,),
    "_tempDataLen": (abstract.FileDescriptor,),
    "_tlsConnection": (tls.TLSMemoryBIOProtocol,),
}
#: Methods that are overridden, by the class that calls them.
OVERRIDDEN: dict[str, type[Any]] = {
    "_flushReceiveBIO": tls.TLSMemoryBIOProtocol,
    "_flushSendBIO": tls.TLSMemoryBIOProtocol,
    "_tlsShutdownFinished": tls.TLSMemoryBIOProtocol,
}
IMPORTED = {_v1parser.V1Parser, _v2parser.V2Parser, _wrapper.HAProxyProtocolWrapper, _wrapper.HAProxyWrappingFactory}
#: Of the standard library: C{NamedTuple._asdict}, C{ctypes._FuncPointer}, and classes of argparse, which has no other way to
#: look into a parser.
NOT_TWISTED = {"_asdict", "_FuncPointer", "_AppendAction", "_SubParsersAction"}


def private_attributes() -> dict[str, set[str]]:
    """By private attribute that no module of ours gives a value to or defines, the modules that read it."""
    defined: set[str] = set()
    read: dict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                    read[name].add(module)
    return {name: modules for name, modules in read.items() if name not in defined}


class PrivateTests(SynchronousTestCase):
    """What is private to a library, and used all the same."""

    def test_listed(self) -> None:
        """The list above has all of them, and none that is used no more."""
        found = private_attributes()
        unknown = {name: modules for name, modules in found.items() if name not in {*ATTRIBUTES, *NOT_TWISTED}}
        self.assertEqual({}, unknown)
        self.assertEqual(set(), set(ATTRIBUTES) - set(found))

    def test_still_there(self) -> None:
        """Each is there."""
        for name, classes in ATTRIBUTES.items():
            for class_ in classes:
                source = "".join(inspect.getsource(base) for base in class_.__mro__ if base is not object)
                self.assertTrue(hasattr(class_, name) or f"self.{name}" in source, f"{class_.__qualname__}.{name}")

    def test_still_called(self) -> None:
        """Twisted calls the methods that are overridden."""
        for name, class_ in OVERRIDDEN.items():
            self.assertIn(f"self.{name}(", inspect.getsource(class_))

    def test_imported(self) -> None:
        """What is imported from private modules is there, and is all that is imported from any."""
        found = set()
        for path in MODULES.values():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and "._" in node.module:
                    found |= {(node.module, alias.name) for alias in node.names}
        self.assertEqual({(class_.__module__, class_.__name__) for class_ in IMPORTED}, found)
