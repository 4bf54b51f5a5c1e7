"""Back to layers of torch.nn: the original shuffle where it still is one, a dense layer everywhere else."""

from collections import defaultdict

import torch
from torch import nn

from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.surgery.build import KModule, build_dense
from ksurgeon.surgery.operate import ModuleSwap, RewriteSwap, Swap, swap_all
from ksurgeon.surgery.record import attach, record_of
from ksurgeon.surgery.rewrite import base_class, is_rewritten

__all__ = ["revert"]


def revert(model: nn.Module) -> nn.Module:
    """Take every K-module out of a model, in place, and return it; it computes the same function.

    A K-matrix that is still the shuffle it started as gives way to the original modules and the original
    ``forward``. Every other K-module becomes the dense layer of torch.nn that computes the same.

    Raises:
        SurgeryError: a trained shuffle that no dense layer can stand for; the model is as it was.
    """
    record = record_of(model)
    shapes = {operation.path: operation.ndim for operation in record.operations} if record else {}
    swaps: list[Swap] = []
    restored: set[str] = set()
    rewritten: set[int] = set()
    for path, owner in model.named_modules():
        children = {n: c for n, c in owner._modules.items() if n.startswith("kshuffle")}
        shuffles = {n: c for n, c in children.items() if isinstance(c, KChannelShuffle)}
        if is_rewritten(owner) and shuffles and all(is_original(c) for c in shuffles.values()):
            swaps.append(_Restoration(owner, base_class(owner), type(owner), dict(children)))
            rewritten.update(id(child) for child in shuffles.values())
            restored.update(child.site for child in shuffles.values())
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    modules: dict[int, KModule] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, (KLinear, KPointwiseConv, KChannelShuffle)) and id(child) not in rewritten:
                places[id(child)].append((parent, name))
                modules[id(child)] = child
    for key, module in modules.items():
        if isinstance(module, KChannelShuffle) and module.replaced and is_original(module):
            parent = places[key][0][0]
            there = [(parent, name) for name, _ in module.replaced] if len(module.replaced) > 1 else places[key]
            old = [p._modules[n] for p, n in there]
            originals = [m for _, m in module.replaced] if len(module.replaced) > 1 else [module.replaced[0][1]] * len(there)
            swaps.append(ModuleSwap(there, old, originals))  # type: ignore[arg-type]
            restored.add(module.site)
            continue
        ndim = shapes.get(getattr(module, "site", ""), 0)
        swaps.append(ModuleSwap(places[key], [module] * len(places[key]), [build_dense(module, ndim)] * len(places[key])))
    swap_all(swaps)
    if record is not None:
        record = record.model_copy(deep=True)
        record.operations = [
            operation.model_copy(update={"form": "dense"})
            for operation in record.operations
            if operation.kind == "channel_shuffle" and operation.path not in restored
        ]
        attach(model, record)
    return model


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
