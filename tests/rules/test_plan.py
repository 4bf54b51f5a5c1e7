"""What a rule makes of a list of sites."""

from typing import Any

import pytest

from ksurgeon.errors import MatchError
from ksurgeon.find.site import Site
from ksurgeon.kmatrix.structures import GroupedKaleidoscope, Kaleidoscope, Structure
from ksurgeon.rules import Plan, Replacement, Rule, load_rule, make_plan, require_matches
from ksurgeon.rules.plan import Decision, describe_parts

K = Kaleidoscope()


def linear(path: str = "body", n_in: int = 64, n_out: int = 64, bias: bool = True, **more: Any) -> Site:
    return Site(
        kind="linear",
        path=path,
        owner=path,
        in_features=n_in,
        out_features=n_out,
        class_name="Linear",
        has_bias=bias,
        vectors=7,
        parameters=n_in * n_out + (n_out if bias else 0),
        weight_parameters=n_in * n_out,
        multiplications=7 * n_in * n_out,
        **more,
    )


def conv(path: str = "conv", n_in: int = 64, n_out: int = 64, groups: int = 1, **more: Any) -> Site:
    weights = n_in * n_out // groups
    return Site(
        kind="pointwise_conv",
        path=path,
        owner=path,
        in_features=n_in,
        out_features=n_out,
        class_name="Conv2d",
        groups=groups,
        vectors=9,
        parameters=weights,
        weight_parameters=weights,
        multiplications=9 * weights,
        **more,
    )


def shuffle(path: str = "stage.0:view_1", channels: int = 116, **more: Any) -> Site:
    return Site(
        kind="channel_shuffle",
        path=path,
        owner=path.partition(":")[0],
        class_name="InvertedResidual",
        in_features=channels,
        out_features=channels,
        groups=2,
        vectors=5,
        **more,
    )


def rule(*parts: Replacement) -> Rule:
    return Rule(name="test", replace=parts)


def part(find: str, structure: Structure = K, **more: Any) -> Replacement:
    return Replacement.model_validate({"find": find, "with": structure, **more})


def chain_parameters(structure: Structure, n_in: int, n_out: int) -> int:
    return sum(a * b * c * d for a, b, c, d in structure.patterns(n_in, n_out))


def test_the_first_part_that_applies_decides():
    wide = Kaleidoscope(width=2)
    plan = make_plan(
        [linear("a"), linear("b"), conv()],
        rule(part("linear", wide, targets=["b"]), part("linear"), part("channel_shuffle")),
    )
    assert [(d.action, d.part, d.structure) for d in plan.decisions] == [
        ("replace", 2, K),
        ("replace", 1, wide),
        ("leave", None, None),
    ]
    assert [d.path for d in plan.replacements] == ["a", "b"]
    assert plan.decisions[1].reason == 'part 1, target "b"'
    assert plan.unmatched == [3] and plan.skipped == {}


@pytest.mark.parametrize(
    ("site", "targets", "hit"),
    [
        (linear("a.b"), ["a.b"], True),
        (linear("a.b"), ["a"], False),
        (linear("a.b"), ["b"], False),
        (linear("a.b"), ["Linear"], True),
        (linear("a.b"), ["re:a\\..*"], True),
        (linear("a.b"), ["re:a"], False),
        (linear("a.b", aliases=("c.d",)), ["c.d"], True),
        (shuffle("s.0:view_1"), ["s.0"], True),
        (shuffle("s.0:view_1"), ["s.0:view_1"], True),
        (shuffle("s.0:view_1"), ["re:s\\.\\d"], True),
        (shuffle("s.0:view_1"), ["re:.*:view_2"], False),
    ],
)
def test_targets_and_ignore_name_sites_alike(site, targets, hit):
    chosen = make_plan([site], rule(part(site.kind, targets=targets)))
    spared = make_plan([site], rule(part(site.kind, ignore=targets)))
    assert (chosen.decisions[0].action == "replace") == hit
    assert (spared.decisions[0].action == "leave") == hit
    if hit:
        assert spared.decisions[0].reason == f'part 1: ignored by "{targets[0]}"'


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"in_features": ">= 64"}, True),
        ({"in_features": "> 64"}, False),
        ({"in_features": 64}, True),
        ({"out_features": "<128"}, False),
        ({"out_features": "<= 128"}, True),
        ({"out_features": "!= 128"}, False),
        ({"groups": "== 1"}, True),
        ({"parameters": "> 8192"}, True),
        ({"vectors": "> 6"}, True),
        ({"vectors": "> 6", "in_features": 65}, False),
    ],
)
def test_conditions(where, holds):
    decision = make_plan([linear(n_out=128)], rule(part("linear", where=where))).decisions[0]
    assert (decision.action == "replace") == holds, decision.reason


@pytest.mark.parametrize("read", [True, False])
def test_weights_that_a_forward_reads(read):
    sites = [linear("called"), linear("read", read=True)]
    decisions = make_plan(sites, rule(part("linear", where={"read": read}))).decisions
    assert [decision.action == "replace" for decision in decisions] == [not read, read]
    reasons = " ".join(decision.reason for decision in decisions if decision.action == "leave")
    assert ("no forward reads" in reasons) == read and ("multiplied out at every call" in reasons) != read


def test_a_condition_on_unknown_vectors_is_not_met_and_says_so():
    site = Site(
        kind="linear", path="a", in_features=64, out_features=64, parameters=4096, weight_parameters=4096
    )
    decision = make_plan([site], rule(part("linear", where={"vectors": ">= 0"}))).decisions[0]
    assert decision.action == "leave" and "example inputs" in decision.reason


def test_unless_found_skips_a_part():
    parts = rule(part("channel_shuffle"), part("linear", unless_found="channel_shuffle"))
    without = make_plan([linear()], parts)
    assert (without.skipped, without.unmatched) == ({}, [1]) and without.replacements
    both = make_plan([linear(), shuffle(), shuffle("b:view")], parts)
    assert [d.kind for d in both.replacements] == ["channel_shuffle"] * 2
    assert both.skipped == {2: "skipped, because the model has 2 channel_shuffle sites"}
    assert both.unmatched == []


@pytest.mark.parametrize(
    ("site", "structure", "groups"),
    [
        (linear(n_in=96, n_out=384), K, 1),
        (linear(n_in=384, n_out=96, bias=False), Kaleidoscope(width=2), 1),
        (conv(n_in=256, n_out=256, groups=2), K, 2),
        (conv(n_in=256, n_out=128), GroupedKaleidoscope(groups=4), 1),
    ],
)
def test_costs_afterwards_are_those_of_the_chain_and_the_bias(site, structure, groups):
    decision = make_plan([site], rule(part(site.kind, structure))).decisions[0]
    numel = groups * chain_parameters(structure, site.in_features // groups, site.out_features // groups)
    assert decision.action == "replace"
    assert decision.parameters_after == numel + (site.out_features if site.has_bias else 0)
    assert decision.multiplications_after == site.vectors * numel
    assert (decision.parameters_before, decision.multiplications_before) == (
        site.parameters,
        site.multiplications,
    )


def test_a_shuffle_may_grow_from_nothing():
    decision = make_plan([shuffle(channels=116)], load_rule("shuffle")).decisions[0]
    assert decision.action == "replace" and decision.start == "exact" and decision.part == 1
    assert decision.parameters_before == 0
    assert decision.parameters_after == chain_parameters(K, 116, 116)


@pytest.mark.parametrize(
    ("site", "structure", "reason"),
    [
        (linear(n_in=7, n_out=7, bias=False), K, "would grow from 49 to 98 parameters"),
        (linear(reason="its weight is quantised"), K, "its weight is quantised"),
        (conv(n_in=66), GroupedKaleidoscope(groups=4), "structure: 4 groups do not divide 66 → 64"),
        (conv(groups=2), GroupedKaleidoscope(groups=4), "structure: the convolution has 2 groups already"),
    ],
)
def test_sites_left_alone_tell_why(site, structure, reason):
    plan = make_plan([site], rule(part(site.kind, structure)))
    decision = plan.decisions[0]
    assert decision.action == "leave" and decision.reason.startswith(reason)
    assert decision.part == 1 and plan.unmatched == [], "the part applied, though it could not be carried out"
    assert decision.parameters_after == decision.parameters_before == site.parameters
    assert decision.multiplications_after == decision.multiplications_before


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("fc", True),
        ("head", True),
        ("head.fc", True),
        ("heads.head", True),
        ("head_dist", True),
        ("classifier", True),
        ("classifier.3", True),
        ("classifier.0", False),
        ("classifier.out_proj", True),
        ("lm_head", True),
        ("model.decoder.lm_head", True),
        ("score", True),
        ("cls.predictions.decoder", True),
        ("layers.0.fc", False),
        ("blocks.3.attn.proj", False),
        ("model.layers.0.mlp.down_proj", False),
        ("attention.heads", False),
        ("cls.predictions.transform.dense", True),
        ("predictions.dense", True),
        ("qa_outputs", True),
        ("classifier.4", True),
        ("score_norm", False),
    ],
)
@pytest.mark.parametrize("name", ["linear", "low_rank", "pointwise", "shuffle"])
def test_every_rule_leaves_output_heads(name, path, left):
    sites = [linear(path), conv(path)]
    kept = [d for d in make_plan(sites, load_rule(name)).decisions if "head" in d.reason]
    assert len(kept) == left


def test_targets_and_paths_to_ignore_that_match_nothing_are_named():
    sites = [linear("mlp.up_proj"), linear("mlp.gate_proj"), conv("conv")]
    targets = ("mlp.up_proj", "gate_proj", "re:nothing.*", "conv", "mlp.up_prj", "Linear")
    given = rule(part("linear", K, targets=targets, ignore=("re:any.*", "nowhere")))
    plan = make_plan(sites, given)
    assert plan.replacements
    messages = plan.unmatched_names[1]
    assert [m.split(" matches")[0] for m in messages] == [
        'target "gate_proj"', 'target "re:nothing.*"', 'target "conv"', 'target "mlp.up_prj"',
        'ignore "nowhere"',
    ]  # fmt: skip
    assert r"re:(.*\.)?gate_proj(\..*)?" in messages[0] and "1 site" in messages[0]
    assert "pointwise_conv" in messages[2] and '"mlp.up_proj"' in messages[3]
    assert all(f"part 1: {message}" in describe_parts(plan, given) for message in messages)


def test_the_shuffle_rule_leaves_shortcuts_and_narrow_layers():
    sites = [conv("layer1.0.conv1"), conv("layer1.0.downsample.0"), conv("layer1.0.conv0", n_in=32)]
    assert [d.path for d in make_plan(sites, load_rule("shuffle")).replacements] == ["layer1.0.conv1"]


def test_a_plan_goes_through_json():
    sites = [linear("a"), linear("b", reason="no"), shuffle(), conv(groups=2)]
    plan = make_plan(sites, load_rule("shuffle"))
    assert plan.skipped
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_harm_is_what_was_measured_where_it_was():
    decision = Decision(path="a", kind="linear", action="replace", predicted_harm=0.5)
    assert decision.harm == 0.5
    for measured, harm in ((0.0, 0.0), (0.2, 0.2), (-0.1, 0.0)):
        assert decision.model_copy(update={"measured_harm": measured}).harm == harm
    assert Decision(path="a", kind="linear", action="leave").harm == 0


def test_no_match_names_sites_reasons_and_rules_that_would_match():
    sites = [conv("a"), conv("b"), linear("fc")]
    plan = make_plan(sites, load_rule("linear"))
    with pytest.raises(MatchError) as caught:
        require_matches(plan, sites)
    message = str(caught.value)
    assert caught.value.exit_status == 3
    for expected in (
        'rule "linear"',
        "2 pointwise_conv sites, 1 linear site",
        "1 linear site left: part 1: it belongs to the output head",
        '"pointwise" (2 sites), "shuffle" (2 sites)',
    ):
        assert expected in message
    assert '"linear" (' not in message


@pytest.mark.parametrize(
    ("sites", "expected"),
    [([], "at all"), ([linear(reason="quantised")], "no built-in rule would replace anything")],
)
def test_no_match_where_nothing_could(sites, expected):
    with pytest.raises(MatchError, match=expected):
        require_matches(make_plan(sites, load_rule("linear")), sites)


def test_a_match_is_no_error():
    sites = [linear()]
    require_matches(make_plan(sites, load_rule("linear")), sites)
