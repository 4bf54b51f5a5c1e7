"""The command line."""

from ksurgeon.cli.app import main

__all__ = ["main"]
