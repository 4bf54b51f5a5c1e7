"""Kinds of site: one class finds, describes, replaces and reverts those of a kind. Anybody adds one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

from ksurgeon.errors import KindError, StructureError
from ksurgeon.kmatrix.structures import GroupedKaleidoscope, Structure
from ksurgeon.plugins import load_plugins

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.calibrate import SiteMoments
    from ksurgeon.find import Finder, Layer, Match, Site
    from ksurgeon.find.tracer import Trace
    from ksurgeon.surgery.record import Operation, Record

    Known: TypeAlias = SiteMoments | None

__all__ = ["Grid", "SiteKind", "kind_of", "quoted", "register_site_kind", "site_kind", "site_kinds"]

_GROUP = "ksurgeon.site_kinds"
_registered: dict[str, "SiteKind"] = {}
K = TypeVar("K", bound="SiteKind")
Grid = Sequence[int]


class SiteKind(ABC):
    """All that ksurgeon knows of a kind of site; a subclass that is registered is a new kind.

    Sites are found by ``layer`` where each is a module, by ``matches`` inside a ``forward``, by ``gather``
    elsewhere. ``build`` makes what takes a site's place, ``to_dense`` what a revert puts there.

    Attributes:
        name: what rules, plans and records call the kind.
        title: what messages call one site.
        modules: classes of the replacements, or "module:name" of such as are imported when they are needed.
        structures: names of the structures that it takes; all but "butterfly" if empty.
        starts: how replacements may get their values; the first is that of a rule that says none.
        has_weight: whether the sites have parameters. Where they have none, a revert gives the original back
            as long as ``is_original``; surgery sets ``site`` (a path) and ``replaced`` (names and modules).
        is_dense: whether a ``KLinear`` or ``KPointwiseConv`` takes the place of one dense weight, which is
            then fitted to data and planned under a budget.
        is_default: whether a structure that is given alone, without a rule, is for these sites.
        inserts: whether the sites are places for a map where none was.
        splits: whether a weight may be several matrices on top of each other, as its name then tells.
        child: stem of the name of a replacement that a rewritten forward calls.
        verbs: what is done to a site, and what was done.

    Examples:
        >>> @ksurgeon.register_site_kind
        ... class Embedding(ksurgeon.SiteKind):
        ...     name, title, modules = "embedding", "embedding table", (LowRankEmbedding,)
        ...     structures = ("low_rank",)
        ...
        ...     def layer(self, module):
        ...         if type(module) is nn.Embedding:
        ...             rows, columns = module.weight.shape
        ...             return ksurgeon.find.Layer(in_features=rows, out_features=columns)
        ...
        ...     def build(self, model, site, structure, start):
        ...         return LowRankEmbedding(model.get_submodule(site.path), structure.rank, start)
        ...
        ...     def fit(self, new, model, site, known=None):
        ...         return new.fit(model.get_submodule(site.path).weight)
        ...
        ...     def to_dense(self, module, ndim):
        ...         return nn.Embedding.from_pretrained(module.weight, freeze=False)
    """

    name: ClassVar[str]
    title: ClassVar[str]
    modules: "ClassVar[tuple[type[nn.Module] | str, ...]]"
    structures: ClassVar[tuple[str, ...]] = ()
    starts: ClassVar[tuple[str, ...]] = ("fit", "random", "orthogonal", "identity")
    has_weight: ClassVar[bool] = True
    is_dense: ClassVar[bool] = False
    is_default: ClassVar[bool] = False
    inserts: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    child: ClassVar[str] = "kmap"
    verbs: ClassVar[tuple[str, str]] = ("replace", "replaced")

    @cached_property
    def classes(self) -> "tuple[type[nn.Module], ...]":
        """``modules``, imported."""
        return tuple(resolve_name(each) if isinstance(each, str) else each for each in self.modules)

    def layer(self, module: "nn.Module") -> "Layer | None":
        """Sizes of the map if a module, by itself, is one of this kind."""
        return None

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        """Maps of this kind in the traced ``forward`` of a module, whose ``movers`` only move data."""
        yield from ()

    def gather(self, finder: "Finder", sites: "list[Site]") -> "list[Site]":
        """All sites, from those found so far: with further ones, or without those that belong to others."""
        return sites

    def takes(self, structure: Structure) -> bool:
        """Whether replacements may have the structure."""
        names = self.structures
        return structure.structure in names if names else structure.structure != "butterfly"

    def problem(self, structure: Structure, start: str | None, size: int = 0, grid: Grid = ()) -> str | None:
        """Why a structure cannot start so; None if it can, or if that depends on a size that is not given.

        ``size`` and ``grid`` are of insertions: entries along the dimension, and of the start "geometry".
        """
        if grid or start == "geometry":
            return 'start = "geometry", and a grid, are for insertions'
        if not self.takes(structure):
            takers = quoted(kind.name for kind in site_kinds() if kind.takes(structure))
            own = f", which takes {quoted(self.structures)}" if self.structures else ""
            return (
                f'structure = "{structure.structure}" goes with find = {takers}, not with "{self.name}"{own}'
            )
        if start is not None and start not in self.starts:
            return f'start for find = "{self.name}" is one of {quoted(self.starts)}, got "{start}"'
        return None

    def cost(self, site: "Site", structure: Structure, parts: int = 1) -> tuple[int, int]:
        """Parameters of a structure in the place of a site, and its multiplications for each vector.

        Raises:
            StructureError: the structure cannot have the site's sizes.
        """
        groups = site.blocks
        if groups > 1 and isinstance(structure, GroupedKaleidoscope):
            raise StructureError(
                f"the convolution has {groups} groups already, and a grouped structure needs one without"
            )
        sizes = site.in_features // groups, site.out_features // groups // parts
        count = groups * parts
        structure.new_matrix(
            site.in_features * parts, site.out_features, groups=count, start="empty", device="meta"
        )  # which one that is no chain may refuse
        return count * structure.parameters(*sizes), count * structure.multiplications(*sizes)

    @abstractmethod
    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        """What takes the place of a site.

        Args:
            model: that has the site; it is not changed.
            site, structure: its ``parts`` as the plan wants them, and what the plan chose.
            start: one of ``starts``, or "empty" where values are fitted or loaded afterwards.
        """

    def fit(self, new: "nn.Module", model: "nn.Module", site: "Site", known: "Known" = None) -> float | None:
        """Fit what was built to the site, in place; for kinds with "fit" among their starts.

        ``known`` tells of the site's inputs, where there are data and the kind is dense.

        Returns:
            Relative Frobenius error of the weight, if any.
        """
        raise KindError(f'{type(self).__name__} has "fit" among its starts, and no method fit')

    def make(
        self, model: "nn.Module", site: "Site", structure: Structure, start: str, known: "Known" = None
    ) -> "tuple[nn.Module, float | None]":
        """What takes the place of a site, fitted if it starts so, and its relative weight error if known."""
        new = self.build(model, site, structure, "empty" if start == "fit" else start)
        if start == "fit":
            return new, self.fit(new, model, site, known)
        return new, 0.0 if start == "exact" else None

    @abstractmethod
    def to_dense(self, module: "nn.Module", ndim: int) -> "nn.Module":
        """A plain module that computes what a replacement does now; ``ndim`` dimensions are mapped, if known.

        Raises:
            SurgeryError: there is none.
        """

    def candidates(self, site: "Site") -> Sequence[Structure] | None:
        """What a plan under a budget tries at a site; None for all that suits a dense weight."""
        return None if self.is_dense else ()

    def is_original(self, module: "nn.Module") -> bool:
        """Whether a replacement is still exactly the map without parameters that it replaced."""
        return False

    def recorded_site(self, model: "nn.Module", operation: "Operation") -> "Site | None":
        """The site of a record's operation, where only a run of the model would find it."""
        return None

    def require_readable(self, model: "nn.Module", record: "Record", operation: "Operation") -> None:
        """Raise SurgeryError if loading what a save writes would build something else than stands there."""
        return


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def register_site_kind(kind: type[K]) -> type[K]:
    """Let sites of a kind be found, replaced, saved, loaded and reverted; a decorator of its class.

    A package that is installed registers its own by entry points of the group ``ksurgeon.site_kinds``, such
    as ``embedding = "their_package:Embedding"`` under ``[project.entry-points."ksurgeon.site_kinds"]``. Of
    two kinds that recognise the same map, the one registered later has it.

    Examples:
        >>> @ksurgeon.register_site_kind
        ... class Embedding(ksurgeon.SiteKind): ...

    Raises:
        KindError: another kind has the name, or the class is no kind.
    """
    if not (isinstance(kind, type) and issubclass(kind, SiteKind)):
        raise KindError(f"a kind of site is a subclass of ksurgeon.SiteKind, got {kind!r}")
    missing = [name for name in ("name", "title", "modules") if not getattr(kind, name, None)]
    missing += sorted(kind.__abstractmethods__)
    if "fit" in kind.starts and kind.fit is SiteKind.fit:
        missing.append('method fit, and "fit" among its starts')
    if missing:
        raise KindError(f"{kind.__name__} has no {missing[0]}; add it to the class: see ksurgeon.SiteKind")
    import_module("ksurgeon.kinds")  # whose names are taken
    known = _registered.get(kind.name)
    if known is not None and _origin(type(known)) != _origin(kind):
        raise KindError(
            f'"{kind.name}" is the kind of site of {".".join(_origin(type(known)))} already; give '
            f"{kind.__qualname__} another name"
        )
    _registered[kind.name] = kind()
    return kind


def _origin(kind: type[SiteKind]) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__  # the same if a notebook's cell defines the class anew


def site_kind(name: str) -> SiteKind:
    """The kind of that name.

    Examples:
        >>> site_kind("linear").title
        'linear layer'

    Raises:
        KindError: there is none.
    """
    import_module("ksurgeon.kinds")
    if name not in _registered:
        load_plugins(_GROUP, lambda _, kind: register_site_kind(kind))
    if name not in _registered:
        near = get_close_matches(name, _registered, n=1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise KindError(
            f'no kind of site is called "{name}"; {hint}there are {", ".join(_registered)}; others come with '
            "packages, which have to be installed"
        )
    return _registered[name]


def site_kinds() -> list[SiteKind]:
    """All kinds, those of ksurgeon first.

    Examples:
        >>> [kind.name for kind in site_kinds() if kind.is_dense]
        ['linear', 'pointwise_conv']
    """
    import_module("ksurgeon.kinds")
    load_plugins(_GROUP, lambda _, kind: register_site_kind(kind))
    return list(_registered.values())


def kind_of(module: "nn.Module") -> SiteKind | None:
    """The kind whose replacement a module is; None for any other module.

    Examples:
        >>> kind_of(KLinear(4, 4)).name
        'linear'
    """
    return next((kind for kind in site_kinds() if isinstance(module, kind.classes)), None)
