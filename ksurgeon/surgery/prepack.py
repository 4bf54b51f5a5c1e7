"""Dense linear layers that stay dense, multiplied by this project's kernels in decoding."""

import sys
from collections.abc import Sequence

from torch import nn

from ksurgeon.errors import MatchError
from ksurgeon.kmatrix.prepacked import PrepackedLinear
from ksurgeon.rules.schema import matching

__all__ = ["prepack"]


def prepack(model: nn.Module, targets: Sequence[str] = (), *, undo: bool = False) -> tuple[str, ...]:
    """Let the kernels multiply by dense linear layers where there are few rows, as in decoding.

    Reading the weights takes most of the time then, and PyTorch reads them slower. Layers keep their
    parameters, names, hooks and ties, so that the model saves and loads as before; their class becomes
    ``PrepackedLinear``, an ``nn.Linear``, or ``PrepackedConv1D``, a ``Conv1D`` of transformers (the dense
    layer of GPT-2). With more than 8 rows, in training, compiled, on other devices or under autocast they do
    what the layers they were do. A packed copy of each weight that is used so takes as much memory again. A
    model that was loaded is prepacked anew; undo it before a conversion.

    Args:
        model: changed in place; not compiled yet.
        targets: paths of layers, ``re:`` and a regular expression that matches the whole path, or class
            names; every ``nn.Linear`` and ``Conv1D`` if left out. Classes derived from them are left alone.
        undo: make them ``nn.Linear`` and ``Conv1D`` again.

    Returns:
        Paths of the layers that were changed, in order; shared layers once.

    Raises:
        MatchError: a target names no such layer; the model is as it was.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("gpt2", dtype="bfloat16").eval()
        >>> ksurgeon.prepack(model, ["lm_head"])
        ('lm_head',)
    """
    classes = {after: before for before, after in _classes().items()} if undo else _classes()
    layers = {path: module for path, module in model.named_modules() if type(module) in classes}
    names = {path: (path, type(module).__name__) for path, module in layers.items()}
    for target in targets:
        if not any(matching((target,), each) for each in names.values()):
            wanted = " or ".join(each.__name__ for each in classes)
            there = ", ".join(list(layers)[:5]) or "none"
            raise MatchError(f'"{target}" is no {wanted} of this model; there are {there}')
    chosen = [path for path in layers if not targets or matching(tuple(targets), names[path])]
    for path in chosen:
        layers[path].__class__ = classes[type(layers[path])]
    return tuple(chosen)


def _classes() -> dict[type[nn.Module], type[nn.Module]]:
    """Classes of layers that can be prepacked, and what they become; no model has transformers' own before
    transformers is imported."""
    classes: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PrepackedLinear}
    if "transformers.pytorch_utils" in sys.modules:
        from ksurgeon.kmatrix.prepacked_conv1d import Conv1D, PrepackedConv1D

        classes[Conv1D] = PrepackedConv1D
    return classes
