"""No write to a factor goes unseen, and none by another thread does harm."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.cpu import pack, run
from ksurgeon.kernels.cpu.native import Chain, fast
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense
from tests.chains import assert_near
from tests.kernels.layouts import LAYOUTS, exact, layer_of, vectors

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


def assert_fresh(layer: KLinear | KPointwiseConv, x: Tensor) -> None:
    with torch.no_grad():
        want = reference.apply_chain(x, [factor.clone() for factor in layer.matrix.factors], 1, layer.bias)
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


def numpy_entry(p: Tensor) -> None:
    p.detach().numpy().reshape(-1)[7] += 3


def dlpack_last_entry(p: Tensor) -> None:
    torch.from_dlpack(p.detach()).view(-1)[-1] += 3


def data_row(p: Tensor) -> None:
    p.data[-1, -1, -1].zero_()


def data_clamped(p: Tensor) -> None:
    p.data.clamp_(-p.data.std(), p.data.std())


def one_bit(p: Tensor) -> None:
    p.detach().view(torch.int32).numpy().reshape(-1)[5] ^= 1 << 22


def storage_byte(p: Tensor) -> None:
    p.untyped_storage()[43] = 65 if p.untyped_storage()[43] != 65 else 66


def entries_swapped(p: Tensor) -> None:
    flat = p.data.view(-1)
    flat[[1, 9]] = flat[[9, 1]]


def blocks_swapped(p: Tensor) -> None:
    p.data.copy_(p.data.flip(0).flip(1))


def transposed(p: Tensor) -> None:
    if p.shape[-1] == p.shape[-2]:
        p.data = p.data.mT


def in_inference_mode(p: Tensor) -> None:
    with torch.inference_mode():
        p.data.view(-1)[5] = 3


def version_kept(p: Tensor) -> None:
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(p):
        p.view(-1)[6] = 3


WRITES = [
    numpy_entry, dlpack_last_entry, data_row, data_clamped, one_bit, storage_byte, entries_swapped,
    blocks_swapped, transposed, in_inference_mode, version_kept,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("size", [(16, 16), (256, 256), (768, 3072)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_write_to_factors_of_512_kib_is_stale(
    layout: str, size: tuple[int, int], write: Callable[[Tensor], None]
) -> None:
    torch.manual_seed(0)
    layer = layer_of(layout, *size)
    inputs = [vectors(layout, count, size[0]) for count in ((1, 3, 40) if layout == "rows" else (1, 3))]
    for k in range(len(layer.matrix.factors)):
        for x in inputs:
            assert_fresh(layer, x)
        write(layer.matrix.factors[k])
        for x in inputs:
            assert_fresh(layer, x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_view_of_other_shape_is_seen(layout: str) -> None:
    layer, x = layer_of(layout, 64, 64), vectors(layout, 1, 64)
    assert_fresh(layer, x)
    first = layer.matrix.factors[0]
    assert first.shape == (1, 16, 4, 4)
    first.data = first.data.view(16, 1, 4, 4)
    assert_fresh(layer, x)


def whole(layout: str, size: int) -> tuple[KLinear | KPointwiseConv, Tensor]:
    """A layer of one factor, which products in columns read where it lies if they compute in its dtype."""
    dtype = torch.bfloat16 if layout == "columns" else torch.float32
    layer = layer_of(layout, size, size, structure=Dense(), bias=False, dtype=dtype)
    return layer, vectors(layout, 1, size, dtype)


def calls_until_seen(layer: KLinear | KPointwiseConv, x: Tensor, entry: int) -> int:
    with torch.no_grad():
        old = layer(x).clone()
        layer.matrix.factors[0].data.view(-1)[entry] += 100
        return next((k for k in range(1, 100) if not torch.equal(layer(x), old)), 100)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_write_to_larger_factors_is_seen_after_64_calls(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KSURGEON_COMPARE", raising=False)
    layer, x = whole(layout, 768)
    assert layer.matrix.factors[0].nbytes > pack._EVERYTHING
    late = [calls_until_seen(layer, x, entry) for entry in range(3, 768 * 768, 91_111)]
    assert max(late) <= 64 and sorted(set(late)) != [1]
    with torch.no_grad():
        assert_near(layer(x), exact(layer, x), x.dtype)


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_compared_can_be_chosen(layout: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSURGEON_COMPARE", "everything")
    for entry in (3, size * size - 2):
        layer, x = whole(layout, size)
        assert calls_until_seen(layer, x, entry) == 1
    monkeypatch.setenv("KSURGEON_COMPARE", "versions")
    layer, x = whole(layout, size)
    assert calls_until_seen(layer, x, 5) == 100
    with torch.no_grad():
        cpu.forget(list(layer.matrix.factors))
        assert_near(layer(x), exact(layer, x), x.dtype)
        layer.matrix.factors[0][0, 0, 0, 0] += 300
        assert_near(layer(x), exact(layer, x), x.dtype)
    monkeypatch.setenv("KSURGEON_COMPARE", "sometimes")
    with (
        pytest.raises(KsurgeonError, match="'sometimes': expected one of auto"),
        torch.no_grad(),
    ):
        layer_of(layout, size, size, dtype=x.dtype)(x)


@pytest.mark.skipif(fast is None, reason="the short path was not compiled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_who_has_a_record_holds_what_it_reads(layout: str) -> None:
    layer, x = layer_of(layout, 64, 64), vectors(layout, 1, 64)
    factors = tuple(layer.matrix.factors)
    with torch.no_grad():
        want = layer(x)
    held, before = pack.record_of(factors[0]), count_chains()
    cpu.forget(factors)
    assert count_chains() == before
    for factor in factors:  # other memory, as `to` gives; the old is compared, and held
        factor.data = factor.data.clone()
    assert fast.product(x, factors, layer.bias, held, 0, 1, 1) is None
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
    del held
    cpu.forget(factors)
    assert count_chains() < before


def count_chains() -> int:
    gc.collect()
    return sum(isinstance(thing, Chain) for thing in gc.get_objects())


@pytest.mark.skipif(fast is None, reason="the short path was not compiled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bias_of_other_memory_is_read_where_it_is(layout: str) -> None:
    layer, x = layer_of(layout, 64, 64), vectors(layout, 1, 64)
    for _ in range(3):
        assert_fresh(layer, x)
        layer.bias.data = torch.randn(64)
        assert_fresh(layer, x)
        layer.bias = nn.Parameter(torch.randn(64))


@pytest.mark.parametrize("shape, dim", [((1, 64), -1), ((40, 64), -1), ((2, 64, 19), 1)], ids=str)
def test_factors_that_change_in_every_call_are_no_error(
    shape: tuple[int, ...], dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, x = [factor.detach() for factor in KMatrix(64, 64).factors], torch.randn(shape)
    make = run.find_pack

    def raced(factors: list[Tensor], light: bool = False) -> pack.Pack:
        found = make(factors, light)
        getattr(found, "rows" if dim == -1 else "columns")(factors, *[shape[0]] * (dim == -1))
        factors[0].numpy()[...] *= 1.5  # another thread, at the worst time
        return found

    monkeypatch.setattr(run, "find_pack", raced)
    y = cpu.apply_chain(x, factors, dim)
    torch.testing.assert_close(y, reference.apply_chain(x, factors, dim), rtol=1e-4, atol=1e-4)


def test_transposed_permutations_are_no_error() -> None:
    index = torch.randperm(16)
    matrix, x = KMatrix.from_permutation(index), torch.randn(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(matrix.transposed(matrix(x)), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_serve_while_another_loads_weights(layout: str) -> None:
    """All entries are positive and the new weights the larger ones: what is between is a mixture."""
    layer, x = layer_of(layout, 256, 256), vectors(layout, 64 if layout == "rows" else 4, 256).abs()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.abs_()
        old = {name: value.clone() for name, value in layer.state_dict().items()}
        new = {name: value * 1.2 for name, value in old.items()}
        low = layer(x)
        layer.load_state_dict(new)
        high = layer(x)
    stop, failures, calls = threading.Event(), [], []

    def serve(rows: int) -> None:
        try:
            with torch.no_grad():
                while not stop.is_set():
                    y = layer(x[:rows])
                    calls.append(rows)
                    if not ((y >= 0.999 * low[:rows]) & (y <= 1.001 * high[:rows])).all():
                        failures.append("neither of the two weights, nor a mixture")
        except Exception as error:
            failures.append(error)

    servers = [threading.Thread(target=serve, args=(rows,)) for rows in (1, 1, 2, len(x))]
    for server in servers:
        server.start()
    for k in range(200):
        if k % 5:
            layer.load_state_dict(old if k % 2 else new)
        else:
            for name, value in layer.named_parameters():
                value.data = (old if k % 2 else new)[name].clone()
    stop.set()
    for server in servers:
        server.join()
    assert not failures and len(set(calls)) == 3


def test_what_is_packed_later_is_of_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and written back, unseen by versions, where the factors take more than 512 KiB."""
    monkeypatch.setattr(
        pack,
        "choose",
        lambda patterns, _, kind: (1,) * len(patterns) if kind == "few" else (2,) * (len(patterns) // 2),
    )
    layer = KLinear(8192, 8192, bias=False).requires_grad_(False).eval()
    many, one, entry = torch.randn(40, 8192), torch.randn(1, 8192), layer.matrix.factors[0].data[-1, -1]
    with torch.no_grad():
        layer(many)
        kept = entry.clone()
        entry.mul_(3)
        layer(one)  # packs for few rows
        entry.copy_(kept)
        for _ in range(64):  # after which all parts have been compared
            got = layer(one)
        assert_near(got, reference.apply_chain(one, layer.matrix.factors, -1), torch.float32)
