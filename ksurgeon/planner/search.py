"""A plan for a budget: the front door of the planner."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from torch import nn

from ksurgeon.calibrate import Data, Harm, harm_for, open_data
from ksurgeon.calibrate.harm import HarmName
from ksurgeon.calibrate.run import Run
from ksurgeon.errors import PlanError
from ksurgeon.find import Finder
from ksurgeon.find.inputs import ExampleInputs, call_model, require_weights
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import chosen_backend
from ksurgeon.planner.budget import Budget
from ksurgeon.planner.judge import Metric
from ksurgeon.planner.options import SiteOptions, families
from ksurgeon.planner.state import fingerprint, open_state
from ksurgeon.planner.steps import Search, Stage
from ksurgeon.planner.way import Precision, Runtime, Way
from ksurgeon.rules.plan import Plan, unmatched_messages
from ksurgeon.surgery.recorded import source_of

__all__ = ["Planning", "Stage", "plan"]


@dataclass
class Planning:
    """A plan and all that it was chosen from.

    Attributes:
        plan: what ``convert(model, plan, data=…)`` carries out.
        budget: that it was made for.
        sites: options of every site, in the model's order.
        gap: relative distance to the best choice that the solver could not rule out; 0 is optimal.
        harm: what is kept small.
        total: the budget's quantity of all sites as they are.
        fixed: milliseconds of the model outside of the sites in play; 0 for other budgets.
        latency: of a budget of time: milliseconds of the whole model before and after, measured in turns with
            all replacements in place.
        search: what it was chosen with.
    """

    plan: Plan
    budget: Budget
    sites: list[SiteOptions]
    gap: float
    harm: Harm
    total: float
    fixed: float
    latency: tuple[float, float] | None
    search: Search = field(repr=False)

    def front(self, values: Sequence[float], stage: Stage | None = None) -> list[tuple[Budget, Plan]]:
        """Plans for other budgets of the same kind, with predicted and measured harm; those that cannot be
        met are left out."""
        found = []
        for number, value in enumerate(values):
            budget = Budget(self.budget.kind, value)
            if stage is not None:
                stage("front", number, len(values), str(budget))
            try:
                choice = self.search.candidates.chosen(budget)
            except PlanError:
                continue
            plan = self.search.plan_of(choice, budget)
            plan.measured_harm = self.search.measured(choice)
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
    structures: Sequence[str] | None = None,
    harm: HarmName | Harm = "auto",
    metric: Metric | None = None,
    run: Run | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    runtime: Runtime = "eager",
    examples: int = 512,
    batch_size: int = 16,
    tokenizer: str | None = None,
    max_length: int = 128,
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
        budget: "params=0.5", "flops=0.6" (of the eligible layers), "latency=0.7" (of the model's latency
            on this machine) or "error=0.02" (harm to the outputs, with the fewest parameters that it allows).
        data: what the model takes in real use; see ``calibrate.open_data``.
        example_inputs: at whose sizes multiplications and milliseconds are counted; a batch of the data if
            left out.
        targets, ignore: which sites are in play, as in a rule; all that can be replaced if left out.
        structures: names of structures that are tried; all that have candidates if left out.
        harm: "kl" for logits, "outputs" for their relative change, "embeddings" for that of a sentence
            encoder's mean state, or "auto".
        metric: figure of merit of the model, the higher the better; what is lost of it is measured instead.
        run: how the model is run for the moments of its layers' inputs, where a plain call is not it, such as
            through ``generate``.
        threads: CPU threads that times are measured with; as many as PyTorch has now, if left out.
        precision: that times are measured in: "bfloat16", as of ``model.bfloat16()``, or "int8", as of
            ``quantize``, which ``convert`` with such a plan does in the end; as the model is, if left out.
            Harm is that of the structures alone.
        runtime: that times are measured in: "eager", "compile" (``torch.compile``), or "onnx" (ONNX Runtime,
            with the kernels' operators, as ``export_model(…, kernels=True)`` writes them).
        examples, batch_size, tokenizer, max_length: of the data; see ``calibrate.open_data``.
        seed: of all that is drawn.
        keep: whether what is found is kept in the cache, so that the same search goes on, or costs nothing.
        stage: told of progress.

    Raises:
        PlanError: a budget that is none, or one that cannot be met; the message says which one can. Or all
            replacements together make the model slower here, or the runtime cannot run it.
        DataError: the data cannot be read.
        InputError: the data do not fit the model, or a layer gets NaN or infinite numbers.
        MatchError: no site can be replaced.
    """
    way = Way(threads, precision, runtime)
    chosen_backend()  # what the environment asks for is there, before the work
    budget = Budget.parse(budget)
    known = families()
    structures = known if structures is None else structures
    if not structures or set(structures) - set(known):
        raise PlanError(f"structures are of {', '.join(known)}, got {', '.join(structures) or 'none'}")
    whole = threads is None or (type(threads) is int and threads >= 1)
    if precision not in (None, *get_args(Precision)) or not whole:
        raise PlanError(
            f"precision is {', '.join(get_args(Precision))} or None, and threads at least 1, got "
            f"{precision!r} and {threads!r}"
        )
    if runtime not in get_args(Runtime) or (runtime == "onnx" and precision == "bfloat16"):
        raise PlanError(
            f"runtime is {', '.join(get_args(Runtime))}, and onnx goes with int8 or the model's own "
            f"precision, got {runtime!r} and {precision!r}"
        )
    require_weights(model)
    batches = open_data(
        data,
        model,
        examples=examples,
        batch_size=batch_size,
        tokenizer=tokenizer,
        max_length=max_length,
        source=source_of(model),
        example_inputs=example_inputs,
    )
    given = example_inputs if example_inputs is not None else batches.check[0]
    with example_run(model):
        outputs = call_model(model, batches.check[0])
    chosen = harm_for(harm, model, outputs) if isinstance(harm, str) else harm
    search = Search(model, Finder(model, given), batches, chosen, metric, targets, ignore, structures, stage)
    candidates = search.candidates
    candidates.require(budget)
    key = (
        fingerprint(model), batches.fingerprint, chosen.name, seed, run is not None,
        sorted(candidates.in_play), sorted(structures), _rounded(metric(model)) if metric is not None else "",
    )  # fmt: skip
    search.state = open_state(key, keep)
    try:
        search.calibrate(run, seed)
        timed = budget.kind in ("latency", "flops")
        search.predict(everything=timed or "low_rank" not in structures)
        if timed:
            search.time(way)
            candidates.require(budget)
        choice, latency = search.settled(budget), None
        if budget.kind == "latency":
            choice, latency = search.timed(choice, budget, way)
    finally:
        search.state.keep(now=True)
    found = search.plan_of(choice, budget)
    found.measured_harm = search.measured(choice)
    found.threads, found.precision, found.runtime = threads, precision, runtime
    if messages := unmatched_messages(targets, ignore, search.finder.sites):
        found.unmatched_names = {1: messages}
        warnings.warn("; ".join(messages), stacklevel=2)
    return Planning(
        plan=found,
        budget=budget,
        sites=candidates.options,
        gap=choice.gap,
        harm=chosen,
        total=candidates.total(budget),
        fixed=candidates.fixed,
        latency=latency,
        search=search,
    )


def _rounded(value: float) -> str:
    return f"{value:.6g}"
