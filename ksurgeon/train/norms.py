"""Statistics of batch normalisation after surgery."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.find.inputs import as_call, evaluating

__all__ = ["batch_norms", "carry_batch_norms", "estimate_batch_norms", "norms_match"]

Norm = nn.modules.batchnorm._BatchNorm

_NO_VARIANCE = 1e-2  # of the layer's eps, added to variances that are divided
_MOST = 10.0  # times that a variance may change: a channel that is dead on the batches tells nothing
_COMPILED = "_orig_mod."


def batch_norms(model: nn.Module) -> dict[str, Norm]:
    """Layers of batch normalisation that keep statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Norm) and module.running_mean is not None
    }


def norms_match(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether the teacher has every layer of batch normalisation of the student, at the same path."""
    own = batch_norms(student)
    return bool(own) and len(_pairs(own, teacher)) == len(own)


@torch.no_grad()
def carry_batch_norms(student: nn.Module, teacher: nn.Module, batches: Iterable[Batch]) -> None:
    """Change the student's running statistics as its surgery changed what the layers see.

    The teacher's statistics are of the data that it was trained on, which need not be those of the batches.
    What counts is the difference: a channel that has mean ``m`` and variance ``v`` in the teacher, and ``m'``
    and ``v'`` in the student on the same batches, is taken for ``x' = m' + a (x - m)`` with ``a² = v' / v``,
    on any data, and so the normalised channel stays what it was. Layers that the teacher has not at the same
    path get the averages over the batches; those that do not run stay as they are.
    """
    own = batch_norms(student)
    pairs = _pairs(own, teacher)
    calls: dict[str, list[Tensor]] = defaultdict(list)
    now: dict[str, _Sums] = defaultdict(_Sums)
    before: dict[str, _Sums] = defaultdict(_Sums)

    def look(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path].append(_input_of(args, kwargs))

    def change(path: str, norm: Norm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        original = pairs.get(path)
        if original is None:
            now[path].add(_input_of(args, kwargs))
            _put(norm, now[path].mean, now[path].variance)
        elif calls[path]:
            before[path].add(calls[path].pop(0))
            now[path].add(_input_of(args, kwargs))
            _put(norm, *_carried(norm, original, now[path], before[path]))

    with ExitStack() as stack:
        for path, norm in own.items():
            hook = norm.register_forward_pre_hook(partial(change, path), with_kwargs=True)
            stack.callback(hook.remove)
        for path, original in pairs.items():
            hook = original.register_forward_pre_hook(partial(look, path), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(evaluating(teacher))
        stack.enter_context(evaluating(student))
        stack.enter_context(set_stance("force_eager"))  # compiled models do not see new hooks
        for batch in batches:
            args, kwargs = as_call(batch["inputs"])
            calls.clear()
            teacher(*args, **kwargs)
            student(*args, **kwargs)


class _Sums:
    """Mean and variance of every channel over all that was added, those of batches put together in double
    precision (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.variance = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = (part.double() for part in torch.var_mean(x, rows, correction=0))
        whole = self.count + x.numel() // x.shape[1]
        share, self.count = 1 - self.count / whole, whole
        away = mean - self.mean.to(x.device)
        self.mean = self.mean.to(x.device) + share * away
        self.variance = self.variance.to(x.device)
        self.variance = self.variance + share * (variance - self.variance + (1 - share) * away.square())


def _pairs(own: dict[str, Norm], teacher: nn.Module) -> dict[str, Norm]:
    theirs = {path.replace(_COMPILED, ""): norm for path, norm in batch_norms(teacher).items()}
    partners = {path: theirs.get(path.replace(_COMPILED, "")) for path in own}
    return {
        path: partner
        for path, partner in partners.items()
        if partner is not None and partner.num_features == own[path].num_features
    }


def _input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _carried(norm: Norm, original: Norm, now: _Sums, before: _Sums) -> tuple[Tensor, Tensor]:
    assert original.running_mean is not None and original.running_var is not None
    tiny = _NO_VARIANCE * norm.eps
    scale = ((now.variance + tiny) / (before.variance + tiny)).clamp(1 / _MOST, _MOST)
    mean = now.mean + scale.sqrt() * (original.running_mean - before.mean)
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
