"""Decisions of a plan from the options that were chosen."""

from typing import Any

from ksurgeon.find import Site
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.rules.plan import Decision

__all__ = ["decision"]


def decision(site: Site, options: SiteOptions, option: Option | None) -> Decision:
    """What a plan says of a site for which an option, or none, was chosen."""
    leave = options.options[0]
    facts: dict[str, Any] = {
        "path": site.path,
        "kind": site.kind,
        "in_features": site.in_features,
        "out_features": site.out_features,
        "parameters_before": leave.parameters,
        "multiplications_before": leave.multiplications,
    }
    if option is None or option.structure is None:
        return Decision(
            **facts,
            action="leave",
            reason=options.reason or "worth more as it is than what a structure would save",
            parameters_after=leave.parameters,
            multiplications_after=leave.multiplications,
        )
    return Decision(
        **facts,
        action="replace",
        structure=option.structure,
        start="fit",
        reason="least loss increase within the budget",
        parameters_after=option.parameters,
        multiplications_after=option.multiplications,
        error=option.error,
        predicted_harm=option.predicted * options.ratio,
        measured_harm=option.measured,
        latency_before=leave.latency,
        latency_after=option.latency,
    )
