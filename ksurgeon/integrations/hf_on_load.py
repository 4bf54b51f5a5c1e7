"""A dense checkpoint converted while transformers loads it: one weight is read, fitted, and let go."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps

from ksurgeon.find import Finder, Site
from ksurgeon.integrations.hf_config import KsurgeonConfig
from ksurgeon.models import from_transformers
from ksurgeon.rules.plan import Decision, Plan, describe_parts, make_plan, require_matches
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.build import note
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.operate import prepare, swap_all
from ksurgeon.surgery.record import Operation, Outcome, Record, attach

__all__ = ["ConvertOnLoad", "Planned", "finish", "plan_for"]


@dataclass
class Planned:
    """A layer to convert when its weight comes; ``error`` and ``done`` tell of the conversion."""

    number: int
    site: Site
    decision: Decision
    finder: Finder
    error: float | None = None
    done: bool = False


def plan_for(model: Any, config: KsurgeonConfig) -> tuple[Record, dict[str, Planned]]:
    """A record to fill, and the layers to convert by the name of their weight.

    Nothing is run: the model has no values yet. Whether a forward reads a weight instead of calling the layer
    is not known then, and maps inside a forward are looked for after the values are loaded.

    Raises:
        MatchError: the rule matches nothing that can be found so.
    """
    assert config.rule is not None
    finder = Finder(model)
    plan = make_plan(finder.sites, config.rule)
    if all(site_kind(part.find).has_weight for part in config.rule.parts):
        require_matches(plan, finder.sites)
    record = Record.begin(model)
    record.rules, record.seed = [plan.rule], config.seed
    record.source = next(iter(from_transformers.infer(model)), None)
    record.outcome = Outcome(parameters=(0, 0), parts=describe_parts(plan, config.rule))
    sites = {(site.path, site.kind): site for site in finder.sites}
    tied = _tied(model)
    planned: dict[str, Planned] = {}
    for decision in plan.replacements:
        site = sites[decision.path, decision.kind]
        name = f"{site.path}.weight"
        if site.is_module and name not in tied:
            planned[name] = Planned(len(planned), site, decision, finder)
    return record, planned


class ConvertOnLoad(ConversionOps):  # type: ignore[misc]
    """Takes dense weights, puts fitted K-modules in the place of their layers, and gives the factors."""

    def __init__(self, planned: Mapping[str, Planned], seed: int) -> None:
        self.planned, self.seed = planned, seed

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        model: Any = None,
        missing_keys: set[str] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        given: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            planned = self.planned.get(name)
            if planned is None:
                given[name] = weight
                continue
            path = planned.site.path
            stays = {own for own, _ in model.get_submodule(path).named_parameters()} - {"weight"}
            new = self._convert(model, planned, weight)
            if missing_keys is not None:
                missing_keys.discard(name)
            given |= {f"{path}.{own}": p.data for own, p in new.named_parameters() if own not in stays}
        return given

    def _convert(self, model: Any, planned: Planned, weight: Tensor) -> nn.Module:
        decision = planned.decision
        site = replace(planned.site, parts=decision.parts)
        assert decision.structure is not None and decision.start is not None
        layer = model.get_submodule(site.path)
        empty = layer.weight
        layer.weight = nn.Parameter(weight, requires_grad=empty.requires_grad)
        note(empty, [layer.weight])
        devices = [weight.device.index] if weight.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.seed + planned.number)
            new, planned.error = site_kind(site.kind).make(model, site, decision.structure, decision.start)
        layer.weight = None
        swaps, _ = prepare(model, planned.finder, [(site, new)])
        swap_all(swaps)
        planned.done = True
        return new


def finish(model: Any, record: Record, planned: Mapping[str, Planned], config: KsurgeonConfig) -> None:
    """Complete the record, and convert what could not be converted while the weights came."""
    assert record.outcome is not None and config.rule is not None
    for each in planned.values():
        if each.done:
            record.operations.append(Operation.of(each.site, each.decision, weight_error=each.error))
    saved = sum(o.parameters_before - o.parameters_after for o in record.operations)
    record.outcome.parameters = (_count(model) + saved, _count(model))
    attach(model, record if record.operations else None)
    inside = any(not site_kind(part.find).has_weight for part in config.rule.parts)
    left = any(not each.done for each in planned.values()) or any(part.untie for part in config.rule.parts)
    if inside or left:
        rest = _rest(model, config)
        if rest is not None:
            convert(model, rest, seed=config.seed)


def _rest(model: Any, config: KsurgeonConfig) -> Plan | None:
    from ksurgeon.find import open_finder

    assert config.rule is not None
    plan = make_plan(open_finder(model, None).all_sites, config.rule)
    return plan if plan.replacements else None


def _tied(model: Any) -> set[str]:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied) | set(tied.values())


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
