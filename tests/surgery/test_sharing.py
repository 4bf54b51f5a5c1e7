"""One layer in several places, tied tensors, K-layers of the model's own: what is saved loads again."""

import copy
import json
import tempfile

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ksurgeon
from ksurgeon import KLinear, RecordError, Rule, SurgeryError
from ksurgeon.kmatrix.structures import LowRank
from ksurgeon.surgery import record
from ksurgeon.surgery.sharing import sharing

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
DENSE = {"with": {"structure": "dense"}, "start": "exact"}
RULE = Rule(name="all", replace=[{"find": kind, **DENSE} for kind in ("linear", "pointwise_conv")])


class Net(nn.Module):
    """Layers in a row; ``shared`` makes one of the first two."""

    def __init__(self, shared=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        if shared:
            self.b = self.a

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Repeated(nn.Module):
    """Blocks that are one block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.blocks = nn.ModuleList([block, block, block])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Attention(nn.Module):
    """One attention under two names, whose fused weight is a parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.MultiheadAttention(16, 2, batch_first=True)
        self.b = self.a

    def forward(self, x):
        x = x.unsqueeze(0)
        return self.b(self.a(x, x, x)[0], x, x)[0]


def nothing(model):
    pass


def share_layer(model):
    model.b = model.a


def share_with_a_new_place(model):
    model.extra = model.a


def share_matrix(model):
    model.b.matrix = model.a.matrix


def tie_factor(model):
    model.b.matrix.factors[0] = model.a.matrix.factors[0]


def tie_dense(model):
    model.b.bias = model.c.bias


def share_memory(model):
    model.b.bias.data = model.c.bias.data


def part_layer(model):
    model.b = copy.deepcopy(model.a)
    nn.init.ones_(model.b.bias)


def part_factor(model):
    share_layer(model)
    model.b = copy.deepcopy(model.a)
    model.b.matrix.factors[0] = model.a.matrix.factors[0]
    nn.init.ones_(model.b.bias)


def other_structure(model):
    torch.manual_seed(3)
    model.b = KLinear(16, 16, structure=LowRank(rank=2))


CASES = {
    "one layer": (lambda: Net(shared=True), nothing),
    "one block": (Repeated, nothing),
    "one attention": (Attention, nothing),
    "shared afterwards": (Net, share_layer),
    "in a new place": (Net, share_with_a_new_place),
    "one matrix": (Net, share_matrix),
    "one factor": (Net, tie_factor),
    "one bias": (Net, tie_dense),
    "one memory": (Net, share_memory),
    "parted afterwards": (lambda: Net(shared=True), part_layer),
    "parted but for a factor": (lambda: Net(shared=True), part_factor),
    "another structure": (Net, other_structure),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_is_shared_is_shared_again(tmp_path, case):
    build, edit = CASES[case]
    model = ksurgeon.replace_modules(build().eval(), RULE, X)
    edit(model)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"), model=build())
    assert torch.equal(loaded(X), model(X))
    assert sharing(loaded) == sharing(model)
    assert set(loaded.state_dict()) == set(model.state_dict())
    again = ksurgeon.load(ksurgeon.save(loaded, tmp_path / "again"), model=build())
    assert torch.equal(again(X), model(X)) and sharing(again) == sharing(model)
    torch.testing.assert_close(ksurgeon.revert(again)(X), model(X), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("own", [KLinear, ksurgeon.KPointwiseConv])
def test_k_layers_of_the_models_own_stay(tmp_path, own):
    def build():
        torch.manual_seed(0)
        if own is KLinear:
            return nn.Sequential(KLinear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
        return nn.Sequential(
            nn.Unflatten(1, (16, 1)), own(16, 16, dims=1), nn.Flatten(), nn.Linear(16, 16)
        ).eval()

    model = ksurgeon.replace_modules(build(), RULE, X)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"), model=build())
    assert torch.equal(loaded(X), model(X))
    loaded.extra = KLinear(16, 16)  # and one that came later

    def extended():
        fresh = build()
        fresh.extra = KLinear(16, 16)
        return fresh

    again = ksurgeon.load(ksurgeon.save(loaded, tmp_path / "again"), model=extended())
    assert torch.equal(again.extra.weight, loaded.extra.weight)


def test_a_front_end_of_the_models_own_stays(tmp_path):
    transformers = pytest.importorskip("transformers")

    def build():
        torch.manual_seed(0)
        extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
        front = ksurgeon.KFrontend.from_feature_extractor(extractor)
        return nn.Sequential(front, nn.Linear(100, 100)).eval()

    wave = torch.randn(2, 16000)
    model = ksurgeon.replace_modules(build(), RULE, wave)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"), model=build())
    assert torch.equal(loaded(wave), model(wave))


class Wrapper(nn.Module):
    """As an adapter stands around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.extra = layer, nn.Linear(16, 16)

    def forward(self, x):
        return self.base_layer(x) + self.extra(x)


def wrap(model):
    model.a = Wrapper(model.a)


def lose_bias(model):
    model.a.bias = None


def add_child(model):
    model.a.extra = nn.Linear(16, 16)


def prune_factor(model):
    prune.l1_unstructured(model.a.matrix.factors, "0", 0.5)


def forget_values(model):
    model.c.to("meta")


def free_values(model):
    model.c.bias.untyped_storage().resize_(0)


@pytest.mark.parametrize("edit", [wrap, lose_bias, add_child, prune_factor, forget_values, free_values])
def test_what_could_not_be_loaded_is_refused_before_it_is_written(tmp_path, edit):
    model = ksurgeon.replace_modules(Net().eval(), RULE, X)
    edit(model)
    with pytest.raises((SurgeryError, ksurgeon.FolderError), match=r"^[ac]\b"):
        ksurgeon.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_half_of_a_shared_layer_is_refused(tmp_path):
    model = ksurgeon.replace_modules(Net(shared=True).eval(), RULE, X)
    model.b = nn.Linear(16, 16)
    with pytest.raises(SurgeryError, match=r"^b was a K-layer"):
        ksurgeon.save(model, tmp_path / "model")


def test_a_source_that_builds_another_model_is_refused_before_the_work(tmp_path):
    model, before = Net().eval(), str(Net())
    with pytest.raises(SurgeryError, match="does not build this model"):
        ksurgeon.convert(model, RULE, X, source="tests.zoo:mlp", progress=lambda *_: pytest.fail("fitted"))
    assert str(model) == before
    ksurgeon.convert(model, RULE, X)
    with pytest.raises(SurgeryError, match="does not build this model"):
        ksurgeon.save(model, tmp_path / "model", source="tests.zoo:mlp")
    assert not list(tmp_path.iterdir())


class Checked(nn.Linear):
    """Takes positive numbers alone."""

    def forward(self, x):
        if not bool((x > 0).all()):
            raise ValueError("positive numbers only")
        return super().forward(x)


class Shuffling(nn.Module):
    def forward(self, x):
        return x.view(-1, 4, 4).transpose(1, 2).reshape(-1, 16)


def checked():
    return nn.Sequential(Checked(16, 16), Shuffling()).eval()


def test_inputs_that_cannot_be_made_again_are_told_at_once(tmp_path):
    model = checked()
    before = str(model)
    with pytest.raises(SurgeryError, match="found again"):
        ksurgeon.convert(model, "shuffle", X.abs() + 1, source=f"{__name__}:checked")
    assert str(model) == before
    with pytest.warns(UserWarning, match="will refuse"):
        ksurgeon.replace_modules(model, "shuffle", X.abs() + 1)
    with pytest.raises(SurgeryError, match="found again"):
        ksurgeon.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def shuffling():
    return nn.Sequential(nn.Identity(), Shuffling()).eval()


@pytest.mark.parametrize("rows", [6, 7])
def test_of_a_large_batch_as_much_is_recorded_as_is_made_again(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(record, "_LARGEST_INPUTS", 100)
    model, x = shuffling(), torch.randn(rows, 16)
    ksurgeon.convert(model, "shuffle", x, source=f"{__name__}:shuffling")
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    assert torch.equal(loaded(x), model(x))
    assert record.inputs_from(record.record_of(loaded).inputs)[0].shape == (6, 16)


@pytest.mark.parametrize("inputs", [{"x": torch.ones(5, 16), "y": torch.ones(2, 16)}, torch.ones(1, 101)])
def test_inputs_that_are_too_large_by_themselves_are_not_recorded(monkeypatch, inputs):
    monkeypatch.setattr(record, "_LARGEST_INPUTS", 100)
    assert record.describe_inputs(inputs) is None


@pytest.mark.parametrize(
    "shared", [{"a.matrix": "a"}, {"nowhere.b": "a"}, {"b.bias": "c"}, {"b.bias": "d.bias"}, {"a": ""}]
)
def test_sharing_that_makes_no_sense_leaves_a_given_model_as_it_was(tmp_path, shared):
    model = ksurgeon.replace_modules(Net().eval(), RULE, X)
    file = ksurgeon.save(model, tmp_path / "model") / "ksurgeon.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shared": shared}))
    given = Net()
    before, state = str(given), copy.deepcopy(given.state_dict())
    with pytest.raises(RecordError):
        ksurgeon.load(tmp_path / "model", model=given)
    assert str(given) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())


def test_views_of_one_memory_are_saved_one_by_one(tmp_path):
    only = Rule(name="a", replace=[{"find": "linear", "targets": ["a"], **DENSE}])
    model = ksurgeon.replace_modules(Net().eval(), only, X)
    model.b.bias.data = model.c.weight.data.view(-1)[:16]
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"), model=Net())
    assert torch.equal(loaded(X), model(X))


def test_blocks_that_are_shared_and_share_inside():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.b(self.a(x))

    def make():
        torch.manual_seed(0)
        return nn.Sequential(Block(), Block())

    model = ksurgeon.convert(make(), RULE, X).model
    model[0].b = model[0].a
    model[1] = model[0]
    with tempfile.TemporaryDirectory() as folder:
        loaded = ksurgeon.load(ksurgeon.save(model, f"{folder}/model"), make())
    assert loaded[1].b is loaded[0].a
    torch.testing.assert_close(loaded(X), model(X))
