"""Kinds of site that somebody else's package brings along."""

import json

import pytest
import torch
from rich.console import Console
from torch import nn

import ksurgeon
from ksurgeon import SiteKind, plugins, register_site_kind, site_kinds
from ksurgeon.errors import KindError, MatchError, RecordError, RuleError
from ksurgeon.find import Layer
from ksurgeon.kmatrix.structures import LowRank, Monarch
from ksurgeon.report.terminal import show_plan, show_record, show_sites
from ksurgeon.rules import load_rule, make_plan
from ksurgeon.rules.plan import describe_parts
from ksurgeon.site_kinds import kind_of, site_kind
from ksurgeon.train.groups import operate_on_group

RULE = """
name = "tables"
[[replace]]
find = "embedding"
with = { structure = "low_rank", rank = 6 }
"""


class LowRankEmbedding(nn.Module):
    """Rows of a product of two factors."""

    def __init__(self, rows, columns, rank, **options):
        super().__init__()
        self.left = nn.Parameter(torch.empty(rows, rank, **options))
        self.right = nn.Parameter(torch.empty(rank, columns, **options))

    @property
    def weight(self):
        return self.left @ self.right

    def forward(self, x):
        return nn.functional.embedding(x, self.left) @ self.right


class Embedding(SiteKind):
    """Embedding tables, replaced by low ranks."""

    name, title, modules = "embedding", "embedding table", (LowRankEmbedding,)
    structures, starts = ("low_rank",), ("fit", "random")

    def layer(self, module):
        if type(module) is nn.Embedding:
            return Layer(
                in_features=module.num_embeddings, out_features=module.embedding_dim, multiplications=0
            )

    def build(self, model, site, structure, start):
        weight = model.get_submodule(site.path).weight
        rank = structure.patterns(site.in_features, site.out_features)[0].b
        new = LowRankEmbedding(*weight.shape, rank, device=weight.device, dtype=weight.dtype)
        if start == "random":
            for factor in new.parameters():
                nn.init.normal_(factor)
        return new

    def fit(self, new, model, site, known=None):
        u, s, v = torch.linalg.svd(model.get_submodule(site.path).weight.detach(), full_matrices=False)
        rank = len(new.right)
        new.left.data, new.right.data = u[:, :rank] * s[:rank], v[:rank].clone()
        return float(s[rank:].norm() / s.norm())

    def candidates(self, site):
        return [LowRank(rank) for rank in (2, 4, 8)]

    def to_dense(self, module, ndim):
        return nn.Embedding.from_pretrained(module.weight.detach(), freeze=False)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(60, 24), nn.Embedding(7, 24)
        self.body, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(torch.relu(self.body(self.tokens(x) + self.positions(places))))


X = torch.arange(14).view(2, 7)


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten."""
    site_kinds.site_kinds()
    monkeypatch.setattr(site_kinds, "_registered", dict(site_kinds._registered))
    monkeypatch.setattr(plugins, "_failed", {})
    yield


@pytest.fixture
def embedding(registry):
    return register_site_kind(Embedding)


@pytest.fixture
def rule(tmp_path):
    (tmp_path / "tables.toml").write_text(RULE)
    return tmp_path / "tables.toml"


def text_of(show, *shown):
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        show(console, *shown)
    return captured.get()


def model():
    torch.manual_seed(0)
    return Tagger().eval()


def test_sites_of_the_kind_are_found_and_planned(embedding, rule):
    found = ksurgeon.find(model(), X)
    assert [(s.path, s.kind) for s in found] == [
        ("tokens", "embedding"), ("positions", "embedding"), ("body", "linear"), ("head", "linear"),
    ]  # fmt: skip
    tokens = found[0]
    assert (tokens.in_features, tokens.out_features, tokens.parameters) == (60, 24, 1440)
    assert tokens.multiplications == 0 and tokens.reason is None
    loaded = load_rule(rule)
    assert loaded.replace[0].start == "fit"
    plan = make_plan(found, loaded)
    assert [(d.path, d.parameters_after) for d in plan.replacements] == [("tokens", 6 * 84)]
    assert plan.decisions[1].reason == "would grow from 168 to 186 parameters"
    assert "embedding" in text_of(show_sites, found, {})
    assert "replace: rank 6" in text_of(show_plan, plan, describe_parts(plan, loaded))


def test_from_replacement_to_revert(embedding, rule, tmp_path):
    tagger = model()
    dense = tagger.tokens.weight.detach().clone()
    conversion = ksurgeon.convert(tagger, rule, X)
    assert type(tagger.tokens) is LowRankEmbedding and kind_of(tagger.tokens).name == "embedding"
    (result,) = conversion.results
    error = (tagger.tokens.weight.detach() - dense).norm() / dense.norm()
    assert result.weight_error == pytest.approx(float(error), rel=1e-4)
    assert result.output_error is not None and "embedding" in str(conversion)
    assert "tokens" in text_of(show_record, conversion.record)

    ksurgeon.save(tagger, tmp_path / "saved")
    operations = json.loads((tmp_path / "saved" / "ksurgeon.json").read_text())["operations"]
    assert [o["kind"] for o in operations] == ["embedding"]
    loaded = ksurgeon.load(tmp_path / "saved", model=Tagger()).eval()
    assert type(loaded.tokens) is LowRankEmbedding
    assert torch.equal(loaded(X), tagger(X))

    before = tagger(X)
    ksurgeon.revert(tagger)
    assert type(tagger.tokens) is nn.Embedding
    assert torch.allclose(tagger(X), before, atol=1e-6)


def test_a_plan_under_a_budget(embedding, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tagger = model()
    planning = ksurgeon.plan(tagger, "params=0.6", data=[X, X.flip(1), X + 30])
    options = planning.options_of("tokens")
    assert [str(option.structure) for option in options.options[1:]] == ["rank 2", "rank 4", "rank 8"]
    assert any(option.measured is not None for option in options.options), "a swap tells"
    (tokens,) = (d for d in planning.plan.decisions if d.path == "tokens")
    assert tokens.action == "replace" and tokens.error > 0
    ksurgeon.convert(tagger, planning.plan, X)
    assert type(tagger.tokens) is LowRankEmbedding


def test_a_structure_is_for_the_kind_where_targets_mean_nothing_else(embedding):
    tagger = model()
    ksurgeon.convert(tagger, LowRank(4), X)
    assert type(tagger.tokens) is nn.Embedding
    ksurgeon.convert(tagger, LowRank(3), X, targets=nn.Embedding)
    assert type(tagger.tokens) is LowRankEmbedding
    with pytest.raises(MatchError, match="matches no site that the structure is for, only embedding"):
        ksurgeon.convert(model(), Monarch(4), X, targets="tokens")


def test_what_the_kind_does_not_take_is_told(embedding, rule):
    rule.write_text(RULE.replace('"low_rank", rank = 6', '"kaleidoscope"'))
    with pytest.raises(
        RuleError, match=r'"kaleidoscope" goes with .* not with "embedding", which takes "low'
    ):
        load_rule(rule)
    rule.write_text(RULE + 'start = "orthogonal"\n')
    with pytest.raises(RuleError, match='start for find = "embedding" is one of "fit", "random", got "orth'):
        load_rule(rule)


def test_weights_that_are_not_finite_are_told(embedding, rule):
    tagger = model()
    tagger.tokens.weight.data[0, 0] = torch.nan
    with pytest.raises(ksurgeon.WeightsError, match="tokens"):
        ksurgeon.convert(tagger, rule, X)


def test_a_replacement_that_somebody_wrapped_is_not_saved(embedding, rule, tmp_path):
    tagger = model()
    ksurgeon.convert(tagger, rule, X)
    tagger.tokens = nn.Sequential(tagger.tokens)
    with pytest.raises(ksurgeon.SurgeryError, match=r"tokens was .* is inside a Sequential"):
        ksurgeon.save(tagger, tmp_path / "saved")


def test_weights_of_the_dense_architecture_are_for_k_layers(embedding, rule):
    tagger = model()
    weights = tagger.state_dict()
    ksurgeon.convert(tagger, rule, X)
    with pytest.raises(ksurgeon.SurgeryError, match=r'tokens is no K-layer, .* kind "embedding" takes no'):
        ksurgeon.load_dense(tagger, weights)


def test_a_group_of_a_gradual_conversion(embedding, rule):
    student, teacher = model(), model()
    record = ksurgeon.convert(student, rule, X).record
    operate_on_group(teacher, student, record, record.operations)
    assert torch.equal(teacher.tokens.left, student.tokens.left)


def test_a_folder_of_a_kind_that_is_not_installed_names_it(registry, rule, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(site_kinds, "_registered", dict(site_kinds._registered))
        register_site_kind(Embedding)
        tagger = model()
        ksurgeon.convert(tagger, rule, X)
        ksurgeon.save(tagger, tmp_path / "saved")
    with pytest.raises(RecordError, match=r'no kind of site is called "embedding".*have to be installed'):
        ksurgeon.load(tmp_path / "saved", model=Tagger())
    with pytest.raises(RuleError, match=r'"embedding".*have to be installed'):
        load_rule(rule)


def test_names_are_taken_once(embedding):
    assert register_site_kind(Embedding) is Embedding, "the same class again changes nothing"

    class Other(Embedding):
        pass

    class Dense(Embedding):
        name = "linear"

    for kind, owner in ((Other, "test_site_kinds.Embedding"), (Dense, "ksurgeon.kinds.linear.Linear")):
        with pytest.raises(KindError, match=f'"{kind.name}" is the kind of site of .*{owner} already; give'):
            register_site_kind(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Embedding, "a kind of site is a subclass of ksurgeon.SiteKind, got"),
        (
            type("Short", (SiteKind,), {"name": "a", "title": "a", "modules": (nn.Linear,)}),
            "Short has no build;",
        ),
        (
            type("Unfitted", (Embedding,), {"fit": SiteKind.fit}),
            'has no method fit, and "fit" among its starts',
        ),
        (type("Nameless", (Embedding,), {"name": ""}), "Nameless has no name; add it to the class"),
    ],
)
def test_what_is_no_kind_is_refused(registry, kind, message):
    with pytest.raises(KindError, match=message):
        register_site_kind(kind)


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(KindError, match='called "pointwise_con"; did you mean "pointwise_conv"'):
        site_kind("pointwise_con")


def test_a_later_kind_has_the_maps_that_both_recognise(registry):
    class Body(site_kinds._registered["linear"].__class__):
        name, title = "body", "layer of 24 features"

        def layer(self, module):
            return super().layer(module) if getattr(module, "out_features", 0) == 24 else None

    register_site_kind(Body)
    tagger = model()
    assert [s.kind for s in ksurgeon.find(tagger, X)] == ["body", "linear"]
    replace = {"find": "body", "with": {"structure": "monarch", "blocks": 4}}
    conversion = ksurgeon.convert(tagger, ksurgeon.Rule(name="body", replace=[replace]), X, data=[X])
    assert [(o.path, o.kind, o.calibrated) for o in conversion.record.operations] == [("body", "body", True)]


def package(folder, name, code, monkeypatch):
    """What an installed package of somebody else leaves in site-packages."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ksurgeon.site_kinds]\ntheir = {name}:Their\n")
    monkeypatch.syspath_prepend(str(folder))


def test_installed_packages_bring_kinds_along(registry, tmp_path, monkeypatch):
    code = "from tests.test_site_kinds import Embedding\n\nclass Their(Embedding):\n    name = 'their'\n"
    package(tmp_path, "their_kinds", code, monkeypatch)
    assert site_kind("their").title == "embedding table"
    assert [s.kind for s in ksurgeon.find(model(), X)][:2] == ["their", "their"]


def test_a_package_that_fails_is_left_out(registry, tmp_path, monkeypatch):
    package(tmp_path, "their_broken_kinds", "raise OSError('no such library')\n", monkeypatch)
    with pytest.warns(
        UserWarning, match='"their" of the package their_broken_kinds .* cannot be used: OSError: no such lib'
    ):
        found = ksurgeon.find(model(), X)
    assert [s.kind for s in found] == ["linear", "linear"]
