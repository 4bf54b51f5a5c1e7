"""The factors of a module as they count in a call."""

from collections.abc import Sequence

from torch import Tensor, nn

from ksurgeon.kmatrix.rotations import Rotations

__all__ = ["factors_of"]

_NAMES = tuple(map(str, range(64)))


def factors_of(held: nn.ParameterList | Rotations, count: int) -> Sequence[Tensor]:
    """The ``count`` factors of a list, in the order of their indices.

    ``torch.nn.utils.prune`` and the hooks of old reparametrisations (``weight_norm``, ``spectral_norm``) put
    other parameters in the place of a factor and compute it in a hook before the forward of the module that
    holds it. A list has no forward, so that its hooks are called here.
    """
    if held._forward_pre_hooks:
        for key, hook in list(held._forward_pre_hooks.items()):
            hook(held, (), {}) if key in held._forward_pre_hooks_with_kwargs else hook(held, ())
    elif tuple(held._parameters) == _NAMES[:count]:  # the list's own iterator is slow
        return tuple(held._parameters.values())  # type: ignore[arg-type]
    if isinstance(held, Rotations):
        return held.current()
    return tuple([held[k] for k in range(count)])
