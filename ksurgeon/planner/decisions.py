"""Decisions of a plan from the options that were chosen."""

from ksurgeon.find import Site
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.rules.plan import Decision, leave

__all__ = ["decision"]


def decision(site: Site, options: SiteOptions, option: Option | None) -> Decision:
    """What a plan says of a site for which an option, or none, was chosen."""
    if option is None or option.structure is None:
        return leave(site, options.reason or "worth more as it is than what a structure would save")
    return Decision.about(
        site,
        action="replace",
        structure=option.structure,
        start="fit",
        reason="least loss increase within the budget",
        parameters_after=option.parameters,
        multiplications_after=option.multiplications,
        error=option.error,
        predicted_harm=option.predicted * options.ratio,
        measured_harm=option.measured,
        latency_before=options.options[0].latency,
        latency_after=option.latency,
    )
