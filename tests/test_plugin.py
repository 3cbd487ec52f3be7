"""
The plugin: C{twistd restic-rest} is there, and costs C{twistd --help} nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin, getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from resticserver import tap
from resticserver.config.options import Options

from .support.processes import process_test

PLUGIN = Path(__file__).parent.parent / "twisted/plugins/restic_rest.py"


class PluginTests(SynchronousTestCase):
    """The one object of C{twisted/plugins/restic_rest.py}."""

    def found(self) -> list[IServiceMaker]:
        """What Twisted finds under our name."""
        return [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "restic-rest"]

    def test_found(self) -> None:
        """Twisted finds it once, as a plugin that makes a service."""
        (maker,) = self.found()
        verifyObject(IPlugin, maker)
        verifyObject(IServiceMaker, maker)
        self.assertTrue(maker.description)

    def test_names_the_module_by_string(self) -> None:
        """It names the composition root by a string, and that has what twistd asks for."""
        (maker,) = self.found()
        self.assertEqual("resticserver.tap", maker.module)  # type: ignore[attr-defined]
        self.assertIs(Options, maker.options)
        self.assertEqual(tap.makeService, maker.makeService)

    @process_test
    def test_imports_nothing_of_ours(self) -> None:
        """To read the plugin, as every twistd does, imports nothing of the server."""
        program = (
            "import runpy, sys\n"
            "found = runpy.run_path(sys.argv[1])\n"
            "assert found['resticRest'].tapname == 'restic-rest'\n"
            "ours = ('resticserver', 'klein', 'OpenSSL')\n"
            "print(sorted(name for name in sys.modules if name.split('.')[0] in ours))\n"
        )
        printed = subprocess.run(
            [sys.executable, "-c", program, str(PLUGIN)],
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        self.assertEqual("[]", printed.decode().strip())
