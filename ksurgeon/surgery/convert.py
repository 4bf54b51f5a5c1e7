"""One call that converts a model."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Literal, ParamSpec

from torch import nn

from ksurgeon.calibrate import Data
from ksurgeon.errors import MatchError, SurgeryError
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.models.source import Source
from ksurgeon.rules.plan import Plan
from ksurgeon.rules.schema import Rule, SiteStart
from ksurgeon.rules.select import Selection, Targets, What
from ksurgeon.surgery.carry_out import carry_out
from ksurgeon.surgery.conversion import Conversion
from ksurgeon.surgery.fold import fold_norms
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.quantize import quantize_layers
from ksurgeon.surgery.record import attach, record_of
from ksurgeon.surgery.replacements import Progress
from ksurgeon.surgery.verify import output_change, outputs_and_errors

__all__ = ["convert", "replace_modules"]

P = ParamSpec("P")


def convert(
    model: nn.Module,
    what: What = "linear",
    example_inputs: ExampleInputs | None = None,
    *,
    targets: Targets | None = None,
    ignore: Targets | None = None,
    start: SiteStart | None = None,
    source: str | Source | None = None,
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
    rule: str | Path | Rule | None = None,
    plan: Plan | None = None,
) -> Conversion:
    r"""Replace linear maps of a model by K-matrices, in place.

    Args:
        model: any module. A call that raises leaves it as it was.
        what: the name of a built-in rule, a rule file, a ``Rule``, a ``Plan`` (which is checked against the
            model, and counted anew), a structure for all linear layers and pointwise convolutions (a
            ``Butterfly`` for all transforms and filterbanks), or a mapping of targets to structures, of which
            the first that means a site decides about it. A structure without targets leaves the output head
            and weights that a forward reads, as the rule "linear" does.
        example_inputs: as for ``find``; the operation is verified on them. Left out, one example of ``data``.
        targets: the sites that are meant, of those that ``what`` would replace; one target or several. A
            string is a path, whole names of one ("attn" means "layers.0.attn.query"), a class name, a glob,
            or ``re:`` and a regular expression for the whole path. A class means its instances. Of both a
            layer meets also those of modules around it. A function is given the path and the module, and
            tells whether the site is meant.
        ignore: the sites that stay as they are; targets likewise.
        start: how structures get their values: "fit" (unless given), "random", "orthogonal", "identity", or
            "exact" where the structure holds the map. Rules and plans say it themselves.
        source: where the architecture comes from (``"torchvision:resnet18"``, ``"package.module:function"``),
            for the record; found out for models of timm, torchvision and transformers.
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
        rule, plan: earlier names of ``what``, which they override.

    Warns:
        UserWarning: a name to ignore matches nothing, or a target of a rule matches nothing while others
            do; ``plan.unmatched_names`` has those of rules.

    Examples:
        >>> ksurgeon.convert(model, ksurgeon.Monarch(4), targets=r"re:.*\.mlp\..*", ignore="lm_head")
        >>> ksurgeon.convert(model, {"attn": ksurgeon.LowRank(share=0.5), "mlp": ksurgeon.Monarch(4)})
        >>> ksurgeon.convert(model, "shuffle")

    Raises:
        MatchError: the rule, or a target, matches nothing.
        RuleError: there is no such rule, or it, a target or a start is malformed.
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
    given = plan if plan is not None else rule if rule is not None else what
    done = carry_out(
        model,
        Selection(given, targets, ignore, start),
        example_inputs,
        source=source,
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


def _returning_the_model(act: Callable[P, Conversion]) -> Callable[P, nn.Module]:
    @wraps(act)
    def replace_modules(*args: P.args, **options: P.kwargs) -> nn.Module:
        return act(*args, **options).model

    replace_modules.__name__ = replace_modules.__qualname__ = "replace_modules"
    replace_modules.__doc__ = """Replace linear maps of a model by K-matrices, in place, and return the model.

    ``convert`` takes the same, raises the same, and returns what was done.
    """
    return replace_modules


replace_modules = _returning_the_model(convert)
