"""The recipe shufflenet: its nets, and where its variants start."""

import json

import pytest
import torch

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.recipes.scratch import opened
from ksurgeon.report.measure import multiplications
from ksurgeon.train.log import Listener
from tests.cli.conftest import run
from tests.near import near
from tests.recipes.patches import write_fashion_mnist

__all__ = ["run"]

RECIPE = load_recipe("shufflenet")


def _models(recipe, folder):
    """The model of each variant, as it is before training."""
    made = {}
    for variant in recipe.variants:
        source = opened(recipe, variant, {}, torch.device("cpu"))
        made[variant.name] = operate(recipe, variant, source, {}, folder, False, Listener()).eval()
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return _models(RECIPE, tmp_path_factory.mktemp("plans"))


def test_where_the_variants_start(models):
    """Those with K-matrices that start exactly compute what they are compared with."""
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        outputs = {name: model(x) for name, model in models.items()}
    assert all(output.shape == (2, 10) for output in outputs.values())
    assert near(outputs["k-shuffle"], outputs["fixed"])
    assert near(outputs["k-both-blocks"], outputs["none"])
    assert not near(outputs["k-both"], outputs["none"])
    assert not near(outputs["fixed"], outputs["none"])


def _costs(models):
    """Parameters and multiplications of each."""
    x = (torch.randn(1, 3, 28, 28),)
    size = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return size, {name: multiplications(model, x) for name, model in models.items()}


def test_what_the_variants_cost(models):
    size, work = _costs(models)
    assert (
        size["fixed"]
        == size["none"]
        < size["k-second"]
        < size["k-both"]
        < size["k-both-blocks"]
        < size["dense"]
    )
    assert size["wider-parameters"] == pytest.approx(size["k-both"], rel=0.03)
    assert work["wider-multiplications"] == pytest.approx(work["k-both"], rel=0.03)


def test_what_the_variants_cost_where_there_are_many_classes(tmp_path):
    size, work = _costs(_models(load_recipe("shufflenet_classes"), tmp_path))
    assert size["wider-parameters"] == pytest.approx(size["k-both"], rel=0.01)
    assert size["wider-before"] == pytest.approx(size["k-both"], rel=0.01)
    assert work["wider-multiplications"] == pytest.approx(work["k-both"], rel=0.03)


def test_the_same_nets_on_photographs(tmp_path):
    photographs = load_recipe("shufflenet_photographs")
    own = {variant.name: variant for variant in RECIPE.variants}
    for variant in photographs.variants:
        if variant.name not in own:
            continue
        assert variant.insert == own[variant.name].insert
        mine, its = (
            dict(photographs.model_of(variant).options),
            dict(RECIPE.model_of(own[variant.name]).options),
        )
        del its["classes"]  # the net's own number is that of the photographs
        assert mine == its or variant.name == "wider-parameters"
    size, _ = _costs(_models(photographs, tmp_path))
    assert size["k-both"] == size["k-identity"] and size["fixed"] == size["fixed-fast"]
    for name in ("wider-parameters", "wider-before"):
        assert size[name] == pytest.approx(size["k-both"], rel=0.01)


def test_the_authors_widths(tmp_path):
    """Channels of the 16 units, and what K-matrices cost there."""
    widths = load_recipe("shufflenet_widths")
    few = widths.model_copy(
        update={"variants": tuple(v for v in widths.variants if v.name.endswith(("0.25", "0.5", "0.5-k")))}
    )
    models = _models(few, tmp_path)
    channels = [block.conv3.out_channels for block in models["k-0.25"].modules() if hasattr(block, "conv3")]
    assert len(channels) == 16 and channels[-1] == 384
    size, _ = _costs(models)
    for name in ("wider-0.25", "wider-before-0.25"):
        assert size[name] == pytest.approx(size["k-0.25"], rel=0.015)
    assert size["k-0.5"] > size["fixed-0.5"] and size["v2-0.5-k"] > size["v2-0.5"]


@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
def test_fixed_mixing_is_orthogonal(kind):
    mix = find_function("shufflenet.py:Mix", RecipeError, RECIPE.folder)
    weight = mix(24, kind).weight[:, :, 0, 0].double()
    torch.testing.assert_close(weight @ weight.T, torch.eye(24, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not list(mix(24, kind).parameters())


def test_a_quick_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_fashion_mnist(tmp_path / "cache")
    chosen = ("--quick", "--jobs", 1, "--device", "cpu", "--set", "steps=2", "--plot", "a.svg")
    ran = run("run", "shufflenet", *chosen)
    assert ran.status == 0, ran.err
    results = json.loads((tmp_path / "runs" / "shufflenet-quick" / "results.json").read_text())
    assert results["quick"] and list(results["variants"]) == list(RECIPE.quick.only)
    for variant in results["variants"].values():
        (training,) = variant["seeds"]["0"]["training"]
        assert training["steps"] == 2 and training["history"][-1]["examples"] == 96
    assert (tmp_path / "a.svg").stat().st_size > 1000
