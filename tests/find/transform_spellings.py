"""Networks that transform, spelled in the ways we know, and decoys that only look like it."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ksurgeon.kmatrix.known import _dct, _hadamard, _ortho

N = 16


def dft_matrix(n=N):
    return torch.fft.fft(torch.eye(n, dtype=torch.complex64))


class Between(nn.Module):
    """A transform in the middle of a forward: a layer before it, another after."""

    inner, expected, dim, buffer = N, "dft", 2, None

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(5, N), nn.Linear(self.inner, 3)
        if self.buffer is not None:
            self.register_buffer("constant", type(self).buffer())

    def example(self):
        return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))

    def transform(self, x):
        raise AssertionError("every spelling brings its own")

    def forward(self, x):
        return self.after(torch.tanh(self.transform(torch.relu(self.before(x)))))


class Fft(Between):
    def transform(self, x):
        return torch.fft.fft(x).real


class FftOrthoImaginary(Between):
    def transform(self, x):
        return torch.fft.fft(x, dim=2, norm="ortho").imag


class Ifft(Between):
    expected = "idft"

    def transform(self, x):
        return torch.fft.ifft(x, norm="forward").real


class IfftOrtho(Between):
    expected = "idft"

    def transform(self, x):
        return torch.fft.ifft(x * 1j, norm="ortho").imag


class Rfft(Between):
    inner, expected = 18, "rdft"

    def transform(self, x):
        return torch.view_as_real(torch.fft.rfft(x, n=16)).flatten(2)


class Modulus(Between):
    inner, expected = 9, "rdft"

    def transform(self, x):
        return torch.fft.rfft(x).abs().square()


class FnetLike(Between):
    def __init__(self):
        super().__init__()
        self.fourier = partial(torch.fft.fftn, dim=(1, 2))

    def transform(self, x):
        return self.fourier(x).real


class Fft2(Between):
    def transform(self, x):
        return torch.fft.fft2(x).real


class Ifftn(Between):
    expected = "idft"

    def transform(self, x):
        return torch.fft.ifftn(x, dim=(1, 2), norm="ortho").real


class AlongTheFirst(Between):
    """Channels in dimension 1, as a convolution leaves them."""

    dim = 1

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv1d(5, N, 1), nn.Conv1d(N, 3, 1)

    def example(self):
        return torch.randn(2, 5, 7)

    def transform(self, x):
        return torch.fft.fft(x, dim=1).real


class Frames(nn.Module):
    """The size comes from a window that is a constant, and from the frames."""

    expected, dim = "rdft", 2

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(24))

    def example(self):
        return torch.randn(2, 200)

    def forward(self, x):
        return torch.fft.rfft(x.unfold(-1, 24, 8) * self.window).abs()


class GlobalFilter(nn.Module):
    """A learned filter in the spectrum fixes the size; the inverse keeps to it."""

    expected, dim = "rdft", 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 4, dtype=torch.complex64))

    def example(self):
        return torch.randn(2, 12, 4)

    def forward(self, x):
        return torch.fft.rfft(x, dim=1) * self.weight


class DctMatrix(Between):
    expected, buffer = "dct", staticmethod(lambda: 0.5 * _dct(N).float())

    def transform(self, x):
        return x @ self.constant.T


class OrthoDctMatrix(Between):
    expected, buffer = "dct_ortho", staticmethod(lambda: _ortho(N).float())

    def transform(self, x):
        return F.linear(x, self.constant)


class Hadamard(Between):
    expected, buffer = "hadamard", staticmethod(lambda: _hadamard(N).float() / 4)

    def transform(self, x):
        return torch.matmul(x, self.constant)


class DftMatrix(Between):
    buffer = staticmethod(dft_matrix)

    def transform(self, x):
        return (x.to(torch.complex64) @ self.constant).real


class LeftProduct(Between):
    expected, buffer = "hadamard", staticmethod(lambda: _hadamard(N).float())

    def transform(self, x):
        return (self.constant @ x.transpose(1, 2)).transpose(1, 2)


LeftProduct.dim = 1


class Circulant(Between):
    expected = "circulant"
    buffer = staticmethod(lambda: torch.stack([torch.arange(N).roll(i).float().sin() for i in range(N)]))

    def transform(self, x):
        return x @ self.constant


class SpectralConvolution(Between):
    expected, buffer = "circulant", staticmethod(lambda: torch.fft.rfft(torch.randn(N)))

    def transform(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.constant, n=16)


class ComplexConvolution(Between):
    expected, buffer = "circulant", staticmethod(lambda: torch.fft.fft(torch.randn(N)))

    def transform(self, x):
        return torch.fft.ifft(self.constant * torch.fft.fft(x, dim=-1)).real


SPELLINGS = [
    Fft, FftOrthoImaginary, Ifft, IfftOrtho, Rfft, Modulus, FnetLike, Fft2, Ifftn, AlongTheFirst, Frames,
    GlobalFilter, DctMatrix, OrthoDctMatrix, Hadamard, DftMatrix, LeftProduct, Circulant, SpectralConvolution,
    ComplexConvolution,
]  # fmt: skip


class SequenceFft(Between):
    """Along time, of which tomorrow's inputs may have more."""

    def transform(self, x):
        return torch.fft.fft(x, dim=1).real


class Cropped(Between):
    inner = 5

    def transform(self, x):
        return torch.fft.rfft(x, n=8).abs()


class Padded(Between):
    inner = 32

    def transform(self, x):
        return torch.fft.fft(x, n=32).real


class LinearConvolution(Between):
    """Padded to twice the size: no circular convolution of the size that it has."""

    buffer = staticmethod(lambda: torch.fft.rfft(torch.randn(N), n=32))

    def transform(self, x):
        return torch.fft.irfft(torch.fft.rfft(x, n=32) * self.constant, n=32)[..., :16]


class RealOfSeveral(Between):
    def transform(self, x):
        return F.pad(torch.fft.rfft2(x).real, (0, 7))


REFUSED = [SequenceFft, Cropped, Padded, RealOfSeveral]
"""Transforms, listed with a reason."""


def product(name, make):
    class Decoy(Between):
        buffer = staticmethod(make)

        def transform(self, x):
            return x @ self.constant

    Decoy.__name__ = name
    return Decoy


def _changed(matrix, row=3, column=5):
    matrix = matrix.clone().float()
    matrix[row, column] += 0.01
    return matrix


class Trained(Between):
    """A layer's own weight is a linear site, whatever it happens to hold."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(_hadamard(N).float())

    def transform(self, x):
        return F.linear(x, self.weight)


class OfTheInput(Between):
    """A matrix that the input makes."""

    def transform(self, x):
        return x @ (x.transpose(1, 2) @ x)


class Power(Between):
    def transform(self, x):
        return (x + 1j).abs()


DECOYS = [
    product("Random", lambda: torch.randn(N, N)),
    product("Orthogonal", lambda: torch.linalg.qr(torch.randn(N, N))[0]),
    product("Identity", lambda: torch.eye(N)),
    product("Scaled", lambda: 2 * torch.eye(N)),
    product("Mean", lambda: torch.full((N, N), 1 / N)),
    product("Centring", lambda: torch.eye(N) - 1 / N),
    product("Shift", lambda: torch.eye(N).roll(1, 0)),
    product("Reversal", lambda: torch.eye(N).flip(0)),
    product("Cumulative", lambda: torch.ones(N, N).tril()),
    product("Differences", lambda: torch.eye(N) - torch.eye(N).roll(1, 0).tril()),
    product("ChangedDct", lambda: _changed(_dct(N))),
    product("ChangedHadamard", lambda: _changed(_hadamard(N))),
    product("ShuffledHadamard", lambda: _hadamard(N).float()[torch.randperm(N)]),
    product("SignedHadamard", lambda: _hadamard(N).float() * torch.tensor([1.0, -1.0] * (N // 2))),
    product("ShiftedDct", lambda: _dct(N).float().roll(1, 0)),
    product("Toeplitz", lambda: (torch.arange(N)[:, None] - torch.arange(N)).float().abs()),
    product("Zero", lambda: torch.zeros(N, N)),
    product("Infinite", lambda: torch.full((N, N), float("inf"))),
    Trained,
    OfTheInput,
    Power,
]
