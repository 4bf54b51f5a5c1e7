"""The search for a plan: calibrate, time, predict, choose, check, choose again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ksurgeon.calibrate import Batches, Calibration, Data, Harm, calibrate, harm_for, open_data
from ksurgeon.calibrate.harm import HarmName
from ksurgeon.calibrate.run import Run
from ksurgeon.calibrate.storage import load_calibration, save_calibration
from ksurgeon.errors import MatchError, PlanError
from ksurgeon.find import Finder, Site
from ksurgeon.find.inputs import ExampleInputs, call_model, evaluating
from ksurgeon.planner.budget import Budget
from ksurgeon.planner.choose import Choice, choose, least
from ksurgeon.planner.judge import Judge, Metric
from ksurgeon.planner.latency import Stopwatch, refuse_slower
from ksurgeon.planner.options import Option, SiteOptions, options_for
from ksurgeon.planner.predict import beaten, predict
from ksurgeon.planner.state import State, fingerprint, open_state
from ksurgeon.rules.plan import Decision, Plan
from ksurgeon.rules.schema import matching

__all__ = ["Planning", "Stage", "plan"]

Stage = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and what is at hand."""

_ROUNDS = 3
_TURNS = 5


@dataclass
class Planning:
    """A plan and all that it was chosen from.

    Attributes:
        plan: what ``convert(model, plan=…, data=…)`` carries out.
        budget: that it was made for.
        sites: options of every site, in the model's order.
        gap: relative distance to the best choice that the solver could not rule out; 0 is optimal.
        harm: what is kept small.
        total: the budget's quantity of all sites as they are.
        fixed: milliseconds of the model outside of the sites in play; 0 for other budgets.
    """

    plan: Plan
    budget: Budget
    sites: list[SiteOptions]
    gap: float
    harm: Harm
    total: float
    fixed: float
    _search: "_Search" = field(repr=False)

    def front(self, values: Sequence[float], stage: Stage | None = None) -> list[tuple[Budget, Plan]]:
        """Plans for other budgets of the same kind, with predicted and measured harm; those that cannot be
        met are left out."""
        found = []
        for number, value in enumerate(values):
            budget = Budget(self.budget.kind, value)
            if stage is not None:
                stage("front", number, len(values), str(budget))
            try:
                choice = self._search.chosen(budget)
            except PlanError:
                continue
            plan = self._search.plan_of(choice, budget)
            plan.measured_harm = self._search.measured(choice)
            found.append((budget, plan))
        if stage is not None:
            stage("front", len(values), len(values), "")
        return found

    def options_of(self, path: str) -> SiteOptions:
        """Options of a site.

        Raises:
            PlanError: there is no such site.
        """
        for site in self.sites:
            if site.path == path:
                return site
        from difflib import get_close_matches

        near = get_close_matches(path, [site.path for site in self.sites], n=3, cutoff=0.3)
        raise PlanError(f'there is no site "{path}"; the nearest are {", ".join(near) or "none"}')


def plan(
    model: nn.Module,
    budget: str | Budget,
    data: Data,
    *,
    example_inputs: ExampleInputs | None = None,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    harm: HarmName | Harm = "auto",
    metric: Metric | None = None,
    run: Run | None = None,
    examples: int = 512,
    batch_size: int = 16,
    tokenizer: str | None = None,
    seed: int = 0,
    keep: bool = True,
    stage: Stage | None = None,
) -> Planning:
    """Choose for every linear map of a model what takes its place, so that a budget is met at the least harm.

    Low ranks, Monarch matrices and K-matrices of several sizes, alone and with a low-rank path, are fitted to
    every layer on real inputs. Their harm to the model's outputs is predicted to second order (Gauss–Newton,
    one backward pass) and checked on held-out batches with one site replaced at a time; the choice among
    them is an exact multiple-choice knapsack.

    Args:
        model: left as it is.
        budget: "params=0.5", "flops=0.6" (shares of the layers in play), "latency=0.7" (of the model's time
            on this machine) or "error=0.02" (harm to the outputs, with the fewest parameters that it allows).
        data: what the model takes in real use; see ``calibrate.open_data``.
        example_inputs: at whose sizes multiplications and milliseconds are counted; a batch of the data if
            left out.
        targets, ignore: which sites are in play, as in a rule; all that can be replaced if left out.
        harm: "kl" for logits, "outputs" for their relative change, or "auto".
        metric: figure of merit of the model, the higher the better; what is lost of it is measured instead.
        run: how the model is run for the moments of its layers' inputs, where a plain call is not it, such as
            through ``generate``.
        examples, batch_size, tokenizer: of the data; see ``calibrate.open_data``.
        seed: of all that is drawn.
        keep: whether what is found is kept in the cache, so that the same search goes on, or costs nothing.
        stage: told of progress.

    Raises:
        PlanError: a budget that is none, or one that cannot be met; the message says which one can.
        InputError: the data do not fit the model, or a layer gets NaN or infinite numbers.
        MatchError: no site can be replaced.
    """
    budget = Budget.parse(budget)
    batches = open_data(data, model, examples=examples, batch_size=batch_size, tokenizer=tokenizer)
    given = example_inputs if example_inputs is not None else batches.check[0]
    with evaluating(model):
        outputs = call_model(model, batches.check[0])
    chosen = harm_for(harm, model, outputs) if isinstance(harm, str) else harm
    search = _Search(model, Finder(model, given), batches, chosen, metric, targets, ignore, stage)
    search.require(budget)
    key = (
        fingerprint(model), batches.fingerprint, chosen.name, seed, run is not None, sorted(search.in_play),
        _rounded(metric(model)) if metric is not None else "",
    )  # fmt: skip
    search.state = open_state(key, keep)
    try:
        search.calibrate(run, seed)
        search.predict()
        if budget.kind in ("latency", "flops"):
            search.time()
            search.require(budget)
        choice = search.settled(budget)
    finally:
        search.state.keep(now=True)
    found = search.plan_of(choice, budget)
    found.measured_harm = search.measured(choice)
    return Planning(
        plan=found,
        budget=budget,
        sites=search.options,
        gap=choice.gap,
        harm=chosen,
        total=search.total(budget),
        fixed=search.fixed,
        _search=search,
    )


class _Search:
    def __init__(
        self,
        model: nn.Module,
        finder: Finder,
        batches: Batches,
        harm: Harm,
        metric: Metric | None,
        targets: Sequence[str],
        ignore: Sequence[str],
        stage: Stage | None,
    ) -> None:
        self.model, self.finder, self.batches, self.harm, self.metric = model, finder, batches, harm, metric
        self.stage = stage or (lambda *_: None)
        self.state = State(None)
        self.sites = {site.path: site for site in finder.sites}
        self.options = [options_for(site) for site in finder.sites]
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

    def predict(self) -> None:
        playing = self.playing
        for number, options in enumerate(playing):
            kept = self.state.sites.get(options.path)
            if kept is not None and _same(kept, options):
                self.options[self.options.index(options)] = kept
                continue
            self.stage("predicting", number, len(playing), options.path)
            site = self.sites[options.path]
            before = [(self.sites[other.path], other) for other in self.playing[:number]]
            predict(self.model, site, options, self.calibration.sites[site.path], beaten(site, before))
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
                for options, option in self._picked(choice)
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
        option.measured = self.judge.of({self.sites[options.path]: option.structure})
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

    def _picked(self, choice: Choice) -> list[tuple[SiteOptions, Option]]:
        return [(s, s.options[i]) for s, i in zip(self.playing, choice.picked, strict=True)]

    def measured(self, choice: Choice) -> float:
        """Harm of all choices together, as people read it."""
        taken = {
            self.sites[options.path]: option.structure
            for options, option in self._picked(choice)
            if option.structure is not None
        }
        harm = self.judge.of(taken)
        return harm if self.metric is not None else self.harm.shown(harm)

    def plan_of(self, choice: Choice, budget: Budget) -> Plan:
        """The plan that carries out a choice."""
        picked = {options.path: option for options, option in self._picked(choice)}
        decisions = [self._decision(options, picked.get(options.path)) for options in self.options]
        harm = sum(self.harm_of(options, option) for options, option in self._picked(choice))
        return Plan(
            rule=f"plan {budget}",
            budget=str(budget),
            harm=self.harm.name if self.metric is None else "metric",
            predicted_harm=harm if self.metric is not None else self.harm.shown(harm),
            decisions=decisions,
        )

    def _decision(self, options: SiteOptions, option: Option | None) -> Decision:
        site, leave = self.sites[options.path], options.options[0]
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
            reason="least harm within the budget",
            parameters_after=option.parameters,
            multiplications_after=option.multiplications,
            error=option.error,
            predicted_harm=option.predicted * options.ratio,
            measured_harm=option.measured,
            latency_before=leave.latency,
            latency_after=option.latency,
        )


def _left(site: Site, targets: tuple[str, ...], ignore: tuple[str, ...]) -> str | None:
    names = (site.path, site.owner, site.class_name, *site.aliases)
    if targets and matching(targets, names) is None:
        return "not among the targets"
    ignored = matching(ignore, names)
    return f'ignored by "{ignored}"' if ignored is not None else None


def _same(kept: SiteOptions, fresh: SiteOptions) -> bool:
    """Whether the options kept are those that would be tried now."""
    return [o.structure for o in kept.options] == [o.structure for o in fresh.options]


def _up(value: float) -> float:
    """Rounded up to three digits."""
    from math import ceil, floor, log10

    digits = 10 ** (2 - floor(log10(value)))
    return ceil(value * digits - 1e-9) / digits


def _rounded(value: float) -> str:
    return f"{value:.6g}"


def _middle(options: SiteOptions) -> Option:
    """An option of medium size."""
    found = sorted((o for o in options.options[1:] if o.is_open), key=lambda o: o.parameters)
    return found[len(found) // 2]
