"""Audio front ends of other libraries: spectrograms, filterbanks and cepstra that are modules."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ksurgeon.kinds.transform import Transform
from ksurgeon.kmatrix.structures import Butterfly, Structure

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Finder, Match, Site
    from ksurgeon.find.tracer import Trace

__all__ = ["Filterbank"]


class Filterbank(Transform):
    """Modules that a ``KFrontend`` or its filters stand for; what is inside them is no site of its own."""

    name, title, child = "filterbank", "filterbank", "kmap"

    modules = ("ksurgeon.frontend:KFrontend", "ksurgeon.frontend:KFilters")

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        yield from ()

    def gather(self, finder: "Finder", sites: "list[Site]") -> "list[Site]":
        from ksurgeon.find.filterbanks import find_filterbanks, inside_of

        banks = find_filterbanks(finder.model, finder.recording, finder.outside)
        return [site for site in sites if not inside_of(site, banks)] + banks

    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        from ksurgeon.frontend.modules import replacement_of

        assert isinstance(structure, Butterfly)
        options: dict[str, Any] = {"start": start}
        if "n" in site.facts:
            options |= {"radices": structure.radices(site.facts["n"]), "symmetric": structure.symmetric}
        return replacement_of(model.get_submodule(site.path), **options)
