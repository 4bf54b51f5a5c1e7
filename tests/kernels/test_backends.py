"""Backends of somebody else's: registered by hand or by an entry point, chosen, counted, and left out."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

import ksurgeon
from ksurgeon import Backend, KLinear, plugins, register_backend
from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import (
    apply_chain,
    available_backends,
    chosen_backend,
    cpu,
    reference,
    reference_only,
    registry,
)
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.kmatrix.int8 import quantized

FACTORS = [torch.randn(2, 3, 4, 5), torch.randn(1, 4, 6, 6)]


class Counting(Backend):
    """Plain PyTorch that counts; what it is asked is in ``asked``."""

    name, device_types = "counting", ("cpu",)

    def __init__(self) -> None:
        self.asked: list[torch.Size] = []

    def multiply(
        self, x: Tensor, factors: tuple[Tensor, ...], dim: int, bias: Tensor | None, activation: str | None
    ) -> Tensor | None:
        self.asked.append(x.shape)
        return reference.apply_chain(x, factors, dim, bias, activation)


class Trained(Counting):
    trains = True


class Compiled(Counting):
    compiles = True

    def multiply(
        self, x: Tensor, factors: tuple[Tensor, ...], dim: int, bias: Tensor | None, activation: str | None
    ) -> Tensor | None:
        return reference.apply_chain(x, factors, dim, bias, activation) + 1  # to be seen in what is compiled


class Unable(Counting):
    def multiply(self, x: Tensor, *arguments: object) -> Tensor | None:
        self.asked.append(x.shape)
        return None


class Short(Counting):
    """With a short cut and the other capabilities, each of which says that it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def at_once(
        self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None
    ) -> Tensor | None:
        self.said.append("at_once")
        return None

    def few_rows(self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
        self.said.append("few_rows")
        return None

    def apply_int8(self, x: Tensor, *arguments: object) -> Tensor | None:
        self.said.append("int8")
        return None

    def linear_by_copy(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        self.said.append("copy")
        return None


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is forgotten."""
    before = dict(registry.REGISTERED)
    monkeypatch.delenv("KSURGEON_BACKEND", raising=False)
    monkeypatch.setattr(plugins, "_failed", {})
    CHOSEN.clear()
    yield
    registry.REGISTERED.clear()
    registry.REGISTERED.update(before)
    CHOSEN.clear()


def expected(x: Tensor, dim: int = -1, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    return reference.apply_chain(x, FACTORS, dim, bias, activation)


def test_a_backend_from_outside_is_used_for_its_devices() -> None:
    apply_chain(torch.randn(2, 30), FACTORS)  # by ours, which was chosen before
    backend = register_backend(Counting())
    layer, x = KLinear(64, 64).eval(), torch.randn(3, 64)
    with torch.no_grad():
        y = layer(x)
    assert backend.asked == [x.shape] and chosen_backend() == "counting"
    with reference_only():
        torch.testing.assert_close(layer(x), y)
    assert len(backend.asked) == 1, "another choice inside"
    with torch.no_grad():
        layer(x)
    assert len(backend.asked) == 2, "and the same one afterwards"


def test_one_for_another_kind_of_device_leaves_the_cpu_alone() -> None:
    class Meta(Counting):
        device_types = ("meta",)

    backend = register_backend(Meta())
    x = torch.randn(2, 30)
    torch.testing.assert_close(apply_chain(x, FACTORS), expected(x))
    assert not backend.asked
    moved = [factor.to("meta") for factor in FACTORS]
    with torch.no_grad():
        assert apply_chain(x.to("meta"), moved).shape == (2, 24)
    assert backend.asked == [x.shape] and chosen_backend(torch.device("meta")) == "counting"


def test_a_class_is_registered_as_an_instance_and_the_decorator_gives_it_back() -> None:
    decorated = register_backend(Counting)
    assert decorated is Counting and isinstance(registry.REGISTERED["counting"], Counting)
    register_backend(Counting)  # a cell that is run again
    assert available_backends().count("counting") == 1


def test_what_is_no_backend_or_has_no_name_is_refused() -> None:
    with pytest.raises(TypeError, match="a subclass of ksurgeon"):
        register_backend(print)  # type: ignore[type-var]
    for changes in ({"name": ""}, {"device_types": ()}):
        with pytest.raises(ValueError, match="name and device_types"):
            register_backend(type("Incomplete", (Counting,), changes))
    for name in ("reference", "auto"):
        with pytest.raises(ValueError, match=f"the name '{name}'.*choose another"):
            register_backend(type("Usurper", (Counting,), {"name": name}))


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("dim", [-1, 1])
def test_what_it_cannot_do_is_left_to_the_reference(dim: int, activation: str | None) -> None:
    backend = register_backend(Unable())
    x, bias = torch.randn(2, 30) if dim < 0 else torch.randn(2, 30, 5), torch.randn(24)
    with torch.no_grad():
        y = apply_chain(x, FACTORS, dim, bias, activation)
    torch.testing.assert_close(y, expected(x, dim, bias, activation))
    assert backend.asked == [x.shape]


def test_it_is_asked_for_what_it_declares_alone() -> None:
    backend = register_backend(Counting())
    x, doubles = torch.randn(2, 30), [factor.double() for factor in FACTORS]
    wanted = [factor.clone().requires_grad_() for factor in FACTORS]
    apply_chain(x.double(), doubles)
    apply_chain(x, wanted).sum().backward()
    assert wanted[0].grad is not None
    torch.func.vmap(lambda v: apply_chain(v, FACTORS))(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apply_chain(x, FACTORS)
    with pytest.raises(RuntimeError):  # the reference's own
        apply_chain(x[:, 1:], FACTORS)
    assert not backend.asked
    apply_chain(x, FACTORS)
    assert len(backend.asked) == 1


def test_one_that_trains_is_asked_in_training() -> None:
    backend = register_backend(Trained())
    wanted = [factor.clone().requires_grad_() for factor in FACTORS]
    apply_chain(torch.randn(2, 30), wanted).sum().backward()
    assert len(backend.asked) == 1 and all(factor.grad is not None for factor in wanted)


@pytest.mark.parametrize(("kind", "more"), [(Counting, 0), (Compiled, 1)])
def test_a_compiler_sees_those_that_compile(kind: type[Counting], more: int) -> None:
    register_backend(kind())
    layer, x = KLinear(16, 16).eval(), torch.randn(3, 16)
    want = reference.apply_chain(x, list(layer.matrix.factors), -1, layer.bias) + more
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    try:
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(compiled(x), want)
    finally:
        torch._dynamo.reset()


def test_short_cuts_are_asked_once_the_backend_is_chosen() -> None:
    backend = register_backend(Short())
    layer, x = KLinear(64, 64).eval(), torch.randn(3, 64)
    with torch.no_grad():
        layer(x)
        assert backend.said == []
        layer(x)
        assert backend.said == ["at_once"]
        dense = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
        want = dense(x)
        ksurgeon.prepack(dense)
        torch.testing.assert_close(dense(x), want)
        assert backend.said[-2:] == ["at_once", "few_rows"]
        matrix = ksurgeon.KMatrix(64)
        want, got = matrix(x), quantized(matrix)(x)
        assert backend.said[-1] == "int8" and (got - want).norm() < 0.05 * want.norm()


def test_the_short_cuts_of_two_backends_are_both_asked() -> None:
    class Other(Short):
        name, device_types = "other", ("meta",)

    here, there = register_backend(Short()), register_backend(Other())
    x = torch.randn(2, 30)
    with torch.no_grad():
        apply_chain(x, FACTORS)
        apply_chain(x.to("meta"), [factor.to("meta") for factor in FACTORS])
    assert CHOSEN.at_once(x, FACTORS, None, -1, None) is None
    assert (here.said, there.said) == (["at_once"], ["at_once"])


def test_the_variable_names_one_and_errors_name_all(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = register_backend(Counting())
    x = torch.randn(2, 30)
    monkeypatch.setenv("KSURGEON_BACKEND", "reference")
    assert chosen_backend() == "reference"
    torch.testing.assert_close(apply_chain(x, FACTORS), expected(x))
    assert not backend.asked
    monkeypatch.setenv("KSURGEON_BACKEND", "counting")
    assert chosen_backend() == "counting"
    assert chosen_backend(torch.device("meta")) == "reference", "it is not for such devices"
    monkeypatch.setenv("KSURGEON_BACKEND", "nowhere")
    with pytest.raises(KsurgeonError, match=r"'nowhere'.*reference, .*counting.*install the package"):
        chosen_backend()


def test_one_that_is_missing_gives_way_to_the_next_and_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "why_missing", lambda self, device=None: "its chip is not there")
    backend, before = register_backend(Counting()), chosen_backend()
    assert before == ("cpu" if cpu.is_available() else "reference") and "counting" not in available_backends()
    apply_chain(torch.randn(2, 30), FACTORS)
    assert not backend.asked
    monkeypatch.setenv("KSURGEON_BACKEND", "counting")
    with pytest.raises(KsurgeonError, match=r"counting: its chip is not there"):
        chosen_backend()


def test_devices_that_are_left_to_the_reference_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "device_types", ("meta",))
    monkeypatch.setattr(Counting, "why_missing", lambda self, device=None: "its chip is not there")
    register_backend(Counting())
    x, factors = torch.randn(2, 30, device="meta"), [factor.to("meta") for factor in FACTORS]
    with pytest.warns(UserWarning, match="meta: backend counting: its chip is not there.*reference") as told:
        apply_chain(x, factors)
        apply_chain(x, factors)
    assert len(told) == 1


class _Package:
    name = "somebodys-package"


class _Point(EntryPoint):
    dist = _Package()


def installed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Another package with an entry point."""
    points = [_Point(name, f"{__name__}:{value}", registry.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == registry.GROUP else [])
    monkeypatch.setattr(_Point, "load", lambda self: globals()[self.value.partition(":")[2]])


def test_a_package_registers_a_backend_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "counting", "Counting")
    assert chosen_backend() == "counting"
    with torch.no_grad():
        apply_chain(torch.randn(2, 30), FACTORS)
    backend = registry.REGISTERED["counting"]
    assert isinstance(backend, Counting) and len(backend.asked) == 1


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("counting", "Nowhere", "KeyError"), ("other", "Counting", "entry point, 'other'")],
)
def test_a_broken_entry_point_is_told_and_is_not_fatal(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    installed(monkeypatch, name, value)
    x = torch.randn(2, 30)
    with pytest.warns(UserWarning, match=f'"{name}" of the package somebodys-package .*: .*{why}'):
        y = apply_chain(x, FACTORS)
    torch.testing.assert_close(y, expected(x))
    monkeypatch.setenv("KSURGEON_BACKEND", name)
    with pytest.raises(KsurgeonError, match=why):
        chosen_backend()
    assert why in registry.broken_backends()[name]


def test_doctor_lists_backends_from_outside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ksurgeon.cli import doctor
    from ksurgeon.cli.commands import Doctor

    register_backend(Counting)
    doctor.run(Doctor(json=True))
    told = json.loads(capsys.readouterr().out)
    assert told["registered_backends"]["counting"] == {"device_types": ["cpu"], "missing": None}
    assert told["backend"] == "counting" and "counting" in told["backends"]
    monkeypatch.setattr(Counting, "why_missing", lambda self, device=None: "its chip [is] not there")
    doctor.run(Doctor())
    said = capsys.readouterr().out
    assert "counting kernels" in said and "its chip [is] not there" in said
