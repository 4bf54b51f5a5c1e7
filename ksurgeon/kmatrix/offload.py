"""Factors that accelerate has moved away, to the CPU's memory or to disk."""

from torch import Tensor, nn

from ksurgeon.kmatrix.rotations import Rotations

__all__ = ["fetched"]


def fetched(factors: nn.ParameterList | Rotations) -> tuple[Tensor, ...]:
    """The factors for one product, where accelerate offloads them; as they are where it does not.

    Its hook brings back a module's own parameters when the module is called, and a list never is.
    """
    hook = getattr(factors, "_hf_hook", None)
    if hook is None:
        return tuple(factors)
    hook.pre_forward(factors)
    try:
        return tuple(factors.current() if isinstance(factors, Rotations) else factors)
    finally:
        hook.post_forward(factors, None)
