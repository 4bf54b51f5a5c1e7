"""The recipe permuted_images: its permutations, loss and measure, and a quick run by the command line."""

import json

import pytest
import torch
from torch import nn

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.recipes.scratch import opened
from ksurgeon.train.log import Listener
from ksurgeon.train.permutations import harden, relax
from tests.cli.conftest import run
from tests.recipes.patches import write_patches

__all__ = ["run"]

RECIPE = load_recipe("permuted_images")
KINDS = ("bits", "lines", "pixels")


def function(name):
    return find_function(f"permuted_images.py:{name}", RecipeError, RECIPE.folder)


def made(name):
    """A variant's model as it is before training; without [calibrate], which only a geometry needs."""
    (variant,) = (variant for variant in RECIPE.variants if variant.name == name)
    source = opened(RECIPE, variant, {}, torch.device("cpu"))
    recipe = RECIPE.model_copy(update={"calibrate": None})
    return operate(recipe, variant, source, {}, None, False, Listener()).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_permutations_hide_what_an_image_shows(kind):
    """All arms of a seed have the same one, and what starts as the identity leaves it as it is."""
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen = {name: made(f"{kind}-{name}").arrange(images) for name in ("cnn", "k-labels", "k-smooth")}
        plain = made("unpermuted").arrange(images)
    assert seen["cnn"].shape == (2, 1, 32, 32)
    assert torch.equal(seen["cnn"], seen["k-labels"]) and torch.equal(seen["cnn"], seen["k-smooth"])
    torch.testing.assert_close(seen["cnn"].flatten(1).sort()[0], plain.flatten(1).sort()[0])
    torch.testing.assert_close(plain.flatten(1).square().mean(1), torch.ones(2))
    moved = (seen["cnn"] != plain).float().mean()
    assert moved > 0.7
    together = seen["cnn"] if kind == "pixels" else seen["cnn"].sum(2).sort()[0] - plain.sum(2).sort()[0]
    assert kind == "pixels" or together.abs().max() < 1e-4, "columns stay whole"


def test_bit_reversal_is_that_of_the_authors():
    order = function("permutation")("bits").view(32, 32)
    assert order[0].tolist()[:5] == [0, 16, 8, 24, 4] and (order[:, 0] // 32).tolist()[:4] == [0, 16, 8, 24]


def test_smoothness_is_total_variation_and_entropy():
    model = made("lines-k-smooth")
    images = torch.randn(2, 3, 32, 32)
    image = model.arrange(images)[:, 0]
    expected = torch.zeros(2)
    for y in range(31):
        for x in range(31):
            steps = torch.stack([image[:, y, x + 1] - image[:, y, x], image[:, y + 1, x] - image[:, y, x]])
            expected += steps.norm(dim=0) / 31**2
    loss = function("smoothness")
    torch.testing.assert_close(loss(model, (images,), 0.5), expected)
    for module in (model.arrange.image.kafter0, model.arrange.image.kafter1):
        relax(module.matrix, noise=1.0)
    losses = [loss(model, (images,), progress) for progress in (0.0, 0.25, 1.0)]
    assert losses[0].shape == (2,) and bool((losses[2] > losses[1]).all())
    torch.testing.assert_close(losses[2] - losses[0], 2 * (losses[1] - losses[0]))


def test_means_of_neighbours_have_less_loss_than_means_of_lines_from_everywhere():
    """Though these vary less."""
    model, loss = made("lines-cnn"), function("smoothness")
    model.arrange.hidden.order = torch.arange(1024)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(64, 1, 32, 1, generator=random).cumsum(2).expand(64, 3, 32, 32)
    found, varied = [], []
    for lines in (torch.arange(32), torch.randperm(32, generator=random)):
        means = torch.zeros(32, 32).scatter(1, lines.view(4, 8).repeat_interleave(8, 0), 1 / 8)
        handle = model.arrange.image.register_forward_hook(lambda module, given, image, m=means: m @ image)
        found.append(loss(model, (images,), 0.0).mean())
        varied.append(model.arrange(images).diff(dim=2).abs().mean())
        handle.remove()
    assert found[0] < 0.9 * found[1] and varied[1] < varied[0]


@pytest.mark.parametrize(("kind", "name"), [("lines", "k-smooth"), ("pixels", "sinkhorn"), ("pixels", "cnn")])
def test_neighbours_that_are_neighbours_again(kind, name):
    """The inverse of what is hidden is found whole, up to a mirror image; nothing else is."""
    model, measure = made(f"{kind}-{name}"), function("evaluate")
    assert measure(model, {})["neighbours"] < 0.1
    order = model.arrange.hidden.order
    if kind == "lines":
        rows, columns = order.view(32, 32)[:, 0] // 32, order.view(32, 32)[0] % 32
        for module, line in ((model.arrange.image.kafter0, rows), (model.arrange.image.kafter1, columns)):
            module.matrix = type(module.matrix).from_permutation(line.argsort().flip(0))
    elif name == "sinkhorn":
        with torch.no_grad():
            factor = model.arrange.image.kbefore0.matrix.factors[0]
            factor.copy_((torch.eye(1024)[order.argsort()] + 0.1 * torch.rand(1024, 1024)).view_as(factor))
        harden(model.arrange.image.kbefore0.matrix)
    else:
        model.arrange.hidden.order = torch.arange(1024)
    assert measure(model, {})["neighbours"] == 1
    assert measure(nn.Identity(), {}) == {}


def test_cifar_10_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="unpack it here"):
        function("cifar10")(tmp_path)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert function("cifar10")(tmp_path) == {"patches": tmp_path / "cifar-10-batches-bin"}


def test_a_quick_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_patches(tmp_path / "cache")
    command = ("run", "permuted_images", "--quick", "--jobs", 1, "--device", "cpu", "--set", "steps=2")
    ran = run(*command)
    assert ran.status == 0, ran.err
    results = json.loads((tmp_path / "runs" / "permuted_images-quick" / "results.json").read_text())
    assert results["quick"] and list(results["variants"]) == list(RECIPE.quick.only)
    done = {name: variant["seeds"]["0"] for name, variant in results["variants"].items()}
    assert all(0 <= one["after_training"]["accuracy"] <= 1 for one in done.values())
    assert done["lines-k-geometry"]["after_training"]["neighbours"] > 0.9
    assert [len(one["training"]) for one in done.values()] == [1, 1, 2, 1]
    ran = run(*(part for part in command if part != "--quick"), "-o", "runs/permuted_images-quick", "--yes")
    assert ran.status == 1 and "holds results of a quick run" in " ".join(ran.err.split())
