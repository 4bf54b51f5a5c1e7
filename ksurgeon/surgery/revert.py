"""Back to layers of torch.nn: the original shuffle where it still is one, a dense layer everywhere else."""

from collections import defaultdict

import torch
from torch import nn

from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.surgery.activation import restorations
from ksurgeon.surgery.build import KModule, build_dense
from ksurgeon.surgery.operate import ModuleSwap, RewriteSwap, Swap, swap_all
from ksurgeon.surgery.record import attach, record_of
from ksurgeon.surgery.rewrite import base_class, is_rewritten

__all__ = ["revert"]


def revert(model: nn.Module) -> nn.Module:
    """Take every K-module out of a model, in place, and return it; it computes the same function.

    A K-matrix that is still the shuffle it started as gives way to the original modules and the original
    ``forward``. Every other K-module becomes the dense layer of torch.nn that computes the same, and the
    activations that such modules applied are put back.

    Raises:
        SurgeryError: a trained shuffle that no dense layer can stand for; the model is as it was.
    """
    record = record_of(model)
    shapes = {operation.path: operation.ndim for operation in record.operations} if record else {}
    restored: set[str] = set()
    swaps: list[Swap] = []
    inside: set[int] = set()
    for owner in model.modules():
        shuffles = {
            name: child for name, child in owner._modules.items() if isinstance(child, KChannelShuffle)
        }
        if is_rewritten(owner) and shuffles and all(map(is_original, shuffles.values())):
            swaps.append(_Restoration(owner, base_class(owner), type(owner), dict(shuffles)))
            inside.update(map(id, shuffles.values()))
            restored.update(child.site for child in shuffles.values())
    for module, places in _places(model).items():
        if id(module) in inside:
            continue
        if isinstance(module, KChannelShuffle) and module.replaced and is_original(module):
            swaps.append(_put_back(module, places))
            restored.add(module.site)
        else:
            dense = build_dense(module, shapes.get(getattr(module, "site", ""), 0))
            swaps.append(ModuleSwap(places, [module] * len(places), [dense] * len(places)))
    swap_all([*swaps, *restorations(model)])
    if record is not None:
        record = record.model_copy(deep=True)
        record.operations = [
            operation.model_copy(update={"form": "dense"})
            for operation in record.operations
            if operation.kind == "channel_shuffle" and operation.path not in restored
        ]
        attach(model, record)
    return model


def _places(model: nn.Module) -> dict[KModule, list[tuple[nn.Module, str]]]:
    """Every K-module, and all the places where it stands."""
    places: dict[KModule, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, (KLinear, KPointwiseConv, KChannelShuffle)):
                places[child].append((parent, name))
    return places


def _put_back(module: KChannelShuffle, places: list[tuple[nn.Module, str]]) -> ModuleSwap:
    """The modules that did the shuffle go where they were: one everywhere, or several in a row."""
    if len(module.replaced) == 1:
        (_, original), many = module.replaced[0], len(places)
        return ModuleSwap(places, [module] * many, [original] * many)
    parent = places[0][0]
    there = [(parent, name) for name, _ in module.replaced]
    present = [parent.get_submodule(name) for _, name in there]
    return ModuleSwap(there, present, [original for _, original in module.replaced])


class _Restoration(RewriteSwap):
    """The other way round: children go, and the class is the original's again."""

    def do(self) -> None:
        for name in self.children:
            del self.owner._modules[name]
        self.owner.__class__ = self.before

    def undo(self) -> None:
        self.owner.__class__ = self.after
        self.owner._modules.update(self.children)


@torch.no_grad()
def is_original(module: KChannelShuffle) -> bool:
    """Whether the K-matrix is still exactly the shuffle that it started as."""
    weight = module.weight
    expected = torch.eye(len(module.permutation), dtype=weight.dtype, device=weight.device)
    return torch.equal(weight, expected[list(module.permutation)])
