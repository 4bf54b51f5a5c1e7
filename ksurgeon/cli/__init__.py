"""The command line."""

from ksurgeon.cli.entry_point import main

__all__ = ["main"]
