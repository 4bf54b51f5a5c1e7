"""From a budget to a plan: budgets met, harm told, resumed searches, and what is refused."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import ksurgeon
from ksurgeon.errors import InputError, MatchError, PlanError
from ksurgeon.find import find
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.structures import LowRank
from ksurgeon.planner import Budget, steps
from ksurgeon.planner import plan as make
from ksurgeon.planner import predict as predicting
from ksurgeon.planner.predict import low_rank_curve
from ksurgeon.planner.way import Way
from tests import zoo


class Tiny(nn.Module):
    """Three layers, of which the first gets inputs of few directions and the last one matters little."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x):
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return x + 0.05 * self.third(x)


def tiny():
    torch.manual_seed(0)
    return Tiny().eval()


def data(batches=6):
    random = torch.Generator().manual_seed(0)
    basis = torch.randn(8, 48, generator=random) / 3
    return [torch.randn(16, 8, generator=random) @ basis for _ in range(batches)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("params=0.5", Budget("params", 0.5)),
        (" latency = 70% ", Budget("latency", 0.7)),
        ("error=1e-2", Budget("error", 0.01)),
        ("flops=1", Budget("flops", 1.0)),
    ],
)
def test_budgets_are_read(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["params", "size=0.5", "params=0", "flops=1.2", "error=-1", "params=1e", "50%"]
)
def test_budgets_that_are_none(text):
    with pytest.raises(PlanError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize("budget", ["params=0.5", "flops=0.4", "params=0.2"])
def test_a_plan_keeps_its_budget_and_spends_it_where_it_matters(budget):
    model = tiny()
    planning = make(model, budget, data())
    decisions = {d.path: d for d in planning.plan.decisions}
    kind = "parameters" if "params" in budget else "multiplications"
    after = sum(getattr(d, f"{kind}_after") for d in decisions.values())
    before = sum(getattr(d, f"{kind}_before") for d in decisions.values())
    assert after <= planning.budget.value * before and planning.gap < 1e-6
    sizes = {path: d.parameters_after for path, d in decisions.items()}
    assert sizes["second"] > sizes["third"], "the layer that matters keeps more"
    assert planning.plan.measured_harm == pytest.approx(planning.plan.predicted_harm, rel=0.5, abs=1e-3)


def test_converting_by_a_plan_is_what_the_plan_measured():
    model, batches = tiny(), data()
    planning = make(model, "params=0.4", batches)
    converted = ksurgeon.convert(tiny(), plan=planning.plan, data=batches, example_inputs=batches[0])
    assert sum(p.numel() for p in converted.model.parameters()) == sum(
        d.parameters_after for d in planning.plan.decisions
    )
    with torch.no_grad():
        held = batches[3::4]
        moved = sum((converted.model(x) - model(x)).square().sum() for x in held)
        size = sum(model(x).square().sum() for x in held)
    # A plan is measured with fewer sweeps than a conversion takes.
    assert 0.7 < float((moved / size).sqrt()) / planning.plan.measured_harm < 1.01


def test_fits_to_data_change_the_outputs_less_than_fits_to_weights():
    batches = data()
    changes = [
        ksurgeon.convert(tiny(), "low_rank", batches[0], data=given).output_change
        for given in (batches, None)
    ]
    assert changes[0] < 0.7 * changes[1]


def test_a_budget_of_harm_takes_the_fewest_parameters():
    model, batches = tiny(), data()
    strict, loose = (make(model, f"error={e}", batches) for e in (0.02, 0.2))
    for planning, limit in ((strict, 0.02), (loose, 0.2)):
        assert planning.plan.predicted_harm <= limit * 1.0001 and planning.plan.measured_harm <= limit
    sizes = [sum(d.parameters_after for d in p.plan.decisions) for p in (strict, loose)]
    assert sizes[1] < sizes[0]


def test_predicted_order_is_the_measured_order():
    model = tiny()
    planning = make(model, "params=0.5", data())
    judge = planning.search.judge
    pairs = []
    for site in planning.sites:
        for option in site.options[1:]:
            if not option.is_open or option.quick:
                continue
            found = planning.search.sites[site.path]
            pairs.append((option.predicted * site.ratio, judge.of({found: option.structure})))
    assert len(pairs) > 25 and spearmanr(*zip(*pairs, strict=True))[0] > 0.9


@pytest.mark.parametrize(("rows", "columns"), [(20, 30), (30, 20)])
@pytest.mark.parametrize("gradient", [True, False])
def test_the_curve_of_low_ranks_is_that_of_their_fits(rows, columns, gradient):
    from ksurgeon.calibrate import SiteMoments
    from ksurgeon.fit import fit_
    from ksurgeon.kmatrix.matrix import KMatrix

    torch.manual_seed(0)
    weight, x = torch.randn(rows, columns).double(), torch.randn(200, columns).double()
    slopes = torch.randn(1, 7, rows).double() if gradient else None
    known = SiteMoments((x.T @ x / 200)[None], x.mean(0), 200, slopes, 3.0)
    errors, harms = low_rank_curve(weight[None], known)
    assert len(errors) == len(harms) == min(rows, columns) + 1 and errors[0] == 1
    for rank in (3, 11):
        matrix = KMatrix(columns, rows, structure=LowRank(rank=rank), start="empty", dtype=torch.float64)
        fit_(matrix, weight, moment=known.moment)
        change = matrix.to_dense().detach() - weight
        output = (change @ x.T).norm() / (weight @ x.T).norm()
        assert float(errors[rank]) == pytest.approx(float(output), rel=1e-3)
        if gradient:
            assert float(harms[rank]) == pytest.approx(known.harm_of(change[None]), rel=1e-3)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [("predicting", 2), ("checking", 1)])
def test_an_interrupted_search_goes_on_and_gives_the_same_plan(at, cache):
    def interrupt(verb, done, total, what):
        if (verb, done) == at:
            raise Interrupted

    model, batches = tiny(), data()
    whole = make(model, "params=0.5", batches, keep=False)
    with pytest.raises(Interrupted):
        make(model, "params=0.5", batches, stage=interrupt)
    assert len(list((cache / "ksurgeon" / "plans").glob("*/state.json"))) == 1
    seen = []
    resumed = make(model, "params=0.5", batches, stage=lambda verb, done, *_: seen.append((verb, done)))
    again = make(model, "params=0.5", batches)
    assert again.plan == resumed.plan
    assert [(d.path, d.action, d.structure) for d in resumed.plan.decisions] == [
        (d.path, d.action, d.structure) for d in whole.plan.decisions
    ]
    assert not any(verb == "calibrating" for verb, _ in seen), "what was done is not done again"
    assert ("predicting", 0) not in seen


def test_other_weights_or_data_are_another_search(cache):
    make(tiny(), "params=0.5", data())
    other = tiny()
    with torch.no_grad():
        other.first.weight.mul_(1.01)
    make(other, "params=0.5", data())
    make(tiny(), "params=0.5", data(5))
    make(tiny(), "params=0.3", data())
    assert len(list((cache / "ksurgeon" / "plans").iterdir())) == 3


def test_damaged_state_is_done_again(cache):
    first = make(tiny(), "params=0.5", data())
    for file in (cache / "ksurgeon" / "plans").glob("*/*"):
        file.write_bytes(b"{")
    assert make(tiny(), "params=0.5", data()).plan == first.plan


def test_budgets_that_cannot_be_met_name_the_nearest():
    with pytest.raises(
        PlanError, match=r"params=0\.01 cannot be met.*nearest budget is params=(0\.\d+)"
    ) as caught:
        make(tiny(), "params=0.01", data())
    nearest = str(caught.value).rpartition("params=")[2]
    assert make(tiny(), f"params={nearest}", data()).plan.replacements


def test_slower_options_are_refused_for_times_and_multiplications(monkeypatch):
    def time(self, site, options):
        for option in options.options:
            option.latency = 1.0 if option.structure is None else 0.5
            if isinstance(option.structure, LowRank):
                option.latency = 2.0

    monkeypatch.setattr(steps.Stopwatch, "time", time)
    monkeypatch.setattr(steps.Stopwatch, "whole", lambda self: 4.0)
    monkeypatch.setattr(steps.Stopwatch, "together", lambda self, taken: (4.0, 3.0))
    for budget in ("latency=0.7", "flops=0.7"):
        found = make(tiny(), budget, data())
        assert found.plan.replacements
        assert not any(isinstance(d.structure, LowRank) for d in found.plan.replacements)
        assert "slower here" in found.options_of("first").options[1].refused
    assert any(isinstance(d.structure, LowRank) for d in make(tiny(), "params=0.7", data()).plan.replacements)
    with pytest.raises(PlanError, match=r"nearest budget is latency=0\.625"):
        make(tiny(), "latency=0.5", data())
    monkeypatch.setattr(steps.Stopwatch, "together", lambda self, taken: (4.0, 4.3))
    with pytest.raises(PlanError, match=r"all together are not: 4\.3 ms against 4"):
        make(tiny(), "latency=0.7", data())


@pytest.mark.parametrize(("saved", "replaced"), [(1.0, 2), (0.5, 3), (0.2, 3)])
def test_times_within_the_model_correct_the_choice(monkeypatch, saved, replaced):
    """Alone each of three layers saves 0.5 of 8 ms, within the model ``saved``. Where that is more, fewer are
    replaced; where it is less, and the budget cannot be met, what came nearest is told as it is."""

    def time(self, site, options):
        for option in options.options:
            option.latency = 1.0 if option.structure is None else 0.5

    monkeypatch.setattr(steps.Stopwatch, "time", time)
    monkeypatch.setattr(steps.Stopwatch, "whole", lambda self: 8.0)
    monkeypatch.setattr(steps.Stopwatch, "together", lambda self, taken: (8.0, 8.0 - saved * len(taken)))
    found = make(tiny(), "latency=0.85", data())
    assert len(found.plan.replacements) == replaced
    assert found.latency == (8.0, 8.0 - saved * replaced)
    assert found.total == pytest.approx(8.0)
    picked = {d.path: d.structure for d in found.plan.replacements}
    left = [
        next(o for o in s.options if o.structure == picked.get(s.path)).latency or 0.0 for s in found.sites
    ]
    assert found.fixed + sum(left) == pytest.approx(found.latency[1])


def test_times_are_measured_and_kept(cache):
    planning = make(tiny(), "latency=1", data())
    dense = planning.options_of("first").options[0].latency
    assert dense > 0 and planning.total == pytest.approx(
        planning.fixed + sum(s.options[0].latency for s in planning.sites)
    )
    again = make(tiny(), "latency=1", data())
    assert again.options_of("first").options[0].latency == dense


@pytest.mark.parametrize("runtime", ["compile", "onnx"])
def test_times_in_another_runtime(cache, tmp_path, runtime, monkeypatch):
    """Layers and the whole model are run by it; a small model need not be faster so."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(steps.Search, "measured_latency", lambda self, choice, way: (1.0, 1.0))
    options = {"structures": ["low_rank"], "threads": 1, "runtime": runtime}
    planning = make(tiny(), "latency=1", data(), **options)
    dense, *others = planning.options_of("first").options
    assert dense.latency > 0 and all(o.latency > 0 for o in others if o.is_open)
    eager = make(tiny(), "latency=1", data(), structures=["low_rank"], threads=1)
    assert dense.latency != eager.options_of("first").options[0].latency
    ksurgeon.write_plan(planning.plan, tmp_path / "plan.toml")
    assert ksurgeon.read_plan(tmp_path / "plan.toml").runtime == runtime
    taken = {next(s for s in planning.search.finder.sites if s.path == "first"): LowRank(rank=2)}
    before, after = steps.Stopwatch(planning.search.finder, Way(1, None, runtime)).together(taken)
    assert before > 0 and after > 0


def test_a_shared_layer_is_replaced_wherever_it_stands(cache, monkeypatch):
    model = tiny()
    model.third = model.first
    finder = steps.Finder(model, data()[0])
    seen = []
    monkeypatch.setattr(Way, "run", lambda self, module, inputs: seen.append(module) or (lambda: None))
    site = next(site for site in finder.sites if site.path == "first")
    steps.Stopwatch(finder, Way()).together({site: LowRank(rank=2)})
    assert seen[0] is model and model.first is model.third and isinstance(model.first, nn.Linear)
    assert isinstance(seen[1].first, ksurgeon.KLinear) and seen[1].third is seen[1].first


def test_a_runtime_that_cannot_run_the_model(cache):
    class Stubborn(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    with pytest.raises(PlanError, match="the runtime compile cannot run Stubborn: RuntimeError: no"):
        Way(runtime="compile").run(Stubborn(), torch.ones(2))
    with pytest.raises(PlanError, match="onnx goes with int8"):
        make(tiny(), "latency=0.5", data(), runtime="onnx", precision="bfloat16")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_times_as_the_model_will_be_run(cache, tmp_path, precision):
    threads = torch.get_num_threads()
    plain = make(tiny(), "latency=1", data())
    model = tiny()
    planning = make(model, "latency=1", data(), threads=1, precision=precision)
    assert torch.get_num_threads() == threads
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # it is left as it is
    ours, others = (p.options_of("first").options[0].latency for p in (planning, plain))
    assert ours > 0 and ours != others  # a measurement of its own, not one that was kept
    assert (planning.plan.threads, planning.plan.precision) == (1, precision)
    ksurgeon.write_plan(planning.plan, tmp_path / "plan.toml")
    plan = ksurgeon.read_plan(tmp_path / "plan.toml")
    assert (plan.threads, plan.precision) == (1, precision)
    x = data()[0]
    conversion = ksurgeon.convert(
        model, example_inputs=x, plan=make(model, "params=0.5", data(), precision=precision).plan
    )
    assert {bool(o.int8) for o in conversion.record.operations} == {precision == "int8"}
    with pytest.raises(PlanError, match="precision is bfloat16, int8 or None"):
        make(model, "params=0.5", data(), precision="int4")
    with pytest.raises(PlanError, match="threads at least 1"):
        make(model, "params=0.5", data(), threads=0)


@pytest.mark.parametrize("structure", [None, LowRank(rank=4)], ids=["dense", "low rank"])
def test_a_convolution_in_int8_is_measured_so(structure):
    layer = Way(precision="int8").layer(nn.Conv2d(16, 24, 1), structure)
    assert isinstance(layer, ksurgeon.KPointwiseConv) and isinstance(layer.matrix, Int8Matrix)
    assert layer(torch.randn(1, 16, 3, 3)).shape == (1, 24, 3, 3)


def test_sites_left_out_stay_as_they_are():
    planning = make(tiny(), "params=0.5", data(), targets=["re:.*ir.*"], ignore=["third"])
    left = {d.path: d.reason for d in planning.plan.decisions if d.action == "leave"}
    assert left["second"] == "not among the targets" and left["third"] == 'ignored by "third"'
    with pytest.raises(MatchError, match="not among the targets"):
        make(tiny(), "params=0.5", data(), targets=["nothing"])


def test_families_of_structures():
    planning = make(tiny(), "params=0.5", data(), structures=["monarch", "kaleidoscope"])
    assert {d.structure.structure for d in planning.plan.replacements} <= {"monarch", "kaleidoscope"}
    with pytest.raises(PlanError, match="low_rank, monarch"):
        make(tiny(), "params=0.5", data(), structures=["monarchy"])


def test_a_metric_is_what_is_lost():
    model, batches = tiny(), data()
    with torch.no_grad():
        wanted = [model(x) for x in batches]

    def metric(model):
        with torch.no_grad():
            return -sum(float((model(x) - y).square().mean()) for x, y in zip(batches, wanted, strict=True))

    planning = make(model, "params=0.4", batches, metric=metric)
    assert planning.plan.harm == "metric" and planning.plan.measured_harm > 0
    assert planning.plan.measured_harm == pytest.approx(planning.plan.predicted_harm, rel=0.8)


def test_layers_without_gradients_are_probed():
    class Cut(Tiny):
        def forward(self, x):
            return super().forward(x).detach()

    torch.manual_seed(0)
    planning = make(Cut().eval(), "params=0.5", data())
    assert planning.plan.replacements and planning.plan.measured_harm < 0.5


def test_convolutions_and_groups_are_planned():
    x = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    planning = make(zoo.convnet(), "params=0.6", x)
    assert {d.path for d in planning.plan.replacements} & {"wide", "strided", "grouped"}
    converted = ksurgeon.convert(zoo.convnet(), plan=planning.plan, data=x, example_inputs=x[0])
    assert converted.output_change < 0.8


def test_bad_data_are_refused_early(cache):
    bad = data()
    bad[1] = torch.full((16, 48), float("nan"))
    with pytest.raises(InputError, match=r"input of first, in batch 2"):
        make(tiny(), "params=0.5", bad)
    with pytest.raises(InputError, match="do not match the model"):
        make(tiny(), "params=0.5", torch.randn(8, 47))


def test_the_model_is_left_alone():
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    make(model, "params=0.3", data()).front([0.5, 0.01])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modules == [type(module) for module in model.modules()]
    assert [site.path for site in find(model, data()[0])] == ["first", "second", "third"]


def test_only_the_first_sites_of_a_shape_are_fitted(monkeypatch):
    fitted = []
    fit = predicting.fitted_blocks

    def noted(model, site, structure, *rest):
        fitted.append((site.path, str(structure)))
        return fit(model, site, structure, *rest)

    monkeypatch.setattr(predicting, "fitted_blocks", noted)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(4))).eval()
    with torch.no_grad():  # the second and the fourth are butterflies
        for layer in (model[1], model[3]):
            layer.weight.copy_(ksurgeon.KMatrix(32).to_dense())
    planning = make(model, "latency=1", [torch.randn(64, 32) for _ in range(4)], keep=False)
    first, second, third, _ = planning.sites
    assert {path for path, _ in fitted} == {"0", "1"}
    name = "(BB*)^1, e=1, radix auto"
    one, two, expected = (
        next(o for o in s.options if str(o.structure) == name) for s in (first, second, third)
    )
    harms = low_rank_curve(model[2].weight[None], planning.search.calibration.sites["2"])[1]
    rank = expected.parameters // (32 + 32)
    assert expected.predicted == pytest.approx(
        float(harms[rank]) * (one.beside * two.beside) ** 0.5, rel=1e-3
    )
    assert expected.beside is None and not expected.skipped


def test_structures_that_low_rank_beats_are_not_tried_at_other_sites():
    tried = predicting.Tried({"a chain": (1.5, 1.3), "another": (1.5, 1.1), "a third": (1.5,)}, sites=2)
    assert "2 sites of this shape" in tried.skipped("a chain") and "1.3 times less" in tried.skipped(
        "a chain"
    )
    assert tried.skipped("another") is None and tried.skipped("a third") is None
    assert predicting.Tried(tried.beside, 2, beaten=False).skipped("a chain") is None
    assert tried.expected("another") == pytest.approx((1.5 * 1.1) ** 0.5) and tried.expected("new") is None
    assert tried.expected("a third") is None


def test_what_is_hopeless_at_one_site_is_not_tried_at_a_second():
    tried = predicting.Tried({"a chain": (5.0,), "another": (2.0,)}, sites=2)
    assert "at 1 site of this shape" in tried.skipped("a chain") and tried.skipped("another") is None


def test_large_sites_are_tried_once(monkeypatch):
    monkeypatch.setattr(predicting, "_LARGE", 32 * 32 - 1)
    paths = []
    fit = predicting.fitted_blocks
    monkeypatch.setattr(
        predicting,
        "fitted_blocks",
        lambda model, site, *rest: paths.append(site.path) or fit(model, site, *rest),
    )
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))).eval()
    make(model, "params=0.5", [torch.randn(64, 32) for _ in range(4)], keep=False)
    assert len(set(paths)) == 1


def test_a_rough_measure_ends_once_it_is_certain(monkeypatch):
    model = nn.Sequential(nn.Linear(32, 32)).eval()
    planning = make(model, "params=0.9", [torch.randn(64, 32) for _ in range(40)], keep=False)
    judge, calls = planning.search.judge, []
    change = judge._harm.change
    monkeypatch.setattr(judge._harm, "change", lambda *args: calls.append(1) or change(*args))
    site = planning.search.sites["0"]
    rough = judge.of({site: LowRank(rank=8)}, roughly=True)
    few = len(calls)
    whole = judge.of({site: LowRank(rank=8)})
    assert 3 <= few < len(calls) - few and rough == pytest.approx(whole, rel=0.2)


def test_replacements_with_outputs_that_are_not_finite_are_refused(monkeypatch):
    planning = make(tiny(), "params=0.5", data(), keep=False)
    search = planning.search
    site, option = next(
        (s, o) for s in planning.sites for o in s.options[1:] if o.is_open and o.measured is None
    )
    monkeypatch.setattr(search.judge._harm, "change", lambda *_: (float("nan"), 1.0))
    search._measure(site, option)
    assert option.measured is None and not option.is_open and "not finite" in option.refused
    assert all(s.ratio > 0 for s in planning.sites)


def test_a_full_disk_does_not_end_a_search(monkeypatch, cache):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(steps, "save_calibration", full)
    assert make(tiny(), "params=0.5", data()).plan.replacements
