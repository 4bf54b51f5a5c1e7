import pytest
import torch

from ksurgeon.errors import StructureError
from ksurgeon.kernels import apply_chain
from ksurgeon.kmatrix.radix import transform_radices
from ksurgeon.kmatrix.transform import KTransform
from ksurgeon.kmatrix.transforms import (
    as_real,
    circulant_factors,
    dct_factors,
    dft_factors,
    digit_reversal,
    hadamard_factors,
)
from tests.near import near

SIZES = [1, 2, 3, 4, 5, 6, 8, 12, 13, 30, 37, 64, 100, 116, 240, 400, 480, 512, 768, 1000, 1024]


def radices_of(n):
    """The default, its reverse, and primes throughout."""
    default = transform_radices(n)
    primes, rest, p = [], n, 2
    while rest > 1:
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p += 1
    return {default, default[::-1], tuple(primes) or (1,)}


def close(actual, expected, tolerance=1e-14):
    scale = expected.abs().max().clamp(min=1e-300)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() / scale < tolerance * max(1, actual.shape[-1] ** 0.5)


@pytest.mark.parametrize("n", SIZES)
def test_dft_and_inverse(n):
    x = torch.randn(3, n, dtype=torch.complex128)
    for radices in radices_of(n):
        order = digit_reversal(radices)
        assert torch.equal(order.sort().values, torch.arange(n))
        close(apply_chain(x[:, order], dft_factors(n, radices)), torch.fft.fft(x))
        close(apply_chain(x[:, order], dft_factors(n, radices, inverse=True)), torch.fft.ifft(x))
        falling = [factor.mT for factor in reversed(dft_factors(n, radices))]
        close(apply_chain(x, falling), torch.fft.fft(x)[:, order])


@pytest.mark.parametrize("n", SIZES)
def test_real_form(n):
    x = torch.randn(3, n, dtype=torch.complex128)
    both = torch.view_as_real(x)
    for radices in radices_of(n):
        order, factors = digit_reversal(radices), dft_factors(n, radices)
        expected = torch.fft.fft(x)
        planes = torch.cat([expected.real, expected.imag], -1)
        close(apply_chain(both[:, order].flatten(1), as_real(factors)), planes)
        real = as_real(factors, takes="both", gives="real")
        close(apply_chain(both[:, order].flatten(1), real), expected.real)


@pytest.mark.parametrize("n", SIZES)
def test_dct_hadamard_and_circulant_against_their_definitions(n):
    x = torch.randn(3, n, dtype=torch.float64)
    k, t = torch.arange(n)[:, None], torch.arange(n)
    cosine = 2 * torch.cos(torch.pi * (k * (2 * t + 1) % (4 * n)).to(torch.float64) / (2 * n))
    ortho = cosine * (0.5 / n) ** 0.5
    ortho[0] *= 0.5**0.5
    column = torch.randn(n, dtype=torch.float64)
    circulant = column[(k - t) % n]
    for radices in radices_of(n):
        order, factors = dct_factors(n, radices)
        close(apply_chain(x[:, order], factors), x @ cosine.T)
        order, factors = dct_factors(n, radices, ortho=True)
        close(apply_chain(x[:, order], factors), x @ ortho.T)
        close(apply_chain(x, circulant_factors(column, radices)), x @ circulant.T)
    if n & (n - 1) == 0:
        sign = torch.tensor([[(-1.0) ** (i & j).bit_count() for i in range(n)] for j in range(n)])
        close(apply_chain(x, hadamard_factors(n)), x @ sign.double())


def test_complex_circulant():
    column, x = torch.randn(2, 30, dtype=torch.complex128)
    expected = torch.fft.ifft(torch.fft.fft(column) * torch.fft.fft(x))
    close(apply_chain(x[None], circulant_factors(column))[0], expected)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 30, 400, 512])
@pytest.mark.parametrize("dim", [1, -1])
def test_modules(n, dim):
    x = torch.randn(2, n, 3).movedim(1, dim if dim > 0 else 2)
    shape = list(x.shape)
    shape[dim] = n // 2 + 1
    z, half = torch.complex(x, torch.randn_like(x)), torch.randn(shape, dtype=torch.complex64)
    for kind, given, expected in [
        ("dft", x, torch.fft.fft(x, dim=dim)),
        ("dft", z, torch.fft.fft(z, dim=dim)),
        ("idft", x, torch.fft.ifft(x, dim=dim)),
        ("idft", z, torch.fft.ifft(z, dim=dim)),
        ("rdft", x, torch.fft.rfft(x, dim=dim)),
        ("irdft", half, torch.fft.irfft(half, n, dim=dim)),
    ]:
        module = KTransform(kind, n, dim)
        close(module(given), expected, 3e-7)
        assert module.is_exact()
        doubled = KTransform(kind, n, dim, scale=2.0).double()
        assert doubled(given).dtype == (torch.float64 if kind == "irdft" else torch.complex128)
        close(KTransform(kind, n, dim, scale=2.0)(given), 2 * expected, 3e-7)
    close(KTransform("circulant", n, dim, column=[1.0] + [0.0] * (n - 1))(x), x, 3e-7)


def moved(module):
    """With factors as training leaves them."""
    with torch.no_grad():
        for factor in module.factors:
            factor.add_(torch.randn_like(factor), alpha=0.1)
    return module


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dim", [1, -1])
def test_the_symmetry_of_real_input(n, dim):
    """Exact at first, with fewer parameters; trained, what its chain of factors gives by the definition."""
    x = torch.randn(2, n, 3, dtype=torch.float64).movedim(1, dim if dim > 0 else 2)
    whole = KTransform("rdft", n, dim, dtype=torch.float64)
    for radices in radices_of(n) | {None}:
        module = KTransform("rdft", n, dim, radices=radices, symmetric=True, dtype=torch.float64)
        expected = torch.fft.rfft(x, dim=dim)
        close(module(x), expected)  # torch.fft's in eager inference, the chain's below
        close(module(x.clone().requires_grad_()).detach(), expected)
        assert module.is_exact()
    if len(transform_radices(n)) > 1:
        assert sum(f.numel() for f in module.factors) < sum(f.numel() for f in whole.factors)
    moved(module)
    with torch.no_grad():
        trained = module(x)
    close(trained, module(x.clone().requires_grad_()).detach())
    first, half = module.radices[0], module.radices[0] // 2 + 1
    chain = [torch.view_as_complex(factor) for factor in module.factors]
    y = apply_chain(x.movedim(dim, -1)[..., module.order].to(torch.complex128), chain)
    y = y.unflatten(-1, (n // first, half))
    k = torch.arange(n // 2 + 1)
    other = k % first >= half
    there = torch.where(other, n - k, k)
    found = y[..., there // first, there % first]
    close(trained.movedim(dim, -1), torch.where(other, found.conj(), found))


def test_a_changed_factor_is_not_an_old_one():
    """In eager inference the chain in real arithmetic is kept, until an entry changes, however it does."""
    module, x, window = moved(KTransform("rdft", 24)), torch.randn(24, 5), torch.rand(24)

    def again():
        return module.parts(x.clone().requires_grad_(), 0, window).detach()

    with torch.no_grad():
        before = module.parts(x, 0, window)
        assert near(before, again())
        for factor in module.factors:
            factor.data[..., 0, 1].neg_()
            assert near(module.parts(x, 0, window), again())
        window *= 2
        assert near(module.parts(x, 0, window), again())
        assert not near(module.parts(x, 0, window), before)
        assert near(module.parts(x, 0), module.parts(x.clone().requires_grad_(), 0).detach())
        z = torch.complex(x, x)
        module = moved(KTransform("dft", 24, 0))
        for given in (x, z, x, z):
            assert near(module(given), module(given.clone().requires_grad_()).detach())


def test_what_is_kept_is_of_the_factors_it_is_kept_for(monkeypatch):
    """Though another thread writes to them while the chain is made."""
    module, x = moved(KTransform("rdft", 24)), torch.randn(3, 24)
    later = []

    def slow(factors, **options):
        if not later:
            later.append(module.factors[0].data.mul_(2))
        return as_real(factors, **options)

    monkeypatch.setattr("ksurgeon.kmatrix.transform.as_real", slow)
    with torch.no_grad():
        module(x)
        module.factors[0].data.div_(2)
        found = module(x)
    assert near(found, module(x.clone().requires_grad_()).detach())


def test_complex_input_of_a_real_transform_is_refused():
    z = torch.randn(2, 24, dtype=torch.complex64)
    for module in (KTransform("rdft", 24), moved(KTransform("rdft", 24, symmetric=True))):
        with pytest.raises(ValueError, match=r"takes real tensors.*complex64"):
            module(z)


def test_the_other_dimensions_are_left_open():
    x = torch.randn(2, 7, 12)
    module = KTransform("dft", 12, 2, others=(1,))
    close(module(x), torch.fft.fftn(x, dim=(1, 2)), 1e-6)
    close(module(x[:, :5]), torch.fft.fftn(x[:, :5], dim=(1, 2)), 1e-6)
    close(KTransform("idft", 12, 2, others=(1,))(x), torch.fft.ifftn(x, dim=(1, 2)), 1e-6)


def test_learnable_and_like_any_module():
    module, x = KTransform("rdft", 24), torch.randn(4, 24)
    module(x).abs().sum().backward()
    assert all(factor.grad.abs().sum() > 0 for factor in module.factors)
    other = KTransform("rdft", 24, start="random")
    assert not other.is_exact()
    other.load_state_dict(module.state_dict())
    assert near(other(x), module(x)) and other.is_exact()
    low = KTransform("rdft", 24).to(torch.bfloat16)
    assert all(factor.dtype == torch.bfloat16 for factor in low.factors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dft_factors(12, [2, 3]), "multiply to 6"),
        (lambda: hadamard_factors(12), "power of two"),
        (lambda: transform_radices(0), "at least 1"),
        (lambda: KTransform("circulant", 4), "first column"),
        (lambda: KTransform("dft", 4, start="exactly"), "exact, random or empty"),
        (lambda: KTransform("dft", 4, symmetric=True), "of real input"),
    ],
)
def test_errors(call, message):
    with pytest.raises(StructureError, match=message):
        call()


def test_a_wrong_size_is_told():
    with pytest.raises(ValueError, match=r"expected 8 entries along dimension -1"):
        KTransform("dct", 8)(torch.randn(2, 9))
