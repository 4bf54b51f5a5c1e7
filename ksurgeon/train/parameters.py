"""Parameters in groups, factors of even norms, averaged weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import TrainingError
from ksurgeon.kmatrix.balance import balance_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.rules.schema import matching
from ksurgeon.site_kinds import kind_of
from ksurgeon.torch_private import lerp_all_
from ksurgeon.train.settings import Settings

__all__ = ["Averaged", "balance_factors", "factors_of", "freeze", "make_optimiser", "parameter_groups"]

# A gradient that is nothing but rounding, as that of a key's bias, must not be blown up to a whole step.
_EPSILON = 1e-6
_NORM = re.compile(r"norm(act)?(\dd)?$", re.IGNORECASE)  # libraries have classes of their own


def factors_of(model: nn.Module) -> set[int]:
    """``id`` of every parameter that is a factor of a K-module, or stands for one."""
    return {
        id(parameter)
        for module in model.modules()
        if kind_of(module) is not None or isinstance(module, StructuredMatrix)
        for name, parameter in module.named_parameters()
        if name != "bias"
    }


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Groups for an optimiser: factors with a rate of their own, matrices with weight decay, and all the
    rest."""
    factors, free = factors_of(model), _without_decay(model, settings.decay_depthwise)
    groups: dict[str, list[nn.Parameter]] = {"factors": [], "matrices": [], "vectors": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 and id(parameter) not in free
            kind = "factors" if id(parameter) in factors else "matrices" if decays else "vectors"
            groups[kind].append(parameter)
    if not any(groups.values()):
        raise TrainingError("no parameter of the model is to be trained: all are frozen")
    rates = {"factors": settings.lr * settings.factor_lr}
    return [
        {
            "params": parameters,
            "lr": rates.get(kind, settings.lr),
            "weight_decay": settings.weight_decay if kind == "matrices" else 0.0,
            "peak": rates.get(kind, settings.lr),
        }
        for kind, parameters in groups.items()
        if parameters
    ]


def make_optimiser(
    model: nn.Module, settings: Settings, betas: tuple[float, float] = (0.9, 0.99), eps: float = _EPSILON
) -> torch.optim.Optimizer:
    """AdamW or SGD with the groups of ``parameter_groups``, in one pass over each parameter where that is
    safe: students have many small ones."""
    groups = parameter_groups(model, settings)
    fused = all(_can_be_fused(parameter) for group in groups for parameter in group["params"])
    if settings.optimiser == "sgd":
        how: dict[str, Any] = {"momentum": settings.momentum, "nesterov": settings.nesterov}
        return torch.optim.SGD(groups, lr=settings.lr, fused=fused or None, **how)
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=fused or None)


def _without_decay(model: nn.Module, decay_depthwise: bool) -> set[int]:
    """``id`` of parameters that have no weight decay, of however many dimensions: biases, and of norms."""
    return {
        id(parameter)
        for layer in model.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if name == "bias"
        or _NORM.search(type(layer).__name__)
        or (not decay_depthwise and _is_depthwise(layer))
    }


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels


def _can_be_fused(parameter: nn.Parameter) -> bool:
    """PyTorch's fused kernel takes the memory of a parameter, its gradient and its moments as it lies."""
    plain = parameter.is_floating_point() and parameter.is_contiguous()
    return plain and parameter.device.type in ("cpu", "cuda")


@contextmanager
def freeze(model: nn.Module, targets: tuple[str, ...]) -> Iterator[None]:
    """Inside, the parameters that the targets name need no gradient.

    Raises:
        TrainingError: a target that names no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for target in targets:
        if not any(matching((target,), _paths(name)) for name in names):
            raise TrainingError(
                f'freeze = "{target}" names no parameter; they are called {", ".join(names[:4])}, …'
            )
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and matching(targets, _paths(name))
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _paths(name: str) -> tuple[str, ...]:
    """A parameter's own path and those of all modules that it is in."""
    parts = name.split(".")
    return tuple(".".join(parts[:end]) for end in range(len(parts), 0, -1))


@torch.no_grad()
def balance_factors(model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Give the factors of every K-matrix the same gain; the products, and what the
    optimiser remembers of gradients, stay the same.

    A factor's gain is the ratio by which it changes the norm of a random vector. Without an optimiser, whose
    state could not follow, the factors are those of least norm up to these gains (``balance_``), where all of
    them are trained, in single precision at least.
    """
    for matrix in model.modules():
        if not isinstance(matrix, KMatrix):
            continue
        factors = list(matrix.factors)
        if len(factors) < 2 or not all(isinstance(factor, nn.Parameter) for factor in factors):
            continue
        if optimiser is None and all(f.requires_grad and f.element_size() >= 4 for f in factors):
            evened = [factor.detach().to(wide(factor), copy=True) for factor in factors]
            balance_(evened)
            for factor, value in zip(factors, evened, strict=True):
                factor.copy_(value)
        gains = torch.stack([_gain(factor) for factor in factors])
        if not bool(((gains > 0) & gains.isfinite()).all()):
            continue
        scales = (gains.log().mean().exp() / gains).tolist()
        for factor, scale in zip(factors, scales, strict=True):
            factor.mul_(scale)
            state = optimiser.state.get(factor, {}) if optimiser is not None else {}
            if "exp_avg" in state:
                state["exp_avg"].div_(scale)
                state["exp_avg_sq"].div_(scale**2)
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].div_(scale)


def _gain(factor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(factor).double() / Pattern.of(factor.shape).in_features ** 0.5


class Averaged:
    """Exponential moving average of the parameters that are trained.

    Args:
        decay: of the past, lower in the first steps; 0 keeps no average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step; steps count from 1."""
        if self.decay:
            decay = min(self.decay, step / (step + 9))
            lerp_all_(self.values, list[Tensor](self.parameters), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters have their averaged values."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def take(self) -> None:
        """Give the parameters their averaged values for good."""
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=False):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
