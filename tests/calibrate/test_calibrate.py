"""Moments and harm beside dense references."""

import pytest
import torch
from torch import nn

from ksurgeon.calibrate import calibrate, harm_for
from ksurgeon.calibrate.harm import embeddings
from ksurgeon.calibrate.moments import Gram, HashedMoment, SketchedMoment, root_of
from ksurgeon.calibrate.storage import load_calibration, save_calibration
from ksurgeon.errors import InputError
from ksurgeon.find import find
from tests import zoo


def batches_for(name, number=3):
    return [torch.randn(zoo.INPUTS[name], generator=torch.Generator().manual_seed(i)) for i in range(number)]


def reference(model, batches, path, rows):
    """All vectors that the module at ``path`` took."""
    taken = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda m, a: taken.append(rows(a[0])))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return torch.cat(taken).double()


@pytest.mark.parametrize(
    ("name", "path", "rows"),
    [
        ("mlp", "up", lambda x: x),
        ("mlp", "down", lambda x: x),
        ("encoder", "head", lambda x: x.flatten(0, 1)),
        ("convnet", "wide", lambda x: x.movedim(1, -1).flatten(0, 2)),
        ("convnet", "strided", lambda x: x[..., ::2, ::2].movedim(1, -1).flatten(0, 2)),
    ],
)
def test_moments_are_those_of_what_each_layer_takes(name, path, rows):
    model, batches = getattr(zoo, name)().eval(), batches_for(name)
    found = calibrate(model, find(model, batches[0]), batches)
    vectors = reference(model, batches, path, rows)
    known = found.sites[path]
    torch.testing.assert_close(known.moment[0], vectors.T @ vectors / len(vectors), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(known.mean, vectors.mean(0), rtol=1e-5, atol=1e-6)
    assert known.rows == len(vectors)
    assert known.shiftable is (model.get_submodule(path).bias is not None)
    moved = vectors - vectors.mean(0) if known.shiftable else vectors
    wanted = moved.T @ moved / len(moved)
    torch.testing.assert_close((known.root @ known.root.mT)[0], wanted, rtol=1e-4, atol=1e-5)


def test_moments_of_groups():
    model, batches = zoo.convnet().eval(), batches_for("convnet")
    known = calibrate(model, find(model, batches[0]), batches).sites["grouped"]
    vectors = reference(model, batches, "grouped", lambda x: x.movedim(1, -1).flatten(0, 2))
    assert known.moment.shape == (2, 32, 32)
    for block, part in zip(known.moment, vectors.chunk(2, 1), strict=True):
        torch.testing.assert_close(block, part.T @ part / len(part), rtol=1e-5, atol=1e-6)


class Attends(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.a, self.k = nn.MultiheadAttention(16, 2, batch_first=True, **options), nn.Linear(16, 16)

    def forward(self, x):
        y = x if self.a.in_proj_bias is None else self.k(x)
        return self.a(x, y, y, need_weights=False)[0]


@pytest.mark.parametrize("bias", [True, False], ids=["cross", "self"])
def test_moments_inside_multi_head_attention(bias):
    model = Attends(bias=bias).eval()
    batches = [torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    harm = harm_for("outputs", model, torch.zeros(1))
    sites = find(model, batches[0])
    known = calibrate(model, sites, batches, harm=harm).sites
    projection, x = known["a.in_proj_weight"], torch.cat(batches).flatten(0, 1)
    taken = torch.cat([x, model.k(x).detach()]) if bias else x  # query with one part, key and value with two
    torch.testing.assert_close(
        projection.moment[0], (taken.T @ taken / len(taken)).double(), rtol=1e-4, atol=1e-5
    )
    assert projection.rows == len(taken) and projection.gradient.shape[-1] == 48
    assert known["a.out_proj"].rows == len(x) and known["a.out_proj"].gradient is not None


def test_moments_of_parameters_that_a_forward_reads():
    model, batches = zoo.raw().eval(), batches_for("raw")
    sites = find(model, batches[0])
    found = calibrate(model, sites, batches, harm=harm_for("outputs", model, torch.zeros(1)))
    assert {"qkv", "right", "turned", "left", "frozen"} <= set(found.sites)
    x = torch.cat(batches).flatten(0, 1).double()
    torch.testing.assert_close(found.sites["qkv"].moment[0], x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert found.sites["left"].moment.shape == (1, 5, 5) and found.sites["left"].rows == 3 * 2 * 24
    assert all(found.sites[path].gradient is not None for path in ("qkv", "right", "left", "frozen"))


class Pair(nn.Module):
    """Two layers that take the same tensor in the first call and different ones in the second."""

    def __init__(self, changes):
        super().__init__()
        self.a, self.b, self.changes, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), changes, 0

    def forward(self, x):
        self.calls += 1
        other = x * 2 if self.changes and self.calls % 3 == 0 else x
        return self.a(x) + self.b(other)


@pytest.mark.parametrize("changes", [False, True])
def test_layers_that_take_the_same_tensor_share_a_moment(changes):
    torch.manual_seed(0)
    model, batches = Pair(changes).eval(), [torch.randn(4, 8) for _ in range(3)]
    sites = find(model, batches[0])
    model.calls = 0
    found = calibrate(model, sites, batches)
    assert (found.sites["a"].moment is found.sites["b"].moment) is not changes
    scale = torch.tensor([4.0 if changes and (model.calls - 3 + i + 1) % 3 == 0 else 1.0 for i in range(3)])
    for path, factors in (("a", torch.ones(3)), ("b", scale)):
        wanted = sum(f * x.double().T @ x.double() for f, x in zip(factors, batches, strict=True)) / 12
        torch.testing.assert_close(found.sites[path].moment[0], wanted, rtol=1e-5, atol=1e-6)


def test_masked_positions_do_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, attention_mask):
            return self.layer(x)

    model = Masked()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"x": x, "attention_mask": mask}
    known = calibrate(model, find(model, batch), [batch]).sites["layer"]
    rows = x[mask.bool()].double()
    torch.testing.assert_close(known.moment[0], rows.T @ rows / 8, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "outputs"])
def test_predicted_harm_of_a_small_change_is_the_measured_one(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 6)).eval()
    batches = [torch.randn(64, 16) for _ in range(24)]
    harm = harm_for(name, model, model(batches[0]))
    found = calibrate(model, find(model, batches[0]), batches, harm=harm)
    for path in ("0", "2"):
        weight = model.get_submodule(path).weight
        change = 0.01 * torch.randn_like(weight)
        with torch.no_grad():
            before = [[model(x)] for x in batches]
            weight += change
            after = [model(x) for x in batches]
            weight -= change
        sums = [harm.change(b, a, None) for b, a in zip(before, after, strict=True)]
        measured = sum(s for s, _ in sums) / sum(n for _, n in sums)
        assert found.sites[path].harm_of(change[None]) == pytest.approx(measured, rel=0.35)


def test_the_model_is_as_before_even_after_a_failure():
    model, batches = zoo.mlp().train(), batches_for("mlp")
    sites = find(model, batches[0])
    harm = harm_for("outputs", model, torch.zeros(1))
    calibrate(model, sites, batches, harm=harm)
    with pytest.raises(InputError, match=r"input of up, in batch 3"):
        calibrate(model, sites, [*batches[:2], torch.full((3, 64), float("nan"))], harm=harm)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_sketch_keeps_leading_directions_and_the_trace():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60))[0][:, :8]
    rows = torch.randn(3000, 8) * 3 @ basis.T + 0.1 * torch.randn(3000, 60)
    exact, sketch, hashed = Gram(60), SketchedMoment(60, 16), HashedMoment(60, 400)
    for part in rows.split(70):
        for moment in (exact, sketch, hashed):
            moment.add(part)
    wanted = exact.matrix()[0]
    assert (sketch.matrix()[0] - wanted).norm() < 0.02 * wanted.norm()
    assert float(sketch.matrix()[0].trace()) == pytest.approx(float(wanted.trace()))
    assert float(hashed.matrix()[0].trace()) == pytest.approx(float(wanted.trace()), rel=0.3)


def test_a_solver_that_gives_up_without_a_word(monkeypatch):
    """As cuSOLVER does for a matrix that is positive semidefinite up to rounding."""
    rows = torch.randn(50, 4, dtype=torch.float64)
    real, asked = torch.linalg.cholesky_ex, []

    def silent(matrix):
        asked.append(matrix)
        lower, failed = real(matrix)
        return (lower * float("nan"), failed) if len(asked) == 1 else (lower, failed)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", silent)
    root = root_of(rows.T @ rows)
    assert len(asked) == 2 and torch.allclose(root.T @ root, rows.T @ rows)
    with pytest.raises(InputError, match="NaN or infinite"):
        root_of(torch.full((3, 3), float("inf"), dtype=torch.float64))
    assert root_of(torch.zeros(3, 3, dtype=torch.float64)).abs().max() < 1e-100


def test_long_vectors_are_sketched():
    model, batches = zoo.mlp().eval(), [torch.randn(50, 64) for _ in range(4)]
    sites = find(model, batches[0])
    exact = calibrate(model, sites, batches).sites["down"].moment
    short = calibrate(model, sites, batches, largest=100).sites["down"].moment
    assert (short - exact).norm() < 0.3 * exact.norm()


def test_a_calibration_goes_through_a_file(tmp_path):
    model, batches = zoo.convnet().eval(), batches_for("convnet")
    harm = harm_for("outputs", model, torch.zeros(1))
    found = calibrate(model, find(model, batches[0]), batches, harm=harm)
    file = tmp_path / "deep" / "calibration.safetensors"
    save_calibration(found, file)
    again = load_calibration(file)
    assert again is not None and again.sites.keys() == found.sites.keys() and again.batches == 3
    for path, known in found.sites.items():
        torch.testing.assert_close(again.sites[path].moment, known.moment, rtol=1e-6, atol=1e-6)
        assert again.sites[path].weight == known.weight
    file.write_bytes(file.read_bytes()[:100])
    assert load_calibration(file) is None and load_calibration(tmp_path / "none") is None


def test_generation_feeds_moments_too():
    model = zoo.gpt2().eval()
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    sites = find(model, batch)

    def run(model, batch):
        return model.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=0)

    harm = harm_for("auto", model, model(**batch))
    found = calibrate(model, sites, [batch], run=run, harm=harm)
    known = found.sites["transformer.h.0.attn.c_attn"]
    assert harm.name == "kl" and known.rows >= 2 * (6 + 3) and known.gradient is not None


def test_embeddings_are_the_mean_of_the_positions_shown():
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for row, shown in zip(embeddings(states, mask), (states[0, :3], states[1]), strict=True):
        torch.testing.assert_close(row, shown.mean(0) / shown.mean(0).norm())
    harm = harm_for("embeddings", torch.nn.Identity(), states)
    changed = states.clone()
    changed[0, 3:] += 1  # hidden
    assert harm.change([states], changed, mask) == pytest.approx((0.0, 2.0), abs=1e-12)
    changed[1] *= -1
    assert harm.shown(harm.change([states], changed, mask)[0] / 4) == pytest.approx(1)
    with pytest.raises(InputError, match=r"\(2, 8\): use kl or outputs"):
        harm_for("embeddings", torch.nn.Identity(), states[:, 0])
