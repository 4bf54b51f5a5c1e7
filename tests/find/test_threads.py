"""What other threads, and code that is interrupted, see of the patches under which forwards are traced."""

import builtins
import itertools
import math
import threading

import einops
import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.find.patching import patched

PLACES = {
    "isinstance": lambda: builtins.isinstance,
    "zeros": lambda: torch.zeros,
    "vmap": lambda: torch.vmap,
    "sqrt": lambda: math.sqrt,
    "rearrange": lambda: einops.rearrange,
    "call": lambda: nn.Module.__call__,
    "getattr": lambda: nn.Module.__getattr__,
    "no_grad": lambda: torch.no_grad.__enter__,
    "globals": lambda: globals().get("isinstance"),
}


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = {name: place() for name, place in PLACES.items()}
    yield
    assert [name for name, place in PLACES.items() if place() is not before[name]] == []


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x):
        y = x.view(x.shape[0], 4, 4).transpose(1, 2).reshape(x.shape[0], 16)
        return y + torch.relu(self.a(x)) * math.sqrt(x.shape[1])


class Meets(Block):
    """Lets something happen while its forward is traced, which is its second run."""

    meeting = 2

    def __init__(self, event):
        super().__init__()
        self.__dict__.update(event=event, runs=itertools.count(1))

    def forward(self, x):
        if next(self.runs) == self.meeting:
            self.event()
        return super().forward(x)


X = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
FOUND = [("channel_shuffle", "reshape"), ("linear", "a")]


def found(model):
    return sorted((site.kind, site.path.rpartition(":")[2]) for site in ksurgeon.find(model, X))


def in_a_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(60)
    return results


def test_another_thread_computes_and_traces_as_ever():
    seen = []

    def work():
        with torch.no_grad():
            y = Block()(X)
        assert type(y) is torch.Tensor and type(math.sqrt(2)) is float
        assert torch.equal(torch.reshape(torch.zeros(2, 2), (4,)), torch.zeros(4))
        assert torch.equal(torch.vmap(lambda row: row * 2)(X), X * 2)
        return einops.rearrange(X, "a (b c) -> a c b", b=2).shape

    model = Meets(lambda: seen.extend(in_a_thread(work)))
    sites = ksurgeon.find(model, X)
    assert [site.reason for site in sites] == [None, None], "the no_grad was not the forward's"
    assert seen == [(2, 8, 2)]


def test_two_threads_find_at_once():
    model, results = Block().eval(), []
    both = threading.Barrier(2)

    def work(own):
        both.wait(60)
        results.append(found(own))

    threads = [threading.Thread(target=work, args=(own,)) for own in (model, nn.Sequential(model))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(map(len, results)) == [2, 2]


def test_another_thread_runs_the_model_while_it_is_recorded():
    model = Meets(lambda: in_a_thread(lambda: model(X)))
    model.__dict__["meeting"] = 1
    assert found(model) == FOUND


def test_a_forward_that_finds():
    inner = []
    model = Meets(lambda: inner.append(found(Block())))
    assert found(model) == FOUND and inner == [FOUND]


def test_an_interrupted_trace():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(Meets(stop))


def test_what_another_tool_put_over_a_patch_is_left_and_healed_later():
    plain = torch.zeros
    with patched():
        stand_in = torch.zeros
        torch.zeros = mine = lambda *args, **kwargs: stand_in(*args, **kwargs)
    assert torch.zeros is mine and stand_in is not plain
    torch.zeros = stand_in
    assert torch.equal(torch.zeros(2), plain(2))
    with patched():
        assert torch.zeros is stand_in
    assert torch.zeros is plain


def test_patches_are_put_once_for_a_model(monkeypatch):
    from ksurgeon.find import patching

    puts, places = [], patching.places
    monkeypatch.setattr(patching, "places", lambda: puts.append(1) or places())
    found(nn.Sequential(*[Block() for _ in range(5)]))
    assert len(puts) <= 2  # once more for what needs values
