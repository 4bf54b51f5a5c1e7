"""Int8 factors on rows: the library, every instruction set of it, and the reference."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ksurgeon
from ksurgeon.kernels import cpu, int8
from ksurgeon.kernels.cpu import int8 as by_library
from ksurgeon.kmatrix.int8 import Int8Factors, Int8Matrix, quantized
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, LowRank, Monarch, Sum
from ksurgeon.patterns.pattern import Pattern

compiled = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")

CHAINS = {
    "dense": [Pattern(1, 5, 7, 1)],
    "blocks": [Pattern(3, 6, 9, 1)],
    "stride of one vector": [Pattern(2, 3, 5, 16)],
    "stride and a rest": [Pattern(2, 4, 4, 37)],
    "small stride": [Pattern(1, 40, 6, 3)],
    "Monarch": [Pattern(4, 6, 24, 1), Pattern(1, 16, 6, 4)],
    "low rank": [Pattern(1, 9, 64, 1), Pattern(1, 200, 9, 1)],
    "butterfly": [Pattern(8, 4, 4, 1), Pattern(2, 4, 4, 4), Pattern(1, 2, 2, 16)],
    "narrow": [Pattern(16, 2, 2, 1), Pattern(8, 1, 4, 1)],
}


def factors(patterns: list[Pattern], dtype: torch.dtype = torch.float32) -> Int8Factors:
    made = Int8Factors(patterns, dtype=dtype)
    made.set_([torch.randn(pattern.shape) for pattern in patterns])
    return made


def exact(x: Tensor, *chains: Int8Factors) -> tuple[Tensor, Tensor]:
    """The product in float64, every step as it is documented, and a bound of what rounding to integers can
    change where a vector is quantized between factors."""
    result, bound = torch.zeros(()), torch.zeros(())
    for chain in chains:
        y, error = x.double(), torch.zeros(x.shape, dtype=torch.float64)
        for number, (values, scale) in enumerate(chain.pairs):
            pattern = Pattern.of(values.shape)
            dense = torch.einsum(
                "adoi,de,af->aodfie", values.double(), torch.eye(pattern.d), torch.eye(pattern.a)
            ).reshape(pattern.out_features, pattern.in_features)
            dense = dense * scale.double().transpose(1, 2).reshape(-1, 1)
            most = y.abs().amax(-1, keepdim=True)
            steps = most / 127
            numbers = torch.where(most > 0, y / torch.where(most > 0, steps, 1), 0)
            # One step more where rounding, or an error before, moves a number across the middle between two.
            middle = (numbers - numbers.floor() - 0.5).abs() < 1e-3
            moved = error + steps * (middle if not number else 1)
            error = moved @ dense.abs().T
            y = numbers.round() * steps @ dense.T
        result, bound = result + y, bound + error
    return result, bound


@compiled
@given(
    name=st.sampled_from(sorted(CHAINS)),
    rows=st.sampled_from([1, 2, 3, 7, 13, 60]),
    threads=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    biased=st.booleans(),
)
def test_as_documented(name: str, rows: int, threads: int, dtype: torch.dtype, biased: bool) -> None:
    patterns = CHAINS[name]
    chain = factors(patterns)
    x = torch.randn(rows, patterns[0].in_features).to(dtype)
    bias = torch.randn(patterns[-1].out_features).to(dtype) if biased else None
    want, bound = exact(x, chain)
    want = want if bias is None else want + bias.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = by_library.forward(x, chain.pairs, (), bias, None)
    finally:
        torch.set_num_threads(before)
    assert got.dtype is dtype
    rounding = {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(dtype, 1e-5)
    assert bool(((got.double() - want).abs() <= bound + rounding * (1 + want.abs())).all())
    reference = int8._by_reference(x, chain.pairs, (), bias, None)
    assert bool(((reference.double() - want).abs() <= bound + rounding * (1 + want.abs())).all())


@compiled
@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(CHAINS)),
    images=st.sampled_from([0, 1, 3]),
    columns=st.sampled_from([(1,), (7,), (8,), (3, 5), (13, 17), (4, 2, 3)]),
    threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    biased=st.booleans(),
    activation=st.sampled_from([None, "relu"]),
)
def test_columns_are_as_rows(
    name: str,
    images: int,
    columns: tuple[int, ...],
    threads: int,
    dtype: torch.dtype,
    biased: bool,
    activation: str | None,
) -> None:
    patterns = CHAINS[name]
    ins, outs = patterns[0].in_features, patterns[-1].out_features
    first, second = factors(patterns), factors([Pattern(1, outs, ins, 1)])
    x = torch.randn(images, *columns, ins).to(dtype)
    if images:
        x.view(-1, ins)[-1, 0] = torch.nan
    bias = torch.randn(outs).to(dtype) if biased else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for beside in ((), second.pairs):
            want = by_library.forward(x, first.pairs, beside, bias, activation).movedim(-1, 1)
            for vectors in (x.movedim(-1, 1), x.movedim(-1, 1).contiguous()):
                for dim in (1, -len(columns) - 1):
                    got = by_library.forward(vectors, first.pairs, beside, bias, activation, dim)
                    assert got.is_contiguous() or vectors.movedim(1, -1).is_contiguous()
                    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, equal_nan=True)
    finally:
        torch.set_num_threads(before)


@compiled
def test_two_chains_activation_and_any_strides() -> None:
    first, second = factors(CHAINS["Monarch"]), factors([Pattern(1, 8, 96, 1), Pattern(1, 64, 8, 1)])
    x = torch.randn(96, 5, 3).permute(2, 1, 0)
    bias = torch.randn(64)
    parts = [int8.apply_int8(x, chain.pairs) for chain in (first, second)]
    for activation in (None, "relu", "gelu", "silu"):
        want = int8.activate(parts[0] + parts[1] + bias, activation)
        got = int8.apply_int8(x, first.pairs, second.pairs, bias, activation)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by", [pytest.param("library", marks=compiled), "reference"])
def test_numbers_that_are_not_finite(by: str) -> None:
    """NaN in all outputs of that vector, and in no other; what is too small to be scaled counts as zero."""
    chain = factors(CHAINS["low rank"])
    x = torch.randn(5, 64)
    x[0, 3], x[1, 0], x[2] = torch.nan, -torch.inf, 1e-38
    x[3] = 0
    product = by_library.forward if by == "library" else int8._by_reference
    y = product(x, chain.pairs, (), None, None)
    assert bool(y[:2].isnan().all())
    assert bool((y[2:4] == 0).all())
    torch.testing.assert_close(y[4:], product(x[4:], chain.pairs, (), None, None), atol=1e-5, rtol=1e-5)


@compiled
@pytest.mark.parametrize(
    "write",
    [
        lambda values, scale: values.mul_(-1),
        lambda values, scale: values.data.mul_(-1),
        lambda values, scale: values.numpy().__imul__(-1),
        lambda values, scale: scale.mul_(-1),
        lambda values, scale: scale.data.mul_(-1),
    ],
    ids=["values", "values' data", "values' numpy", "scale", "scale's data"],
)
def test_no_weight_is_stale(write: object) -> None:
    matrix = quantized(KMatrix(24, 40, structure=Dense()))
    x = torch.randn(2, 24)
    with torch.no_grad():
        before = matrix(x)
        assert torch.equal(matrix(x), before)
        write(*matrix.factors.pairs[0])  # type: ignore[operator]
        torch.testing.assert_close(matrix(x), -before)


@compiled
def test_other_memory_and_dtypes_of_the_same_buffers() -> None:
    matrix = quantized(KMatrix(24, 40, structure=Dense()))
    x = torch.randn(2, 24)
    with torch.no_grad():
        want = matrix(x)
        matrix.factors.values_0.data = matrix.factors.values_0.data.clone()
        torch.testing.assert_close(matrix(x), want)
        half = copy.deepcopy(matrix).bfloat16()
        assert half.factors.values_0.dtype is torch.int8
        assert half(x.bfloat16()).dtype is torch.bfloat16
        torch.testing.assert_close(
            half(x.bfloat16()).float(), want, atol=0.02 * float(want.abs().max()), rtol=0
        )
        torch.testing.assert_close(half(x), want, atol=0.02 * float(want.abs().max()), rtol=0)
        del matrix
        again = quantized(KMatrix(24, 40, structure=Dense()))
        torch.testing.assert_close(again(x), int8._by_reference(x, again.factors.pairs, (), None, None))


@pytest.mark.parametrize(
    ("ins", "outs", "structure", "groups"),
    [
        (48, 48, Kaleidoscope(), 1),
        (64, 256, LowRank(rank=8), 1),
        (96, 48, Sum(Monarch(blocks=4, block_rank=2), rank=6), 1),
        (37, 12, Kaleidoscope(radix=2), 1),
        (12, 37, Kaleidoscope(radix=2), 1),
        (60, 30, Kaleidoscope(radix=2), 3),
    ],
    ids=str,
)
def test_a_matrix_of_any_structure(ins: int, outs: int, structure: object, groups: int) -> None:
    matrix = KMatrix(ins, outs, structure=structure, groups=groups)  # type: ignore[arg-type]
    x, bias = torch.randn(4, 7, ins), torch.randn(outs)
    with torch.no_grad():
        want = matrix.affine(x, -1, bias)
        new = quantized(matrix)
        got = new.affine(x, -1, bias)
        assert float((got - want).norm() / want.norm()) < 0.05
        torch.testing.assert_close(new(x.transpose(1, 2), 1), new(x).transpose(1, 2))
        dense = new.to_dense()
        assert dense.shape == (outs, ins)
        assert float((dense - matrix.to_dense()).norm() / matrix.to_dense().norm()) < 0.03
        assert float((x @ dense.T + bias - got).norm() / got.norm()) < 0.05
    assert type(copy.deepcopy(new)) is Int8Matrix


def test_gradients_of_the_input_are_those_of_the_dequantized_matrix() -> None:
    matrix = quantized(KMatrix(48, 24, structure=Sum(Monarch(blocks=4, block_rank=2), rank=6)))
    x = torch.randn(3, 48, requires_grad=True)
    g = torch.randn(3, 24)
    matrix(x).backward(g)
    torch.testing.assert_close(x.grad, g @ matrix.to_dense())
    assert not list(matrix.parameters())


def test_compiled_exported_and_under_autocast() -> None:
    matrix, x = quantized(KMatrix(48, 24, structure=LowRank(rank=8))), torch.randn(3, 48)
    with torch.no_grad():
        want = matrix(x)
        torch.testing.assert_close(torch.compile(matrix, backend="aot_eager", fullgraph=True)(x), want)
        program = torch.export.export(matrix, (x,)).module()
        assert float((program(x) - want).norm() / want.norm()) < 0.03
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert matrix(x).dtype is torch.bfloat16
        batch = torch.vmap(matrix)(x.expand(2, 3, 48).clone())
        torch.testing.assert_close(batch, want.expand(2, 3, 24), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expected 48 entries along dimension -1"):
        matrix(torch.randn(3, 47))


@compiled
def test_what_the_library_cannot_have_is_refused() -> None:
    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.ones(shape, dtype=torch.int8), torch.ones(shape[:3])

    x, good = torch.ones(2, 8), pair(1, 1, 4, 8)
    for first, second, message in (
        ([(good[0].float(), good[1])], (), "int8 of shape"),
        ([(good[0], torch.ones(1, 1, 3))], (), "int8 of shape"),
        ([(good[0], good[1].int())], (), "int8 of shape"),
        ([pair(1, 1, 0, 8)], (), "int8 of shape"),
        ([good, pair(1, 1, 4, 6)], (), "factor"),
        ([good], [pair(1, 1, 5, 8)], "equal sizes"),
        ([good], [pair(1, 1, 4, 9)], "equal sizes"),
        ([(good[0].to("meta"), good[1])], (), "on the CPU"),
        ([pair(1, 1, 1, 70_000)], (), "do not fit 32 bits"),
    ):
        with pytest.raises((ValueError, ksurgeon.StructureError), match=message):
            by_library.forward(x, first, second, None, None)
    for wrong in (x.long(), x.to(torch.complex64)):
        with pytest.raises(ValueError, match="real floating dtype"):
            int8.apply_int8(wrong, [good])
    with pytest.raises(ksurgeon.StructureError, match="do not fit 32 bits"):
        quantized(KMatrix(70_000, 1, structure=Dense()))
    want = torch.full((2, 1), 66_000.0)
    got = by_library.forward(torch.ones(2, 66_000), [pair(1, 1, 1, 66_000)], (), None, None)
    torch.testing.assert_close(got, want * 127 / 127)


@compiled
def test_another_view_of_the_same_memory() -> None:
    matrix, x = quantized(KMatrix(24, 24, structure=Dense())), torch.randn(2, 24)
    with torch.no_grad():
        matrix(x)
        values = matrix.factors.values_0
        values.data = values.data.transpose(2, 3)
        want = int8._by_reference(x, matrix.factors.pairs, (), None, None)
        torch.testing.assert_close(matrix(x), want, atol=1e-5, rtol=1e-5)
        matrix.to("meta")
        with pytest.raises(ValueError, match="on the CPU"):
            matrix(x)


def test_forward_mode_derivatives_are_those_of_the_dequantized_matrix() -> None:
    matrix = quantized(KMatrix(48, 24, structure=LowRank(rank=8)))
    x, t = torch.randn(3, 48), torch.randn(3, 48)
    want = t @ matrix.to_dense().T
    torch.testing.assert_close(torch.func.jvp(matrix, (x,), (t,))[1], want, atol=1e-5, rtol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, t)
        got = torch.autograd.forward_ad.unpack_dual(matrix(dual)).tangent
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_wide_numbers_of_float64() -> None:
    matrix = quantized(KMatrix(24, 40, structure=Dense())).double()
    x = torch.randn(2, 24, dtype=torch.float64)
    with torch.no_grad():
        for size in (1e100, 1e-30):
            torch.testing.assert_close(matrix(size * x), size * matrix(x), atol=0, rtol=1e-9)


SCRIPT = """
import sys, torch
from ksurgeon.kernels.cpu.native import instruction_set
from ksurgeon.kernels.cpu import int8
given = torch.load(sys.argv[1])
if instruction_set() != sys.argv[3]: sys.exit(77)
torch.save([int8.forward(x, pairs, (), None, None) for x, pairs in given], sys.argv[2])
"""


@compiled
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_vnni"])
def test_every_instruction_set_gives_the_same(isa: str, tmp_path: object) -> None:
    cases = [(torch.randn(13, p[0].in_features), factors(p).pairs) for p in CHAINS.values()]
    torch.save(cases, f"{tmp_path}/given")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"{tmp_path}/given", f"{tmp_path}/got", isa],
        env={**os.environ, "KSURGEON_CPU_ISA": isa, "KSURGEON_BACKEND": "auto"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "no such instruction set" in done.stderr or "_LIBRARY" in done.stderr:
        pytest.skip(f"no {isa} here")
    assert not done.returncode, done.stderr
    for (x, pairs), y in zip(cases, torch.load(f"{tmp_path}/got"), strict=True):
        want = by_library.forward(x, pairs, (), None, None)
        # Sums are exact; numbers between factors are rounded to integers that differ by one here and there.
        few = float((y - want).norm() / want.norm())
        assert few < (1e-6 if len(pairs) == 1 else 0.01)
