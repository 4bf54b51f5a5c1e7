"""Prove what an operation did: outputs before and after, and each replacement beside its original."""

from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError, SurgeryError
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs, call_model, tensors_of
from ksurgeon.find.unchanged import example_run

__all__ = ["amplified", "is_exact", "output_change", "outputs_and_errors", "require_steady"]

_ROUNDING = 8  # units in the last place, as sums of a few hundred products differ by
_LIKE_NOISE = 10  # times the change by noise

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
        if not site.is_module:
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
        with example_run(model):
            outputs = [t.clone() for t in tensors_of(call_model(model, example_inputs))]
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {path: (d / n) ** 0.5 if n else 0.0 for path, (d, n) in squares.items()}


def output_change(
    model: nn.Module, example_inputs: ExampleInputs | None, before: Sequence[Tensor]
) -> float | None:
    """Relative change of the outputs; infinite where they have other shapes.

    Raises:
        SurgeryError: the model does not run any more.
    """
    if example_inputs is None or not before:
        return None
    try:
        with example_run(model):
            after = tensors_of(call_model(model, example_inputs))
    except InputError as error:
        raise SurgeryError(
            f"the converted model does not run where the original did ({error.__cause__}); it was restored. "
            "A module called with several shapes or arguments cannot be replaced: let the rule ignore it"
        ) from error
    if [t.shape for t in after] != [t.shape for t in before]:
        return inf
    kept = [
        (a, b) for a, b in zip(after, before, strict=True) if b.dtype.is_floating_point or b.dtype.is_complex
    ]
    total = sum(b.double().norm().item() ** 2 for _, b in kept)
    moved = sum((a.double() - b.double()).norm().item() ** 2 for a, b in kept)
    return (moved / total) ** 0.5 if total else 0.0


def is_exact(change: float, before: Sequence[Tensor]) -> bool:
    """Whether the outputs changed by no more than rounding does; those that were not finite tell nothing."""
    return change <= _tolerance(before) or not all(bool(t.isfinite().all()) for t in before)


def amplified(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    owners: Iterable[str],
    before: Sequence[Tensor],
    size: float,
) -> float:
    """Change of the original's outputs when what the modules of these paths give is disturbed.

    A model that takes the best k of its proposals, or decides by a threshold, may answer rounding by other
    proposals altogether.

    Args:
        size: of the noise, relative; at least that of rounding.
    """
    random = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        noise = torch.randn(output.shape, generator=random).to(output)
        return output * (1 + max(size, _ROUNDING * torch.finfo(output.dtype).eps) * noise)

    handles = [model.get_submodule(path).register_forward_hook(disturb) for path in dict.fromkeys(owners)]
    try:
        return output_change(model, example_inputs, before) or 0.0
    finally:
        for handle in handles:
            handle.remove()


def require_steady(
    change: float, before: Sequence[Tensor], errors: Iterable[float | None], amplification: float
) -> None:
    """Outputs may change by more than the replacements' errors only where noise does as much.

    Args:
        change: of the outputs, relative; infinite where they have other shapes.
        before: the outputs of the original.
        errors: of the outputs of replacements that are exact; None where one is not known.
        amplification: what ``amplified`` tells.

    Raises:
        SurgeryError: the operation changed what the model computes.
    """
    tolerance = _tolerance(before)
    alike = all(error is not None and error <= tolerance for error in errors)
    as_noise = not isfinite(change) or change <= _LIKE_NOISE * amplification
    if alike and as_noise and amplification > tolerance:
        return
    if not isfinite(change):
        raise SurgeryError(
            "the converted model gives outputs of other shapes than the original; it was restored"
        )
    raise SurgeryError(
        f"every replacement was exact, and yet the outputs changed by {change:.1e} relative (at most "
        f"{tolerance:.0e} was expected); the model was restored. Please report the model."
    )


def _tolerance(before: Sequence[Tensor]) -> float:
    """The loosest of those of the outputs that rounding changes; half precision's is not in the table."""
    inexact = [t.dtype for t in before if t.dtype.is_floating_point or t.dtype.is_complex]
    return max((_EXACT_TOLERANCE.get(dtype, 2e-2) for dtype in inexact), default=0.0)
