"""Prove what an operation did: outputs before and after, and each replacement beside its original."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError, SurgeryError
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs, call_model, evaluating, tensors_of

__all__ = ["output_change", "outputs_and_errors", "require_exact"]

_EXACT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.complex64: 1e-4, torch.complex128: 1e-10}


def outputs_and_errors(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    replacements: Sequence[tuple[Site, nn.Module]],
) -> tuple[list[Tensor], dict[str, float]]:
    """Outputs of the model as it is, and how far each replacement's output is from its original's."""
    if example_inputs is None:
        return [], {}
    squares: dict[str, list[float]] = {}
    handles = []
    for site, new in replacements:
        if site.nodes or site.parameter:
            continue

        def compare(_: nn.Module, args: Any, output: Any, site: Site = site, new: nn.Module = new) -> None:
            if len(args) == 1 and isinstance(output, Tensor):
                try:
                    difference = new.forward(args[0]) - output
                except (RuntimeError, ValueError):
                    return  # the run of the converted model will tell
                pair = (difference.double().norm().item() ** 2, output.double().norm().item() ** 2)
                old = squares.get(site.path, [0.0, 0.0])
                squares[site.path] = [old[0] + pair[0], old[1] + pair[1]]

        handles.append(model.get_submodule(site.path).register_forward_hook(compare))
    try:
        with evaluating(model):
            outputs = [t.clone() for t in tensors_of(call_model(model, example_inputs))]
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {path: (d / n) ** 0.5 if n else 0.0 for path, (d, n) in squares.items()}


def output_change(
    model: nn.Module, example_inputs: ExampleInputs | None, before: Sequence[Tensor]
) -> float | None:
    if example_inputs is None or not before:
        return None
    try:
        with evaluating(model):
            after = tensors_of(call_model(model, example_inputs))
    except InputError as error:
        raise SurgeryError(
            f"the converted model does not run where the original did ({error.__cause__}); it was restored. "
            "A module called with several shapes or arguments cannot be replaced: let the rule ignore it"
        ) from error
    if [t.shape for t in after] != [t.shape for t in before]:
        raise SurgeryError(
            "the converted model gives outputs of other shapes than the original; it was restored"
        )
    kept = [
        (a, b) for a, b in zip(after, before, strict=True) if b.dtype.is_floating_point or b.dtype.is_complex
    ]
    total = sum(b.double().norm().item() ** 2 for _, b in kept)
    moved = sum((a.double() - b.double()).norm().item() ** 2 for a, b in kept)
    return (moved / total) ** 0.5 if total else 0.0


def require_exact(change: float, before: Sequence[Tensor]) -> None:
    tolerance = max(_EXACT_TOLERANCE.get(t.dtype, 2e-2) for t in before)
    if not change <= tolerance and all(bool(t.isfinite().all()) for t in before):
        raise SurgeryError(
            f"every replacement was exact, and yet the outputs changed by {change:.1e} relative (at most "
            f"{tolerance:.0e} was expected); the model was restored. Please report the model."
        )
