"""Forwards that shapes do not decide, or that ask PyTorch for more than a traced value answers."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ksurgeon
from ksurgeon.find import Finder
from tests.near import near


class Shuffles(nn.Module):
    """A shuffle behind whatever a subclass does to the channels; a child gives them."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

    def first(self, x):
        return x

    def forward(self, x):
        return self.head(torch.channel_shuffle(self.first(self.conv(x)), 3))


class Branches(Shuffles):
    def first(self, x):
        return x if x.sum() > 0 else -x


class ReadsANumber(Shuffles):
    def first(self, x):
        return x[: int(x.abs().argmax()) + 9]


class CountsWhatIsThere(Shuffles):
    def first(self, x):
        return x * len(torch.where(x[:, 0].flatten() > 0)[0])


class LooksUp(Shuffles):
    """Numbers of a shape as keys, and rounded."""

    def first(self, x):
        return x * {2: 1.5, round(x.shape[1] / 2): 2.5}[x.shape[0]]


class Two(nn.Module):
    def forward(self, x):
        return x, None


class TakesNothing(Shuffles):
    def __init__(self):
        super().__init__()
        self.two = Two()

    def first(self, x):
        y, mask = self.two(x)
        assert isinstance(y, torch.Tensor) and isinstance((y,)[0], (list, torch.Tensor))
        return y if mask is None else y + len(mask)


class Checks(Shuffles):
    def first(self, x):
        torch._check(x.shape[1] == 12, lambda: "channels")
        torch._check_tensor_all_with(ValueError, torch.isfinite(x), "not finite")
        return x


class Maps(Shuffles):
    def first(self, x):
        scale = x.mean()
        return torch.vmap(lambda row: row * scale)(x)


class Checkpointed(Shuffles):
    def first(self, x):
        return checkpoint(torch.relu, x, use_reentrant=False)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)

    @torch.jit.script
    def doubled(x):
        return x * 2


class Scripted(Shuffles):
    def first(self, x):
        return doubled(x)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Branches, "what is in tensors"),
        (ReadsANumber, "what is in tensors"),
        (CountsWhatIsThere, "values of its tensors"),
        (LooksUp, "fixes sizes"),
        (TakesNothing, None),
        (Checks, None),
        (Maps, "makes tensors"),
        (Checkpointed, None),
        (Scripted, "makes tensors"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_shuffle_is_found_and_refused_where_the_forward_cannot_be_rewritten(network, reason):
    model, x = network(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    finder = Finder(model, x)
    assert finder.failures == {}
    (site,) = (site for site in finder.sites if site.kind == "channel_shuffle")
    assert site.groups == 3
    if reason is not None:
        assert reason in site.reason
        return
    expected = model(x)
    ksurgeon.convert(model, "shuffle", x)
    torch.testing.assert_close(model(x), expected)


def test_the_values_of_the_run_are_not_kept_and_buffers_stay_as_they_are():
    class Counts(Branches):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def first(self, x):
            self.calls.add_(0)
            return super().first(x)

    model = Counts()
    finder = Finder(model, torch.randn(2, 3, 4, 4))
    values = [node.meta.get("value") for node in finder.traces[""].graph.nodes]
    assert not any(type(value) is torch.Tensor for value in values)
    assert model.calls == 0


def test_what_is_compiled_by_torchscript_is_listed_and_its_parent_is_traced():
    class Parent(Shuffles):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.scripted = torch.jit.script(nn.Sequential(nn.Conv2d(12, 12, 1, groups=2), nn.ReLU()))
                self.followed = torch.jit.trace(nn.Linear(4, 4), torch.randn(2, 4))

        def first(self, x):
            return self.followed(self.scripted(x))

    finder = Finder(Parent(), torch.randn(2, 3, 4, 4))
    assert finder.failures == {}
    reasons = {site.path: site.reason for site in finder.sites}
    assert "torch.jit" in reasons["scripted.0"] and "torch.jit" in reasons["followed"]
    assert reasons["conv"] is None and len(reasons) == 5


def test_a_model_that_its_first_run_would_initialise_is_not_run():
    model = nn.Sequential(nn.Linear(4, 6), nn.LazyLinear(5))
    with pytest.warns(UserWarning, match="run it once first"):
        finder = Finder(model, torch.randn(2, 4))
    assert [site.reason for site in finder.sites] == [None, "not initialised yet; run the model once first"]
    assert isinstance(model[1], nn.LazyLinear)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_model_on_the_meta_device_is_run_without_values(device):
    with torch.device("meta"):
        model = Shuffles()
    finder = Finder(model, torch.randn(2, 3, 4, 4, device=device))
    assert finder.failures == {}
    assert sorted(site.kind for site in finder.sites) == [
        "channel_shuffle",
        "pointwise_conv",
        "pointwise_conv",
    ]
    assert all(site.reason is None and site.vectors == 16 for site in finder.sites)


def test_a_language_model_on_the_meta_device():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    sites = ksurgeon.find(model)
    assert len(sites) == 15 and all(site.vectors for site in sites)


class CalledInManyWays(nn.Module):
    """The first module is called with another number every time; another one that shuffles is called once."""

    def __init__(self, times):
        super().__init__()

        class Scaled(Shuffles):
            def forward(self, x, times=0):
                x = torch.channel_shuffle(self.conv(x), 3)
                return torch.cat([x] * (1 + times // 40), 1)

        self.scaled, self.once, self.times = Scaled(), Shuffles(), times

    def forward(self, x):
        for number in range(self.times):
            y = self.scaled(x, number)
        return self.once(x) + y.mean()


@pytest.mark.parametrize("times", [2, 42])
def test_an_owner_called_otherwise_is_left_and_the_rest_converted(times):
    model, x = CalledInManyWays(times).eval(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    conversion = ksurgeon.convert(model, "shuffle", x)
    assert len(conversion.results) == (2 if times == 2 else 1)
    assert near(model(x), expected)


class HoldsInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shuffle, self.head = nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1)
        self.steps = [self.conv, self.shuffle, self.head]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def test_modules_that_a_list_holds_are_not_swapped():
    sites = Finder(HoldsInAList(), torch.randn(2, 3, 4, 4)).sites
    assert [site.path for site in sites] == ["conv", "shuffle", "head"]
    assert all("HoldsInAList.steps holds it too" in site.reason for site in sites)


class SortsByWhatIsThere(Shuffles):
    def __init__(self):
        super().__init__()
        self.order = Order()

    def first(self, x):
        return x[:, self.order(x)]


class Order(nn.Module):
    def forward(self, x):
        return x.mean((0, 2, 3)).argsort()


def test_an_index_that_a_child_computes_is_no_fixed_permutation():
    finder = Finder(SortsByWhatIsThere(), torch.randn(2, 3, 4, 4))
    assert finder.failures == {}
    assert [site.kind for site in finder.sites if site.nodes] == ["channel_shuffle"]


class Doubles(Shuffles):
    """An index that is added to itself again and again: a graph with far more paths than nodes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("zero", torch.zeros(12, dtype=torch.long))
        self.register_buffer("index", torch.arange(12).flip(0))

    def first(self, x):
        zero = self.zero
        for _ in range(60):
            zero = zero + zero
        return x[:, self.index + zero]


def test_constants_are_looked_at_once():
    finder = Finder(Doubles(), torch.randn(2, 3, 4, 4))
    assert {site.kind for site in finder.sites} == {"pointwise_conv", "channel_shuffle", "permutation"}


def test_a_layer_whose_sizes_are_tensors():
    layer = nn.Linear(4, 6)
    layer.in_features, layer.out_features = torch.tensor(4), torch.tensor(6)
    (site,) = Finder(nn.Sequential(layer), torch.randn(2, 4)).sites
    assert (site.in_features, site.out_features, site.reason) == (4, 6, None)
