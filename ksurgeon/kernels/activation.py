"""Activations that a chain of factors can end with."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "activate", "check_activation"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
"""What each name means; ``gelu`` is the exact one."""


def check_activation(activation: str | None) -> None:
    """Raise ValueError unless ``activation`` is None or one of ``ACTIVATIONS``."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation {activation!r}: expected None or one of {', '.join(ACTIVATIONS)}; "
            "apply any other to the result"
        )


def activate(y: Tensor, activation: str | None) -> Tensor:
    """Apply the activation of that name, if any.

    Raises:
        ValueError: there is none of that name.
    """
    if activation is None:
        return y
    check_activation(activation)
    return ACTIVATIONS[activation](y)
