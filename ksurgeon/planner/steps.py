"""The steps of a search for a plan: calibrate, predict, time, choose, check, choose again."""

from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite, log10

from torch import nn

from ksurgeon.calibrate import Batches, Calibration, Harm, calibrate
from ksurgeon.calibrate.run import Run
from ksurgeon.calibrate.storage import load_calibration, save_calibration
from ksurgeon.errors import MatchError, PlanError
from ksurgeon.find import Finder, Site
from ksurgeon.planner.budget import Budget
from ksurgeon.planner.choose import Choice, choose, least
from ksurgeon.planner.decisions import decision
from ksurgeon.planner.judge import Judge, Metric
from ksurgeon.planner.latency import Stopwatch, refuse_slower
from ksurgeon.planner.options import Option, SiteOptions, options_for
from ksurgeon.planner.predict import predict, tried_at
from ksurgeon.planner.state import State
from ksurgeon.rules.plan import Plan
from ksurgeon.rules.schema import matching

__all__ = ["Search", "Stage"]

Stage = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and what is at hand."""

_ROUNDS = 3
_TURNS = 5


class Search:
    """What is known of a model's sites so far, and the steps that find out more.

    Args:
        model: left as it is.
        finder: of the model.
        batches: of data.
        harm, metric: what is kept small, and what is measured in its place.
        targets, ignore, structures: which sites are in play, and what is tried at them.
        stage: told of progress.

    Attributes:
        options: of every site, in the model's order.
        state: what is kept between searches.
        fixed: milliseconds of the model outside of the sites in play, once they are timed.

    Raises:
        MatchError: no site can be replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        finder: Finder,
        batches: Batches,
        harm: Harm,
        metric: Metric | None,
        targets: Sequence[str],
        ignore: Sequence[str],
        structures: Sequence[str],
        stage: Stage | None,
    ) -> None:
        self.model, self.finder, self.batches, self.harm, self.metric = model, finder, batches, harm, metric
        self.stage = stage or (lambda *_: None)
        self.state = State(None)
        self.sites = {site.path: site for site in finder.sites}
        self.options = [options_for(site, structures) for site in finder.sites]
        for options in self.options:
            obstacle = _left(self.sites[options.path], tuple(targets), tuple(ignore))
            if obstacle and options.reason is None:
                options.reason, options.options = obstacle, options.options[:1]
        self.fixed = 0.0
        self.calibration = Calibration({})
        self._judge: Judge | None = None
        if not self.in_play:
            reasons = "; ".join(sorted({o.reason or "" for o in self.options})[:4])
            raise MatchError(
                "no site of the model can be replaced"
                + (f": {reasons}" if reasons else ", for it has no linear layer or pointwise convolution")
            )

    @property
    def in_play(self) -> list[str]:
        """Paths of the sites that have a choice."""
        return [options.path for options in self.options if len(options.options) > 1]

    @property
    def playing(self) -> list[SiteOptions]:
        return [options for options in self.options if len(options.options) > 1]

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self.finder, self.calibration, self.harm, self.batches.check, self.metric)
        return self._judge

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
        """Raise if the budget cannot be met."""
        if budget.kind == "error" or (budget.kind == "latency" and not self.fixed):
            return
        total = self.total(budget)
        costs = [[self.cost(o, budget) for o in s.options if o.is_open] for s in self.playing]
        nearest = (least(costs) + self.fixed * (budget.kind == "latency")) / total if total else 1.0
        if nearest > budget.value:
            what = "the whole model's time" if budget.kind == "latency" else "the layers in play"
            raise PlanError(
                f"the budget {budget} cannot be met: the least that any choice of structures comes to is "
                f"{nearest:.3g} of {what}; the nearest budget is {budget.kind}={_up(nearest):g}"
            )

    def calibrate(self, run: Run | None, seed: int) -> None:
        file = self.state.calibration_file
        known = load_calibration(file) if file is not None else None
        if known is None:
            sites = [self.sites[path] for path in self.in_play]
            known = calibrate(
                self.model,
                sites,
                self.batches.fit,
                harm=self.harm,
                run=run,
                seed=seed,
                progress=lambda done, total, what: self.stage("calibrating", done, total, what),
            )
            if file is not None:
                try:
                    save_calibration(known, file)
                except OSError:
                    pass
                else:
                    known = load_calibration(file) or known  # as a search that goes on will find it
        self.calibration = known
        _ = self.judge  # what is wrong with the held-out data shows before the long work
        for options in self.playing:
            if options.path not in known.sites:
                options.reason, options.options = "no vector reached it on these data", options.options[:1]

    def predict(self, everything: bool = False) -> None:
        """Predict the harm of all options, of ``everything`` even where low rank beats it at other sites."""
        playing = self.playing
        for number, options in enumerate(playing):
            kept = self.state.sites.get(options.path)
            if kept is not None and _same(kept, options, everything):
                self.options[self.options.index(options)] = kept
                continue
            self.stage("predicting", number, len(playing), options.path)
            site = self.sites[options.path]
            before = [(self.sites[other.path], other) for other in self.playing[:number]]
            tried = tried_at(site, before, beaten=not everything)
            predict(self.model, site, options, self.calibration.sites[site.path], tried)
            if kept is not None:
                _keep_measured(kept, options)
            self.state.sites[options.path] = options
            self.state.keep()
        self.stage("predicting", len(playing), len(playing), "")

    def time(self) -> None:
        watch = Stopwatch(self.finder)
        playing = self.playing
        for number, options in enumerate(playing):
            self.stage("timing", number, len(playing), options.path)
            watch.time(self.sites[options.path], options)
        self.stage("timing", len(playing), len(playing), "")
        refuse_slower(playing)
        dense = sum(options.options[0].latency or 0.0 for options in playing)
        self.fixed = max(watch.whole() - dense, 0.0)

    def settled(self, budget: Budget) -> Choice:
        """The choice, once the options that it takes have been measured one at a time."""
        self._probe()
        choice = self.chosen(budget)
        for _ in range(_ROUNDS):
            new = [
                (options, option)
                for options, option in self.picked(choice)
                if option.structure is not None and option.measured is None
            ]
            if not new:
                break
            for number, (options, option) in enumerate(new):
                self.stage("checking", number, len(new), options.path)
                self._measure(options, option)
            self.stage("checking", len(new), len(new), "")
            choice = self.chosen(budget)
        return self._kept_within(choice, budget) if budget.kind == "error" else choice

    def _kept_within(self, choice: Choice, budget: Budget) -> Choice:
        """For a limit of harm: a choice whose harm is within it, measured with all replacements together."""
        strict = budget.value
        for turn in range(_TURNS):
            self.stage("tightening", turn, _TURNS, f"{self.harm.name} ≤ {strict:.3g}")
            harm = self.measured(choice)
            if harm <= budget.value:
                break
            strict *= 0.97 * budget.value / harm
            choice = self.chosen(Budget("error", strict))
        self.stage("tightening", _TURNS, _TURNS, "")
        return choice

    def _probe(self) -> None:
        """One swap of every site whose harm no gradient tells."""
        blind = [o for o in self.playing if self.calibration.sites[o.path].gradient is None]
        for number, options in enumerate(blind):
            if options.ratio == 1.0 and all(option.measured is None for option in options.options):
                self.stage("probing", number, len(blind), options.path)
                self._measure(options, _middle(options))

    def _measure(self, options: SiteOptions, option: Option) -> None:
        assert option.structure is not None
        measured = self.judge.of({self.sites[options.path]: option.structure}, roughly=True)
        if isfinite(measured):
            option.measured = measured
        else:
            option.refused = "the model's outputs are not finite with it"
        self._correct()
        self.state.keep()

    def _correct(self) -> None:
        """Ratios of measured to predicted harm: of each site, or of all together where a metric is measured,
        which is too coarse for single sites."""
        pairs = {
            options.path: [(o.measured, o.predicted) for o in options.options if o.measured is not None]
            for options in self.playing
        }
        everything = [pair for found in pairs.values() for pair in found]
        for options in self.playing:
            found = everything if self.metric is not None else pairs[options.path]
            measured, predicted = sum(m for m, _ in found), sum(p for _, p in found)
            if measured > 0 and predicted > 0:
                options.ratio = measured / predicted

    def harm_of(self, options: SiteOptions, option: Option) -> float:
        if self.metric is not None:
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
            limit = budget.value if self.metric is not None else self.harm.added(budget.value)
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

    def measured(self, choice: Choice) -> float:
        """Harm of all choices together, as people read it."""
        taken = {
            self.sites[options.path]: option.structure
            for options, option in self.picked(choice)
            if option.structure is not None
        }
        harm = self.judge.of(taken)
        return harm if self.metric is not None else self.harm.shown(harm)

    def plan_of(self, choice: Choice, budget: Budget) -> Plan:
        """The plan that carries out a choice."""
        picked = {options.path: option for options, option in self.picked(choice)}
        decisions = [
            decision(self.sites[options.path], options, picked.get(options.path)) for options in self.options
        ]
        harm = sum(self.harm_of(options, option) for options, option in self.picked(choice))
        return Plan(
            rule=f"plan {budget}",
            budget=str(budget),
            harm=self.harm.name if self.metric is None else "metric",
            predicted_harm=harm if self.metric is not None else self.harm.shown(harm),
            decisions=decisions,
        )


def _left(site: Site, targets: tuple[str, ...], ignore: tuple[str, ...]) -> str | None:
    names = (site.path, site.owner, site.class_name, *site.aliases)
    if targets and matching(targets, names) is None:
        return "not among the targets"
    ignored = matching(ignore, names)
    return f'ignored by "{ignored}"' if ignored is not None else None


def _same(kept: SiteOptions, fresh: SiteOptions, everything: bool) -> bool:
    """Whether the options kept are those that would be tried now."""
    if everything and any(option.skipped for option in kept.options):
        return False
    return [o.structure for o in kept.options] == [o.structure for o in fresh.options]


def _keep_measured(kept: SiteOptions, fresh: SiteOptions) -> None:
    known = {str(option.structure): option.measured for option in kept.options}
    for option in fresh.options:
        option.measured = known.get(str(option.structure))
    fresh.ratio = kept.ratio


def _up(value: float) -> float:
    """Rounded up to three digits."""
    digits = 10 ** (2 - floor(log10(value)))
    return ceil(value * digits - 1e-9) / digits


def _middle(options: SiteOptions) -> Option:
    """An option of medium size."""
    found = sorted((o for o in options.options[1:] if o.is_open), key=lambda o: o.parameters)
    return found[len(found) // 2]
