"""The short path of small products, along any dimension: its results, and where it is taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrize, prune

from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.cpu import run
from ksurgeon.kernels.cpu.native import fast
from ksurgeon.kernels.layout import FEWEST_COLUMNS
from ksurgeon.kernels.permutation import permutation_of
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.structures import Kaleidoscope
from tests.chains import TOLERANCE, assert_near, chains, dense, drawn
from tests.kernels.layouts import LAYOUTS, exact, layer_of, vectors

pytestmark = pytest.mark.skipif(fast is None, reason="the short path was not compiled")


@contextmanager
def long_calls() -> Iterator[list[int]]:
    """Counts products that take the long path, each once for every time that weights are packed."""
    calls: list[int] = []
    forward = run._forward

    def counted(*args: object) -> Tensor | None:
        calls.append(1)
        return forward(*args)

    run._forward = counted
    try:
        yield calls
    finally:
        run._forward = forward


@settings(max_examples=150, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from(list(TOLERANCE)),
    before=st.sampled_from([(), (1,), (3,), (2, 5)]),
    after=st.sampled_from([(), (1,), (7,), (8,), (3, 5), (2, 2, 2), (50,), (70,)]),
    layout=st.sampled_from(["contiguous", "last", "strided"]),
    with_bias=st.booleans(),
    activation=st.sampled_from([None, "relu", "gelu"]),
    negative=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_later_products_are_those_of_the_first(
    shapes: list[tuple[int, int, int, int]],
    dtype: torch.dtype,
    before: tuple[int, ...],
    after: tuple[int, ...],
    layout: str,
    with_bias: bool,
    activation: str | None,
    negative: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    factors = tuple(drawn(dtype, *shape) / shape[3] ** 0.5 for shape in shapes)
    matrix = dense(list(factors))
    x, dim = drawn(dtype, *before, matrix.shape[1], *after), len(before)
    if layout == "last":
        x = x.movedim(dim, -1).contiguous().movedim(-1, dim)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    bias = drawn(dtype, len(matrix)) if with_bias else None
    activation = None if dtype.is_complex else activation
    want = (x.to(matrix.dtype).movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    if bias is not None:
        want = want + bias.to(matrix.dtype).view(-1, *[1] * len(after))
    want = activate(want, activation)
    asked, kept, in_rows = dim - x.dim() if negative else dim, x.clone(), x.movedim(dim, -1).is_contiguous()
    with torch.no_grad(), long_calls() as calls:
        got = [cpu.apply_chain(x, factors, asked, bias, activation) for _ in range(3)]
    for y in got:
        assert_near(y, want, dtype)
        assert y.stride() == got[0].stride() or dim == x.dim() - 1
        assert y.is_contiguous() or in_rows or not x.is_contiguous()
    assert torch.equal(x, kept) and len({y.data_ptr() for y in got}) == 3
    narrow = not in_rows and prod(after) < FEWEST_COLUMNS
    is_large = (x.numel() + want.numel()) * x.element_size() > 1 << 18  # PyTorch then makes the copies
    short = in_rows or (x.is_contiguous() and x.numel() and not (narrow and is_large))
    copied = permutation_of(factors) is not None and (with_bias or activation)  # what PyTorch adds to
    assert len(calls) == (1 if short and not copied else 3)


@pytest.mark.parametrize("layout", ["columns", "channels last"])
@pytest.mark.parametrize("start", ["random", "orthogonal"])
def test_shuffles_are_short(start: str, layout: str) -> None:
    structure = Kaleidoscope(parametrization="orthogonal") if start == "orthogonal" else None
    layer = KChannelShuffle(32, 4, structure=structure, start=start)
    x = vectors(layout, 2, layer.in_features)
    with torch.inference_mode():
        layer(x)
        with long_calls() as calls:
            for _ in range(2):
                assert_near(layer(x), exact(layer, x), torch.float32)
                assert layer(x).stride() == x.stride()
                next(layer.parameters()).data.mul_(2)
        assert len(calls) == 2  # one finds the write, the next has packed the weights again


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_permutations_are_short_copies(layout: str, dtype: torch.dtype) -> None:
    index = torch.randperm(16)
    matrix = KMatrix.from_permutation(index, dtype=dtype)
    x = vectors(layout, 3, 16, dtype)
    x[0, 0], x[1, 1] = torch.inf, torch.nan
    with torch.no_grad(), long_calls() as calls:
        for _ in range(3):
            y = matrix(x, 1)
            torch.testing.assert_close(y, x[:, index], rtol=0, atol=0, equal_nan=True)
            assert y.stride() == x.stride()
        assert len(calls) == 1
        odd = x.conj() if dtype.is_complex else x.flip(0)
        torch.testing.assert_close(matrix(odd, 1), odd[:, index], rtol=0, atol=0, equal_nan=True)
        x = vectors(layout, 3, 16, dtype)
        for write in (lambda p: p.data.neg_(), lambda p: p.copy_(p.roll(1, 2)), lambda p: p.data.zero_()):
            write(matrix.factors[1])
            product = dense(list(matrix.factors))
            want = (x.movedim(1, -1).to(product.dtype) @ product.T).movedim(-1, 1)
            for _ in range(2):
                assert_near(matrix(x, 1), want, dtype)


def test_a_large_copy_is_shared_by_threads() -> None:
    index, threads = torch.randperm(64), torch.get_num_threads()
    x = torch.randn(2, 64, 64, 64)
    try:
        for count, expected in ((1, 1), (2, 3)):
            torch.set_num_threads(count)
            matrix = KMatrix.from_permutation(index)
            with torch.no_grad(), long_calls() as calls:
                for _ in range(3):
                    assert torch.equal(matrix(x, 1), x[:, index])
            assert len(calls) == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["columns", "channels last"])
def test_what_surrounds_a_layer_is_obeyed(layout: str) -> None:
    """Autocast, other dtypes, transforms, subclasses, gradients and wrong sizes after a short product."""
    layer, x = KChannelShuffle(16, 4, start="random"), vectors(layout, 2, 16)

    class Odd(Tensor):
        pass

    with torch.no_grad():
        for _ in range(2):
            want = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.float32
            assert layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer(x.double()).dtype == torch.float64
        assert isinstance(layer(x.as_subclass(Odd)), Odd)
        torch.testing.assert_close(torch.func.vmap(layer)(torch.stack([x, x]).contiguous())[1], want)
        for wrong in (x[:, :15], x[0, 0, 0], x[0, 0, 0, 0]):
            with pytest.raises((ValueError, IndexError)):
                layer(wrong)
        traced = torch.fx.symbolic_trace(nn.Sequential(layer))
        torch.testing.assert_close(traced(x), want)
        for slanted in (x.mT, x[..., ::2], x[:, :, :1], x[:0], x[..., :0]):
            torch.testing.assert_close(layer(slanted), exact(layer, slanted).float(), rtol=1e-4, atol=1e-5)
            assert layer(slanted).is_contiguous() or layer(slanted).stride() == slanted.stride()
    y = layer(x.clone().requires_grad_())
    y.sum().backward()
    assert all(factor.grad is not None for factor in layer.matrix.factors)


def test_other_names_and_hooks_of_factors_are_seen() -> None:
    matrix, x = KMatrix(16, 16), torch.randn(2, 16, 9)
    with torch.no_grad():
        for _ in range(2):
            want = matrix(x, 1)
        prune.random_unstructured(matrix.factors, "0", 0.5)
        mask, kept = matrix.factors[0] != 0, matrix.factors._parameters["0_orig"]
        assert not torch.allclose(matrix(x, 1), want)
        factors = [kept * mask, *list(matrix.factors)[1:]]
        torch.testing.assert_close(matrix(x, 1), (dense(factors) @ x.double()).float())
        prune.remove(matrix.factors, "0")
        torch.testing.assert_close(matrix(x, 1), (dense(list(matrix.factors)) @ x.double()).float())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["x", "bias", "factors"])
@pytest.mark.parametrize("view", [lambda t: t.conj(), lambda t: (1j * t).conj().imag], ids=["conj", "neg"])
def test_what_is_not_as_stored(layout: str, part: str, view: Callable[[Tensor], Tensor]) -> None:
    pairs = torch.complex64
    dtype = view(torch.zeros(2, dtype=pairs)).dtype
    layer, x = layer_of(layout, 16, 16, dtype=dtype), vectors(layout, 2, 16, dtype)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        if part == "x":
            x = view(vectors(layout, 2, 16, pairs))
        elif part == "bias":
            layer.bias = nn.Parameter(view(drawn(pairs, 16)))
        else:
            layer.matrix.factors[0] = nn.Parameter(view(drawn(pairs, *layer.matrix.factors[0].shape)))
        odd = {"x": x, "bias": layer.bias, "factors": layer.matrix.factors[0]}[part]
        assert odd.is_conj() or odd.is_neg()
        for _ in range(3):
            assert_near(layer(x), exact(layer, x), dtype)


def test_a_bias_that_does_not_fit_is_refused_after_a_short_product() -> None:
    layer, x = KPointwiseConv(16, 32), torch.randn(1, 16, 3, 3)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        layer.bias = nn.Parameter(torch.zeros(16))
        with pytest.raises(ValueError, match="bias must have shape"):
            layer(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("view", "dtype"), [(torch.conj, torch.complex64), (torch._neg_view, torch.complex128)]
)
def test_marks_set_in_place_are_seen(
    view: Callable[[Tensor], Tensor], dtype: torch.dtype, layout: str
) -> None:
    layer, x = layer_of(layout, 16, 16, dtype=dtype), vectors(layout, 2, 16, dtype)

    def check(calls: int | None = None) -> None:
        with torch.no_grad(), long_calls() as long:
            for _ in range(3):
                assert_near(layer(x), exact(layer, x), dtype)
        assert calls is None or len(long) == calls

    check(1)
    layer._apply(view)
    check()
    layer._apply(view)
    check(1)
    for parameter in layer.matrix.parameters():
        parameter.data = view(parameter.data)
        check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_marks_set_in_place_are_seen_in_training(layout: str) -> None:
    layer, x = layer_of(layout, 16, 16, dtype=torch.complex128), vectors(layout, 40, 16, torch.complex128)
    x.requires_grad_()
    for _ in range(2):
        factors = list(layer.matrix.factors)
        products = layer(x), reference.apply_chain(x, factors, 1, layer.bias)
        got, want = [torch.autograd.grad(y.abs().sum(), [x, *factors]) for y in products]
        torch.testing.assert_close(got, want)
        layer.matrix._apply(torch.conj)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_bias_is_kept(layout: str) -> None:
    layer, x = layer_of(layout, 16, 16), vectors(layout, 2, 16)
    flat = torch.zeros(1 << 12)
    reference = StorageWeakRef(flat.untyped_storage())
    layer.bias = nn.Parameter(flat[:16])
    with torch.no_grad(), long_calls() as calls:
        for _ in range(3):
            layer(x)
    assert len(calls) == 1
    del layer.bias, flat
    assert reference.expired()


@pytest.mark.parametrize("grad", [False, True])
def test_a_bias_of_another_kind_is_no_missing_bias(grad: bool) -> None:
    class Odd(Tensor):
        pass

    matrix, x, bias = KMatrix(16), torch.randn(2, 16), torch.randn(16)
    with torch.no_grad():
        for _ in range(2):
            matrix.affine(x, -1, bias)
    with torch.set_grad_enabled(grad):
        assert isinstance(matrix.affine(x, -1, bias.as_subclass(Odd)), Odd)
        with pytest.raises(Exception, match="Fake"):
            matrix.affine(x, -1, FakeTensorMode().from_tensor(bias))


@pytest.mark.parametrize("dim", [2, -3, 5, 2**70])
def test_dimensions_that_are_not_there(dim: int) -> None:
    matrix, x = KMatrix(16), torch.randn(2, 16)
    with torch.no_grad():
        for _ in range(2):
            matrix(x)
        with pytest.raises(IndexError, match=f"dimension {dim} of a tensor of 2 dimensions"):
            matrix(x, dim)


def test_what_is_left_of_a_chain_is_not_the_chain() -> None:
    class Thrice(nn.Module):
        def forward(self, factor: Tensor) -> Tensor:
            return 3 * factor

    x = torch.randn(5, 16)
    parametrised, pruned = KMatrix(16), KMatrix(16)
    left = [list(parametrised.factors)[:1], [*list(pruned.factors)[1:], pruned.factors[0]]]
    for k in range(1, len(parametrised.factors)):
        parametrize.register_parametrization(parametrised.factors, str(k), Thrice())
    prune.identity(pruned.factors, "0")
    prune.remove(pruned.factors, "0")  # which is the last one of the list now
    with torch.no_grad():
        for matrix, factors in zip((parametrised, pruned), left, strict=True):
            for _ in range(2):
                cpu.apply_chain(x, tuple(factors), -1)
            want = x.double() @ dense(list(matrix.factors)).T
            assert_near(matrix(x), want, torch.float32)
