import collections
import dataclasses
import functools

import einops
import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.find.guards import require
from ksurgeon.find.recording import Recording, record_run
from ksurgeon.find.recording import _hooks as hooks
from ksurgeon.find.tracer import TraceFailure, trace_module
from tests.near import near


def trace(module, *args, **kwargs):
    recording = record_run(module, args or kwargs)
    return trace_module(module, recording.first[id(module)])


class Conditions(nn.Module):
    def forward(self, x, mask=None, *, flag=True):
        if x.dim() == 3 and x.shape[1] % 2 == 0 and flag:
            x = torch.relu(x)
        if mask is not None:
            x = x * mask
        b, n, c = x.shape
        return x.reshape(b, n * c) + torch.zeros(b, 1)


def test_conditions_on_shapes_are_decided_and_guarded():
    traced = trace(Conditions(), torch.randn(2, 4, 3))
    names = [node.name for node in traced.graph.nodes]
    assert "relu" in names and "mul" in names
    assert sum(node.target is require for node in traced.graph.nodes) == 4
    assert traced.fixed == []


def test_guards_raise_where_a_condition_changes():
    require(True, True)
    with pytest.raises(RuntimeError, match="rewritten by ksurgeon"):
        require(False, True)


def test_sizes_stay_nodes():
    module = Conditions()
    graph = trace(module, torch.randn(2, 4, 3)).graph
    traced = torch.fx.GraphModule(module, graph)
    x = torch.randn(5, 6, 7)
    assert near(traced(x), module(x))


class Iterates(nn.Module):
    def forward(self, x):
        return torch.stack([row * 2 for row in x.unbind(1)])


def test_iteration_is_guarded():
    module = Iterates()
    traced = torch.fx.GraphModule(module, trace(module, torch.randn(2, 3)).graph)
    assert torch.equal(traced(torch.ones(4, 3)), torch.full((3, 4), 2.0))
    with pytest.raises(RuntimeError, match="rewritten by ksurgeon"):
        traced(torch.ones(4, 5))


class ReadsValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_control_flow_on_values_is_a_failure():
    with pytest.raises(TraceFailure, match="what is in the tensor"):
        trace(ReadsValues(), torch.ones(2, 2))


class MakesATensor(nn.Module):
    def forward(self, x):
        return x * torch.tensor([1.0, 2.0])


def test_tensors_made_in_a_forward_leave_no_trace_on_the_module():
    module = MakesATensor()
    before = set(vars(module))
    assert list(trace(module, torch.ones(3, 2)).constants)
    assert set(vars(module)) == before


def test_functions_are_as_they_were_afterwards():
    rearrange, zeros = einops.rearrange, torch.zeros
    trace(Conditions(), torch.randn(2, 4, 3))
    assert einops.rearrange is rearrange and torch.zeros is zeros


class KeepsWhatItSaw(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.seen, self.child = None, [], nn.ReLU()

    def forward(self, x):
        self.last = x
        self.seen.append(x.shape[0])
        self.child.count = 1
        return self.child(x)


def test_attributes_that_a_forward_changes_are_named_and_put_back():
    module = KeepsWhatItSaw()
    recording = record_run(module, torch.randn(2, 3))
    assert module.last is None and module.seen == [] and not hasattr(module.child, "count")
    traced = trace_module(module, recording.first[id(module)])
    assert sorted(traced.writes) == ["child.count", "last", "seen"]
    assert module.last is None and module.seen == [] and not hasattr(module.child, "count")


class LengthOfAShape(nn.Module):
    def forward(self, x):
        assert len(x.shape) == 3
        return x.flatten(1).reshape(tuple(x.shape))


def test_a_shape_has_a_length_before_it_is_a_node():
    module = LengthOfAShape()
    traced = torch.fx.GraphModule(module, trace(module, torch.randn(2, 4, 3)).graph)
    x = torch.randn(5, 6, 7)
    assert torch.equal(traced(x), x)


def decorated(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.setdefault("scale", 2.0)
        return forward(self, *args, **kwargs)

    return wrapper


@dataclasses.dataclass
class Output(collections.OrderedDict):
    """As those of transformers: a dictionary and a dataclass in one."""

    first: torch.Tensor | None = None
    second: torch.Tensor | None = None

    def __post_init__(self):
        self.update({f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None})


class Decorated(nn.Module):
    @decorated
    def forward(self, x, mask=None, *rest, flag=False, **kwargs):
        y = x * kwargs["scale"] + (0 if mask is None else mask)
        for value in rest:
            y = y + value
        if isinstance(x.shape, tuple) and x.dtype == torch.float32:
            y = y.clamp(min=torch.finfo(x.dtype).min)
        return Output(first=y + kwargs["more"] if flag else y)


@pytest.mark.parametrize("options", [{}, {"flag": True, "more": torch.ones(3)}], ids=["plain", "named"])
def test_decorated_forwards_with_stars(options):
    module = Decorated()
    args = (torch.randn(2, 3), torch.ones(3), torch.ones(2, 1), torch.ones(1))
    recording = Recording(args, 2)
    with hooks(module, recording):
        expected = module(*args, **options)
    traced = torch.fx.GraphModule(module, trace_module(module, recording.first[id(module)]).graph)
    result = traced(*args, **options)
    assert type(result) is Output
    torch.testing.assert_close(result["first"], expected["first"])


class Containers(nn.Module):
    def forward(self, named, cache):
        total = sum(value for value in named.values())
        for key, value in named.items():
            total = total + (value if key == "a" else -value)
        assert not hasattr(total, "nothing") and set(named) == {"a", "b"}
        return total + cache.keys


class Cache:
    def __init__(self, keys):
        self.keys = keys


def test_dictionaries_and_objects_with_an_attribute_called_keys():
    module, named = Containers(), {"a": torch.randn(2), "b": torch.randn(2)}
    cache = Cache(torch.ones(2))
    traced = torch.fx.GraphModule(module, trace(module, named, cache).graph)
    torch.testing.assert_close(traced(named, cache), module(named, cache))


class EntersContexts(nn.Module):
    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            return x.float() * 2


def test_contexts_are_noted():
    module = EntersContexts()
    assert {"autocast", "no_grad"} <= set(trace(module, torch.randn(2)).contexts)
    with torch.no_grad():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


class SetsItems(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, 0] = x[:, 1]
        return y


def test_items_can_be_set():
    module, x = SetsItems(), torch.randn(2, 3)
    assert torch.equal(torch.fx.GraphModule(module, trace(module, x).graph)(x), module(x))


class MakesAModule(nn.Module):
    def forward(self, x):
        return nn.Softmax(dim=-1)(x)


def test_a_module_made_by_the_forward_is_looked_into():
    module, x = MakesAModule(), torch.randn(2, 3)
    assert torch.equal(torch.fx.GraphModule(module, trace(module, x).graph)(x), module(x))


def test_buffers_that_are_not_strided_are_left_alone():
    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 8)
            self.register_buffer("edges", torch.eye(4).to_sparse())

        def forward(self, x):
            return self.edges @ self.layer(x)

    model = Graph()
    assert [site.path for site in ksurgeon.find(model, torch.randn(4, 8))] == ["layer"]
    assert model.edges.is_sparse
