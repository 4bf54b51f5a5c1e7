"""The steps of a search for a plan: calibrate, predict, time, choose, check, choose again."""

from collections.abc import Callable, Sequence
from math import isfinite

from safetensors import SafetensorError
from torch import nn

from ksurgeon.calibrate import Batches, Calibration, Harm, calibrate
from ksurgeon.calibrate.run import Run
from ksurgeon.calibrate.storage import load_calibration, save_calibration
from ksurgeon.errors import PlanError
from ksurgeon.find import Finder
from ksurgeon.planner.budget import Budget
from ksurgeon.planner.candidates import Candidates
from ksurgeon.planner.choose import Choice
from ksurgeon.planner.decisions import decision
from ksurgeon.planner.judge import Judge, Metric
from ksurgeon.planner.latency import Stopwatch, refuse_slower
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.planner.predict import predict, tried_at
from ksurgeon.planner.state import State
from ksurgeon.planner.way import Way
from ksurgeon.rules.plan import Plan
from ksurgeon.site_kinds import site_kind

__all__ = ["Search", "Stage"]

Stage = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and what is at hand."""

_ROUNDS = 3
_TURNS = 5
_SLOWER = 1.05  # times the model as it is: less may be chance
_NEAR = 0.1  # of a predicted time, within which what is measured is as predicted


class Search:
    """The steps that find out what becomes of a model's sites, each on what those before it found.

    Args:
        model: left as it is.
        finder: of the model.
        batches: of data.
        harm, metric: what is kept small, and what is measured in its place.
        targets, ignore, structures: which sites are in play, and what is tried at them.
        stage: told of progress.

    Attributes:
        candidates: what is known so far.
        sites: by path.
        state: what is kept between searches.

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
        self.candidates = Candidates(finder.sites, harm, metric is not None, targets, ignore, structures)
        self.calibration = Calibration({})
        self._judge: Judge | None = None

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = Judge(self.finder, self.calibration, self.harm, self.batches.check, self.metric)
        return self._judge

    def calibrate(self, run: Run | None, seed: int) -> None:
        file = self.state.calibration_file
        known = load_calibration(file) if file is not None else None
        if known is None:
            sites = [self.sites[path] for path in self.candidates.in_play]
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
                except (OSError, SafetensorError):  # a full disk is no reason to lose the search
                    pass
                else:
                    known = load_calibration(file) or known  # as a search that goes on will find it
        self.calibration = known
        _ = self.judge  # what is wrong with the held-out data shows before the long work
        for options in self.candidates.playing:
            if site_kind(options.kind).is_dense and options.path not in known.sites:
                options.reason, options.options = "no vector reached it on these data", options.options[:1]

    def predict(self, everything: bool = False) -> None:
        """Predict the harm of all options, of ``everything`` even where low rank beats it at other sites."""
        playing = self.candidates.playing
        for number, options in enumerate(playing):
            kept = self.state.sites.get(options.path)
            if kept is not None and _same(kept, options, everything):
                self.candidates.options[self.candidates.options.index(options)] = kept
                continue
            self.stage("predicting", number, len(playing), options.path)
            site = self.sites[options.path]
            before = [(self.sites[other.path], other) for other in self.candidates.playing[:number]]
            tried = tried_at(site, before, beaten=not everything)
            predict(self.model, site, options, self.calibration.sites.get(site.path), tried)
            if kept is not None:
                _keep_measured(kept, options)
            self.state.sites[options.path] = options
            self.state.keep()
        self.stage("predicting", len(playing), len(playing), "")

    def time(self, way: Way) -> None:
        watch = Stopwatch(self.finder, way)
        playing = self.candidates.playing
        for number, options in enumerate(playing):
            self.stage("timing", number, len(playing), options.path)
            watch.time(self.sites[options.path], options)
        self.stage("timing", len(playing), len(playing), "")
        refuse_slower(playing)
        dense = sum(options.options[0].latency or 0.0 for options in playing)
        self.candidates.fixed = max(watch.whole() - dense, 0.0)

    def settled(self, budget: Budget) -> Choice:
        """The choice, once the options that it takes have been measured one at a time."""
        self._probe()
        choice = self.candidates.chosen(budget)
        for _ in range(_ROUNDS):
            new = [
                (options, option)
                for options, option in self.candidates.picked(choice)
                if option.structure is not None and option.measured is None
            ]
            if not new:
                break
            for number, (options, option) in enumerate(new):
                self.stage("checking", number, len(new), options.path)
                self._measure(options, option)
            self.stage("checking", len(new), len(new), "")
            choice = self.candidates.chosen(budget)
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
            choice = self.candidates.chosen(Budget("error", strict))
        self.stage("tightening", _TURNS, _TURNS, "")
        return choice

    def _probe(self) -> None:
        """One swap of every site whose harm no gradient tells."""
        known = self.calibration.sites
        blind = [o for o in self.candidates.playing if o.path not in known or known[o.path].gradient is None]
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
        self.candidates.correct()
        self.state.keep()

    def measured(self, choice: Choice) -> float:
        """Harm of all choices together, as people read it."""
        taken = {
            self.sites[options.path]: option.structure
            for options, option in self.candidates.picked(choice)
            if option.structure is not None
        }
        harm = self.judge.of(taken)
        return harm if self.metric is not None else self.harm.shown(harm)

    def timed(self, choice: Choice, budget: Budget, way: Way) -> tuple[Choice, tuple[float, float]]:
        """For a limit of time: a choice, and what ``measured_latency`` tells of it.

        A layer takes another time within the model than alone, where its weights stay in the cache. Where the
        whole model is not nearly as fast as predicted, all layers' times are corrected, and the choice is
        made anew.

        Raises:
            PlanError: the model would be slower.
        """
        for _ in range(_ROUNDS):
            before, after = self.measured_latency(choice, way)
            picked = self.candidates.picked(choice)
            gained = sum((s.options[0].latency or 0.0) - (option.latency or 0.0) for s, option in picked)
            predicted = 1 - gained / self.candidates.total(budget)
            if after >= before or gained <= 0 or abs(after / before - predicted) <= _NEAR * predicted:
                break
            self._correct_times((before - after) / gained, before)
            try:
                choice = self.settled(budget)
            except PlanError:  # with what is known now the budget cannot be met; this came nearest
                break
        else:
            before, after = self.measured_latency(choice, way)
        return choice, (before, after)

    def _correct_times(self, ratio: float, whole: float) -> None:
        """Multiply the layers' times, which the whole model's bounds."""
        playing = self.candidates.playing
        dense = sum(options.options[0].latency or 0.0 for options in playing)
        ratio = min(ratio, whole / dense)
        for option in (option for options in playing for option in options.options):
            if option.latency is not None:
                option.latency *= ratio
        self.candidates.fixed = whole - ratio * dense

    def measured_latency(self, choice: Choice, way: Way) -> tuple[float, float]:
        """Milliseconds of the whole model before and after, with all choices together.

        Raises:
            PlanError: it would be slower.
        """
        self.stage("timing", 0, 1, "all replacements together")
        picked = self.candidates.picked(choice)
        taken = {self.sites[options.path]: o.structure for options, o in picked if o.structure is not None}
        watch = Stopwatch(self.finder, way)
        for _ in range(_TURNS):  # something else may run meanwhile
            before, after = watch.together(taken)
            if not taken or after <= before:
                break
        self.stage("timing", 1, 1, "")
        if taken and after > _SLOWER * before:
            raise PlanError(
                "each replacement by itself is faster here, and all together are not: "
                f"{after:.3g} ms against {before:.3g}; leave the model as it is, or give larger batches"
            )
        return before, after

    def plan_of(self, choice: Choice, budget: Budget) -> Plan:
        """The plan that carries out a choice."""
        picked = self.candidates.picked(choice)
        taken = {options.path: option for options, option in picked}
        decisions = [
            decision(self.sites[options.path], options, taken.get(options.path))
            for options in self.candidates.options
        ]
        harm = sum(self.candidates.harm_of(options, option) for options, option in picked)
        return Plan(
            rule=f"plan {budget}",
            budget=str(budget),
            harm=self.harm.name if self.metric is None else "metric",
            predicted_harm=harm if self.metric is not None else self.harm.shown(harm),
            decisions=decisions,
        )


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


def _middle(options: SiteOptions) -> Option:
    """An option of medium size."""
    found = sorted((o for o in options.options[1:] if o.is_open), key=lambda o: o.parameters)
    return found[len(found) // 2]
