"""Back to layers of torch.nn: the original shuffle where it still is one, a dense layer everywhere else."""

from collections import defaultdict

import torch
from torch import nn

from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.kmatrix.lazy import plain
from ksurgeon.site_kinds import kind_of, site_kind
from ksurgeon.surgery.build import note
from ksurgeon.surgery.computed import child_of, class_below, computed_names
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.fold import unfold
from ksurgeon.surgery.inserted import InsertSwap, RemoveSwap, insertions_of
from ksurgeon.surgery.operate import (
    ClassSwap,
    ModuleSwap,
    ParameterSwap,
    RewriteSwap,
    Swap,
    new_owners,
    swap_all,
    undo_all,
)
from ksurgeon.surgery.record import attach
from ksurgeon.surgery.rewrite import base_class, is_rewritten

__all__ = ["revert"]


def revert(model: nn.Module) -> nn.Module:
    """Take every K-module out of a model, in place, and return it; it computes the same function.

    A K-matrix that is still the map without parameters that it started as, such as a shuffle, gives way to
    the original modules and the original ``forward``; one that was inserted and is still the identity goes.
    Every other K-module becomes the dense layer that computes the same; tied layers that were computed in
    int8 are computed by their own weight. Folded batch norms are taken out of
    the layers again (``unfold``).

    Raises:
        SurgeryError: a trained shuffle, or a trained map that was inserted, that no dense layer can stand
            for, or what ``unfold`` raises; the model is as it was.
    """
    record = current_record(model)
    shapes = {operation.path: operation.ndim for operation in record.operations} if record else {}
    inserted = [
        RemoveSwap(owner, *found)
        for owner in model.modules()
        for found in insertions_of(owner)
        if kind_of(found[2]) is not None
    ]
    swap_all(inserted)
    try:
        swaps, restored = _reversals(model, shapes)
        tied = [module for module in model.modules() if type(module) is TiedInt8Linear]
        swaps += [ClassSwap(layer, TiedInt8Linear, nn.Linear) for layer in tied]
        owners = new_owners(swaps)
        for gone in inserted:
            kind, site = kind_of(gone.new), str(getattr(gone.new, "site", ""))
            if _is_original(gone.new):
                restored.add(site)
                continue
            assert kind is not None
            dense = kind.to_dense(gone.new, shapes.get(site, 0))
            owner = owners.get(id(gone.owner), gone.owner)
            old = None if owner is gone.owner else gone.owner
            swaps.append(InsertSwap(owner, gone.place, gone.name, dense, old, followers=gone.followers))
        swap_all(swaps)
        try:
            unfold(model)
        except BaseException:
            undo_all(swaps)
            raise
    except BaseException:
        undo_all(inserted)
        raise
    if record is not None:
        record.folded, record.int8_tied = [], []
        record.operations = [
            operation.model_copy(update={"form": "dense"})
            for operation in record.operations
            if operation.form == "dense"
            or (not site_kind(operation.kind).has_weight and operation.path not in restored)
        ]
        attach(model, record)
    return model


def _reversals(model: nn.Module, shapes: dict[str, int]) -> tuple[list[Swap], set[str]]:
    """What takes the place of every K-module that was not inserted, and the sites that are then restored."""
    restored: set[str] = set()
    swaps: list[Swap] = []
    inside: set[int] = set()
    for owner in model.modules():
        for name in computed_names(owner):
            made = owner.get_submodule(child_of(name))
            swaps.append(_MadeParameter(owner, name, made))
            inside.add(id(made))
        if not is_rewritten(owner):
            continue
        maps = {
            n: child for n, child in owner._modules.items() if child is not None and _had_no_weights(child)
        }
        if maps and all(_is_original(child) for child in maps.values()):
            swaps.append(_Restoration(owner, base_class(owner), class_below(type(owner)), maps))
            inside.update(map(id, maps.values()))
            restored.update(str(child.site) for child in maps.values())
    for module, places in _places(model).items():
        if id(module) in inside:
            continue
        kind = kind_of(module)
        assert kind is not None
        if getattr(module, "replaced", ()) and _is_original(module):
            swaps.append(_put_back(module, places))
            restored.add(str(module.site))
        else:
            dense = kind.to_dense(module, shapes.get(str(getattr(module, "site", "")), 0))
            swaps.append(ModuleSwap(places, [module] * len(places), [dense] * len(places)))
    return swaps, restored


def _had_no_weights(module: nn.Module) -> bool:
    """Whether the module replaced a map that had no parameters."""
    kind = kind_of(module)
    return kind is not None and not kind.has_weight


def _places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Every K-module, and all the places where it stands."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        if kind_of(parent) is not None:
            continue  # what is inside goes with it
        for name, child in parent._modules.items():
            if child is not None and kind_of(child) is not None:
                places[child].append((parent, name))
    return places


def _put_back(module: nn.Module, places: list[tuple[nn.Module, str]]) -> ModuleSwap:
    """The modules that did what it does go where they were: one everywhere, or several in a row."""
    replaced: tuple[tuple[str, nn.Module], ...] = module.replaced  # type: ignore[assignment]
    if len(replaced) == 1:
        (_, original), many = replaced[0], len(places)
        return ModuleSwap(places, [module] * many, [original] * many)
    parent = places[0][0]
    there = [(parent, name) for name, _ in replaced]
    present = [parent.get_submodule(name) for _, name in there]
    return ModuleSwap(there, present, [original for _, original in replaced])


class _MadeParameter(ParameterSwap):
    """The other way round: a parameter of its own in the place of the one that a child makes."""

    def do(self) -> None:
        factor = next(self.new.parameters())
        self.before = type(self.owner)
        weight = plain(getattr(self.owner, self.name).detach()).clone(memory_format=torch.contiguous_format)
        del self.owner._modules[child_of(self.name)]
        self.owner.__class__ = self.before._ksurgeon_below  # type: ignore[attr-defined]
        made = self.owner._parameters[self.name] = nn.Parameter(weight, requires_grad=factor.requires_grad)
        note(factor, [made])

    def undo(self) -> None:
        assert self.before is not None
        self.owner._parameters[self.name] = None
        self.owner.__class__ = self.before
        self.owner._modules[child_of(self.name)] = self.new


class _Restoration(RewriteSwap):
    """The other way round: children go, and the class is the original's again."""

    def do(self) -> None:
        for name in self.children:
            del self.owner._modules[name]
        self.owner.__class__ = self.before

    def undo(self) -> None:
        self.owner.__class__ = self.after
        self.owner._modules.update(self.children)


def _is_original(module: nn.Module) -> bool:
    kind = kind_of(module)
    return kind is not None and kind.is_original(module)
