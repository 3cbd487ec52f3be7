"""
A repository server for restic: Twisted, Klein, streaming, durable.

C{__version__} is the one place the version stands; C{setup.py} reads it from here.
"""

__version__ = "0.1.0"
