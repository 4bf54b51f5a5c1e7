"""Statistics of batch normalisation after surgery."""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from ksurgeon.find.inputs import as_call, evaluating
from ksurgeon.train.preprocess import Batch

__all__ = ["batch_norms", "carry_batch_norms", "estimate_batch_norms"]

Norm = nn.modules.batchnorm._BatchNorm

_NO_VARIANCE = 1e-2  # of the layer's eps, added to variances that are divided


def batch_norms(model: nn.Module) -> dict[str, Norm]:
    """Layers of batch normalisation that keep statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Norm) and module.running_mean is not None
    }


@torch.no_grad()
def carry_batch_norms(student: nn.Module, teacher: nn.Module, batches: Iterable[Batch]) -> None:
    """Change the student's running statistics as its surgery changed what the layers see.

    The teacher's statistics are of the data that it was trained on, which need not be those of the batches.
    What counts is the difference: a channel that has mean ``m`` and variance ``v`` in the teacher, and ``m'``
    and ``v'`` in the student on the same batch, is taken for ``x' = m' + a (x - m)`` with ``a² = v' / v``, on
    any data, and so the normalised channel stays what it was. Layers that the teacher has not at the same
    path are estimated on the batches.
    """
    own, theirs = batch_norms(student), batch_norms(teacher)
    pairs = {
        path: (norm, theirs[path])
        for path, norm in own.items()
        if path in theirs and theirs[path].num_features == norm.num_features
    }
    batches = list(batches)
    if len(pairs) < len(own):
        estimate_batch_norms(student, batches)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def look(path: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[path].append(_statistics(args[0]))

    def change(path: str, norm: Norm, args: tuple[Tensor, ...]) -> None:
        if seen[path]:
            found[path].append(_carried(norm, pairs[path][1], _statistics(args[0]), seen[path].pop(0)))
            _put(norm, *found[path][-1])

    handles = []
    for path, (norm, original) in pairs.items():
        handles.append(original.register_forward_pre_hook(partial(look, path)))
        handles.append(norm.register_forward_pre_hook(partial(change, path)))
    try:
        with evaluating(teacher), evaluating(student):
            for batch in batches:
                args, kwargs = as_call(batch["inputs"])
                seen.clear()
                teacher(*args, **kwargs)
                student(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for path, statistics in found.items():
        means, variances = zip(*statistics, strict=True)
        _put(pairs[path][0], torch.stack(means).mean(0), torch.stack(variances).mean(0))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, in single precision or more."""
    x = x.movedim(1, 0).flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    return x.mean(1), x.var(1, correction=0)


def _carried(
    norm: Norm, original: Norm, now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    assert original.running_mean is not None and original.running_var is not None
    tiny = _NO_VARIANCE * norm.eps
    scale = (now[1] + tiny) / (before[1] + tiny)
    mean = now[0] + scale.sqrt() * (original.running_mean - before[0])
    return mean, (scale * (original.running_var + original.eps) - norm.eps).clamp(min=0)


def _put(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@torch.no_grad()
def estimate_batch_norms(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics by plain averages over the batches.

    Right where the batches are of the data that the model is used on. Every other module stays in eval mode.
    """
    norms = list(batch_norms(model).values())
    if not norms:
        return
    training = [module for module in model.modules() if module.training]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
            norm.training = True
        for batch in batches:
            args, kwargs = as_call(batch["inputs"])
            model(*args, **kwargs)
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module in training:
            module.training = True
