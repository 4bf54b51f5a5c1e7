"""Find linear maps in a model: look, never touch."""

from ksurgeon.find.finder import Finder, find
from ksurgeon.find.site import Site

__all__ = ["Finder", "Site", "find"]
