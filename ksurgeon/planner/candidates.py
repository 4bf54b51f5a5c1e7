"""Options of all sites under a budget: what they cost and harm, and the exact choice among them."""

from collections.abc import Sequence
from math import ceil, floor, log10

from ksurgeon.calibrate import Harm
from ksurgeon.errors import MatchError, PlanError
from ksurgeon.find import Site
from ksurgeon.planner.budget import Budget
from ksurgeon.planner.choose import Choice, choose, least
from ksurgeon.planner.options import Option, SiteOptions, options_for
from ksurgeon.rules.plan import unmatched_messages
from ksurgeon.rules.schema import matching
from ksurgeon.site_kinds import site_kinds

__all__ = ["Candidates"]


class Candidates:
    """What may become of a model's sites, as far as it is known.

    Args:
        sites: in the model's order.
        harm: what is kept small.
        by_metric: whether harms are what a figure of merit loses instead.
        targets, ignore, structures: which sites are in play, and what is tried at them.

    Attributes:
        options: of every site, in the model's order.
        fixed: milliseconds of the model outside of the sites in play, once they are timed.

    Raises:
        MatchError: no site can be replaced.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        harm: Harm,
        by_metric: bool,
        targets: Sequence[str],
        ignore: Sequence[str],
        structures: Sequence[str],
    ) -> None:
        self._harm, self._by_metric = harm, by_metric
        self.options = [options_for(site, structures) for site in sites]
        for site, options in zip(sites, self.options, strict=True):
            obstacle = _left(site, tuple(targets), tuple(ignore))
            if obstacle and options.reason is None:
                options.reason, options.options = obstacle, options.options[:1]
        self.fixed = 0.0
        if not self.in_play:
            named = unmatched_messages(targets, ignore, sites)
            reasons = "; ".join([*sorted({o.reason or "" for o in self.options})[:4], *named])
            raise MatchError(
                "no site of the model can be replaced"
                + (f": {reasons}" if reasons else f", for it has no {_titles()}")
            )

    @property
    def in_play(self) -> list[str]:
        """Paths of the sites that have a choice."""
        return [options.path for options in self.options if len(options.options) > 1]

    @property
    def playing(self) -> list[SiteOptions]:
        """Options of the sites that have a choice."""
        return [options for options in self.options if len(options.options) > 1]

    def cost(self, option: Option, budget: Budget) -> float:
        """What a budget limits, or for a limit of harm the parameters."""
        if budget.kind == "latency":
            return option.latency if option.latency is not None else 0.0
        return option.multiplications if budget.kind == "flops" else option.parameters

    def total(self, budget: Budget) -> float:
        """The budget's quantity of all sites in play as they are, and of the rest of the model for times."""
        return self.fixed * (budget.kind == "latency") + sum(
            self.cost(options.options[0], budget) for options in self.playing
        )

    def require(self, budget: Budget) -> None:
        """Return if the budget can be met.

        Raises:
            PlanError: it cannot; the message says which one can.
        """
        if budget.kind == "error" or (budget.kind == "latency" and not self.fixed):
            return
        total = self.total(budget)
        costs = [[self.cost(o, budget) for o in s.options if o.is_open] for s in self.playing]
        nearest = (least(costs) + self.fixed * (budget.kind == "latency")) / total if total else 1.0
        if nearest > budget.value:
            what = "the whole model's time" if budget.kind == "latency" else "the eligible layers"
            raise PlanError(
                f"the budget {budget} cannot be met: the least that any choice of structures comes to is "
                f"{nearest:.3g} of {what}; the nearest budget is {budget.kind}={_up(nearest):g}"
            )

    def correct(self) -> None:
        """Set the ratios of measured to predicted harm: of each site, or of all together where a metric is
        measured, which is too coarse for single sites."""
        pairs = {
            options.path: [(o.measured, o.predicted) for o in options.options if o.measured is not None]
            for options in self.playing
        }
        everything = [pair for found in pairs.values() for pair in found]
        for options in self.playing:
            found = everything if self._by_metric else pairs[options.path]
            measured, predicted = sum(m for m, _ in found), sum(p for _, p in found)
            if measured > 0 and predicted > 0:
                options.ratio = measured / predicted

    def harm_of(self, options: SiteOptions, option: Option) -> float:
        """Harm of an option as far as it is known, none below zero unless it is what a metric loses."""
        if self._by_metric:
            return option.predicted * options.ratio
        return max(options.harm(option), 0.0)

    def chosen(self, budget: Budget) -> Choice:
        """The exact choice by what is known now.

        Raises:
            PlanError: the budget cannot be met.
        """
        self.require(budget)
        playing = self.playing
        open_ = [[o for o in options.options if o.is_open] for options in playing]
        harms = [
            [self.harm_of(s, option) for option in found] for s, found in zip(playing, open_, strict=True)
        ]
        costs = [[self.cost(option, budget) for option in found] for found in open_]
        if budget.kind == "error":
            limit = budget.value if self._by_metric else self._harm.added(budget.value)
            choice = choose(costs, harms, limit)
        else:
            room = budget.value * self.total(budget) - self.fixed * (budget.kind == "latency")
            choice = choose(harms, costs, room)
        picked = [
            options.options.index(found[i])
            for options, found, i in zip(playing, open_, choice.picked, strict=True)
        ]
        return Choice(picked, choice.value, choice.weight, choice.gap)

    def picked(self, choice: Choice) -> list[tuple[SiteOptions, Option]]:
        """The sites in play, and what was chosen for each."""
        return [(s, s.options[i]) for s, i in zip(self.playing, choice.picked, strict=True)]


def _left(site: Site, targets: tuple[str, ...], ignore: tuple[str, ...]) -> str | None:
    if targets and matching(targets, site.names) is None:
        return "not among the targets"
    ignored = matching(ignore, site.names)
    return f'ignored by "{ignored}"' if ignored is not None else None


def _titles() -> str:
    return " or ".join(kind.title for kind in site_kinds() if kind.is_dense)


def _up(value: float) -> float:
    """Rounded up to three digits."""
    digits = 10 ** (2 - floor(log10(value)))
    return ceil(value * digits - 1e-9) / digits
