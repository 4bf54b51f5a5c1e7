"""The only code that changes a model: prepared swaps, done all or not at all, and undone."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from torch import nn

from ksurgeon.errors import SurgeryError
from ksurgeon.find import Finder, Site
from ksurgeon.find.match import Match
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.computed import child_of, computed_class, computed_names
from ksurgeon.surgery.folded import FoldSwap
from ksurgeon.surgery.inserted import InsertSwap
from ksurgeon.surgery.rewrite import base_class, is_rewritten, rewritten_class
from ksurgeon.surgery.untied import UntieSwap, untie_swaps

__all__ = [
    "ClassSwap",
    "MatrixSwap",
    "ModuleSwap",
    "ParameterSwap",
    "RewriteSwap",
    "Swap",
    "new_owners",
    "prepare",
    "swap_all",
    "undo_all",
]


@dataclass
class ModuleSwap:
    """Children put in the place of others; each place is a parent and a name."""

    places: list[tuple[nn.Module, str]]
    old: list[nn.Module]
    new: list[nn.Module]

    def do(self) -> None:
        for (parent, name), module in zip(self.places, self.new, strict=True):
            parent._modules[name] = module

    def undo(self) -> None:
        for (parent, name), module in zip(self.places, self.old, strict=True):
            parent._modules[name] = module


@dataclass
class RewriteSwap:
    """An owner whose forward calls new children; its class changes to a subclass of its class."""

    owner: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]
    children: dict[str, nn.Module] = field(default_factory=dict)

    def do(self) -> None:
        self.owner.__class__ = self.after
        self.owner._modules.update(self.children)

    def undo(self) -> None:
        for name in self.children:
            del self.owner._modules[name]
        self.owner.__class__ = self.before


@dataclass
class ParameterSwap:
    """A parameter that a child makes from now on; the owner's class changes to a subclass of its class."""

    owner: nn.Module
    name: str
    new: nn.Module
    old: nn.Parameter | None = None
    before: type[nn.Module] | None = None

    def do(self) -> None:
        self.old, self.before = self.owner._parameters[self.name], type(self.owner)
        self.owner.__class__ = computed_class(self.before, self.name)
        self.owner._parameters[self.name] = None
        self.owner._modules[child_of(self.name)] = self.new

    def undo(self) -> None:
        assert self.before is not None
        del self.owner._modules[child_of(self.name)]
        self.owner._parameters[self.name] = self.old
        self.owner.__class__ = self.before


@dataclass
class MatrixSwap:
    """The matrix of a K-layer in int8 in the place of the one in floating numbers."""

    layer: nn.Module
    old: nn.Module
    new: nn.Module

    def do(self) -> None:
        self.layer._modules["matrix"] = self.new

    def undo(self) -> None:
        self.layer._modules["matrix"] = self.old


@dataclass
class ClassSwap:
    """A layer that computes what it did otherwise: a class derived from its own, or its own again."""

    layer: nn.Module
    before: type[nn.Module]
    after: type[nn.Module]

    def do(self) -> None:
        self.layer.__class__ = self.after

    def undo(self) -> None:
        self.layer.__class__ = self.before


Swap = ModuleSwap | RewriteSwap | ParameterSwap | InsertSwap | MatrixSwap | ClassSwap | FoldSwap | UntieSwap


def swap_all(swaps: Iterable[Swap]) -> None:
    """Do all swaps; if one fails, those done are undone and the model is as it was."""
    done: list[Swap] = []
    try:
        for swap in swaps:
            done.append(swap)
            swap.do()
    except BaseException:
        undo_all(done)
        raise


def undo_all(swaps: Sequence[Swap]) -> None:
    """Undo swaps, the last one first."""
    for swap in reversed(swaps):
        swap.undo()


def prepare(
    model: nn.Module, finder: Finder, replacements: Sequence[tuple[Site, nn.Module]]
) -> tuple[list[Swap], dict[str, str]]:
    """Swaps that put each replacement in the place of its site; the model is not changed.

    Returns:
        The swaps, and for every site the path at which its replacement will stand.

    Raises:
        SurgeryError: a forward cannot be rewritten; the message says why.
    """
    swaps: list[Swap] = []
    paths: dict[str, str] = {}
    inside: dict[str, list[tuple[Site, nn.Module]]] = defaultdict(list)
    later: list[Swap] = []
    inserted: list[tuple[Site, nn.Module]] = []
    for site, new in replacements:
        if site.parameter:
            owner = model.get_submodule(site.owner)
            later.append(ParameterSwap(owner, site.parameter, new))
            child = child_of(site.parameter)
            paths[site.path] = f"{site.owner}.{child}" if site.owner else child
            continue
        if site_kind(site.kind).inserts:
            inserted.append((site, new))
            continue
        if site.nodes:
            inside[site.owner].append((site, new))
            continue
        places = [_place(model, path) for path in (site.path, *site.aliases)]
        old = model.get_submodule(site.path)
        swaps.append(ModuleSwap(places, [old] * len(places), [new] * len(places)))
        later += untie_swaps(model, site.path)
        _remember(new, site, [(places[0][1], old)])
        paths[site.path] = site.path
    for owner_path, found in inside.items():
        owner = model.get_submodule(owner_path)
        prefix = f"{owner_path}." if owner_path else ""
        if type(owner) is nn.Sequential:
            for site, new in found:
                swap = _sequential(owner, finder.matches[site.path], new)
                swaps.append(swap)
                _remember(new, site, list(zip((n for _, n in swap.places), swap.old, strict=True)))
                paths[site.path] = prefix + swap.places[0][1]
            continue
        for site, new in found:
            _remember(new, site, [])
        rewrite, names = _rewrite(owner, finder, owner_path, found)
        swaps.append(rewrite)
        paths.update({path: prefix + name for path, name in names.items()})
    owners, erased = new_owners(swaps), _erased(model, finder, replacements)
    taken: dict[int, list[str]] = defaultdict(list)
    for site, new in inserted:
        _remember(new, site, [])
        owner, place = model.get_submodule(site.owner), str(site.facts["place"])
        if (gone := erased.get((id(owner), place))) is not None:
            raise SurgeryError(
                f"nothing is {place} {site.owner} once {gone} is replaced; insert {place} another module"
            )
        old, owner = owner, owners.get(id(owner), owner)
        name = _free_name(owner, f"k{place}", taken[id(owner)])
        taken[id(owner)].append(name)
        later.append(InsertSwap(owner, place, name, new, None if old is owner else old))
        paths[site.path] = f"{site.owner}.{name}"
    return swaps + later, paths


def new_owners(swaps: Iterable[Swap]) -> dict[int, nn.Module]:
    """What takes the place of each module that the swaps take out, by ``id``."""
    found = [swap for swap in swaps if isinstance(swap, ModuleSwap)]
    return {id(old): new for swap in found for old, new in zip(swap.old, swap.new, strict=True)}


def _erased(
    model: nn.Module, finder: Finder, replacements: Sequence[tuple[Site, nn.Module]]
) -> dict[tuple[int, str], str]:
    """Places, by the ``id`` of the module, that are gone with a map that is replaced, and the map's path.

    Of the modules that did it in an ``nn.Sequential``, the places before the first and after the last stay.
    """
    found: dict[tuple[int, str], str] = {}
    for site, _ in replacements:
        if site_kind(site.kind).has_weight or site_kind(site.kind).inserts:
            continue
        owner, places = model.get_submodule(site.owner), ("before", "after")
        nodes = finder.matches[site.path].region.nodes if site.nodes else []
        calls = [owner.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
        stay = set()
        if type(owner) is nn.Sequential and calls:
            stay = {(id(calls[0]), "before"), (id(calls[-1]), "after")}
        if site.is_module:
            calls = [owner]
            stay = {(id(owner), place) for place in places}
        inner = {(id(m), place) for call in calls for m in call.modules() for place in places}
        found |= dict.fromkeys(inner - stay, site.path)
    return found


def _free_name(owner: nn.Module, stem: str, taken: Collection[str]) -> str:
    return next(n for number in count() if not hasattr(owner, n := f"{stem}{number}") and n not in taken)


def _remember(new: nn.Module, site: Site, replaced: list[tuple[str, nn.Module]]) -> None:
    """What a map without parameters replaced holds no tensors: it is kept, so that it can be put back."""
    if not site_kind(site.kind).has_weight:
        new.site, new.replaced = site.path, tuple(replaced)  # type: ignore[assignment]


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _sequential(owner: nn.Sequential, match: Match, new: nn.Module) -> ModuleSwap:
    """The first child of the region becomes the replacement, the others pass their input on."""
    names = [str(node.target) for node in match.region.nodes]
    if any("." in name for name in names) or len(set(names)) < len(names):
        raise SurgeryError(f"a map spread over the children {', '.join(names)} cannot be replaced")
    old = [owner.get_submodule(name) for name in names]
    rest = [nn.Identity().train(owner.training) for _ in names[1:]]
    return ModuleSwap([(owner, name) for name in names], old, [new, *rest])


def _rewrite(
    owner: nn.Module, finder: Finder, path: str, found: list[tuple[Site, nn.Module]]
) -> tuple[RewriteSwap, dict[str, str]]:
    if "_hf_hook" in vars(owner):
        raise SurgeryError(
            f"accelerate's hooks wrap the forward of {path or 'the model'}, which is to be rewritten; take "
            "them away (accelerate.hooks.remove_hook_from_module(model, recurse=True)) and dispatch again"
        )
    if is_rewritten(owner) or computed_names(owner) or "forward" in vars(owner):
        raise SurgeryError(f"the forward of {path or 'the model'} was changed before; it cannot be rewritten")
    names: dict[str, str] = {}
    for site, _ in found:
        names[site.path] = _free_name(owner, site_kind(site.kind).child, names.values())
    call = finder.call_of(owner)
    wanted = [(finder.matches[site.path], names[site.path]) for site, _ in found]
    after = rewritten_class(owner, call, finder.movers_of(owner), wanted)
    children = {names[site.path]: new for site, new in found}
    return RewriteSwap(owner, base_class(owner), after, children), names
