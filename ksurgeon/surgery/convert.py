"""One call that converts a model."""

import warnings
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ksurgeon.calibrate import Data
from ksurgeon.errors import MatchError, SurgeryError
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.models.source import Source
from ksurgeon.rules.plan import Plan
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.carry_out import carry_out
from ksurgeon.surgery.conversion import Conversion
from ksurgeon.surgery.fold import fold_norms
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.quantize import quantize_layers
from ksurgeon.surgery.record import attach, record_of
from ksurgeon.surgery.replacements import Progress
from ksurgeon.surgery.verify import output_change, outputs_and_errors

__all__ = ["convert", "replace_modules"]


def convert(
    model: nn.Module,
    rule: str | Path | Rule = "linear",
    example_inputs: ExampleInputs | None = None,
    *,
    source: str | Source | None = None,
    plan: Plan | None = None,
    data: Data | None = None,
    examples: int = 512,
    tokenizer: str | None = None,
    max_length: int = 128,
    compensate: bool = True,
    weights: Literal["int8"] | None = None,
    fold: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    fuse_activations: bool | None = None,
) -> Conversion:
    """Replace linear maps of a model by K-matrices, in place, as a rule says.

    Args:
        model: any module. A call that raises leaves it as it was.
        rule: name of a built-in rule, a rule file, or a ``Rule``.
        example_inputs: as for ``find``; the operation is verified on them. Left out, one example of ``data``.
        source: where the architecture comes from (``"torchvision:resnet18"``, ``"package.module:function"``),
            for the record; found out for models of timm, torchvision and transformers.
        plan: decisions to carry out in place of those the rule would give; they are checked against the
            model, and counted anew.
        data: what the model takes in real use (see ``calibrate.open_data``): what starts with "fit" is then
            fitted to what its site does on them, not to its weight alone. What starts with "geometry" needs
            them.
        examples, tokenizer, max_length: of the data.
        compensate: whether layers fitted to data are fitted front to back, each so that it makes up for the
            errors of those before it; for models whose order of layers does not depend on the data.
        weights: "int8" quantizes all linear layers and pointwise convolutions afterwards, those that stay
            dense, too (see ``quantize``), as does a plan that was made for it.
        fold: whether batch norms are folded into the layers before them afterwards, where any can be (see
            ``fold``); for models that are to be used as they are, not trained on.
        seed: of random starting values.
        progress: called before each site and once at the end.
        fuse_activations: deprecated, and without effect: K-layers apply no activations.

    Warns:
        UserWarning: a target matches nothing while others do; ``plan.unmatched_names`` has them all.

    Raises:
        MatchError: the rule matches nothing.
        RuleError: there is no such rule, or it is malformed.
        InputError: the model does not run on the inputs, or has no weights yet.
        WeightsError: a weight to be replaced is not finite.
        PlanError: the plan does not fit the model.
        SurgeryError: an operation is refused, the source does not build this model, or it is given and what
            is in a forward could not be found again by ``load``.
        DataError: the data cannot be read, are missing, or tell no geometry.
    """
    if fuse_activations is not None:
        warnings.warn(
            "fuse_activations has no effect any more and will be removed: K-layers apply no activations, "
            "activation modules stay in place. Leave it out",
            FutureWarning,
            stacklevel=2,
        )
    if weights not in (None, "int8"):
        raise SurgeryError(f'weights is "int8" or None, got {weights!r}')
    present = record_of(model)
    done = carry_out(
        model,
        rule,
        example_inputs,
        source=source,
        plan=plan,
        data=data,
        examples=examples,
        tokenizer=tokenizer,
        max_length=max_length,
        compensate=compensate,
        seed=seed,
        progress=progress,
    )
    try:
        if fold:
            _fold(done)
        if weights is not None or done.plan.precision == "int8":
            _quantize(done)
    except BaseException:
        undo_all(done.swaps)
        attach(model, present)
        raise
    return done


def _fold(done: Conversion) -> None:
    """Fold the batch norms of a converted model, if it has any that can be."""
    try:
        _, swaps = fold_norms(done.model, done.example_inputs)
    except MatchError:
        return
    done.swaps = [*done.swaps, *swaps]
    record = record_of(done.model)
    assert record is not None
    done.record = record


def _quantize(done: Conversion) -> None:
    """Let the layers of a converted model be in int8."""
    with done.undone():
        before, _ = outputs_and_errors(done.model, done.example_inputs, ())
    errors, swaps = quantize_layers(done.model, example_inputs=done.example_inputs)
    done.swaps = [*done.swaps, *swaps]
    done.results = [
        replace(result, structure=f"{result.structure}, int8") if result.path in errors else result
        for result in done.results
    ]
    record = record_of(done.model)
    assert record is not None and record.outcome is not None
    done.record, done.output_change = record, output_change(done.model, done.example_inputs, before)
    change = done.output_change
    record.outcome.output_change = change if change is None or isfinite(change) else None


def replace_modules(
    model: nn.Module,
    rule: str | Path | Rule = "linear",
    example_inputs: ExampleInputs | None = None,
    **options: Any,
) -> nn.Module:
    """Replace linear maps of a model by K-matrices, in place, and return the model.

    ``options`` are those of ``convert``, which tells what is raised and returns what was done.
    """
    return convert(model, rule, example_inputs, **options).model
